"""`worldmodel fit | validate | test | predict`: LightningCLI around WorldModel and EpisodeDataModule."""

from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from worldmodel.arguments import TRUST
from worldmodel.callbacks.evaluation import RecallEvaluation, RolloutEvaluation
from worldmodel.callbacks.tbptt import TruncatedBPTT
from worldmodel.envs.collect import CollectOptions
from worldmodel.errors import UserError
from worldmodel.evaluation.cause import likely_cause, read_course
from worldmodel.evaluation.selection import RolloutOptions
from worldmodel.experiments.experiment import ExperimentCLI
from worldmodel.experiments.monitor import check_monitors
from worldmodel.experiments.parser import ExperimentParser
from worldmodel.experiments.result import print_result
from worldmodel.modules.data_module import EpisodeDataModule
from worldmodel.modules.world_model import WorldModel
from worldmodel.runs.checkpoint import config_of
from worldmodel.runs.folder import is_first_rank


class TrainingParser(ExperimentParser):
    """For world models, whose data may be collected."""

    further_keys = tuple(f"--data.collect.{name}" for name in CollectOptions.__annotations__)


class TrainingCLI(ExperimentCLI):
    """The four subcommands of a world model."""

    kind, parses = "world_model", TrainingParser
    model_class, datamodule_class = WorldModel, EpisodeDataModule
    about = {"prog": "worldmodel", "description": "Train and evaluate recurrent latent world models."}
    trainer_options = {"gradient_clip_val": 1.0}
    model: WorldModel
    datamodule: EpisodeDataModule

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        if "fit" not in self.asked:  # replaced before the parser sees it: experiments/of_run.py
            what = "Folder of a run, or a checkpoint: --ckpt_path, and without --config the options of that run."
            parser.add_argument("--ckpt", type=str | None, default=None, help=what)
            parser.add_argument("--trust", action="store_true", help=f"{TRUST}.")
        parser.add_lightning_class_args(TruncatedBPTT, "tbptt")
        parser.add_lightning_class_args(RolloutEvaluation, "rollout")
        parser.add_lightning_class_args(RecallEvaluation, "recall")
        for name in ("obs_dim", "action_dim", "images"):
            parser.link_arguments("data", f"model.{name}", compute_fn=partial(_collected, name), apply_on="instantiate")
        parser.link_arguments("model.gradient", "data.whole_episodes", compute_fn=lambda gradient: gradient == "bptt")

    def _parse_ckpt_path(self) -> None:
        for name in ("ckpt", "trust"):
            self.config[self.config["subcommand"]].pop(name, None)
        super()._parse_ckpt_path()

    def before_instantiate_classes(self) -> None:
        """Check what needs no data, before any is collected; what is wrong raises UserError."""
        super().before_instantiate_classes()
        config = self.config[str(self.subcommand)]
        model = WorldModel.check(config["model"].as_dict())
        model.check_segment(config["data"]["steps"])
        RolloutOptions(**config["rollout"].as_dict())
        check_gradient(model, [config["tbptt"]["start"]])
        if self.subcommand == "fit":
            check_monitors(config, model)

    def compared(self) -> list[str]:
        options = self._get(self.config_init, "rollout").options
        whole = [] if options.free_run is None else ["free_run/rmse", "free_run/nmse"]
        return [
            "val/loss",
            *(f"rollout/nmse@{multiple * self.datamodule.steps}" for multiple in options.multiples),
            *whole,
        ]

    def names(self) -> tuple[str, str]:
        return self.folder.name, f"{self.model.hparams['rule']}, {self._get(self.config_init, 'tbptt').start}"

    def tags(self) -> list[str]:
        return [*super().tags(), self._get(self.config_init, "tbptt").start]

    def predict(self, **kwargs: Any) -> None:
        """Predict without keeping the outputs in memory: PredictionWriter writes them."""
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
            course = read_course(self._trained_in())
            of_model = self.model.hparams["learning_rate"], self.model.base is not None
            cause = likely_cause(course, *of_model) if course else None
            print_result(metrics, rollout.curves, recalled, self.datamodule.steps, self.folder, cause)

    after_validate = after_test = after_predict = after_fit

    def _trained_in(self) -> Path:
        """The folder of the run that trained the model."""
        if self.subcommand == "fit":
            return self.folder
        config = config_of(Path(self.config_init[str(self.subcommand)]["ckpt_path"]))
        return self.folder if config is None else config.parent


def check_gradient(model: WorldModel, starts: list[str]) -> None:
    """Raise UserError for an exact gradient whose state is not carried."""
    if model.estimator is not None and "zero" in starts:
        raise UserError(
            f"model.gradient {model.hparams['gradient']} carries the state's derivatives from segment to segment, and"
            " tbptt.start zero carries nothing: use --tbptt.start carry, or --model.gradient tbptt"
        )


def _collected(name: str, data: EpisodeDataModule) -> Any:
    """An attribute of the data, once it is collected: the model takes its sizes from it."""
    data.prepare_data()
    return getattr(data, name)
