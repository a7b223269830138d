"""A diagnosis as one picture."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldmodel.evaluation.diagnosis.diagnosis import Diagnosis

BLUE, RED, GREY, DARK = "#0072b2", "#d55e00", "#999999", "#333333"  # Okabe-Ito: told apart by the colour-blind


def diagnosis_figure(diagnosis: Diagnosis, title: str) -> Figure:
    """Gradients, the state's norm, the Jacobian's eigenvalues, gradient over lags, spectra of h and z, gates."""
    figure = Figure(figsize=(14, 8.5), layout="constrained")
    figure.suptitle(title, fontsize=13)
    panels = figure.subplots(2, 3)
    for axes, draw in zip(panels.flat, (_gradients, _growth, _eigenvalues, _lags, _spectra, _gates), strict=True):
        draw(axes, diagnosis)
        axes.grid(alpha=0.25)
        axes.title.set_fontsize(10)
    return figure


def _gradients(axes: Axes, diagnosis: Diagnosis) -> None:
    parts: dict[str, list[float]] = {}
    for p in diagnosis.gradients.parameters:
        parts.setdefault(p.part, []).append(
            p.gradient / p.size**0.5 if np.isfinite(p.gradient) and p.gradient > 0 else np.nan
        )
    for i, values in enumerate(parts.values()):
        axes.plot(values, np.full(len(values), i), "o", color=BLUE, alpha=0.6)
    axes.set_yticks(range(len(parts)), list(parts))
    axes.set(xscale="log", xlabel="root mean square of the gradient's entries")
    axes.set_title("each parameter's gradient")


def _growth(axes: Axes, diagnosis: Diagnosis) -> None:
    growth = diagnosis.growth
    axes.set(xlabel="steps", ylabel="mean ‖h‖")
    axes.set_title("the state's norm" if growth is None else f"the state's norm: {growth.law}")
    if growth is None or not growth.norm:
        return
    axes.plot(np.arange(1, len(growth.norm) + 1), growth.norm, color=BLUE)
    axes.axvline(diagnosis.horizon, color=DARK, linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    if growth.law != "bounded":
        axes.set_yscale("log")


def _eigenvalues(axes: Axes, diagnosis: Diagnosis) -> None:
    spectrum = diagnosis.spectrum
    axes.set_title("eigenvalues of the state's Jacobian")
    angle = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(angle), np.sin(angle), color=GREY, linewidth=0.8)
    axes.set_aspect("equal", adjustable="datalim")
    if spectrum is not None and spectrum.eigenvalues:
        real, imaginary = zip(*spectrum.eigenvalues, strict=True)
        axes.plot(real, imaginary, ".", color=BLUE, markersize=3, alpha=0.5)
        axes.set_xlabel(f"radius {spectrum.radius_mean:.3g}, Lyapunov exponent {spectrum.lyapunov:.3g} a step")


def _lags(axes: Axes, diagnosis: Diagnosis) -> None:
    reach = diagnosis.reach
    axes.set(xlabel="lag k (steps)", ylabel="‖dL_t / dz_{t-k}‖")
    axes.set_title("how far back learning reaches (dashed: T)")
    axes.axvline(diagnosis.horizon, color=DARK, linewidth=0.8, linestyle="--")
    if reach is not None and sum(reach.gradient) > 0:
        axes.plot([value if value > 0 else np.nan for value in reach.gradient], color=BLUE, label="gradient")
        axes.set_yscale("log")
    dependency = diagnosis.dependency
    if dependency is not None:
        other = axes.twinx()
        other.plot(dependency.lags, dependency.curve, color=RED, linewidth=1, alpha=0.8)
        other.set_ylim(0, 1)
        other.set_ylabel("R² of the error", color=RED)


def _spectra(axes: Axes, diagnosis: Diagnosis) -> None:
    for name, values, color in (("h", diagnosis.state, BLUE), ("z", diagnosis.latent, RED)):
        if values is not None and values.spectrum:
            label = f"{name}: effective rank {values.effective_rank:.3g} of {values.dim}"
            axes.plot(np.arange(1, len(values.spectrum) + 1), values.spectrum, "o-", color=color, label=label, ms=3)
    if axes.lines:
        axes.legend(fontsize=8)
        axes.set_yscale("log")
    axes.set(xlabel="direction", ylabel="share of the singular values")
    axes.set_title("directions in use")


def _gates(axes: Axes, diagnosis: Diagnosis) -> None:
    axes.set(xlabel="gate: the share that is overwritten", ylabel="share of values")
    axes.set_title("gates" if diagnosis.gates else "gates: the rule has none")
    if diagnosis.gates:
        shares = diagnosis.gates.histogram
        axes.bar((np.arange(len(shares)) + 0.5) / len(shares), shares, 1 / len(shares), color=BLUE)
