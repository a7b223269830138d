"""What is diagnosed, and what every measurement of it offers: a result, its rows and panel, the faults it shows."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self, cast

import torch
from einops import rearrange
from matplotlib.axes import Axes
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn

from worldmodel.batch import Batch
from worldmodel.evaluation.cause import Cause
from worldmodel.evaluation.curves import HorizonCurves
from worldmodel.model import Seen
from worldmodel.predictor import LatentPredictor

NOT_MEASURED = "not measured"
BLUE, RED = "#0072b2", "#d55e00"  # Okabe-Ito: safe for the colour-blind


class Diagnosable(Protocol):
    """What a diagnosis asks of a model; see WorldModel."""

    @property
    def encoder(self) -> nn.Module: ...  # normalised observations (..., O) -> latents (..., Z)
    @property
    def predictor(self) -> LatentPredictor: ...
    @property
    def obs_norm(self) -> nn.Module: ...
    @property
    def action_norm(self) -> nn.Module: ...
    @property
    def weights(self) -> dict[str, float]: ...  # of the terms of the loss
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def see(self, obs: Tensor, action: Tensor, is_first: Tensor, carry: Tensor | None, /) -> Seen: ...
    def latent(self, z: Tensor, /) -> Tensor: ...
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
            raise ValueError(f"batch {after['position']} does not continue where batch {before['position']} ends")
    frames = [*(batch["obs"][:, :-1] for batch in batches), batches[-1]["obs"][:, -1:]]
    steps = ("action", "reward", "terminated", "is_first", "valid", "episode", "step")
    joined: dict[str, object] = {name: torch.cat([batch[name] for batch in batches], dim=1) for name in steps}
    joined |= {"obs": torch.cat(frames, dim=1), "position": batches[0]["position"]}
    joined["num_valid"] = torch.stack([batch["num_valid"] for batch in batches]).sum()
    return cast(Batch, joined)


def some_lanes(batch: Batch, lanes: Tensor) -> Batch:
    """The batch with these lanes (n,) only; `num_valid` is counted again."""
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
    def ages(self) -> Tensor:
        """(B, S): steps since the last reset."""
        return ages(self.is_first)

    @property
    def finite(self) -> bool:
        return bool(self.h.isfinite().all())


@torch.no_grad()
def follow(model: Diagnosable, batch: Batch) -> Trajectory:
    """Run the model over a stretch; float64 keeps a state that grows from overflowing too soon to be measured."""
    predictor = deepcopy(model.predictor).double()
    obs, action = model.obs_norm(batch["obs"][:, :-1]), model.action_norm(batch["action"])
    z = model.latent(model.see(obs, action, batch["is_first"], None).z).double()
    a = action.double()
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
def follow_unbroken(model: Diagnosable, batch: Batch) -> Trajectory:
    """As `follow`, ignoring the starts of episodes: for states older than any episode.

    Lanes with padding are left out; where all have some, only the steps before any padding are followed.
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


@dataclass(frozen=True)
class Finding:
    """A fault. The weight orders findings: from 100, a model that cannot learn, to 30, one that learns badly."""

    kind: str
    weight: int
    seen: str
    means: str
    change: str


@dataclass(frozen=True)
class Subject:
    """A model in evaluation mode on the CPU, and consecutive batches from the beginning of a stream."""

    model: Diagnosable
    batches: Sequence[Batch]
    rule: str
    carry: bool = True  # whether training carries the state from batch to batch
    gradient: str = "tbptt"  # how it goes through time in training
    curves: Callable[[], HorizonCurves] | None = None  # measures the open-loop errors; None: the model is untrained
    cause: Cause | None = None  # what the losses of its training show, should it be no better than a baseline

    @property
    def horizon(self) -> int:
        """T."""
        return self.batches[0]["valid"].shape[1]

    @cached_property
    def stretch(self) -> Batch:
        """The batches as one."""
        return join(self.batches)

    @cached_property
    def trajectory(self) -> Trajectory:
        """The model's closed loop along the stretch."""
        return follow(self.model, self.stretch)


@dataclass(frozen=True)
class Measurement:
    """The result of one measurement. A new one is a subclass in a file of its own, named in diagnosis.MEASUREMENTS."""

    key: ClassVar[str] = ""  # of the result in diagnosis.json; "": each of its fields stands there
    labels: ClassVar[tuple[str, ...]] = ()  # of its rows in the table; {horizon} becomes T
    absent: ClassVar[str] = NOT_MEASURED  # what the rows say where the result is None
    panel: ClassVar[tuple[str, str, str] | None] = None  # title and axis labels of its panel in the figure; None: none
    optional: ClassVar[bool] = False  # whether rows and panel are left out where the result is None

    @classmethod
    def measure(cls, subject: Subject) -> Self | None:
        """The result; None where the batches do not allow it. The model's parameters and gradients are left alone."""
        raise NotImplementedError

    def values(self, subject: Subject) -> Sequence[str]:
        """A value for each label."""
        return ()

    def tables(self) -> Sequence[Table]:
        """Tables of its own."""
        return ()

    def draw(self, axes: Axes, subject: Subject) -> None:
        """Draw the panel."""

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """The faults that the result shows."""
        yield from ()

    @classmethod
    def entries(cls, result: "Measurement | None") -> dict[str, Any]:
        """What stands in diagnosis.json."""
        if cls.key:
            return {cls.key: None if result is None else asdict(result)}
        return {field.name: None for field in fields(cls)} if result is None else asdict(result)


def table(title: str, headings: Sequence[str]) -> Table:
    """An empty table; numbers, where it has several columns, are aligned on the right."""
    grid = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        grid.add_column(heading, justify="right" if i and len(headings) > 2 else "left")
    return grid
