"""What `worldmodel policy` and `worldmodel imagine` share: policies, judged by what whole episodes return."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn

from worldmodel.arguments import SUBCOMMANDS
from worldmodel.callbacks.last_checkpoint import BestCheckpoint
from worldmodel.envs.play import EpisodeReturns
from worldmodel.errors import UserError
from worldmodel.experiments.experiment import ExperimentCLI, SaveConfig
from worldmodel.experiments.result import print_files, print_policy


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
    def played(self) -> tuple[EpisodeReturns | None, int | None]:
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
