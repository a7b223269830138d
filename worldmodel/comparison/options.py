"""The options of `worldmodel compare`, and what it asks of the configuration that all its runs share."""

import argparse
import re
from pathlib import Path

from worldmodel.arguments import Parser
from worldmodel.comparison.launch import LAUNCHERS
from worldmodel.comparison.matching import MATCHES
from worldmodel.errors import UserError, choose
from worldmodel.evaluation.selection import RolloutOptions
from worldmodel.experiments.config import ConfigCLI
from worldmodel.experiments.world_model import TrainingCLI, TrainingParser
from worldmodel.rules import RULES

STARTS = ("carry", "zero")
VARIED = ("model.", "tbptt.", "trainer.")
OWN_AXES = {"model.rule": "--rules", "tbptt.start": "--start", "seed_everything": "--seeds"}
NOT_HERE = {
    "--seed_everything": "a comparison's seeds are chosen with --seeds",
    "--run_dir": "a comparison's folder is chosen with --out",
    "--ckpt_path": "a comparison trains every run from its beginning",
}


def parser() -> Parser:
    """Of the options that are not those of `fit`."""
    made = Parser("worldmodel compare", "Train update rules on the same data and budget, and judge them.")
    made.formatter_class = argparse.HelpFormatter
    made.epilog = (
        "Every option of `worldmodel fit` may be given too, such as --trainer.max_epochs 3: it holds for all runs."
        " The same command again goes on where it was interrupted; rules, starts, seeds and values may be added."
    )
    add = made.add_argument
    add("--config", action="append", metavar="CONF", help="the configuration that all runs share")
    add("--out", type=Path, required=True, metavar="DIR", help="the comparison's folder")
    add("--rules", default=",".join(RULES), metavar="A,B", help="default: all (%(default)s)")
    add("--seeds", default="0,1,2", metavar="N,N", help="default: %(default)s")
    add("--start", metavar="carry,zero", help="of segments; default: what the configuration says")
    add("--vary", action="append", default=[], metavar="KEY=A,B", help="one more axis: --vary model.layers=1,2")
    add("--match", choices=MATCHES, default="params", help="what hidden sizes are chosen by; default: %(default)s")
    add("--launcher", choices=LAUNCHERS, default="local", help="processes here, or a Ray cluster; default: %(default)s")
    add("--jobs", type=int, metavar="N", help="runs side by side; default: cores / threads, or the number of GPUs")
    add("--report_only", action="store_true", help="judge what is finished in --out, and train nothing")
    return made


class CompareParser(TrainingParser):
    """A wrong option may have been meant for `compare`, too."""

    def _keys(self) -> list[str]:
        return [name for name in parser()._option_string_actions if name.startswith("--")] + super()._keys()


class CompareCLI(ConfigCLI, TrainingCLI):
    """The configuration that all runs share.

    Args:
        argv: of `fit`.
        experiment: what groups the runs, where the configuration does not say.
    """

    command, not_here, parses = "compare", NOT_HERE, CompareParser

    def __init__(self, argv: list[str], experiment: str) -> None:
        self._experiment = experiment
        super().__init__(argv)

    def before_instantiate_classes(self) -> None:
        if self.settings["experiment"] is None:
            self.settings["experiment"] = self._experiment
        super().before_instantiate_classes()

    @property
    def rollout(self) -> RolloutOptions:
        """How far, from where and on how many episodes is evaluated."""
        return self._get(self.config_init, "rollout").options


def axes_of(rules: str, start: str | None, vary: list[str], config_start: str) -> dict[str, list[str]]:
    """The axes and their values.

    Raises:
        UserError: for an unknown rule or start, a value given twice, or an axis that cannot be varied.
    """
    axes = {"rule": _values("--rules", rules), "start": _values("--start", start or config_start)}
    for rule in axes["rule"]:
        choose("rule", rule, RULES)
    for value in axes["start"]:
        choose("start", value, STARTS)
    for text in vary:
        key, _, values = text.removeprefix("--").partition("=")
        if not values:
            raise UserError(f"--vary {text}: write KEY=A,B, such as model.layers=1,2")
        if key in OWN_AXES:
            raise UserError(f"--vary {key}: use {OWN_AXES[key]}")
        if not key.startswith(VARIED):
            raise UserError(
                f"--vary {key}: the axes of a comparison are keys of {', '.join(name[:-1] for name in VARIED)};"
                " data and evaluation are the same for all runs: make two comparisons"
            )
        if key in axes:
            raise UserError(f"--vary {key} is given twice: name all its values at once")
        axes[key] = _values(f"--vary {key}", values)
    return axes


def seeds_of(text: str) -> list[int]:
    """Whole numbers; a UserError for anything else."""
    values = _values("--seeds", text)
    for value in values:
        if not (value.isascii() and value.isdigit() and int(value) < 2**32):
            raise UserError(f"--seeds {text}: {value!r} is no whole number from 0 to {2**32 - 1}")
    return [int(value) for value in values]


def check_report_only(argv: list[str]) -> None:
    """Raise UserError for options that have no place beside --report_only."""
    taken = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    taken.add_argument("--report_only", action="store_true")
    taken.add_argument("--out")
    if rest := taken.parse_known_args(argv)[1]:
        raise UserError(f"--report_only trains nothing and takes only --out: leave out {' '.join(rest)}")


def _values(option: str, text: str) -> list[str]:
    """Separated by commas, but for those inside brackets."""
    values = [value.strip() for value in re.split(r",(?![^\[{(]*[\]})])", text)]
    if not all(values):
        raise UserError(f"{option} {text}: a value is missing between its commas")
    if twice := [value for value in values if values.count(value) > 1]:
        raise UserError(f"{option} {text}: {twice[0]} is given twice")
    return values
