"""Truncated backpropagation through time, for any LightningModule that follows the carry contract."""

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor


class TruncatedBPTT(pl.Callback):
    """Carries the hidden state's values from each segment to the next, and cuts its graph there.

    The carry contract. A batch is a dict, one segment of B lanes, each the continuation of the same lane in the batch
    before. The step starts from `batch["carry"]`, a tensor (B, D), or from zeros where there is none, resets it itself
    wherever an episode starts, and returns `outputs["carry"]`, the state behind the segment. The callback owns the
    state in between. Where batches have a `position`, the state is carried only from one position to the next, and
    the DataModule's `acknowledge(position)`, where it has one, hears which batch was trained on.

    Validation, test and prediction have a state of their own, dropped before each run.

    Args:
        start: `carry` the state into each segment, or start every segment from `zero`.
    """

    def __init__(self, start: Literal["carry", "zero"] = "carry") -> None:
        self.start = start
        self._train = _Carry()
        self._evaluation = _Carry()
        self._trainer: pl.Trainer | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Clear here and not in on_fit_start, which runs after a checkpoint was restored.
        self._train, self._evaluation, self._trainer = _Carry(), _Carry(), trainer

    # --- training ------------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._give(self._train, batch, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._train.keep(outputs, batch)
        acknowledge = getattr(getattr(trainer, "datamodule", None), "acknowledge", None)
        if acknowledge is not None and "position" in batch:
            acknowledge(int(batch["position"]))

    def state_dict(self) -> dict[str, Any]:
        """The carry of every rank, (world, B, D). A collective: all ranks save together."""
        if self._train.state is None or self._trainer is None:
            return {}
        state = self._trainer.strategy.all_gather(self._train.state)
        return {"carry": state.view(-1, *self._train.state.shape), "position": self._train.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "carry" in state_dict and self._trainer is not None:
            carries, rank = state_dict["carry"], self._trainer.global_rank
            # another number of ranks has other lanes: their states begin anew
            if len(carries) == self._trainer.world_size:
                self._train = _Carry(carries[rank], state_dict["position"])

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
        # A copy, and in full precision: never a view that keeps the segment alive, nor an inference tensor.
        state = outputs["carry"].detach()
        self.state = state.to(torch.promote_types(state.dtype, torch.float32), copy=True)
        self.position = int(batch["position"]) if "position" in batch else None

    def before(self, batch: dict[str, Any]) -> Tensor | None:
        """The state that this batch starts from, if it continues the last one with as many lanes."""
        if self.state is None:
            return None
        continues = self.position is None or int(batch["position"]) == self.position + 1
        return self.state if continues and _num_lanes(batch) == len(self.state) else None


def _num_lanes(batch: dict[str, Any]) -> int:
    return next(value.shape[0] for value in batch.values() if isinstance(value, Tensor) and value.ndim)
