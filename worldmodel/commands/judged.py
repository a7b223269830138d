"""What `worldmodel policy` and `worldmodel imagine` share: policies, judged by what whole episodes return."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn

from worldmodel.callbacks.last_checkpoint import BestCheckpoint
from worldmodel.commands.breakdown import training_errors
from worldmodel.commands.experiment import ExperimentCLI, SaveConfig
from worldmodel.commands.parser import fail
from worldmodel.commands.result import print_files, print_policy
from worldmodel.envs.evaluate import Played
from worldmodel.errors import UserError, nearest

SUBCOMMANDS = ("fit", "validate", "test")


class SaveJudged(SaveConfig):
    """Runs are compared by what they return."""

    best = "max"

    def compared(self, config: dict[str, Any], data: Any) -> list[str]:
        return ["val/return_mean"]


class JudgedCLI(ExperimentCLI):
    """Three subcommands, in one process. The best checkpoint is the one with the highest `val/return_mean`."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        every = ExperimentCLI.subcommands()
        return {name: every[name] for name in SUBCOMMANDS}

    @abstractmethod
    def played(self) -> tuple[Played | None, int | None]:
        """The episodes of the last validation or test; and K, where the state was reset at every K-th frame of them."""

    def best_checkpoint(self, folder: Path) -> BestCheckpoint:
        return BestCheckpoint(folder, "val/return_mean", "max")

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        trainer = super().instantiate_trainer(**kwargs)
        if trainer.world_size > 1:
            raise UserError("a policy is trained by one process: leave out trainer.devices, or set it to 1")
        return trainer

    def after_fit(self) -> None:
        stage = "test" if self.trainer.state.fn == TrainerFn.TESTING else "validation"
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        played, reset_every = self.played()
        print_policy(metrics, played, stage, reset_every)
        print_files(self.folder)

    after_validate = after_test = after_fit


def run_subcommand(argv: list[str], group: str, usage: str, cli: Callable[[list[str]], Any]) -> None:
    """Run a subcommand of a group of them, named by the first argument; without one, its usage is printed."""
    command = argv[0] if argv else "--help"
    if command in ("-h", "--help", "help"):
        print(usage)
    elif command not in SUBCOMMANDS:
        fail(f"unknown command '{group} {command}': {nearest(command, SUBCOMMANDS)}")
    else:
        with training_errors(argv):
            cli(argv)
