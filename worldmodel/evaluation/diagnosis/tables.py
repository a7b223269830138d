"""A diagnosis on a terminal: what was measured, then what it means."""

import math
import statistics

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from worldmodel.evaluation.diagnosis.diagnosis import Diagnosis
from worldmodel.evaluation.diagnosis.findings import Finding

NOT_MEASURED = "not measured"


def print_diagnosis(diagnosis: Diagnosis, found: list[Finding], console: Console) -> None:
    """Gradients by part and by term, the measurements, the findings in order of weight."""
    console.print(_parts(diagnosis))
    console.print(_reach(diagnosis))
    table = _table("Measured", ["what", "value"])
    for name, value in measured(diagnosis):
        table.add_row(name, value)
    console.print(table)
    console.print("nothing found" if not found else "Findings, the weightiest first", style="bold")
    for number, finding in enumerate(found, start=1):
        console.print(f"{number}. {finding.kind}: {finding.seen}", markup=False)
        console.print(f"   {finding.means}", markup=False)
        console.print(f"   change: {finding.change}", markup=False)


def measured(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """Names and values, a line each."""
    return [
        ("growth of ‖h‖", _growth(diagnosis)),
        ("state's Jacobian", _spectrum(diagnosis)),
        ("gradient over lags", _lags(diagnosis)),
        (f"error explained by frames beyond T = {diagnosis.horizon}", _dependency(diagnosis)),
        ("effective rank", _rank(diagnosis)),
        ("gates", _gates(diagnosis)),
        ("clock: R² of the step's number", _clock(diagnosis)),
    ]


def _parts(diagnosis: Diagnosis) -> Table:
    table = _table(
        "Gradients", ["part", "parameters", "median ‖g‖ / ‖θ‖", "least", "without", "zero", "NaN", "vanishing"]
    )
    parts: dict[str, list] = {}
    for p in diagnosis.gradients.parameters:
        parts.setdefault(p.part, []).append(p)
    for part, some in parts.items():
        ratios = [p.gradient / p.norm for p in some if p.state in ("ok", "vanishing") and p.norm > 0]
        median, least = (f"{statistics.median(ratios):.1e}", f"{min(ratios):.1e}") if ratios else ("–", "–")
        counts = [sum(p.state == state for p in some) for state in ("none", "zero", "nan", "vanishing")]
        table.add_row(part, str(len(some)), median, least, *(str(n) if n else "–" for n in counts))
    return table


def _reach(diagnosis: Diagnosis) -> Table:
    reach = diagnosis.gradients.reach
    parts = list(dict.fromkeys(p.part for p in diagnosis.gradients.parameters))
    table = _table("Which loss trains what: norm of the weighted term's gradient", ["term", *parts])
    for term, norms in reach.items():
        table.add_row(term, *(f"{norms[part]:.1e}" if part in norms else "–" for part in parts))
    return table


def _growth(diagnosis: Diagnosis) -> str:
    growth = diagnosis.growth
    if growth is None or not growth.norm:
        return NOT_MEASURED
    text = f"{growth.law}, t^{growth.exponent:.2g}"
    if growth.law == "exponential":
        text += f", {100 * growth.rate:.3g}% a step"
    text += f"; {growth.norm[-1]:.3g} after {len(growth.norm)} steps"
    text += " (episodes gone through as one)" if growth.unbroken else ""
    return text if growth.finite else f"{text}, then not finite"


def _spectrum(diagnosis: Diagnosis) -> str:
    spectrum = diagnosis.spectrum
    if spectrum is None or math.isnan(spectrum.radius_mean):
        return NOT_MEASURED
    text = f"spectral radius {spectrum.radius_mean:.3g}, at most {spectrum.radius_max:.3g}"
    if math.isnan(spectrum.lyapunov):
        return f"{text}; episodes are too short for a Lyapunov exponent"
    return f"{text}; largest Lyapunov exponent {spectrum.lyapunov:.3g} ± {spectrum.spread:.1g} a step"


def _lags(diagnosis: Diagnosis) -> str:
    reach = diagnosis.reach
    if reach is None or not sum(reach.gradient) > 0:
        return NOT_MEASURED
    half = f"below half from lag {reach.half_life}" if reach.half_life is not None else "never below half"
    if not reach.tells:
        return f"{half}; no lag beyond T = {reach.horizon} was there to see"
    return f"{half}; {reach.beyond:.1%} of it beyond T, truncation hides {reach.hidden:.1%} on average"


def _dependency(diagnosis: Diagnosis) -> str:
    dependency = diagnosis.dependency
    if dependency is None:
        return NOT_MEASURED
    if dependency.explains < 0.01:
        return f"none, at lags up to {dependency.lags[-1]}"
    return f"{dependency.explains:.0%} by the one {dependency.lag} steps back"


def _rank(diagnosis: Diagnosis) -> str:
    parts = []
    for name, values in (("h", diagnosis.state), ("z", diagnosis.latent), ("obs", diagnosis.observation)):
        if values is not None:
            dead = f", {len(values.dead)} dead" if values.dead else ""
            parts.append(f"{name} {values.effective_rank:.3g} of {values.dim}{dead}")
    return "; ".join(parts) or NOT_MEASURED


def _gates(diagnosis: Diagnosis) -> str:
    gates = diagnosis.gates
    if gates is None:
        return "the rule has none" if diagnosis.growth else NOT_MEASURED
    return f"mean {gates.mean:.3g}; {gates.saturated:.1%} saturated, {gates.stuck:.1%} of the units always"


def _clock(diagnosis: Diagnosis) -> str:
    clock = diagnosis.clock
    return NOT_MEASURED if clock is None else f"{clock.state:.2f} from h, {clock.observation:.2f} from the observation"


def _table(title: str, headings: list[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i and len(headings) > 2 else "left")
    return table
