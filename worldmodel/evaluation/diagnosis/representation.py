"""How many directions latents and states use, and which of their units are dead."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from worldmodel.evaluation.diagnosis.measurement import BLUE, NOT_MEASURED, RED, Finding, Measurement, Subject, flat

WIDEST = 1024  # entries of an observation: wider ones are not measured
STILL = 1e-6  # standard deviation of a dead unit, relative to the root mean square of all
ONE_DIRECTION = 1.2  # effective rank: all but one direction is noise
VARIED = 1.5  # effective rank of observations that hold more than one number
NARROW = 0.1  # of the directions that observations and latents allow
DEAD = 0.25  # of all units: counters and latches may well be idle on a few batches


@dataclass(frozen=True)
class Representation:
    dim: int
    effective_rank: float  # 0: constant
    dead: list[int]  # units that do not vary
    spectrum: list[float]  # singular values of the centred vectors, of sum 1, largest first


@dataclass(frozen=True)
class Representations(Measurement):
    state: Representation | None
    latent: Representation | None
    observation: Representation | None

    labels = ("effective rank",)
    panel = "directions in use", "direction", "share of the singular values"

    @classmethod
    def measure(cls, subject: Subject) -> "Representations":
        obs, trajectory = subject.stretch["obs"][:, :-1], subject.trajectory
        values = [trajectory.h, trajectory.z, *([obs] if obs.shape[-1] <= WIDEST else [])]
        measured = [representation(flat(each, trajectory.valid)) for each in values]
        return cls(*measured, *[None] * (3 - len(measured)))

    def values(self, subject: Subject) -> tuple[str]:
        parts = []
        for name, values in (("h", self.state), ("z", self.latent), ("obs", self.observation)):
            if values is not None:
                dead = f", {len(values.dead)} dead" if values.dead else ""
                parts.append(f"{name} {values.effective_rank:.3g} of {values.dim}{dead}")
        return ("; ".join(parts) or NOT_MEASURED,)

    def draw(self, axes: Axes, subject: Subject) -> None:
        for name, values, color in (("h", self.state, BLUE), ("z", self.latent, RED)):
            if values is not None and values.spectrum:
                label = f"{name}: effective rank {values.effective_rank:.3g} of {values.dim}"
                axes.plot(np.arange(1, len(values.spectrum) + 1), values.spectrum, "o-", color=color, label=label, ms=3)
        if axes.lines:
            axes.legend(fontsize=8)
            axes.set_yscale("log")

    def findings(self, subject: Subject) -> Iterator[Finding]:
        seen, latent, state = self.observation, self.latent, self.state
        varied = seen is None or seen.effective_rank > VARIED
        if latent is not None and latent.dim > 1:
            allowed = min(latent.dim, seen.effective_rank if seen else 1.0)
            narrow = max(ONE_DIRECTION, NARROW * allowed) if varied else 0.0
            if latent.effective_rank < max(narrow, 1e-9):
                yield Finding(
                    "collapsed latent",
                    65,
                    f"the effective rank of z is {latent.effective_rank:.3g} of {latent.dim}",
                    "the encoder separates all observations by one number, or not at all",
                    "--model.objective reconstruction, a higher --model.anti_collapse_weight, or other first weights",
                )
        if state is not None and state.dim > 1 and state.effective_rank < (ONE_DIRECTION if varied else 1e-9):
            yield Finding(
                "collapsed state",
                60,
                f"the effective rank of h is {state.effective_rank:.3g} of {state.dim}",
                "the state holds one number, or nothing",
                "--model.gate_bias nearer to 0, a higher --model.learning_rate, a lower --model.weight_decay",
            )
        for name, option, values in (("h", "hidden_dim", state), ("z", "latent_dim", latent)):
            if values is not None and DEAD * values.dim < len(values.dead) < values.dim:
                yield Finding(
                    "dead units",
                    40,
                    f"{len(values.dead)} of {values.dim} units of {name} never move",
                    "they cost time and hold nothing",
                    f"a smaller --model.{option}, or other first weights",
                )


def representation(values: Tensor) -> Representation | None:
    """Of vectors (N, X), finite; None for fewer than two.

    The effective rank is the exponential of the entropy of the normalised singular values of the centred vectors (Roy &
    Vetterli 2007): n where n directions are used alike.
    """
    if len(values) < 2:
        return None
    values = values.double()
    spread, size = values.std(dim=0), values.square().mean().sqrt()
    dead = torch.nonzero(~(spread > STILL * size)).flatten().tolist()
    dim = values.shape[-1]
    if len(dead) == dim:
        return Representation(dim, 0.0, dead, [])
    centred = values - values.mean(dim=0)
    # both products have the same eigenvalues but for zeros; states may have more entries than there are vectors
    products = centred.T @ centred if dim <= len(values) else centred @ centred.T
    squares = torch.linalg.eigvalsh(products).flip(0)
    singular = squares.where(squares > 1e-12 * squares[0], 0.0).sqrt()  # below it is the rounding of the products
    share = singular / singular.sum()
    rank = float(torch.special.entr(share).sum().exp())
    return Representation(dim, rank, dead, share.tolist())
