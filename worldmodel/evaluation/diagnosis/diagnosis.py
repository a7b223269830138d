"""All measurements of one model on a few batches."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from worldmodel.batch import Batch
from worldmodel.evaluation.diagnosis.clock import Clock, clock
from worldmodel.evaluation.diagnosis.dependency import Dependency, dependency
from worldmodel.evaluation.diagnosis.gates import Gates, gates
from worldmodel.evaluation.diagnosis.gradients import Gradients, gradients
from worldmodel.evaluation.diagnosis.growth import Growth, growth
from worldmodel.evaluation.diagnosis.jacobian import Spectrum, spectrum
from worldmodel.evaluation.diagnosis.lag import Reach, reach
from worldmodel.evaluation.diagnosis.representation import Representation, representation
from worldmodel.evaluation.diagnosis.stretch import Model, flat, follow, join


@dataclass(frozen=True)
class Diagnosis:
    """What was measured; None where the batches do not allow it, or parameters are not finite."""

    rule: str
    gradient: str  # how it goes through time in training: tbptt, ...
    horizon: int  # T
    steps: int  # of the stretch, all batches together
    lanes: int
    gradients: Gradients
    growth: Growth | None = None
    spectrum: Spectrum | None = None
    reach: Reach | None = None
    dependency: Dependency | None = None
    state: Representation | None = None
    latent: Representation | None = None
    observation: Representation | None = None
    gates: Gates | None = None
    clock: Clock | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data: what is not finite is null, as JSON wants it."""
        return _plain(asdict(self))


def diagnose(
    model: Model, batches: Sequence[Batch], rule: str, carry: bool = True, gradient: str = "tbptt"
) -> Diagnosis:
    """Measure everything.

    Args:
        model: in evaluation mode, on the CPU. Its parameters and their gradients are left as they are.
        batches: consecutive, from the beginning of a stream. With one only, nothing is said of lags beyond T.
        rule: its name.
        carry: whether training carries the state from batch to batch.
        gradient: the model's: where it is exact, no horizon is too short.
    """
    steps, stretch = batches[0]["valid"].shape[1], join(batches)
    lanes, length = stretch["valid"].shape
    found = gradients(model, batches, carry)
    sizes = rule, gradient, steps, length, lanes, found
    if found.not_finite:
        return Diagnosis(*sizes)
    trajectory = follow(model, stretch)
    with torch.no_grad():
        _, h, _ = model.losses(stretch)
        values = model.gate(stretch, h)
    valid = stretch["valid"]
    return Diagnosis(
        *sizes,
        growth(model, stretch, trajectory, steps),
        spectrum(trajectory),
        reach(model, stretch, steps),
        dependency(model, stretch, steps),
        representation(flat(trajectory.h, valid)),
        representation(flat(trajectory.z, valid)),
        representation(flat(stretch["obs"][:, :-1], valid)) if stretch["obs"].shape[-1] <= 1024 else None,
        gates(values, valid),
        clock(trajectory, stretch),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
