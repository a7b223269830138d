"""Writes worldmodel/help.json, the help of every command as the commands give it: make help."""

import io
import json
import os
from argparse import ArgumentParser
from contextlib import redirect_stdout, suppress
from importlib import import_module
from typing import Any
from unittest.mock import patch

from worldmodel.cli import COMMANDS, TRAINING
from worldmodel.early import PAGES, WIDTHS

GROUPS = {
    "policy": ("fit", "validate", "test"),
    "imagine": ("fit", "validate", "test"),
    "data": ("info", "check", "convert", "compact"),
}
AS_FIT = ("compare", "diagnose")  # they take its options too
ALIASES = dict.fromkeys(("validate", "test", "predict"), ["--ckpt"])


def pages() -> dict[str, Any]:
    """Command -> the lines of its help by width, and its options where a parser has them all."""
    found = {}
    for command in COMMANDS:
        found |= {
            " ".join(words): _page(words) for words in [[command], *([command, sub] for sub in GROUPS.get(command, ()))]
        }
    for command in AS_FIT:
        found[command]["options"] = sorted({*found[command]["options"], *found["fit"]["options"]})
    for command, further in ALIASES.items():
        found[command]["options"] += further
    return found


def _page(words: list[str]) -> dict[str, Any]:
    asked: list[ArgumentParser] = []
    print_help = ArgumentParser.print_help

    def noted(parser: ArgumentParser, *arguments: Any) -> None:
        asked.append(parser)
        print_help(parser, *arguments)

    page: dict[str, Any] = {"help": {}}
    module = import_module(f"worldmodel.commands.{'fit' if words[0] in TRAINING else words[0]}")
    for width in WIDTHS:
        terminal, watch = patch.dict(os.environ, COLUMNS=str(width)), patch.object(ArgumentParser, "print_help", noted)
        with redirect_stdout(io.StringIO()) as output, terminal, watch, suppress(SystemExit):
            module.main([*(words if words[0] in TRAINING else words[1:]), "--help"])
        page["help"][width] = output.getvalue().removesuffix("\n").split("\n")
    if asked:
        page["options"] = sorted(name for name in asked[0]._option_string_actions if name.startswith("--"))
    return page


if __name__ == "__main__":
    PAGES.write_text(json.dumps(pages(), indent=1) + "\n", encoding="utf-8")
