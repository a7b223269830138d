"""What can be answered without importing torch: the help of a command, and a word that names nothing.

`help.json` has the help of every command, and the names of its options, as the commands themselves give them: `make
help` writes it, and a test compares it. What is not certain here is left to the command: all, once a file of the
program has been changed since.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from worldmodel.arguments import explain, given
from worldmodel.errors import UserError
from worldmodel.experiments.configs import Kind, check_configs
from worldmodel.presets import OPTIONS, located
from worldmodel.runs.files import UNTRAINED, find_checkpoint, read_yaml

PAGES = Path(__file__).parent / "help.json"
AT_ONCE = 60  # seconds within which an installation, or a clone, writes all its files
WIDTHS = (80, 120)  # columns for which help is kept
OF_RUN = ("validate", "test", "predict", "rollout", "diagnose", "plan", "play", "export")  # they take --ckpt RUN
KINDS: dict[str, Kind] = {"fit": "world_model", "compare": "world_model", "policy": "policy", "imagine": "imagine"}


def help_page(words: list[str]) -> str | None:
    """The help that is asked for by `COMMAND [SUBCOMMAND] --help`; None if it is not known here."""
    if not words or words[-1] not in ("-h", "--help") or (page := _pages().get(" ".join(words[:-1]))) is None:
        return None
    columns = shutil.get_terminal_size((WIDTHS[-1], 24)).columns
    width = max([width for width in WIDTHS if width <= columns], default=WIDTHS[0])
    return "\n".join(page["help"][str(width)])


def check(words: list[str]) -> None:
    """Check the words of a command line.

    Raises:
        UserError: for an option that the command lacks, a configuration that does not exist or has a key that is no
            option, and a run that does not exist.
    """
    options = _options(words)
    if options is None:
        return
    for word in words:
        if word.startswith("--") and " " not in word and not _is_known(name := word.split("=")[0], options):
            raise UserError(explain(f"unrecognized arguments: {name}", options))
    check_configs(words, KINDS.get(words[0]))
    for path in given(located(words), *OPTIONS):
        if not Path(path).is_file():
            missing = "Path is not a file" if Path(path).exists() else "File does not exist"
            raise UserError(explain(f"{missing}: '{path}'", options))
        config = read_yaml(Path(path))
        for key in _keys(config) if isinstance(config, Mapping) else ():
            if not _is_known(f"--{key}", options):
                raise UserError(f"{path}: {explain(f'does not accept option {key!r}', options)}")
    if words[0] in OF_RUN:
        for run in given(words, "--ckpt"):
            find_checkpoint(Path(run))
        if words[0] != "diagnose" and not any(
            word.startswith(("--ckpt", "--config", "-c", "--help")) for word in words
        ):
            raise UserError(UNTRAINED.format(words[0]))


@cache
def _pages() -> dict[str, Any]:
    return json.loads(PAGES.read_text(encoding="utf-8")) if _is_current() else {}


def _is_current() -> bool:
    written = PAGES.stat().st_mtime + AT_ONCE
    return all(file.stat().st_mtime <= written for file in PAGES.parent.rglob("*.py"))


def _options(words: list[str]) -> list[str] | None:
    """The names of all options that the command may take; None if they are not known here."""
    pages = _pages()
    page = next((pages[name] for name in (" ".join(words[:2]), words[0]) if name in pages), {})
    return page.get("options")


def _is_known(name: str, options: list[str]) -> bool:
    """Whether the name is an option's, a group's, or that of a value inside an option that takes several."""
    name = name.removesuffix("+")
    return any(f"{option}.".startswith(f"{name}.") for option in options) or any(
        name.startswith(f"{option}.") and not _is_group(option, options) for option in options
    )


def _is_group(option: str, options: list[str]) -> bool:
    return any(other.startswith(f"{option}.") and other != f"{option}.help" for other in options)


def _keys(config: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
