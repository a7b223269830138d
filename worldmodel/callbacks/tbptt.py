"""Truncated backpropagation through time, for any LightningModule that follows the carry contract."""

import warnings
from collections import defaultdict
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from worldmodel.callbacks.metrics import log_at_once
from worldmodel.errors import UserError, at_least
from worldmodel.runs.structure import check
from worldmodel.stale_state import (
    INPUTS,
    InputHistory,
    LoadCounter,
    RefreshRatio,
    StaleState,
    history_for,
    refreshed,
)


class TruncatedBPTT(pl.Callback):
    """Carries the hidden state's values from each segment to the next, and cuts its graph there.

    The carry contract. A batch is a dict of tensors, one segment of B lanes, each the continuation of the same lane in
    the batch before. The step starts from `batch["carry"]`, a tensor (B, D), or from zeros if there is none, resets it
    itself wherever an episode starts (`is_first`, if batches have it, is a bool (B, T)), and returns
    `outputs["carry"]`, the state after the segment. The callback owns the state in between. If batches have a
    `position`, a number, the state is carried only from one position to the next, and the DataModule's
    `acknowledge(position)`, if it has one, is called after each training step. Each rank has an equal share of the
    lanes, in the order of the ranks, so that a fit can be resumed with another number of them.

    Validation, test and prediction have a state of their own for each of their loaders, dropped before each run.

    A state is stale once other weights are loaded into the module or a part of it during training. It is refreshed
    before it is used or saved again; a checkpoint that restores both state and weights does not make it stale. To
    refresh it takes the module's `observe(obs, action, is_first, h) -> (z, h, carry)` and a batch's `obs`
    (B, T or T + 1, O), `action` (B, T, A), `is_first` (B, T); without them it starts from zeros, with a warning. A
    resumed fit gets batches from before its start from the DataModule's `training_segments()`, by position, if it has
    that method. Each rank refreshes its own lanes. Logs `hidden/refresh_ratio` (see RefreshRatio), of the first rank.

    Args:
        start: `carry` the state into each segment, or start every segment from `zero`.
        stale_state: What to do with a state whose weights were replaced: `keep` it, `zero` it, `burn_in` (run the new
            weights over the last steps, from zeros) or `replay` (over each lane's episode from its start, whose inputs
            are held in memory for that).
        burn_in_steps: Number of steps that `burn_in` runs over; the batches that contain them are held in memory.
        reset_every: In validation, test and prediction, reset the state to zeros at every K-th frame of an episode,
            which shows what the memory is worth. Null: only where an episode starts.

    Raises:
        UserError: if a number of steps is below 1; in a step, for a batch or outputs that break the contract.
    """

    def __init__(
        self,
        start: Literal["carry", "zero"] = "carry",
        stale_state: StaleState = "burn_in",
        burn_in_steps: int = 32,
        reset_every: int | None = None,
    ) -> None:
        at_least(1, "tbptt.", burn_in_steps=burn_in_steps, reset_every=reset_every)
        self.start, self.burn_in_steps = start, burn_in_steps
        self.stale_state: StaleState = stale_state
        self.reset_every = reset_every
        self._counter = LoadCounter()
        self._begin(None)

    def _begin(self, trainer: pl.Trainer | None) -> None:
        self._trainer = trainer
        self._train, self._ratio = _Carry(), RefreshRatio()
        self._evaluation: defaultdict[int, _Carry] = defaultdict(_Carry)  # by the loader's index
        carries = self.start == "carry"
        self._history = history_for(self.stale_state, self.burn_in_steps) if carries else None
        self._loads_of_state = self._loads_of_step = self._counter.loads  # when they were made

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # here and not in on_fit_start, which runs after a checkpoint was restored
        self._begin(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._counter.leave()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._counter.follow(pl_module)  # by now configure_model has built all of it

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        _check(batch)
        self._refresh(trainer, pl_module)
        if self._history is not None and self._train.before(batch) is None:
            self._history.clear()
        self._give(self._train, batch, pl_module)
        self._loads_of_step = self._counter.loads

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._train.keep(outputs, batch)
        self._loads_of_state = self._loads_of_step  # weights loaded since then made only a part of it
        if self._history is not None and _can_observe(pl_module, batch):
            self._history.add(batch)
        if "loss" in outputs and (ratio := self._ratio.add(outputs["loss"])) is not None:
            log_at_once(trainer, {"hidden/refresh_ratio": ratio})
        acknowledge = getattr(getattr(trainer, "datamodule", None), "acknowledge", None)
        if acknowledge is not None and "position" in batch:
            acknowledge(int(batch["position"]))

    def state_dict(self) -> dict[str, Any]:
        """The carry of all lanes of all ranks, (ranks B, D). A collective: all ranks save together."""
        if self._train.state is None or self._trainer is None:
            return {}
        self._refresh(self._trainer, self._trainer.lightning_module)
        state = self._trainer.strategy.all_gather(self._train.state)
        return {"carry": state.view(-1, *self._train.state.shape[1:]), "position": self._train.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "carry" in state_dict and self._trainer is not None:
            check(state_dict, {"carry": Tensor, "position": (int, None)}, "TruncatedBPTT")
            ranks, rank, carry = self._trainer.world_size, self._trainer.global_rank, state_dict["carry"]
            if len(carry) % ranks == 0:  # each rank its share, also where there were more or fewer of them
                self._train = _Carry(carry.chunk(ranks)[rank].clone(), state_dict["position"])
            else:
                warnings.warn(
                    f"the checkpoint's state of {len(carry)} lanes cannot be divided among {ranks} ranks: it starts"
                    " from zeros",
                    stacklevel=2,
                )
        self._loads_of_state = self._counter.loads  # the weights were restored with it

    def _refresh(self, trainer: Any, pl_module: Any) -> None:
        """Refresh the state if it is stale."""
        if self._loads_of_state == self._counter.loads:
            return
        self._loads_of_state = self._counter.loads
        if self._train.state is None or self.start == "zero":
            return
        self._ratio.start()
        if self._history is not None:
            self._fetch(trainer, self._history)
        if self._history is not None and not self._history.held:
            warnings.warn(
                "the weights were replaced, and the state cannot be refreshed: it starts from zeros. To refresh it"
                " takes a batch since this fit started, and a module with observe(obs, action, is_first, h);"
                " --tbptt.stale_state zero does the same without a warning",
                stacklevel=2,
            )
        observe = getattr(pl_module, "observe", None)
        with trainer.precision_plugin.forward_context():
            state = refreshed(self._train.state, self.stale_state, self._history, observe)
        self._train.state = _full_precision(state)

    def _fetch(self, trainer: Any, history: InputHistory) -> None:
        """Fetch the batches from before this fit started, as far back as is needed and possible."""
        module, position = trainer.lightning_module, self._train.position
        data: Any = getattr(trainer, "datamodule", None)
        if position is None or not hasattr(data, "training_segments") or not callable(getattr(module, "observe", None)):
            return
        segments = None
        while not history.complete and (earlier := position - history.batches) >= 0:
            segments = data.training_segments() if segments is None else segments
            history.add_before(_on_device(trainer, segments[earlier]))

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluation.clear()

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        _check(batch)
        self._give(self._evaluation[dataloader_idx], batch, pl_module)
        if self.reset_every is not None:
            batch["is_first"] = _with_resets(batch, self.reset_every)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._evaluation[dataloader_idx].keep(outputs, batch)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def _give(self, carry: "_Carry", batch: Any, pl_module: pl.LightningModule) -> None:
        if self.start == "carry" and (state := carry.before(batch)) is not None:
            batch["carry"] = state.to(pl_module.device)


class _Carry:
    """A state, and the position of the batch after which it was taken."""

    def __init__(self, state: Tensor | None = None, position: int | None = None) -> None:
        self.state, self.position = state, position

    def keep(self, outputs: Any, batch: dict[str, Any]) -> None:
        state = outputs.get("carry") if isinstance(outputs, Mapping) else None
        if not isinstance(state, Tensor):
            raise UserError(
                "TruncatedBPTT: the step returned no outputs['carry'], the state (B, D) after the segment: return a"
                " dict with it, {'loss': loss, 'carry': state}"
            )
        name, lanes = _lanes(batch)
        if state.ndim != 2 or len(state) != lanes:
            raise UserError(
                f"TruncatedBPTT: the step returned outputs['carry'] of shape {tuple(state.shape)}, and batch[{name!r}]"
                f" has {lanes} lanes: return one row a lane, ({lanes}, D); a state (layers, B, D) is one after"
                " state.transpose(0, 1).flatten(1)"
            )
        self.state = _full_precision(state.detach())
        self.position = int(batch["position"]) if "position" in batch else None

    def before(self, batch: dict[str, Any]) -> Tensor | None:
        """The state that this batch starts from, if it continues the last batch with as many lanes."""
        if self.state is None or (self.position is not None and batch.get("position") != self.position + 1):
            return None
        if (lanes := _lanes(batch)[1]) == len(self.state):
            return self.state
        warnings.warn(
            f"a batch of {lanes} lanes follows one of {len(self.state)}: their state starts from zeros. To carry it"
            " takes batches of one size, such as a DataLoader's with drop_last=True",
            stacklevel=2,
        )
        return None


def _check(batch: Any) -> None:
    """Raise UserError for a batch that breaks the contract."""
    if not isinstance(batch, MutableMapping):
        raise UserError(
            f"TruncatedBPTT: a batch is a {type(batch).__name__}, and the state enters with it, as batch['carry']: let"
            " the data give a dict of tensors (B, ...), by a DataLoader's collate_fn for instance"
        )
    if not any(isinstance(value, Tensor) and value.ndim for value in batch.values()):
        raise UserError(
            f"TruncatedBPTT: a batch holds no tensor (B, ...) beside its entries {', '.join(map(repr, batch))}: it must"
            " itself be the segment. Of several loaders at once, make one whose batches hold the lanes of all"
        )
    first, position = batch.get("is_first"), batch.get("position", 0)
    if first is not None and not (isinstance(first, Tensor) and first.ndim == 2 and first.dtype == torch.bool):
        raise UserError("TruncatedBPTT: batch['is_first'] must be a bool tensor (B, T): where an episode starts")
    if isinstance(position, Tensor) and position.numel() != 1:
        raise UserError(
            f"TruncatedBPTT: batch['position'] has {position.numel()} entries: it must be one number, the batch's in"
            " the stream; leave it out where each batch continues the one before"
        )


def _lanes(batch: Mapping[str, Any]) -> tuple[str, int]:
    """The entry that says how many lanes a batch has, and their number."""
    name = "is_first" if "is_first" in batch else next(n for n, v in batch.items() if isinstance(v, Tensor) and v.ndim)
    return name, len(batch[name])


def _full_precision(state: Tensor) -> Tensor:
    """A copy, in float32 at least: never a view that keeps the segment alive, nor an inference tensor."""
    return state.to(torch.promote_types(state.dtype, torch.float32), copy=True)


def _on_device(trainer: Any, batch: Any) -> Any:
    """A batch of the DataModule as the training step gets it."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _can_observe(module: Any, batch: dict[str, Any]) -> bool:
    return callable(getattr(module, "observe", None)) and all(name in batch for name in INPUTS)


def _with_resets(batch: dict[str, Any], every: int) -> Tensor:
    """`is_first` (B, T), true at every K-th frame of an episode too; a new tensor, as others may hold the old one."""
    if "is_first" not in batch or "step" not in batch:
        raise UserError(
            f"tbptt.reset_every {every} needs batches with `is_first` and `step` (B, T), the frame's index in its"
            " episode: leave it out for this data"
        )
    return batch["is_first"] | (batch["step"] % every == 0)
