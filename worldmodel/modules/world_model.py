"""How the world model is trained: losses, optimizer, and what is logged."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torchmetrics import MeanMetric

from worldmodel import losses
from worldmodel.batch import Batch
from worldmodel.callbacks import HiddenNormMonitor, RecallEvaluation, RolloutEvaluation, TruncatedBPTT, missing
from worldmodel.data.statistics import reward_extent
from worldmodel.errors import UserError, at_least
from worldmodel.evaluation.scores import Scores
from worldmodel.members import bootstrapped, packed
from worldmodel.modules.line import LineFit
from worldmodel.modules.objective import OBJECTIVES, Segment
from worldmodel.modules.optimizer import Schedule, adamw, retune
from worldmodel.modules.sharding import check_can_shard, shard
from worldmodel.modules.step_graph import Step, StepGraph, check_can_capture
from worldmodel.modules.trained import Trained
from worldmodel.nets import MLP, ObservationEncoder, check_net
from worldmodel.restore import ARGUMENTS, DEFAULTS, own_parts
from worldmodel.rtrl import RTRL, Eligibility


class WorldModel(Trained):
    """A recurrent latent world model (model.py), and how it is trained.

    `reconstruction` decodes the predicted latent and compares it with the next observation. `latent` compares it with
    the next latent of a target encoder, keeps the latents from collapsing, and trains the decoder as a probe, without
    gradient into the model, so that both objectives are judged in observation units. `tokens` is for sequence tasks
    (tasks.sequences): an embedding, logits, and cross-entropy where an answer is asked for.

    The carry contract: `batch["carry"]` (B, D) holds the state before the segment (absent: zeros); the step returns
    `outputs["carry"]`, the state after it, and `outputs["h"]` (B, T, D). With exact gradients the carry of training is
    wider: after the state it holds what the estimator needs. Every Trainer that runs the module gets TruncatedBPTT,
    HiddenNormMonitor and RolloutEvaluation (RecallEvaluation for tokens), unless it has its own.

    Args:
        obs_dim: Number of entries of an observation: the vector, then the pixels of the images.
        action_dim: Number of entries of an action (one-hot where discrete).
        images: Shape [H, W, C] of each image in an observation; null: no images.
        gradient: How gradients pass through time. `tbptt` cuts them where a segment starts; `rtrl` is exact through any
            number of segments, for small models; `eligibility`, for the rule diagonal, is exact for the cell's last
            layer, at a fraction of the cost; `bptt` trains each episode as one segment.
        open_loop_steps: Length in steps of the open-loop rollouts that are trained too, one after the other up to the
            segment's end: what they do not fill comes before; 0: no rollouts.
        open_loop_weight: Weight of the rollouts' loss, relative to the one-step prediction.
        nll_beta: With a distribution as output, how the gradients of its likelihood are weighted: by each entry's
            deviation to the power of twice this. 1: as a squared error's; 0: as the likelihood's own.
        bootstrap: With several members, whether each is trained on 63% of the episodes, others for each.
        reward_weight: Weight of the losses of the reward head and the value head.
        continue_weight: Weight of the continue head's loss.
        consistency_weight: With `reconstruction`, weight of |pred - z_next|^2, which lets a predicted latent stand in
            for an encoded one.
        target: With `latent`, what predictions are compared with: an exponential moving average of the encoder (ema),
            or the encoder itself without gradient.
        ema_decay: Decay of that average, per step.
        anti_collapse: With `latent`, the terms that keep latents from collapsing: VICReg's variance and covariance, or
            SIGReg.
        anti_collapse_weight: Weight of these terms.
        learning_rate: Highest learning rate of AdamW.
        weight_decay: Weight decay of AdamW, on matrices only.
        lr_schedule: Learning rate after the warm-up: constant, or a cosine to a hundredth over the planned steps.
        warmup_steps: Number of steps over which the learning rate rises linearly.
        compile: Compile the step of the recurrence with torch.compile; only useful together with cuda_graph.
        cuda_graph: On a GPU, capture a training step, forward and backward, and launch it as one.
        model: The arguments of `networks.Networks`.
    """

    mutable = (
        "learning_rate", "weight_decay", "ema_decay", "open_loop_weight", "reward_weight", "continue_weight",
        "consistency_weight", "anti_collapse_weight",
    )  # fmt: skip
    # arguments that say what the weights mean
    identity = (*(name for name in ARGUMENTS if name not in ("gate_bias", "base_lags")), "target")
    obs_weights: Tensor

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        images: list[tuple[int, int, int]] | None = None,
        *,
        gradient: Literal["tbptt", "rtrl", "eligibility", "bptt"] = "tbptt",
        open_loop_steps: int = 0,
        open_loop_weight: float = 1.0,
        nll_beta: float = 1.0,
        bootstrap: bool = False,
        reward_weight: float = 1.0,
        continue_weight: float = 0.1,
        consistency_weight: float = 1.0,
        target: Literal["ema", "stop_gradient"] = "ema",
        ema_decay: float = 0.99,
        anti_collapse: Literal["variance_covariance", "sigreg"] = "variance_covariance",
        anti_collapse_weight: float = 1.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        lr_schedule: Schedule = "cosine",
        warmup_steps: int = 100,
        compile: bool = False,
        cuda_graph: bool = False,
        **model: Any,
    ) -> None:
        super().__init__(obs_dim, action_dim, images, **model)
        model = {name: value for name, value in {**DEFAULTS, **model}.items() if name != "images"}  # hparams name all
        self.save_hyperparameters(ignore=["compile", "cuda_graph"])  # how it runs, not what it is
        self._compile, self._cuda_graph = compile, cuda_graph
        self._graph: StepGraph | None = None
        self._line, self._is_loaded = LineFit(), False
        at_least(0, "model.", open_loop_steps=open_loop_steps, warmup_steps=warmup_steps)
        if not learning_rate > 0:
            raise UserError(f"model.learning_rate is {learning_rate}: it must be above 0")
        self.objective = OBJECTIVES["innovation" if self.base is not None else model["objective"]](self.hparams)
        self.register_buffer("obs_weights", losses.part_weights(obs_dim, images or []), persistent=False)
        estimators: dict[str, type[RTRL] | type[Eligibility]] = {"rtrl": RTRL, "eligibility": Eligibility}
        exact = estimators.get(gradient)
        if self.members > 1 and exact is not None:
            raise UserError(f"model.gradient {gradient} is for one member: leave model.members out, or take tbptt")
        if bootstrap and self.members == 1:
            raise UserError("model.bootstrap is for several members, such as --model.members 5: leave it out")
        self.estimator = None if exact is None else exact(self.encoder, self.predictor)
        self.target_encoder: nn.Module | None = None
        if model["objective"] == "latent" and target == "ema":
            self.target_encoder = deepcopy(self.encoder).requires_grad_(False)
        self.grad_norm: Tensor | None = None  # of this step's gradients, where a callback took it (callbacks/guard.py)
        self.weights = self.objective.weights(self)
        # a NaN counts as infinite: by default it is left out, and a diverged model would look good
        names = "loss", *self.weights, *self.objective.reported
        self.val_means: Any = nn.ModuleDict({name: MeanMetric(nan_strategy=float("inf")) for name in names})

    @classmethod
    def check(cls, arguments: Mapping[str, Any]) -> "WorldModel":
        """A model of these arguments without memory, of the smallest data where they name none.

        Raises:
            UserError: for arguments that no data could make right.
        """
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return cls(**{"obs_dim": 1, "action_dim": 1, **arguments})

    def check_segment(self, length: int) -> None:
        """Raise UserError if segments of this many steps are shorter than the open-loop rollouts."""
        if (steps := self.hparams["open_loop_steps"]) > length:
            raise UserError(f"model.open_loop_steps {steps} is more than the segment of {length} steps (data.steps)")

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The terms of the loss, the states (B, T, D) and the carry (B, C), or wider, of a segment."""
        obs, action, is_first = self.obs_norm(batch["obs"]), self.action_norm(batch["action"]), batch["is_first"]
        steps = action.shape[1]
        self.check_segment(steps)
        seen = self.see(obs if self.base is None else obs[:, :-1], action, is_first, batch.get("carry"))
        estimator, start = self.estimator if self.training else None, seen.h
        if estimator is not None:
            start = estimator.attach(start, is_first)
        loop = self.looped(self.latent(seen.z[:, :steps]), action, is_first, start)
        segment = Segment(batch, obs, action, seen, loop, self._target(obs, seen.z), self.obs_weights)
        if self.members > 1:
            kept = self.hparams["bootstrap"] and self.training
            segment = segment.over(self.members, bootstrapped(batch["episode"], self.members) if kept else None)
        terms, h, after = (
            self.objective.terms(self, segment),
            packed(loop.h, self.members),
            packed(loop.carry, self.members),
        )
        if estimator is not None:
            after = estimator.advance(seen.h, h, seen.inputs[:, :steps], action, is_first)
        return terms, h, seen.carry(after)

    def _target(self, obs: Tensor, z: Tensor) -> Tensor:
        """The latents of the next frames (B, T, Z), without gradient."""
        if self.target_encoder is None:
            return z[:, 1:].detach()
        with torch.no_grad():
            return self.target_encoder(obs[:, 1:])

    def step(self, batch: Batch) -> Step:
        """The weighted loss of a segment, and what `losses` gives."""
        terms, h, carry = self.losses(batch)
        return Step(self.total(terms), terms, h, carry)

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The loss: the terms of `losses`, weighted."""
        return torch.stack([weight * terms[name] for name, weight in self.weights.items()]).sum()

    def setup(self, stage: str) -> None:
        """Check the encoder that a subclass may have replaced, and that the objective is for the data.

        For a fit `take_statistics` does the latter.
        """
        if not isinstance(self.encoder, MLP | ObservationEncoder):
            inputs = self.hparams["obs_dim"] if self.base is None else self.base.features_dim
            what = (
                f"the encoder, {type(self.encoder).__name__}, whose input is 3 obs_dim wide with a base, else obs_dim,"
            )
            check_net(what, self.encoder, inputs, self.latent_dim)
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage != "fit" and hasattr(data, "layout"):
            self.objective.check_data(data.layout, None)

    def take_statistics(self, data: Any) -> None:
        """Take the training split's statistics and the line through it, unless a checkpoint has given others.

        The DataModule asks for it in its own setup, since callbacks that average weights copy the model in theirs.
        """
        self.objective.check_data(data.layout, float(data.statistics["reward"][0]))
        self.observation_space = data.layout.observation_space
        self._line.begin()
        if self._is_loaded:
            return
        for name, norm in {"obs": self.obs_norm, "action": self.action_norm, "reward": self.reward_norm}.items():
            norm.fit(*data.statistics[name])
        if self.hparams["reward_head"] == "two_hot":
            self.fit_rewards(*reward_extent(data.splits["train"]))
        if self.base is not None:
            self._line.fit(self, data)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the checkpoint's statistics and its line, whose number of lags its data may have chosen."""
        self._is_loaded = True
        if self.base is not None:
            self.hparams["base_lags"] = checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY]["base_lags"]

    def measure_ahead(self) -> Scores | None:
        """In a fit, measure how far ahead predictions can be believed, before they are; a checkpoint keeps it.

        Returns the scores of the validation episodes' futures, where that took any.
        """
        if self.trainer.state.fn != "fit":
            return None
        self._line.measure(self)
        return self._line.scores

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the digests of own code; measure before a fit's last checkpoint too, which may come before the last
        validation."""
        if own := own_parts(self.hparams):
            checkpoint["parts"] = own
        if self.trainer.should_stop or self.trainer.global_step == self.trainer.max_steps:
            self._line.save(self, checkpoint)

    def on_validation_epoch_start(self) -> None:
        """Begin the means anew: a fit cannot add to tensors that `Trainer.validate` made, in its inference mode."""
        for mean in self.val_means.values():
            mean.reset()

    on_test_epoch_start = on_validation_epoch_start

    def configure_callbacks(self) -> list[pl.Callback]:
        """The callbacks that training and evaluation lean on, of each kind that the Trainer does not have yet."""
        evaluation = RecallEvaluation if self.hparams["objective"] == "tokens" else RolloutEvaluation
        return missing(self.trainer, HiddenNormMonitor, TruncatedBPTT, evaluation)

    def configure_model(self) -> None:
        mesh = self.device_mesh  # of the strategy fsdp2 alone
        if mesh is not None and not isinstance(self.encoder, FSDPModule):
            check_can_shard(self.hparams["gradient"], self._compile or self._cuda_graph)
            shard(self, mesh["data_parallel"])
        if self._cuda_graph:
            trainer: Any = self.trainer
            check_can_capture(self.hparams, trainer.precision, trainer.world_size, trainer.strategy.root_device)
        if self._compile:
            self.predictor.compile_step()
        self._graph = None  # the weights may be elsewhere than in an earlier fit

    def _captured(self, batch: Batch) -> Step:
        """As `step`, in one CUDA graph."""
        if self._graph is None:
            self._graph = StepGraph(self.step, self.parameters())
        return self._graph({"carry": self.initial_carry(batch["obs"]), **batch})

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        loss, terms, h, carry = self._captured(batch) if self._cuda_graph else self.step(batch)
        trainer: Any = self.trainer
        every = trainer.log_every_n_steps
        if every and (trainer.global_step + 1) % every == 0:
            named = {logged_as("train", name): value for name, value in {"loss": loss, **terms}.items()}
            self.log_dict(named, sync_dist=True)  # the mean over ranks is the mean over all valid steps
        return {"loss": loss, "carry": carry, "h": h.detach()}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluation_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        terms, h, carry = self.losses(batch)
        for name, value in {"loss": self.total(terms), **terms}.items():
            metric = self.val_means[name]
            metric.update(value, weight=self.objective.count(batch))
            self.log(logged_as(stage, name), metric, on_step=False, on_epoch=True, batch_size=len(h))
        return {"carry": carry, "h": h}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Closed-loop predictions of each next observation, reward and continue probability, in the data's units."""
        obs, h, carry = self.closed_loop(batch["obs"][:, :-1], batch["action"], batch["is_first"], batch.get("carry"))
        predicted = {"obs": obs.float(), "carry": carry, "h": h}
        if self.heads is None:
            return predicted
        reward, continues = self.expected(h)
        return {**predicted, "reward": reward.float(), "continue": continues.float()}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # here, not in on_train_batch_end: a checkpoint of this step is written before that hook. Without gradients the
        # update was skipped (callbacks/guard.py), and there is nothing new to average.
        if self.target_encoder is not None and any(p.grad is not None for p in self.encoder.parameters()):
            decay = self.hparams["ema_decay"]
            with torch.no_grad():
                pairs = zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True)
                for average, online in pairs:
                    average.lerp_(online, 1 - decay)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning does, with the norm that was computed already."""
        norm, self.grad_norm = self.grad_norm, None
        if norm is None or not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def change(self, values: Mapping[str, float]) -> None:
        """Change hyperparameters that are `mutable` during a fit."""
        self.hparams.update(values)
        self.weights, self._graph = self.objective.weights(self), None  # a graph holds the weights of its terms
        retune(self.trainer, self.hparams["learning_rate"], self.hparams["weight_decay"])

    def configure_optimizers(self) -> Any:
        hp, planned = self.hparams, self.trainer.estimated_stepping_batches
        rate, schedule = (hp["learning_rate"], hp["weight_decay"]), (hp["lr_schedule"], hp["warmup_steps"])
        scaled = self.trainer.precision == "16-mixed"
        stacked = self.predictor.parameters() if self.members > 1 else ()
        return adamw(self.parameters(), *rate, *schedule, planned, fused=not scaled, stacked=stacked)


def logged_as(stage: str, name: str) -> str:
    """The name that a term is logged under."""
    return f"{stage}/{name}" if name in ("loss", "accuracy", "nll") else f"{stage}/loss_{name}"
