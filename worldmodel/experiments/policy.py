"""`worldmodel policy fit | validate | test`: LightningCLI around Policy and ExperienceDataModule."""

from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser

from worldmodel.callbacks.learning_curve import LearningCurve
from worldmodel.callbacks.progress import FitProgress
from worldmodel.envs.play import EpisodeReturns
from worldmodel.experiments.judged import JudgedCLI, SaveJudged
from worldmodel.modules.experience_data import ExperienceDataModule
from worldmodel.modules.policy import Policy
from worldmodel.runs.folder import is_first_rank

SHOWN = {"policy/return_mean": "return", "val/return_mean": "val return", "train/entropy": "entropy"}


class SavePolicy(SaveJudged):
    def compared(self, config: dict[str, Any], data: Any) -> list[str]:
        return ["policy/return_mean", "val/return_mean"]


class PolicyCLI(JudgedCLI):
    """The three subcommands of a policy."""

    model: Policy
    datamodule: ExperienceDataModule

    def __init__(self, argv: list[str]) -> None:
        about = {"prog": "worldmodel policy", "description": "Train and evaluate policies with memory."}
        defaults = {"gradient_clip_val": 0.5, "max_epochs": -1, "accelerator": "cpu", "devices": 1}
        super().__init__(argv, Policy, ExperienceDataModule, SavePolicy, defaults, about)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--reset_every",
            type=int | None,
            default=None,
            help="K; validate, test: the state starts from zeros at every K-th frame, which shows what it is worth",
        )
        parser.link_arguments("reset_every", "data.reset_every")
        parser.link_arguments("data.obs_dim", "model.obs_dim", apply_on="instantiate")
        parser.link_arguments("data.action_space", "model.action_space", apply_on="instantiate")
        parser.link_arguments("data.images", "model.images", apply_on="instantiate")

    def first_callbacks(self) -> list[Callback]:
        return [*super().first_callbacks(), *([LearningCurve(self.folder)] if self.subcommand == "fit" else [])]

    def progress(self) -> FitProgress:
        data = self.datamodule
        return FitProgress(shown=SHOWN, done=lambda: (data.steps, data.total_steps))

    def played(self) -> tuple[EpisodeReturns | None, int | None]:
        return self.datamodule.episode_returns, self.datamodule.reset_every

    def finished(self, checkpoint: dict[str, Any]) -> str | None:
        data, rollout = self.datamodule, self.datamodule.num_envs * self.datamodule.rollout_steps
        steps = checkpoint.get(type(data).__qualname__, {}).get("steps", 0)
        if steps + rollout > data.total_steps:
            return (
                f"the checkpoint's run is finished: data.total_steps {data.total_steps} is reached; raise it to go on"
            )
        return super().finished(checkpoint)

    def before_fit(self) -> None:
        if is_first_rank():
            model, data = self.model, self.datamodule
            size = sum(p.numel() for p in model.parameters())
            print(f"policy: {model.hparams['rule']}, {size:,} parameters, a state of {model.state_dim}")
            envs = f"{data.num_envs} environments, {data.obs_dim} entries seen, actions {data.action_space['type']}"
            print(f"data: {data.env_id}, {envs}, {data.total_steps:,} steps")
