"""What the members of a population can be, and what is asked of the configuration that they share."""

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from worldmodel.callbacks.exchange import CLIP, MODEL
from worldmodel.errors import UserError
from worldmodel.experiments.config import ConfigCLI
from worldmodel.experiments.policy import PolicyCLI
from worldmodel.experiments.world_model import TrainingCLI
from worldmodel.population.options import NOT_HERE, OPTIONS


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

    def check_score(self, mutated: Iterable[str]) -> None:
        """Raise UserError where these keys would change what the score says."""

    def steps(self) -> int:
        """Optimizer steps that a member has room for."""
        if (steps := self.settings["trainer"]["max_steps"]) <= 0:
            raise UserError("pbt counts optimizer steps: say how many with --trainer.max_steps")
        return steps

    def check_evolution(self) -> tuple[int, int]:
        """The interval and the last step.

        Raises:
            UserError: where the options make no population.
        """
        given, asked = self.settings["trainer"]["max_steps"] > 0, self.option("interval")
        steps, unit = self.steps(), self.unit
        possible = [n for n in range(unit, steps // 2 + 1, unit) if steps % n == 0 or not given]
        if not possible:
            raise UserError(f"{steps} optimizer steps leave no room for an exchange: train longer")
        interval = max((n for n in possible if n <= (asked or steps // 10)), default=possible[0])
        if asked not in (None, interval):
            of = f"--trainer.max_steps {steps}" if given else f"{steps} optimizer steps"
            whole = f" in whole rollouts of {unit}" if unit > 1 else ""
            raise UserError(
                f"--interval {asked} does not divide {of} into exchanges{whole}: --interval {interval} does"
            )
        if self.option("population") < 2:
            raise UserError(f"--population {self.option('population')}: it takes two to copy")
        if not 0 < self.option("quantile") <= 0.5:
            raise UserError(f"--quantile {self.option('quantile')}: it must be above 0, and at most 0.5")
        if self.processes() != 1:
            raise UserError("pbt trains each member on one device: use --trainer.devices 1, and a larger --population")
        last = steps - steps % interval
        self.settings["trainer"]["max_steps"] = last
        return interval, last


class WorldModels(PopulationCLI, TrainingCLI):
    """A population of `worldmodel fit`."""

    metric, mode = "val/loss", "min"

    def data(self) -> str:
        _ = self.datamodule.splits  # read once, before several do so at a time
        return self.datamodule.source.fingerprint[:12]

    def check_score(self, mutated: Iterable[str]) -> None:
        """val/loss is the sum of the terms by their weights: the least weights would win."""
        weights = [key for key in mutated if key.startswith(MODEL) and key.endswith("_weight")]
        if weights and self.option("metric") == "val/loss":
            raise UserError(
                f"--mutate {weights[0]} changes what val/loss is, and the least weight would win: judge by the"
                f" open-loop error, --metric rollout/nmse@{self.datamodule.steps}, or by one term"
            )


class Policies(PopulationCLI, PolicyCLI):
    """A population of `worldmodel policy fit`. Exchanges are between rollouts, each of which has one policy."""

    metric, mode = "val/return_mean", "max"

    @property
    def unit(self) -> int:
        return self.datamodule.update_epochs * self.datamodule.minibatches

    def data(self) -> str:
        return self.datamodule.env_id

    def steps(self) -> int:
        """Of data.total_steps, where no fewer are asked for."""
        data, asked = self.datamodule, self.settings["trainer"]["max_steps"]
        if data.target_kl is not None:
            raise UserError(
                "data.target_kl leaves rollouts early, and members must come to the same steps: set it to null"
            )
        if asked > data.planned_batches:
            raise UserError(
                f"--trainer.max_steps {asked}: data.total_steps {data.total_steps} are over behind"
                f" {data.planned_batches}: leave it out"
            )
        return asked if asked > 0 else data.planned_batches

    def member_config(self) -> str:
        """All steps are one epoch: a report on an epoch's last step would come a step late."""
        self.settings["data"]["val_every"] = self.datamodule.total_steps
        return super().member_config()


KINDS: dict[str, type[WorldModels] | type[Policies]] = {"world_model": WorldModels, "policy": Policies}
