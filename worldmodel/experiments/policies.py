"""`worldmodel policy` and `worldmodel imagine`: policies, judged by the return of whole episodes."""

from abc import abstractmethod
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.trainer.states import TrainerFn

from worldmodel.arguments import SUBCOMMANDS
from worldmodel.callbacks.tbptt import TruncatedBPTT
from worldmodel.envs.play import EpisodeReturns
from worldmodel.errors import UserError
from worldmodel.experiments.experiment import ExperimentCLI
from worldmodel.experiments.result import print_files, print_policy
from worldmodel.experiments.world_model import TrainingParser
from worldmodel.modules.data_module import EpisodeDataModule
from worldmodel.modules.experience_data import ExperienceDataModule
from worldmodel.modules.imagination import Imagine
from worldmodel.modules.policy import Policy
from worldmodel.runs.folder import is_first_rank


class EpisodesCLI(ExperimentCLI):
    """Three subcommands, in one process. The policy with the highest return is the best."""

    best, monitor, jobs = "max", "val/return_mean", SUBCOMMANDS

    def compared(self) -> list[str]:
        return ["val/return_mean"]

    @abstractmethod
    def played(self) -> tuple[EpisodeReturns | None, int | None]:
        """The episodes of the last validation or test; and K, if the state was reset at every K-th frame of them."""

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


class PolicyCLI(EpisodesCLI):
    """`worldmodel policy`: LightningCLI around Policy and ExperienceDataModule."""

    kind = "policy"
    model_class, datamodule_class = Policy, ExperienceDataModule
    about = {"prog": "worldmodel policy", "description": "Train and evaluate policies with memory."}
    trainer_options = {"gradient_clip_val": 0.5, "max_epochs": -1, "accelerator": "cpu", "devices": 1}
    model: Policy
    datamodule: ExperienceDataModule

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--reset_every",
            type=int | None,
            default=None,
            help="In validate and test, reset the state to zeros at every K-th frame of an episode, which shows what"
            " the memory is worth. Null: only where an episode starts.",
        )
        parser.link_arguments("reset_every", "data.reset_every")
        parser.link_arguments("data.obs_dim", "model.obs_dim", apply_on="instantiate")
        parser.link_arguments("data.action_space", "model.action_space", apply_on="instantiate")
        parser.link_arguments("data.images", "model.images", apply_on="instantiate")

    def compared(self) -> list[str]:
        return ["policy/return_mean", "val/return_mean"]

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
            envs = f"{data.num_envs} environments, {data.obs_dim} entries observed, actions {data.action_space['type']}"
            print(f"data: {data.env_id}, {envs}, {data.total_steps:,} steps")


class ImagineCLI(EpisodesCLI):
    """`worldmodel imagine`: LightningCLI around Imagine and EpisodeDataModule."""

    kind, parses = "imagine", TrainingParser
    model_class, datamodule_class = Imagine, EpisodeDataModule
    about = {"prog": "worldmodel imagine", "description": "Train policies in a world model, and evaluate them."}
    trainer_options = {"gradient_clip_val": 1.0, "limit_val_batches": 4, "limit_test_batches": 4}
    model: Imagine
    datamodule: EpisodeDataModule

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(TruncatedBPTT, "tbptt")

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        if self.config[str(self.subcommand)]["init_from"] is not None:
            raise UserError("imagine takes no --init_from: each world gets a policy of its own; leave it out")

    def played(self) -> tuple[EpisodeReturns | None, int | None]:
        return self.model.episode_returns, None

    def before_fit(self) -> None:
        if is_first_rank():
            model, data = self.model, self.datamodule
            size = sum(p.numel() for p in model.parameters() if p.requires_grad)
            print(f"policy: {size:,} parameters to train, in the world of {model.trained.path}")
            print(f"data: {data.env_id}, {data.splits['train'].num_transitions:,} steps to start from")
