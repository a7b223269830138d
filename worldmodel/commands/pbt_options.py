"""The options of `worldmodel pbt`, and the configuration that all members share."""

import argparse
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from worldmodel.callbacks.exchange import CLIP, MODEL
from worldmodel.commands.config import ConfigCLI
from worldmodel.commands.parser import Parser
from worldmodel.commands.training import TrainingParser
from worldmodel.errors import UserError

NOT_HERE = {
    "--run_dir": "a population's folder is chosen with --out",
    "--ckpt_path": "a population trains every member from its beginning",
    "--resume": "the same command goes on where it was interrupted",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "--population": {"type": int, "default": 4, "help": "members, side by side"},
    "--interval": {
        "type": int | None,
        "default": None,
        "help": "optimizer steps between two exchanges; default: a tenth of --trainer.max_steps",
    },
    "--mutate": {
        "type": str,
        "nargs": "+",
        "default": ["model.learning_rate=1e-4..1e-2:log"],
        "help": "KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A,B,C: hyperparameters that members differ in, and change",
    },
    "--quantile": {"type": float, "default": 0.25, "help": "of the members: the worst copy the best"},
    "--metric": {"type": str, "default": "val/loss", "help": "the score: any that a validation logs"},
    "--mode": {"type": Literal["min", "max"], "default": "min", "help": "whether the least score is the best"},
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
        "Every option of `worldmodel fit` may be given too: it holds for all members. Member i starts with the seeds"
        " --seed_everything + i and --data.seed + i. All options may stand in the YAML file. The same command again"
        " goes on where it was interrupted."
    )
    parser.add_argument("--config", metavar="CONF", help="the configuration that all members share")
    for name, how in OPTIONS.items():
        default = "" if how["default"] is None else f"; default: {_shown(how['default'])}"
        parser.add_argument(name, help=how["help"] + default, nargs=how.get("nargs"))
    return parser.format_help()


def _shown(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


class PopulationCLI(ConfigCLI):
    """The configuration of the members, and how they are to evolve."""

    command, not_here, parser = "pbt", NOT_HERE, TrainingParser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        for name, how in OPTIONS.items():
            parser.add_argument(name, **how)

    def option(self, name: str) -> Any:
        """One of OPTIONS, without its dashes."""
        return self.settings[name]

    def member_config(self) -> str:
        """The complete configuration of a fit as YAML."""
        config = yaml.safe_load(self.dump())
        return yaml.safe_dump(
            {key: value for key, value in config.items() if f"--{key}" not in OPTIONS}, sort_keys=False
        )

    def out(self) -> Path:
        """The population's folder."""
        return self.option("out") or Path("runs", self.settings["experiment"], f"pbt-{self._run_name()}")

    def own(self) -> dict[str, float]:
        """What can change while a member trains, by its name on the command line: the configuration's values."""
        values = {f"{MODEL}{name}": float(self.model.hparams[name]) for name in self.model.mutable}
        clip = self.settings["trainer"]["gradient_clip_val"]
        return values if clip is None else {**values, CLIP: float(clip)}

    def check_evolution(self) -> tuple[int, int]:
        """The interval and the last step.

        Raises:
            UserError: where the options make no population.
        """
        last, interval = self.settings["trainer"]["max_steps"], self.option("interval")
        if last <= 0:
            raise UserError("pbt counts optimizer steps: say how many with --trainer.max_steps")
        interval = interval or max(1, last // 10)
        if interval < 1 or last % interval or last == interval:
            near = max(step for step in range(1, last) if last % step == 0 and step <= max(1, interval))
            raise UserError(
                f"--interval {interval} does not divide --trainer.max_steps {last} into exchanges:"
                f" --interval {near} does"
            )
        if self.option("population") < 2:
            raise UserError(f"--population {self.option('population')}: it takes two to copy")
        if not 0 < self.option("quantile") <= 0.5:
            raise UserError(f"--quantile {self.option('quantile')}: it must be above 0, and at most 0.5")
        if self.processes() != 1:
            raise UserError("pbt trains each member on one device: use --trainer.devices 1, and a larger --population")
        return interval, last
