"""`worldmodel fit | validate | test | predict`: LightningCLI around WorldModel and EpisodeDataModule."""

from functools import partial
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser

from worldmodel.callbacks.predictions import PredictionWriter
from worldmodel.callbacks.recall import RecallEvaluation
from worldmodel.callbacks.rollout import MULTIPLES, RolloutEvaluation
from worldmodel.callbacks.tbptt import TruncatedBPTT
from worldmodel.envs.collect import CollectOptions
from worldmodel.errors import UserError
from worldmodel.experiments.experiment import ExperimentCLI, ExperimentParser, SaveConfig
from worldmodel.experiments.result import print_result
from worldmodel.modules.data_module import EpisodeDataModule
from worldmodel.modules.world_model import WorldModel
from worldmodel.runs.folder import is_first_rank


class TrainingParser(ExperimentParser):
    """Of world models, whose data may be collected."""

    further_keys = tuple(f"--data.collect.{name}" for name in CollectOptions.__annotations__)


class SaveTraining(SaveConfig):
    """Runs are compared by the open-loop error too."""

    def compared(self, config: dict[str, Any], data: Any) -> list[str]:
        multiples = config["rollout"]["multiples"] or MULTIPLES
        horizons = [multiple * data.steps for multiple in multiples] if data else []
        return ["val/loss", *(f"rollout/nmse@{horizon}" for horizon in horizons)]


class TrainingCLI(ExperimentCLI):
    """The four subcommands of a world model."""

    model: WorldModel
    datamodule: EpisodeDataModule
    parses = TrainingParser

    def __init__(self, argv: list[str]) -> None:
        about = {"prog": "worldmodel", "description": "Train and evaluate recurrent latent world models."}
        defaults = {"gradient_clip_val": 1.0}
        super().__init__(argv, WorldModel, EpisodeDataModule, SaveTraining, defaults, about)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(TruncatedBPTT, "tbptt")
        parser.add_lightning_class_args(RolloutEvaluation, "rollout")
        parser.add_lightning_class_args(RecallEvaluation, "recall")
        for name in ("obs_dim", "action_dim", "images"):
            parser.link_arguments("data", f"model.{name}", compute_fn=partial(_collected, name), apply_on="instantiate")
        parser.link_arguments("model.gradient", "data.whole_episodes", compute_fn=_needs_whole_episodes)

    def first_callbacks(self) -> list[Callback]:
        return [PredictionWriter(), *super().first_callbacks()]

    def before_instantiate_classes(self) -> None:
        """Check what needs no data, before any is collected; what is wrong raises UserError."""
        super().before_instantiate_classes()
        config = self.config[str(self.subcommand)]
        model = WorldModel.check(config["model"].as_dict())
        model.check_segment(config["data"]["steps"])
        check_gradient(model, [config["tbptt"]["start"]])

    def names(self) -> tuple[str, str]:
        """Of the run, and of what is compared, as W&B shows and groups them."""
        return self.folder.name, f"{self.model.hparams['rule']}, {self._get(self.config_init, 'tbptt').start}"

    def tags(self) -> list[str]:
        return [*super().tags(), self._get(self.config_init, "tbptt").start]

    def predict(self, **kwargs: Any) -> None:
        """PredictionWriter writes what is wanted of the outputs; kept in memory they would grow with the data."""
        kwargs["return_predictions"] = False
        self.trainer.predict(**kwargs)

    def before_fit(self) -> None:
        if is_first_rank():
            size = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
            core = sum(p.numel() for p in self.model.predictor.cell.parameters())
            train, val = self.datamodule.splits["train"], self.datamodule.splits["val"]
            print(f"model: {self.model.hparams['rule']}, {size:,} parameters, {core:,} of them in the recurrence")
            split = f"{len(train)} episodes with {train.num_transitions:,} steps to train on, {len(val)} to validate"
            print(f"data: {self.datamodule.env_id}, {split}")

    def after_fit(self) -> None:
        if self.trainer.is_global_zero:
            metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            rollout = self._get(self.config_init, "rollout")
            recalled = self._get(self.config_init, "recall").recalled
            print_result(metrics, rollout.curves, recalled, self.datamodule.steps, self.folder)

    after_validate = after_test = after_predict = after_fit


def check_gradient(model: WorldModel, starts: list[str]) -> None:
    """A UserError where an exact gradient would have nothing to go on from."""
    if model.estimator is not None and "zero" in starts:
        raise UserError(
            f"model.gradient {model.hparams['gradient']} carries on what the state depends on, and tbptt.start zero"
            " carries nothing: use --tbptt.start carry, or --model.gradient tbptt"
        )


def _collected(name: str, data: EpisodeDataModule) -> Any:
    """An attribute of the data, once it is collected: the model takes its sizes from it."""
    data.prepare_data()
    return getattr(data, name)


def _needs_whole_episodes(gradient: str) -> bool:
    return gradient == "bptt"
