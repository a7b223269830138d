"""`worldmodel imagine fit | validate | test`: LightningCLI around Imagine and EpisodeDataModule."""

from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.trainer.states import TrainerFn

from worldmodel.callbacks.last_checkpoint import BestCheckpoint
from worldmodel.callbacks.progress import FitProgress
from worldmodel.callbacks.tbptt import TruncatedBPTT
from worldmodel.commands.breakdown import training_errors
from worldmodel.commands.experiment import ExperimentCLI, SaveConfig
from worldmodel.commands.parser import fail
from worldmodel.commands.result import print_files, print_policy
from worldmodel.commands.run_folder import is_first_rank
from worldmodel.commands.training import TrainingParser
from worldmodel.errors import UserError, nearest
from worldmodel.modules.data_module import EpisodeDataModule
from worldmodel.modules.imagination import Imagine

SUBCOMMANDS = ("fit", "validate", "test")
SHOWN = {"train/return": "imagined return", "val/return_mean": "val return", "train/entropy": "entropy"}
USAGE = """usage: worldmodel imagine {fit,validate,test} [OPTIONS]

Trains a policy in the imagination of a world model, and plays whole episodes with it.

  fit       worldmodel imagine fit --config conf/imagine/pendulum.yaml --model.world RUN
  validate  the mean return of a checkpoint in the real environment, with its 95% interval
  test      the same on other episodes

`worldmodel imagine SUBCOMMAND --help` lists the options."""


class SaveImagined(SaveConfig):
    """Runs are compared by what they return."""

    best = "max"

    def compared(self, config: dict[str, Any], data: Any) -> list[str]:
        return ["val/return_mean"]


class ImagineCLI(ExperimentCLI):
    """The three subcommands of a policy that is trained in imagination."""

    model: Imagine
    datamodule: EpisodeDataModule

    def __init__(self, argv: list[str]) -> None:
        about = {"prog": "worldmodel imagine", "description": "Train policies in a world model, and evaluate them."}
        defaults = {"gradient_clip_val": 1.0, "limit_val_batches": 4, "limit_test_batches": 4}
        super().__init__(argv, Imagine, EpisodeDataModule, TrainingParser, SaveImagined, defaults, about)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        every = ExperimentCLI.subcommands()
        return {name: every[name] for name in SUBCOMMANDS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(TruncatedBPTT, "tbptt")

    def progress(self) -> FitProgress:
        return FitProgress(shown=SHOWN)

    def best_checkpoint(self, folder: Path) -> BestCheckpoint:
        return BestCheckpoint(folder, "val/return_mean", "max")

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        trainer = super().instantiate_trainer(**kwargs)
        if trainer.world_size > 1:
            raise UserError("imagine is trained by one process: leave out trainer.devices, or set it to 1")
        return trainer

    def before_fit(self) -> None:
        if is_first_rank():
            model = self.model
            size = sum(p.numel() for p in model.parameters() if p.requires_grad)
            print(f"policy: {size:,} parameters to train, in the world of {model.trained.path}")
            data = self.datamodule
            print(f"data: {data.env_id}, {data.splits['train'].num_transitions:,} steps to start from")

    def after_fit(self) -> None:
        stage = "test" if self.trainer.state.fn == TrainerFn.TESTING else "validation"
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        print_policy(metrics, self.model.played, stage, None)
        print_files(self.folder)

    after_validate = after_test = after_fit


def main(argv: list[str]) -> None:
    """Run a subcommand, named by the first argument."""
    command = argv[0] if argv else "--help"
    if command in ("-h", "--help", "help"):
        print(USAGE)
    elif command not in SUBCOMMANDS:
        fail(f"unknown command 'imagine {command}': {nearest(command, SUBCOMMANDS)}")
    else:
        with training_errors(argv):
            ImagineCLI(argv)
