"""What the members of a population can be, and what is asked of the configuration that they share."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from worldmodel.callbacks.exchange import CLIP, MODEL
from worldmodel.commands.config import ConfigCLI
from worldmodel.commands.pbt_options import NOT_HERE, OPTIONS
from worldmodel.commands.policy_cli import PolicyCLI
from worldmodel.commands.training import TrainingCLI
from worldmodel.errors import UserError


class PopulationCLI(ConfigCLI):
    """The configuration of the members, and how they are to evolve."""

    command, not_here = "pbt", NOT_HERE
    metric: str  # where none is given
    mode: Literal["min", "max"]

    @property
    def unit(self) -> int:
        """Optimizer steps that an interval is a multiple of."""
        return 1

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        for name, how in OPTIONS.items():
            parser.add_argument(name, **how)

    def option(self, name: str) -> Any:
        """One of OPTIONS, without its dashes."""
        value = self.settings[name]
        return getattr(self, name) if value is None and name in ("metric", "mode") else value

    @abstractmethod
    def data(self) -> str:
        """What tells the members' data from other data."""

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

    def last_step(self) -> int:
        """Optimizer steps of a member."""
        if (last := self.settings["trainer"]["max_steps"]) <= 0:
            raise UserError("pbt counts optimizer steps: say how many with --trainer.max_steps")
        return last

    def check_evolution(self) -> tuple[int, int]:
        """The interval and the last step.

        Raises:
            UserError: where the options make no population.
        """
        last, interval = self.last_step(), self.option("interval")
        possible = [step for step in range(self.unit, last, self.unit) if last % step == 0]
        if not possible:
            raise UserError(f"{last} optimizer steps leave no room for an exchange: train longer")
        near = max(step for step in possible if step <= max(self.unit, last // 10 if interval is None else interval))
        if interval not in (None, near):
            whole = f", in whole rollouts of {self.unit} steps" if self.unit > 1 else ""
            raise UserError(
                f"--interval {interval} does not divide --trainer.max_steps {last} into exchanges{whole}:"
                f" --interval {near} does"
            )
        if self.option("population") < 2:
            raise UserError(f"--population {self.option('population')}: it takes two to copy")
        if not 0 < self.option("quantile") <= 0.5:
            raise UserError(f"--quantile {self.option('quantile')}: it must be above 0, and at most 0.5")
        if self.processes() != 1:
            raise UserError("pbt trains each member on one device: use --trainer.devices 1, and a larger --population")
        return near, last


class WorldModels(PopulationCLI, TrainingCLI):
    """A population of `worldmodel fit`."""

    metric, mode = "val/loss", "min"

    def data(self) -> str:
        _ = self.datamodule.splits  # read once, before several do so at a time
        return self.datamodule.source.fingerprint[:12]


class Policies(PopulationCLI, PolicyCLI):
    """A population of `worldmodel policy fit`. Exchanges are between rollouts, each of which has one policy."""

    metric, mode = "val/return_mean", "max"

    @property
    def unit(self) -> int:
        return self.datamodule.passes * self.datamodule.minibatches

    def data(self) -> str:
        return self.datamodule.env_id

    def last_step(self) -> int:
        """Of data.total_steps; and all of them are one epoch, as a report on an epoch's last step comes a step late."""
        data, asked = self.datamodule, self.settings["trainer"]["max_steps"]
        if data.max_kl is not None:
            raise UserError(
                "data.max_kl leaves rollouts early, and members must come to the same steps: set it to null"
            )
        if asked > data.planned_batches:
            raise UserError(
                f"--trainer.max_steps {asked}: data.total_steps {data.total_steps} are over behind"
                f" {data.planned_batches}: leave it out"
            )
        last = asked if asked > 0 else data.planned_batches
        self.settings["trainer"]["max_steps"] = last
        self.settings["data"]["val_every"] = data.total_steps
        return last


KINDS: dict[str, type[WorldModels] | type[Policies]] = {"world_model": WorldModels, "policy": Policies}
