"""Truncated backpropagation through time, for any LightningModule that follows the carry contract."""

import warnings
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from worldmodel.callbacks.metrics import log_at_once
from worldmodel.errors import UserError
from worldmodel.stale_state import (
    INPUTS,
    InputHistory,
    OnWeightChange,
    PostSwapRatio,
    WeightWatch,
    history_for,
    mended,
)


class TruncatedBPTT(pl.Callback):
    """Carries the hidden state's values from each segment to the next, and cuts its graph there.

    The carry contract. A batch is a dict, one segment of B lanes, each the continuation of the same lane in the batch
    before. The step starts from `batch["carry"]`, a tensor (B, D), or from zeros where there is none, resets it itself
    wherever an episode starts, and returns `outputs["carry"]`, the state behind the segment. The callback owns the
    state in between. Where batches have a `position`, the state is carried only from one position to the next, and
    the DataModule's `acknowledge(position)`, where it has one, hears which batch was trained on. Each rank has an equal
    share of the lanes, in the order of the ranks, so that a fit may go on with another number of them.

    Validation, test and prediction have a state of their own, dropped before each run.

    A state belongs to the weights that made it. Where weights are loaded into the module or a part of it while it is
    trained, the state is mended before it is used or saved again; a checkpoint that restores both is no such case. To
    make it anew takes the module's `observe(obs, action, is_first, h) -> (z, h, carry)` and a batch's `obs`
    (B, T or T + 1, O), `action` (B, T, A), `is_first` (B, T); without them it starts from zeros, with a warning. What
    a resumed fit has not seen itself the DataModule gives once more, if it has `training_segments()`, batches by
    their position. Logs `hidden/post_swap_ratio` (see PostSwapRatio), of the first rank's lanes. Each rank mends its
    own lanes.

    Args:
        start: `carry` the state into each segment, or start every segment from `zero`.
        on_weight_change: `keep` the state; `zero` it; `burn_in`: run the new weights over the last steps from zeros;
            `replay`: over each lane's episode from its start, whose inputs are kept in memory for that.
        burn_in_steps: L, steps of `burn_in`; the inputs of the batches that they lie in are kept.
        reset_every: K; in validation, test and prediction the state starts from zeros at every K-th frame of an
            episode, which shows what the state is worth. Null: at the episode's start alone.

    Raises:
        UserError: if a number of steps is below 1.
    """

    def __init__(
        self,
        start: Literal["carry", "zero"] = "carry",
        on_weight_change: OnWeightChange = "burn_in",
        burn_in_steps: int = 32,
        reset_every: int | None = None,
    ) -> None:
        for name, value in (("burn_in_steps", burn_in_steps), ("reset_every", reset_every)):
            if value is not None and value < 1:
                raise UserError(f"tbptt.{name} is {value}: it must be at least 1")
        self.start, self.burn_in_steps = start, burn_in_steps
        self.on_weight_change: OnWeightChange = on_weight_change
        self.reset_every = reset_every
        self._watch = WeightWatch()
        self._begin(None)

    def _begin(self, trainer: pl.Trainer | None) -> None:
        self._trainer = trainer
        self._train, self._evaluation, self._ratio = _Carry(), _Carry(), PostSwapRatio()
        carries = self.start == "carry"
        self._history = history_for(self.on_weight_change, self.burn_in_steps) if carries else None
        self._made_at = self._step_at = self._watch.loads  # of the state, and of the step that is under way

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Clear here and not in on_fit_start, which runs after a checkpoint was restored.
        self._begin(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._watch.leave()

    # --- training ------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._watch.follow(pl_module)  # by now configure_model has built all of it

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._mend(trainer, pl_module)
        if self._history is not None and self._train.before(batch) is None:
            self._history.clear()
        self._give(self._train, batch, pl_module)
        self._step_at = self._watch.loads

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._train.keep(outputs, batch)
        self._made_at = self._step_at  # weights loaded since the step began made only a part of the state
        if self._history is not None and _can_remake(pl_module, batch):
            self._history.add(batch)
        if "loss" in outputs and (ratio := self._ratio.hear(outputs["loss"])) is not None:
            log_at_once(trainer, {"hidden/post_swap_ratio": ratio})
        acknowledge = getattr(getattr(trainer, "datamodule", None), "acknowledge", None)
        if acknowledge is not None and "position" in batch:
            acknowledge(int(batch["position"]))

    def state_dict(self) -> dict[str, Any]:
        """The carry of all lanes of all ranks, (ranks B, D). A collective: all ranks save together."""
        if self._train.state is None or self._trainer is None:
            return {}
        self._mend(self._trainer, self._trainer.lightning_module)
        state = self._trainer.strategy.all_gather(self._train.state)
        return {"carry": state.view(-1, *self._train.state.shape[1:]), "position": self._train.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "carry" in state_dict and self._trainer is not None:
            ranks, rank, carry = self._trainer.world_size, self._trainer.global_rank, state_dict["carry"]
            if len(carry) % ranks == 0:  # each rank its share, also where there were more or fewer of them
                self._train = _Carry(carry.chunk(ranks)[rank].clone(), state_dict["position"])
        self._made_at = self._watch.loads  # the weights were restored with it

    def _mend(self, trainer: Any, pl_module: Any) -> None:
        """Bring the state up to the weights there are, if others made it."""
        if self._made_at == self._watch.loads:
            return
        self._made_at = self._watch.loads
        if self._train.state is None or self.start == "zero":
            return
        self._ratio.start()
        if self._history is not None:
            self._recall(trainer, self._history)
        if self._history is not None and not self._history.held:
            warnings.warn(
                "the weights were replaced, and the state that they need cannot be made: it starts from zeros. To make"
                " it takes a batch since this fit began, and a module with observe(obs, action, is_first, h);"
                " --tbptt.on_weight_change zero is the same without a warning",
                stacklevel=2,
            )
        observe = getattr(pl_module, "observe", None)
        with trainer.precision_plugin.forward_context():
            state = mended(self._train.state, self.on_weight_change, self._history, observe)
        self._train.state = _full_precision(state)

    def _recall(self, trainer: Any, history: InputHistory) -> None:
        """Fetch the batches that came before this fit began, as far as they are needed and there were any."""
        module, position = trainer.lightning_module, self._train.position
        data: Any = getattr(trainer, "datamodule", None)
        if position is None or not hasattr(data, "training_segments") or not callable(getattr(module, "observe", None)):
            return
        segments = None
        while not history.complete and (earlier := position - history.batches) >= 0:
            segments = data.training_segments() if segments is None else segments
            history.add_before(_on_device(trainer, segments[earlier]))

    # --- evaluation ----------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluation = _Carry()

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._give(self._evaluation, batch, pl_module)
        if self.reset_every is not None:
            batch["is_first"] = _with_resets(batch, self.reset_every)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._evaluation.keep(outputs, batch)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def _give(self, carry: "_Carry", batch: dict[str, Any], pl_module: pl.LightningModule) -> None:
        if self.start == "carry" and (state := carry.before(batch)) is not None:
            batch["carry"] = state.to(pl_module.device)


class _Carry:
    """A state, and the position of the batch that it stands behind."""

    def __init__(self, state: Tensor | None = None, position: int | None = None) -> None:
        self.state, self.position = state, position

    def keep(self, outputs: Any, batch: dict[str, Any]) -> None:
        if not isinstance(outputs, dict) or "carry" not in outputs:
            raise TypeError("TruncatedBPTT: the step returned no outputs['carry'], the state behind the segment (B, D)")
        self.state = _full_precision(outputs["carry"].detach())
        self.position = int(batch["position"]) if "position" in batch else None

    def before(self, batch: dict[str, Any]) -> Tensor | None:
        """The state that this batch starts from, if it continues the last one with as many lanes."""
        if self.state is None:
            return None
        continues = self.position is None or int(batch["position"]) == self.position + 1
        return self.state if continues and _num_lanes(batch) == len(self.state) else None


def _num_lanes(batch: dict[str, Any]) -> int:
    return next(value.shape[0] for value in batch.values() if isinstance(value, Tensor) and value.ndim)


def _full_precision(state: Tensor) -> Tensor:
    """A copy, in float32 at least: never a view that keeps the segment alive, nor an inference tensor."""
    return state.to(torch.promote_types(state.dtype, torch.float32), copy=True)


def _on_device(trainer: Any, batch: Any) -> Any:
    """A batch of the DataModule as the training step gets it."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _can_remake(module: Any, batch: dict[str, Any]) -> bool:
    return callable(getattr(module, "observe", None)) and all(name in batch for name in INPUTS)


def _with_resets(batch: dict[str, Any], every: int) -> Tensor:
    """`is_first` (B, T), true at every so many-th frame of an episode too: a new tensor, others may hold the old."""
    if "is_first" not in batch or "step" not in batch:
        raise UserError(
            f"tbptt.reset_every {every} needs batches with `is_first` and `step` (B, T), the frame's index in its"
            " episode: leave it out for this data"
        )
    return batch["is_first"] | (batch["step"] % every == 0)
