"""The options of `worldmodel pbt`."""

import argparse
from pathlib import Path
from typing import Any, Literal

import yaml

from worldmodel.arguments import Parser
from worldmodel.errors import choose

TRAINS = ("world_model", "policy")  # what members can be
NOT_HERE = {
    "--run_dir": "a population's folder is chosen with --out",
    "--ckpt_path": "a population trains every member from its beginning",
    "--resume": "the same command goes on where it was interrupted",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "--trains": {
        "type": str | None,
        "default": None,
        "help": "what members are: world_model, or policy; default: policy where data.env_id says what to act in",
    },
    "--population": {"type": int, "default": 4, "help": "members, side by side"},
    "--interval": {
        "type": int | None,
        "default": None,
        "help": "optimizer steps between two exchanges; default: a tenth of all; of policies, whole rollouts",
    },
    "--mutate": {
        "type": str,
        "nargs": "+",
        "default": ["model.learning_rate=1e-4..1e-2:log"],
        "help": "KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A,B,C: hyperparameters that members differ in, and change",
    },
    "--quantile": {"type": float, "default": 0.25, "help": "of the members: the worst copy the best"},
    "--metric": {
        "type": str | None,
        "default": None,
        "help": "the score: any that a validation logs; default: val/loss, of policies val/return_mean",
    },
    "--mode": {
        "type": Literal["min", "max"] | None,
        "default": None,
        "help": "whether the least score is the best; default: min, of policies max",
    },
    "--out": {
        "type": Path | None,
        "default": None,
        "help": "the population's folder; default: runs/<experiment>/pbt-<run>",
    },
}


def help_text() -> str:
    """Of the options that are not those of `fit`."""
    parser = Parser("worldmodel pbt", "Train a population: the worst members copy the best, and vary what they copied.")
    parser.formatter_class = argparse.HelpFormatter
    parser.epilog = (
        "Every option of `worldmodel fit` (of policies: `worldmodel policy fit`) may be given too: it holds for all"
        " members. Member i starts with the seeds --seed_everything + i and --data.seed + i. All options may stand in"
        " the YAML file. The same command again goes on where it was interrupted."
    )
    parser.add_argument("--config", metavar="CONF", help="the configuration that all members share")
    for name, how in OPTIONS.items():
        default = "" if how["default"] is None else f"; default: {_shown(how['default'])}"
        parser.add_argument(name, help=how["help"] + default, nargs=how.get("nargs"))
    return parser.format_help()


def _shown(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def kind_of(argv: list[str]) -> str:
    """What the members are, of TRAINS, before all options can be read: a kind has options of its own.

    Raises:
        UserError: for another one.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--trains", nargs="?")  # what is given without a value is told when all options are read
    parser.add_argument("--config", "-c", nargs="?", action="append", default=[])
    told = parser.parse_known_args(argv)[0]
    configs = [_read(Path(path)) for path in told.config if path]
    acts = any(isinstance(data := config.get("data"), dict) and "env_id" in data for config in configs)
    found = [config["trains"] for config in configs if config.get("trains")]
    kind = str(told.trains or (found or [TRAINS[acts]])[-1])
    choose("--trains", kind, TRAINS)
    return kind


def _read(path: Path) -> dict[str, Any]:
    """A configuration, as far as it is one: what is wrong with it is told when all of it is read."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}
