"""Argument parsing whose errors are one line that names the nearest right choice."""

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from worldmodel.errors import nearest

SUBCOMMANDS = ("fit", "validate", "test")


def fail(message: str) -> NoReturn:
    """Print one line and end with status 2."""
    sys.stderr.write(f"worldmodel: error: {' '.join(message.split())}\n")
    raise SystemExit(2)


def explain(message: str, options: Iterable[str]) -> str:
    """A parser's message in this program's words, with the nearest right choice where it complains of a wrong one."""
    options = list(options)
    message = " ".join(message.split())
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        wrong = found[1].split("=")[0]
        return f"unknown option {wrong}: {nearest(wrong, options)}"
    if found := re.search(r"does not accept option '(\S+)'|[Uu]nexpected key[s:]* '?([\w.]+)", message):
        wrong = found[1] or found[2]
        return f"unknown key {wrong!r}: {nearest(wrong, _names(options))}"
    if found := re.search(r'Parser key "(\S+)": .*?Errors: - (.+?) - Expected a .*?NoneType', message):
        key, reason = found.groups()
        if wrong := re.search(r"[Uu]nexpected keys: \{'(\w+)'", reason):
            return f"unknown key '{key}.{wrong[1]}': {nearest(f'{key}.{wrong[1]}', _names(options))}"
        return f"{key}: {reason}"
    if found := re.search(r"File does not exist: '(.+?)'", message):
        path = Path(found[1])
        there = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        return f"no file {path.name} in {_shown(path.parent)}: {nearest(path.name, there)}"
    if found := re.search(r'Parser key "(\S+)": Expected a typing.Literal\[(.+?)\]. Got value: (\S+)', message):
        choices = [choice.strip(" '\"") for choice in found[2].split(",")]
        return f"{found[1]} is {found[3]!r}: {nearest(found[3], choices)} ({', '.join(choices)})"
    return message


def chosen(argv: list[str], group: str, usage: str) -> bool:
    """Whether the first argument is a subcommand that is to run; without one the group's usage is printed."""
    command = argv[0] if argv else "--help"
    if command in ("-h", "--help", "help"):
        print(usage)
        return False
    if command not in SUBCOMMANDS:
        fail(f"unknown command '{group} {command}': {nearest(command, SUBCOMMANDS)}")
    return True


class Parser(argparse.ArgumentParser):
    """argparse.ArgumentParser without abbreviations, with the errors of this program."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        fail(explain(message, [name for name in self._option_string_actions if name.startswith("--")]))


def _names(options: list[str]) -> list[str]:
    return [option.removeprefix("--") for option in options]


def _shown(folder: Path) -> str:
    """Relative to here, where it is below."""
    here = Path.cwd()
    return f"{folder.relative_to(here)}/" if folder.is_relative_to(here) else f"{folder}/"
