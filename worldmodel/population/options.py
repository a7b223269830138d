"""The options of `worldmodel pbt`, what members can be, and what the configuration that they share must allow."""

import argparse
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from worldmodel.arguments import Parser
from worldmodel.callbacks.exchange import CLIP, MODEL
from worldmodel.errors import UserError, choose
from worldmodel.experiments.config import ConfigCLI
from worldmodel.experiments.experiment import ExperimentCLI
from worldmodel.experiments.policies import PolicyCLI
from worldmodel.experiments.world_model import TrainingCLI
from worldmodel.population.design import Mutation, Population, parse, starts
from worldmodel.presets import located
from worldmodel.runs.cluster import own_cores
from worldmodel.runs.files import read_yaml

NOT_HERE = {
    "--run_dir": "choose a population's folder with --out",
    "--ckpt_path": "a population trains every member from scratch",
    "--trainer.fast_dev_run": "it trains too little to judge; try the configuration with fit",
    "--init_from": "a population trains every member from scratch",
    "--resume": "the same command continues an interrupted population",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "--trains": {
        "type": str | None,
        "default": None,
        "help": "Kind of members: world_model or policy. Default: policy if data.env_id names an environment.",
    },
    "--population": {"type": int, "default": 4, "help": "Number of members, trained side by side."},
    "--interval": {
        "type": int | None,
        "default": None,
        "help": "Optimizer steps between two exchanges, of policies whole rollouts. Default: a tenth of all steps.",
    },
    "--mutate": {
        "type": str,
        "nargs": "+",
        "default": ["model.learning_rate=log:1e-4..1e-2"],
        "help": "Hyperparameters that members vary: KEY=LOW..HIGH, KEY=log:LOW..HIGH or KEY=A,B,C.",
    },
    "--quantile": {"type": float, "default": 0.25, "help": "Share of the members that copy, and that are copied."},
    "--metric": {
        "type": str | None,
        "default": None,
        "help": "Score of a member, a metric of the validation. Default: val/loss, of policies val/return_mean.",
    },
    "--mode": {
        "type": Literal["min", "max"] | None,
        "default": None,
        "help": "Whether the lowest or the highest score is the best. Default: min, of policies max.",
    },
    "--out": {
        "type": Path | None,
        "default": None,
        "help": "Folder of the population. Default: runs/<experiment>/pbt-<run>.",
    },
}


def help_text() -> str:
    """Help on the options of `pbt` that `fit` does not have."""
    parser = Parser("worldmodel pbt", "Train a population: the worst members copy the best, and vary what they copied.")
    parser.formatter_class = argparse.HelpFormatter
    parser.epilog = (
        "Options of `worldmodel fit` (of policies: `worldmodel policy fit`) apply to all members. Member i starts with"
        " the seeds --seed_everything + i and --data.seed + i. The YAML file may set all options. Repeat the command to"
        " continue an interrupted population."
    )
    parser.add_argument("--config", metavar="CONF", help="Configuration that all members share.")
    for name, how in OPTIONS.items():
        default = " ".join(how["default"]) if isinstance(how["default"], list) else how["default"]
        shown = "" if default is None else f" Default: {default}."
        parser.add_argument(name, help=how["help"] + shown, nargs=how.get("nargs"))
    return parser.format_help()


class PopulationCLI(ConfigCLI):
    """The configuration of the members, and the options of the population."""

    command, not_here = "pbt", NOT_HERE
    fit_cli: type[ExperimentCLI]  # of a member
    metric: str  # the default
    mode: Literal["min", "max"]  # the default
    unit = 1  # optimizer steps; an interval is a multiple of it

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        for name, how in OPTIONS.items():
            parser.add_argument(name, **how)

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        if self.option("population") < 2:
            raise UserError(f"--population {self.option('population')}: copying takes at least two members")
        if self.settings["early_stopping"]["patience"] is not None:
            raise UserError("the members of a population train equally long: leave early_stopping.patience out")
        if not 0 < self.option("quantile") <= 0.5:
            raise UserError(f"--quantile {self.option('quantile')}: it must be above 0, and at most 0.5")
        self.check_score(mutation.key for mutation in self.mutations())

    def population(self) -> Population:
        """The population that options and configuration describe.

        Raises:
            UserError: if they are invalid.
        """
        if self.processes() != 1:
            raise UserError("pbt trains each member on one device: use --trainer.devices 1, and a larger --population")
        interval, last_step = self.check_evolution()
        own, size, mutations = self.own(), self.option("population"), self.mutations()
        seed = int(self.settings["seed_everything"])
        return Population(
            out=self.option("out") or Path("runs", self.settings["experiment"], f"pbt-{self._run_name()}"),
            config=self.member_config(),
            defaults=self.defaults(),
            trains=self.kind,
            data=self.data(),
            size=size,
            interval=interval,
            last_step=last_step,
            mutate=self.option("mutate"),
            mutations=mutations,
            starts=starts(mutations, own, size, seed),
            quantile=self.option("quantile"),
            metric=self.option("metric"),
            mode=self.option("mode"),
            seed=seed,
            data_seed=self.datamodule.seed,
            threads=self.settings["threads"] or max(1, own_cores() // size),
            gpus=min(1, self.gpus()),
            keep=self.settings["checkpoint_keep"],
        )

    def option(self, name: str) -> Any:
        """One of OPTIONS, without its dashes."""
        value = self.settings[name]
        return getattr(self, name) if value is None and name in ("metric", "mode") else value

    @abstractmethod
    def data(self) -> str:
        """What identifies the members' data."""

    def member_config(self) -> str:
        """The complete configuration of a fit as YAML."""
        config = yaml.safe_load(self.dump())
        return yaml.safe_dump(
            {key: value for key, value in config.items() if f"--{key}" not in OPTIONS}, sort_keys=False
        )

    def own(self) -> dict[str, float]:
        """Hyperparameters that can change during training: name on the command line -> value in the configuration."""
        values = {f"{MODEL}{name}": float(self.settings["model"][name]) for name in self.model_class.mutable}
        clip = self.settings["trainer"]["gradient_clip_val"]
        return values if clip is None else {**values, CLIP: float(clip)}

    def mutations(self) -> list[Mutation]:
        """What --mutate says."""
        return parse(self.option("mutate"), list(self.own()))

    def check_score(self, mutated: Iterable[str]) -> None:
        """Raise UserError if these keys change the meaning of the score."""

    def steps(self) -> int:
        """Optimizer steps of a member, before they are rounded to whole intervals."""
        if (steps := self.settings["trainer"]["max_steps"]) <= 0:
            raise UserError("pbt needs a number of optimizer steps: set --trainer.max_steps")
        return steps

    def check_evolution(self) -> tuple[int, int]:
        """The interval and the last step.

        Raises:
            UserError: if the options allow no population.
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
        last = steps - steps % interval
        self.settings["trainer"]["max_steps"] = last
        return interval, last


class WorldModels(PopulationCLI, TrainingCLI):
    """A population of `worldmodel fit`."""

    fit_cli, metric, mode = TrainingCLI, "val/loss", "min"

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        self.check_evolution()  # which needs no data, unlike that of policies

    def data(self) -> str:
        _ = self.datamodule.splits  # read now, so that no two members do so at once
        return self.datamodule.source.fingerprint[:12]

    def check_score(self, mutated: Iterable[str]) -> None:
        """val/loss is the sum of the weighted terms: the lowest weights would win."""
        weights = [key for key in mutated if key.startswith(MODEL) and key.endswith("_weight")]
        if weights and self.option("metric") == "val/loss":
            raise UserError(
                f"--mutate {weights[0]} changes val/loss itself, and the lowest weight would win: score by the"
                f" open-loop error, --metric rollout/nmse@{self.settings['data']['steps']}, or by one term"
            )


class Policies(PopulationCLI, PolicyCLI):
    """A population of `worldmodel policy fit`. Exchanges are between rollouts, each of which has one policy."""

    fit_cli, metric, mode = PolicyCLI, "val/return_mean", "max"

    @property
    def unit(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.datamodule.update_epochs * self.datamodule.minibatches

    def data(self) -> str:
        return self.datamodule.env_id

    def steps(self) -> int:
        """Those of data.total_steps, unless fewer are asked for."""
        data, asked = self.datamodule, self.settings["trainer"]["max_steps"]
        if data.target_kl is not None:
            raise UserError("data.target_kl ends rollouts early, but members must train the same steps: set it to null")
        if asked > data.planned_batches:
            raise UserError(
                f"--trainer.max_steps {asked}: data.total_steps {data.total_steps} allow only {data.planned_batches}:"
                " leave it out"
            )
        return asked if asked > 0 else data.planned_batches

    def member_config(self) -> str:
        """All steps in one epoch: a report on an epoch's last step would come a step late."""
        self.settings["data"]["val_every"] = self.datamodule.total_steps
        return super().member_config()


KINDS: dict[str, type[WorldModels] | type[Policies]] = {kind.kind: kind for kind in (WorldModels, Policies)}


def kind_of(argv: list[str]) -> type[WorldModels] | type[Policies]:
    """The kind of the members, before all options can be read: each kind has options of its own.

    Raises:
        UserError: for an unknown one.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--trains", nargs="?")  # a missing value is reported when all options are read
    parser.add_argument("--config", "-c", nargs="?", action="append", default=[])
    options = parser.parse_known_args(located(argv))[0]
    configs = [_read(Path(path)) for path in options.config if path]
    acts = any(isinstance(data := config.get("data"), dict) and "env_id" in data for config in configs)
    given = [config["trains"] for config in configs if config.get("trains")]
    kind = str(options.trains or (given or ["policy" if acts else "world_model"])[-1])
    return KINDS[choose("--trains", kind, KINDS)]


def _read(path: Path) -> dict[str, Any]:
    """A configuration; empty if it is invalid, which is reported when all of it is read."""
    try:
        values = read_yaml(path)
    except UserError:
        return {}
    return values if isinstance(values, dict) else {}
