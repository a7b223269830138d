"""`worldmodel imagine fit | validate | test`: LightningCLI around Imagine and EpisodeDataModule."""

from lightning.pytorch.cli import LightningArgumentParser

from worldmodel.callbacks.progress import FitProgress
from worldmodel.callbacks.tbptt import TruncatedBPTT
from worldmodel.envs.play import EpisodeReturns
from worldmodel.experiments.judged import JudgedCLI, SaveJudged
from worldmodel.experiments.world_model import TrainingParser
from worldmodel.modules.data_module import EpisodeDataModule
from worldmodel.modules.imagination import Imagine
from worldmodel.runs.folder import is_first_rank

SHOWN = {"train/return": "imagined return", "val/return_mean": "val return", "train/entropy": "entropy"}


class ImagineCLI(JudgedCLI):
    """The three subcommands of a policy that is trained in imagination."""

    model: Imagine
    datamodule: EpisodeDataModule
    parses = TrainingParser

    def __init__(self, argv: list[str]) -> None:
        about = {"prog": "worldmodel imagine", "description": "Train policies in a world model, and evaluate them."}
        defaults = {"gradient_clip_val": 1.0, "limit_val_batches": 4, "limit_test_batches": 4}
        super().__init__(argv, Imagine, EpisodeDataModule, SaveJudged, defaults, about)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(TruncatedBPTT, "tbptt")

    def progress(self) -> FitProgress:
        return FitProgress(shown=SHOWN)

    def played(self) -> tuple[EpisodeReturns | None, int | None]:
        return self.model.episode_returns, None

    def before_fit(self) -> None:
        if is_first_rank():
            model = self.model
            size = sum(p.numel() for p in model.parameters() if p.requires_grad)
            print(f"policy: {size:,} parameters to train, in the world of {model.trained.path}")
            data = self.datamodule
            print(f"data: {data.env_id}, {data.splits['train'].num_transitions:,} steps to start from")
