"""The configuration that several runs share, for commands that train more than one."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator

from worldmodel.errors import UserError
from worldmodel.experiments.experiment import ExperimentCLI
from worldmodel.modules.sharding import FullySharded


class ConfigCLI(ExperimentCLI):
    """`fit` up to the point where a run would start: all options are read and checked, nothing is written.

    For commands that train several runs of one configuration. A subclass also inherits from the CLI of what is trained,
    and sets the `command` and the options of `fit` that it does not take, each with what to do instead (`not_here`).
    """

    command: str
    not_here: dict[str, str]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        for option, taken in {"--run_dir": self.run_dir, "--ckpt_path": self.checkpoint}.items():
            if taken is not None:
                raise UserError(f"{option} is no option of {self.command}: {self.not_here[option]}")
        self.check_options()
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
