"""Argument parsing whose errors are one line that names the nearest right choice."""

import argparse
import math
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from worldmodel.errors import UserError, nearest
from worldmodel.presets import presets

TRUST = "Run the Python code that the run or checkpoint names for its rule, encoder, decoder or reader"
SUBCOMMANDS = ("fit", "validate", "test")
# Old names of options, for one release: a command takes the new name alone, and a message points to it
RENAMED = {
    "data.max_kl": "data.target_kl",
    "data.on_weight_change": "data.stale_state",
    "data.on_weight_change_steps": "data.stale_state_steps",
    "data.passes": "data.update_epochs",
    "model.clip": "model.clip_coef",
    "model.entropy_weight": "model.ent_coef",
    "model.trace": "model.gae_lambda",
    "model.value_weight": "model.vf_coef",
    "tbptt.on_weight_change": "tbptt.stale_state",
}
# What other programs call these options; the last part of a key, or all of it
SYNONYMS = {
    "batch_size": "data.lanes",
    "lr": "model.learning_rate",
    "seed": "seed_everything",
    "seq_len": "data.steps",
    "sequence_length": "data.steps",
}


# Group of options -> the one that is mostly meant
USUAL = {"model": "model.rule", "data": "data.path", "trainer": "trainer.max_steps"}
TYPES = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "tuple": "a list",
}


# A range of numbers on the command line: LOW..HIGH, log:LOW..HIGH; the logarithm may come last: LOW..HIGH:log
RANGE = re.compile(
    r"(?P<log>log:)?(?P<low>[^:,.]+(?:\.\d*)?(?:[eE][+-]?\d+)?)\.\.(?P<high>[^:(]+?)(?P<last>:log|\(log\))?"
)


def fail(message: str) -> NoReturn:
    """Print one line and end with status 2."""
    sys.stderr.write(f"worldmodel: error: {' '.join(message.split())}\n")
    raise SystemExit(2)


def explain(message: str, options: Iterable[str]) -> str:
    """A parser's message in this program's words; one about a wrong name gets the nearest right one.

    Args:
        message: of argparse or jsonargparse.
        options: all that the parser takes, with their dashes.
    """
    options = list(options)
    keys = [option.removeprefix("--") for option in options]
    message = " ".join(message.split())
    if match := re.search(r"unrecognized arguments: (\S+)", message):
        wrong = match[1].split("=")[0]
        if (known := _known_as(wrong.removeprefix("--"), keys)) is not None:
            return f"unknown option {wrong}: it is called --{known}"
        return f"unknown option {wrong}: {nearest(wrong, options)}"
    if match := re.search(r"does not accept option '(\S+)'|[Uu]nexpected key[s:]* '?([\w.]+)", message):
        return _unknown_key(match[1] or match[2], keys)
    if (mistake := _of_another_type(message)) is not None:
        return mistake
    if match := re.search(r'Parser key "(\S+)": .*?Errors: - (.+?) - Expected a .*?NoneType', message):
        key, reason = match.groups()
        if wrong := re.search(r"[Uu]nexpected keys: \{'(\w+)'", reason):
            return _unknown_key(f"{key}.{wrong[1]}", keys)
        return f"{key}: {reason}"
    if match := re.search(r"Parser key \"(\S+)\": Unable to load config '(.+?)'", message):
        group, value = match.groups()
        example = USUAL.get(group) or next((key for key in keys if key.startswith(f"{group}.")), group)
        return f"--{group} is a group of options: name the one that is to be {value!r}, such as --{example}"
    if match := re.search(r"File does not exist: '(.+?)'", message):
        path = Path(match[1])
        siblings = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        if path.suffix not in (".yaml", ".yml"):
            name = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
            return f"no file and no preset {name}: {nearest(str(name), [*siblings, *presets()])}"
        return f"no file {path.name} in {_shown(path.parent)}: {nearest(path.name, siblings)}"
    if match := re.search(r"Path is not a file: '(.+?)'", message):
        return f"{match[1]} is a folder: name a file in it, or a preset ({', '.join(presets())})"
    if "arguments are required" in message and ".data.path" in message:
        return "a configuration, or data, is missing: give --config quickstart, or --data.path PATH"
    return message


def given(words: list[str], *options: str) -> Iterator[str]:
    """The values that the words of a command line give for an option, by any of its names."""
    for option, word in zip(["", *words], words, strict=False):
        if option in options:
            yield word
        elif word.startswith(tuple(f"{name}=" for name in options)):
            yield word.split("=", 1)[1]


def bounds(option: str, text: str, values: str, form: str) -> tuple[float, float, bool] | None:
    """The lowest and the highest value of a range, and whether its scale is logarithmic; None if it is no range.

    Args:
        option: with its dashes, for the message.
        text: all that was given for it.
        values: the part of it that may be a range.
        form: a half-sentence on how to write one.

    Raises:
        UserError: for a range that holds no value.
    """
    if (match := RANGE.fullmatch(values)) is None:
        return None
    low, high = (number(option, text, match[name], form) for name in ("low", "high"))
    log = bool(match["log"] or match["last"])
    if not low < high:
        raise UserError(f"{option} {text}: {match['low']} is not below {match['high']}")
    if log and low <= 0:
        raise UserError(f"{option} {text}: {match['low']} must be above 0 on a log scale")
    return low, high, log


def number(option: str, text: str, word: str, form: str) -> float:
    """A finite number; a UserError for any other word, see `bounds`."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{option} {text}: {word!r} is not a number: {form}")
    return value


def same_command(one: list[str], other: list[str]) -> bool:
    """Whether two fits are the same, wherever their configuration and their folders lie."""

    def without_places(argv: list[str]) -> list[str]:
        places = {i + 1 for i, word in enumerate(argv) if word in ("--config", "--run_dir", "--experiment")}
        return [word for i, word in enumerate(argv) if i not in places]

    return without_places(one) == without_places(other)


def _of_another_type(message: str) -> str | None:
    """What a value of another type than the option's should be; None if the message is about something else."""
    if (match := re.match(r'Parser key "(\S+)": (.*)(?:Got|Given) value: (.*)$', message)) is None:
        return None
    key, reason, value = match.groups()
    if nested := re.fullmatch(r"NestedArg\(key='(\S+)', val=(.*)\)", value):
        key, value = f"{key}.{nested[1]}", nested[2].strip("'")
    if re.search(r"Problem with|nexpected key|Missing required|subclass", reason):
        return None
    reason = reason.split("Errors:")[-1].split("Given value type:")[0]
    choices = [name.strip(" '\"") for found in re.findall(r"Literal\[(.+?)\]", reason) for name in found.split(",")]
    if choices:
        return f"{key} is {value!r}: {nearest(value, choices)} ({', '.join(dict.fromkeys(choices))})"
    types = dict.fromkeys(TYPES[name] for name in re.findall(r"<class '(\w+)'>", reason) if name in TYPES)
    if "a number" in types:
        types.pop("a whole number", None)
    return f"{key} is {value!r}: it must be {' or '.join(types)}" if types else None


def chosen(argv: list[str], group: str, usage: str) -> bool:
    """Whether the first argument is a subcommand to run; if there is none, the group's usage is printed."""
    command = argv[0] if argv else "--help"
    if command in ("-h", "--help", "help"):
        print(usage)
        return False
    if command not in SUBCOMMANDS:
        fail(f"unknown command '{group} {command}': {nearest(command, SUBCOMMANDS)}")
    return True


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        """With the default, unless it is none, or that of a flag."""
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse.ArgumentParser without abbreviations, with the errors of this program."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, formatter_class=_Help)

    def error(self, message: str) -> NoReturn:
        fail(explain(message, [name for name in self._option_string_actions if name.startswith("--")]))


def _unknown_key(wrong: str, keys: list[str]) -> str:
    if (known := _known_as(wrong, keys)) is not None:
        return f"unknown key {wrong!r}: it is called {known!r}"
    return f"unknown key {wrong!r}: {nearest(wrong, keys)}"


def _known_as(wrong: str, keys: list[str]) -> str | None:
    """What a key that was renamed, or has another name elsewhere, is called here; None if this parser lacks it."""
    name = RENAMED.get(wrong) or SYNONYMS.get(wrong) or SYNONYMS.get(wrong.rsplit(".", 1)[-1])
    return name if name in keys else None


def _shown(folder: Path) -> str:
    """The path, relative to the working directory if it is below."""
    cwd = Path.cwd()
    return f"{folder.relative_to(cwd)}/" if folder.is_relative_to(cwd) else f"{folder}/"
