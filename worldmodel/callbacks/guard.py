"""The numerical guard: an update that is not finite is skipped, and nothing of its step remains."""

import math
import warnings
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from worldmodel.callbacks.metrics import log_at_once
from worldmodel.durable import whole_file
from worldmodel.errors import UserError
from worldmodel.runs.structure import check

WINDOW = 100  # gradient norms that a spike is compared with
FEWEST = 20  # norms before anything counts as a spike
FILES = 3  # batches that are saved
WAYS_OUT = (
    "a lower --model.learning_rate or --trainer.gradient_clip_val, --model.rule gated_norm, whose state is bounded for"
    " any finite input; `worldmodel data check` finds bad values in the data"
)


class Diverged(UserError):
    """Too many updates in a row were not finite: the training ended."""


class NumericalGuard(pl.Callback):
    """Checks every gradient before it is used, by one fused norm.

    If the norm is not finite, the gradients are removed, so that the optimizer changes nothing: neither weights nor
    moments nor an average of the weights. The state after the step is replaced by the one before it, so that the lanes
    continue as if the segment had not existed; the learning rate's schedule counts the step. The batch is saved and its
    episodes are named. A state that is not finite while its gradient is still accumulated is replaced too.

    The norm is stored in the module's attribute `grad_norm`, if it has one, which saves computing it again to clip.

    Gradients are equal on all ranks, and so is the decision, without communication. With 16-mixed the gradient scaler
    skips such updates, by which it finds its scale, and the guard checks only the states.

    Must be before TruncatedBPTT among the callbacks, which takes the state from the outputs.

    Logged: `guard/grad_norm` (before clipping), every log_every_n_steps; `guard/skipped` and `guard/spikes`, the number
    of updates skipped and of spikes since the run started, at once.

    Args:
        folder: of the run; the first three batches are saved in its folder skipped/.
        max_skipped: number of updates skipped in a row after which the training ends with `Diverged`.
        spike: warn if a norm is this many times the median of the last hundred, and above the clipping threshold.
    """

    def __init__(self, folder: Path, max_skipped: int = 10, spike: float = 20.0) -> None:
        self.folder = Path(folder) / "skipped"
        self.max_skipped, self.spike = max_skipped, spike
        self.skipped = self.in_row = self.spikes = 0
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._skipping = False

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        with_gradient = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        taken = total_norm(p.grad for p in with_gradient)
        norm = float(taken)
        if hasattr(pl_module, "grad_norm"):
            pl_module.grad_norm = taken
        self._skipping = norm != norm or norm == float("inf")
        if not self._skipping:
            self._watch(trainer, norm)
            return
        for parameter in with_gradient:
            parameter.grad = None  # the optimizer passes over what has none

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        skipped, self._skipping = self._skipping, False
        carry = outputs.get("carry")
        if carry is not None:
            before = batch.get("carry")
            before = torch.zeros_like(carry) if before is None else before.detach().to(carry.dtype)
            # decided on the device: reading the state here would synchronise with the GPU a second time in a step
            outputs["carry"] = before.clone() if skipped else torch.where(carry.isfinite().all(), carry, before)
        if not skipped:
            self.in_row = 0
            every = trainer.log_every_n_steps
            if every and trainer.global_step % every == 0 and self._norms:
                pl_module.log("guard/grad_norm", self._norms[-1])
            return
        self.skipped += 1
        self.in_row += 1
        log_at_once(trainer, {"guard/skipped": float(self.skipped)})
        where = self._save_batch(trainer, outputs, batch)
        if self.in_row >= self.max_skipped:
            raise Diverged(
                f"{self.in_row} updates in a row were not finite and were skipped: training cannot continue. {where}."
                f" The weights are still finite. Ways out: {WAYS_OUT}"
            )
        warnings.warn(f"an update was not finite and was skipped. {where}", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        counts = {"skipped": self.skipped, "in_row": self.in_row, "spikes": self.spikes}
        return {**counts, "norms": list(self._norms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check(state_dict, {"skipped": int, "in_row": int, "spikes": int, "norms": [float]}, "NumericalGuard")
        self.skipped, self.in_row, self.spikes = (state_dict[name] for name in ("skipped", "in_row", "spikes"))
        self._norms.extend(state_dict["norms"])

    def _watch(self, trainer: Any, norm: float) -> None:
        usual = median(self._norms) if len(self._norms) >= FEWEST else float("inf")
        self._norms.append(norm)
        if usual == 0 or norm <= max(self.spike * usual, trainer.gradient_clip_val or 0.0):
            return  # 0: in a task with few targets most segments have no gradient
        self.spikes += 1
        log_at_once(trainer, {"guard/spikes": float(self.spikes)})
        warnings.warn(
            f"the gradient of step {trainer.global_step} is {norm / usual:.0f} times the usual norm ({norm:.3g})."
            f" --trainer.gradient_clip_val limits its effect (now {trainer.gradient_clip_val})",
            stacklevel=2,
        )

    def _save_batch(self, trainer: Any, outputs: Any, batch: Any) -> str:
        """Save the batch, unless enough are; returns where the update was and which file holds its batch."""
        step, kept = trainer.global_step, ""
        if self.skipped <= FILES:
            rank = f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""
            path = self.folder / f"step-{step}{rank}.pt"
            self.folder.mkdir(exist_ok=True)
            tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor | int)}
            with whole_file(path) as temporary:
                torch.save(tensors, temporary)
            kept = f"; its batch is kept in {path}"
        return f"Step {step}, {_suspects(outputs, batch)}{kept}"


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all entries (): finite only if every entry and the sum of their squares are."""
    tensors = list(tensors)
    return _whole(torch.nn.utils.get_total_norm(tensors)) if tensors else torch.zeros(())


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is divided among ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def is_finite_tensor(tensor: Tensor) -> bool:
    """Whether all entries are finite: if their sum is, they are, and the sum is cheaper."""
    return math.isfinite(float(_whole(tensor.sum()))) or bool(_whole(tensor).isfinite().all())


def is_finite(module: torch.nn.Module) -> bool:
    """Whether all weights and buffers are finite."""
    tensors = [*module.parameters(), *module.buffers()]
    return all(is_finite_tensor(tensor) for tensor in tensors if tensor.is_floating_point())


def _suspects(outputs: Any, batch: Any) -> str:
    """The episodes with numbers that are not finite, in the data or in the states; if none, all of the batch."""
    per_step = [batch[name].flatten(2) for name in ("obs", "action") if name in batch]
    per_step += [batch["reward"].unsqueeze(-1)] if "reward" in batch else []
    in_data = torch.stack([~x.isfinite().all(dim=2).all(dim=1) for x in per_step]).any(dim=0)
    states = outputs["h"] if "h" in outputs else outputs["carry"].unsqueeze(1)
    in_states = ~states.isfinite().all(dim=2).all(dim=1)
    where = [(in_data, "numbers in the data of"), (in_states, "states in")]
    lanes, what = next(((bad, what) for bad, what in where if bad.any()), (torch.ones_like(in_data), "the loss of"))
    if "episode" not in batch:
        return f"{what} lanes {_some(lanes.nonzero().flatten())}"
    episodes = batch["episode"][lanes.to(batch["episode"].device)].unique()
    return f"{what} the training episodes {_some(episodes[episodes >= 0])}"


def _some(numbers: Tensor) -> str:
    shown = ", ".join(str(int(number)) for number in numbers[:8])
    return shown if len(numbers) <= 8 else f"{shown}, ... ({len(numbers)})"
