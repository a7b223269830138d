"""The configuration that several runs share, for commands that train more than one."""

from collections.abc import Mapping
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator

from worldmodel.errors import UserError
from worldmodel.experiments.experiment import ExperimentCLI
from worldmodel.modules.sharding import FullySharded

HARMLESS = {  # keys that change no result; the data's fingerprint is compared instead of its path
    *(
        "experiment",
        "run_dir",
        "wandb",
        "project",
        "tensorboard",
        "mlflow",
        "checkpoint_every",
        "trainer.enable_progress_bar",
    ),
    *("data.path", "data.test_path", "data.num_workers", "data.memory_gb", "data.cache_dir"),
    *("recall.multiples", "recall.sequences", "recall.limit", "recall.seed"),
}


class ConfigCLI(ExperimentCLI):
    """`fit` up to the point where a run would start: all options are read and checked, nothing is written.

    For commands that train several runs of one configuration. A subclass also inherits from the CLI of what is trained,
    and sets the `command` and the options of `fit` that it does not take, each with what to do instead (`not_here`).
    """

    command: str
    not_here: dict[str, str]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = {"--run_dir": self.run_dir, "--ckpt_path": self.checkpoint, "--init_from": self.settings["init_from"]}
        given["--trainer.fast_dev_run"] = self.settings["trainer"]["fast_dev_run"] or None
        for option, taken in given.items():
            if taken is not None:
                raise UserError(f"{option} is no option of {self.command}: {self.not_here[option]}")
        trainer = self.checked_trainer(logger=False, **kwargs)
        if isinstance(trainer.strategy, FullySharded):
            raise UserError(f"{self.command} takes whole models, and fsdp2 divides them: use --trainer.strategy ddp")
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""

    @property
    def settings(self) -> Any:
        """The configuration of the fit; it may be changed before `dump`."""
        return self.config["fit"]

    def dump(self) -> str:
        """The complete configuration as YAML, which `fit --config` takes."""
        return self._parser("fit").dump(self.settings, skip_none=False)

    def defaults(self) -> dict[str, Any]:
        """The configuration that no option was given for."""
        parser = self._parser("fit")
        return dict(yaml.safe_load(parser.dump(parser.get_defaults(), skip_none=False, skip_validation=True)))

    def gpus(self) -> int:
        """Number of GPUs that one run takes."""
        return self.trainer.num_devices if isinstance(self.trainer.accelerator, CUDAAccelerator) else 0

    def processes(self) -> int:
        """Number of processes of one run."""
        return self.trainer.num_devices


def check_options(command: str, not_here: dict[str, str], rest: list[str], config: bool) -> None:
    """Raise UserError for options of `fit` that the command does not take, and without a configuration."""
    if not config:
        raise UserError(f"{command} needs a configuration: --config conf/quickstart.yaml")
    for word in rest:
        if (option := word.split("=")[0]) in not_here:
            raise UserError(f"{option} is no option of {command}: {not_here[option]}")


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Keys in which two configurations differ and results may, in words; none if `old` is empty.

    An option that came into the program after `old` was written, and that has its default in `new`, is no difference.
    """
    was, now = _flat(defaults) | _flat(old), _flat(new)
    keys = [key for key in {**now, **was} if key not in HARMLESS] if old else []
    return [f"{key} is {now.get(key)!r}, was {was.get(key)!r}" for key in keys if now.get(key) != was.get(key)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
