"""What is diagnosed: a model, and a few consecutive batches, which are also one long stretch of every lane."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from worldmodel.batch import Batch
from worldmodel.predictor import LatentPredictor


class Model(Protocol):
    """What is asked of a model; see WorldModel."""

    @property
    def encoder(self) -> nn.Module: ...  # normalised observations (..., O) -> latents (..., Z)
    @property
    def predictor(self) -> LatentPredictor: ...
    @property
    def action_norm(self) -> nn.Module: ...
    @property
    def weights(self) -> dict[str, float]: ...  # of the terms of the loss
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def encode(self, obs: Tensor, /) -> Tensor: ...
    def losses(self, batch: Batch, /) -> tuple[dict[str, Tensor], Tensor, Tensor]: ...  # terms, h (B, T, D), carry
    def gate(self, batch: Batch, h: Tensor, /) -> Tensor | None: ...  # (B, T, ...)
    def closed_loop(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None, /
    ) -> tuple[Tensor, Tensor, Tensor]: ...  # predicted next observations (B, T, O), states, carry


def join(batches: Sequence[Batch]) -> Batch:
    """Consecutive batches of T steps as one of S = N T steps.

    Raises:
        ValueError: if a batch does not begin with the frames that the one before it ends with.
    """
    for before, after in zip(batches, batches[1:], strict=False):
        if not torch.equal(before["obs"][:, -1], after["obs"][:, 0]):
            raise ValueError(f"batch {after['position']} does not go on where batch {before['position']} ends")
    frames = [*(batch["obs"][:, :-1] for batch in batches), batches[-1]["obs"][:, -1:]]
    steps = ("action", "reward", "terminated", "is_first", "valid", "episode", "step")
    joined: dict[str, object] = {name: torch.cat([batch[name] for batch in batches], dim=1) for name in steps}
    joined |= {"obs": torch.cat(frames, dim=1), "position": batches[0]["position"]}
    joined["num_valid"] = torch.stack([batch["num_valid"] for batch in batches]).sum()
    return cast(Batch, joined)


def some_lanes(batch: Batch, lanes: Tensor) -> Batch:
    """The batch with these lanes (n,) only, its steps counted anew."""
    parts = {name: value[lanes] for name, value in batch.items() if isinstance(value, Tensor) and value.ndim}
    return cast(Batch, {**batch, **parts, "num_valid": parts["valid"].sum().float()})


def ages(is_first: Tensor) -> Tensor:
    """Steps since the last reset, or since the stretch began: (B, S) bool -> (B, S) int64, 0 at a reset."""
    step = torch.arange(is_first.shape[1], device=is_first.device).expand(is_first.shape)
    return step - torch.where(is_first, step, 0).cummax(dim=1).values


@dataclass(frozen=True)
class Trajectory:
    """A closed loop along the data, in float64, that starts from zeros."""

    predictor: LatentPredictor  # a copy, in float64
    z: Tensor  # (B, S, Z)
    x: Tensor  # (B, S, X): the cell's inputs
    h: Tensor  # (B, S, D): the state after each step
    before: Tensor  # (B, S, D): the state that each step started from
    is_first: Tensor  # (B, S) bool
    valid: Tensor  # (B, S) bool
    step: Tensor  # (B, S): frames of the episode before this one

    @property
    def finite(self) -> bool:
        return bool(self.h.isfinite().all())


@torch.no_grad()
def follow(model: Model, batch: Batch) -> Trajectory:
    """Run the model over a stretch; float64 keeps a state that grows from overflowing too soon to be measured."""
    predictor = deepcopy(model.predictor).double()
    z = model.encode(batch["obs"][:, :-1]).double()
    a = model.action_norm(batch["action"]).double()
    loop = predictor.closed_loop(z, a, batch["is_first"])
    return Trajectory(
        predictor,
        z,
        predictor.cell.project(z, a),
        loop.h,
        loop.before,
        batch["is_first"],
        batch["valid"],
        batch["step"],
    )


@torch.no_grad()
def follow_unbroken(model: Model, batch: Batch) -> Trajectory:
    """As `follow`, through the starts of episodes as if there were none: for states older than any episode is.

    Lanes with padding are left out; where all have some, the steps before the first padding of any are followed.
    """
    real = batch["episode"] >= 0
    lanes = torch.nonzero(real.all(dim=1)).flatten()
    whole = some_lanes(batch, lanes if len(lanes) else torch.arange(len(real)))
    if not len(lanes):
        whole = _until(whole, max(1, int(real.all(dim=0).long().cumprod(dim=0).sum())))
    first = torch.zeros_like(whole["is_first"])
    first[:, 0] = True
    whole["is_first"], whole["valid"] = first, torch.ones_like(first)
    return follow(model, whole)


def _until(batch: Batch, steps: int) -> Batch:
    """The first steps of a batch."""
    length = batch["valid"].shape[1]
    cut = {n: v[:, :steps] for n, v in batch.items() if isinstance(v, Tensor) and v.ndim > 1 and v.shape[1] == length}
    return cast(Batch, {**batch, **cut, "obs": batch["obs"][:, : steps + 1]})


def flat(values: Tensor, where: Tensor) -> Tensor:
    """(B, S, X) at (B, S) bool -> (N, X), finite rows only."""
    rows = rearrange(values, "b s x -> (b s) x")[where.flatten()]
    return rows[rows.isfinite().all(dim=-1)]
