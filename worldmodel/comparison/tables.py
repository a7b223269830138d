"""A verdict as tables, on a terminal and as Markdown."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from worldmodel.comparison.contest import Cell, Verdict
from worldmodel.comparison.lines import counts
from worldmodel.comparison.matrix import LEGEND, matrix_rows
from worldmodel.comparison.results import Comparison, Loop
from worldmodel.comparison.tuned import tuning_rows
from worldmodel.statistics import Estimate

WIDTH = 120  # columns that tables fit in, however wide the terminal
TITLES: dict[Loop, str] = {
    "open": "Open loop: error / variance at this step after the last observed frame",
    "closed": "Closed loop: error / variance, mean over the steps after the previous horizon, up to this one",
}
BEST = "the winner; without one, the lowest and those that it does not beat"
INTERVALS = "95% intervals over seeds; diverged runs are left out of the mean, unless all diverged"
TRAITS = {
    "norm_growth": ("growth of ‖h‖", "per step"),
    "valid_time": ("valid time", "steps"),
    "steps_per_second": ("training", "steps/s"),
    "peak_memory_mb": ("memory", "MB"),
    "seconds": ("duration", "seconds"),
}
REACHED: dict[Loop, str] = {"open": "rollouts", "closed": "episodes"}  # that reach a horizon
SCORES = {
    "crps": "CRPS, in deviations of the observations",
    "coverage90": "Share of the truth within 90% intervals, as drawn",
    "conformal90": "Share of the truth within 90% intervals, corrected",
    "sharpness90": "Width of the corrected 90% intervals, in deviations",
    "crps_regret": "CRPS / the floor's",
    "nll_regret": "Negative log-likelihood - the floor's, nats an entry",
}
SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
COUNTS = {"finished": "done", "diverged": "diverged", "failed": "failed"}
Detail = Literal["full", "side", "bare"]  # [0.29, 0.33]; ±6%; nothing
Rows = list[list[str]]


def number(value: float, regret: bool = False) -> str:
    """Three significant digits, or three decimals of a regret; powers of ten for very large or small values."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if regret and 0.01 <= abs(value) < 100:
        return f"{value:.3f}"
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}×10{str(int(exponent)).translate(SUPERSCRIPT)}".replace("-", "−")
    return (f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:,.0f}").replace("-", "−")


def interval(estimate: Estimate, regret: bool = False, detail: Detail = "full") -> str:
    """`0.310 [0.290, 0.330]`, `0.310 ±6%`; `0.310, diverged 2/5`; `2.0×10²⁴, diverged 5/5`; `-`: nothing measured."""
    runs = estimate.n + estimate.diverged
    if not runs:
        return "-"
    text = number(estimate.mean, regret) if math.isfinite(estimate.mean) else ""
    if not math.isnan(estimate.high):
        full = f" [{number(estimate.low, regret)}, {number(estimate.high, regret)}]"
        text += {"full": full, "side": f" {_side(estimate)}", "bare": ""}[detail]
    if not estimate.diverged:
        return text or "-"
    count = f"{estimate.diverged}/{runs}"
    diverged = f"diverged {count}" if detail == "full" else f"div. {count}"
    return f"{text}, {diverged}" if text else diverged


def _side(estimate: Estimate) -> str:
    percent = 100 * (estimate.high - estimate.mean) / abs(estimate.mean) if estimate.mean else math.inf
    return f"±{percent:.2g}%" if percent < 99.5 else "±>99%"


def print_verdict(verdict: Verdict, comparison: Comparison, console: Console) -> None:
    """Print both loops, regret where there is a floor, the traits, and last, where it is seen first, the summary.

    Cells are shortened in tables wider than the console, or 120 columns.
    """
    for regret, loop in _tables(comparison):
        _print(console, partial(error_rows, verdict, comparison, loop, regret), _title(loop, regret))
    for name in scored(verdict):
        _print(console, partial(score_rows, verdict, comparison, name), SCORES[name])
    console.print(f"* {BEST}; [], ± (upper side): {INTERVALS}", markup=False, highlight=False, style="dim")
    _print(console, partial(trait_rows, verdict, comparison), "Traits")
    for sentence in verdict.summary:
        console.print(f"- {sentence}", markup=False, highlight=False)


def _tables(comparison: Comparison) -> list[tuple[bool, Loop]]:
    """(regret, loop) of each table of errors."""
    loops: tuple[Loop, ...] = ("open", "closed")
    return [(regret, loop) for regret in ((False, True) if comparison.floor else (False,)) for loop in loops]


def _title(loop: Loop, regret: bool) -> str:
    return f"Regret, {loop} loop: error / floor" if regret else TITLES[loop]


def _print(console: Console, make: Callable[[Detail], tuple[list[str], Rows]], title: str) -> None:
    """Print the most detailed table that fits."""
    unbounded = console.options.update(max_width=10 * WIDTH)
    table = Table()
    for detail in get_args(Detail):
        table = _rich(title, *make(detail))
        if Measurement.get(console, unbounded, table).maximum <= min(console.width, WIDTH):
            break
    if table.row_count:
        console.print(table)


def _rich(title: str, headings: list[str], rows: Rows) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if i else "left", no_wrap=not i)
    starred = {i for row in rows for i, text in enumerate(row) if text.endswith(" *")}
    for row in rows:
        padded = [text if text.endswith(" *") or i not in starred else f"{text}  " for i, text in enumerate(row)]
        table.add_row(*(Text(text, style="bold" if text.endswith("*") else "") for text in padded))
    return table


def error_rows(
    verdict: Verdict, comparison: Comparison, loop: Loop, regret: bool = False, detail: Detail = "full"
) -> tuple[list[str], Rows]:
    """Headings, and a row for every variant, and for every reference unless it is `regret` that is shown.

    A star marks the best of each column.
    """
    rows = []
    if any(cell.loop == loop for cell in verdict.cells):
        if reached := counts(comparison, loop):
            rows.append([REACHED[loop], *(f"{reached.get(h, 0):,}" for h in verdict.horizons)])
        for variant in comparison.variants:
            cells = [verdict.cell(variant, loop, horizon) for horizon in verdict.horizons]
            rows.append([variant, *(_cell(verdict, cell, regret, detail) for cell in cells)])
        for reference in () if regret else comparison.references:
            errors = reference.errors.get(loop, {})
            texts = [number(errors[h]) if h in errors else "-" for h in verdict.horizons]
            rows.append([reference.title if detail == "full" else reference.name, *texts])
    return _headings(verdict, comparison), rows


def _cell(verdict: Verdict, cell: Cell | None, regret: bool, detail: Detail) -> str:
    estimate = None if cell is None else cell.regret if regret else cell.error
    if cell is None or estimate is None:
        return "-"
    ranking = verdict.ranking(cell.loop, cell.horizon)
    star = " *" if ranking and cell.variant in ranking.best else ""
    return interval(estimate, regret, detail) + star


def scored(verdict: Verdict) -> list[str]:
    """The scores that are shown, where a variant has a distribution."""
    return [name for name in SCORES if any(score.name == name for score in verdict.scores)]


def score_rows(verdict: Verdict, comparison: Comparison, name: str, detail: Detail = "full") -> tuple[list[str], Rows]:
    """Headings, and a row for every variant with a distribution; a star marks the best by CRPS."""
    rows = []
    for variant in comparison.variants:
        found = {horizon: verdict.score(variant, name, horizon) for horizon in verdict.horizons}
        if any(found.values()):
            cells = ["-" if estimate is None else interval(estimate, False, detail) for estimate in found.values()]
            rankings = [verdict.crps_ranking(horizon) if name == "crps" else None for horizon in found]
            stars = [" *" if ranking and variant in ranking.best else "" for ranking in rankings]
            rows.append([variant, *(cell + star for cell, star in zip(cells, stars, strict=True))])
    return _headings(verdict, comparison), rows


def _headings(verdict: Verdict, comparison: Comparison) -> list[str]:
    steps = comparison.design["steps"]
    return ["steps (x trained)", *(f"{horizon} ({horizon / steps:g}x)" for horizon in verdict.horizons)]


def trait_rows(verdict: Verdict, comparison: Comparison, detail: Detail = "full") -> tuple[list[str], Rows]:
    """Headings, and each variant's traits."""
    rows = []
    for variant in comparison.variants:
        measured = [verdict.trait(variant, name) for name in TRAITS]
        counts = [verdict.trait(variant, name) for name in COUNTS]
        values = [interval(estimate, detail=detail) if estimate else "-" for estimate in measured]
        rows.append([variant, *values, *(f"{estimate.mean:.0f}" if estimate else "-" for estimate in counts)])
    return ["variant", *("\n".join(words) for words in TRAITS.values()), *COUNTS.values()], rows


def version_rows(design: Mapping[str, Any]) -> Rows:
    """Versions of the first runs, and those that had changed when the comparison was continued."""
    rows = [[name, str(value)] for name, value in design["versions"].items() if value is not None]
    later = [versions.items() for versions in design.get("versions_later", [])]
    return rows + [[f"{name}, later", str(value)] for items in later for name, value in items]


def markdown(verdict: Verdict, comparison: Comparison) -> str:
    """Summary, tables, sizes, commands, versions and method; headings start at the third level."""
    design = comparison.design
    parts = ["\n".join(f"- {_escape(sentence)}" for sentence in verdict.summary)]
    for loop in ("open", "closed"):
        parts += _section(f"Who wins in {loop} loop", *matrix_rows(verdict, comparison, loop))
    parts += [f"{LEGEND[0].upper()}{LEGEND[1:]}."] if verdict.cells else []
    for regret, loop in sorted(_tables(comparison), key=lambda table: table[1] == "closed"):
        parts += _section(_title(loop, regret), *error_rows(verdict, comparison, loop, regret))
    for name in scored(verdict):
        parts += _section(SCORES[name], *score_rows(verdict, comparison, name))
    parts += [f"Bold: {BEST}. In brackets: {INTERVALS}.", *_section("Traits", *trait_rows(verdict, comparison))]
    parts += _section("Tuning (* the winner)", *tuning_rows(comparison))
    parts += _section(f"Sizes (--match {design['match']})", *_size_rows(design.get("sizes", [])))
    parts += ["### Commands", _code([design["command"]]), "The first run of each variant:"]
    first = {run["variant"]: run["argv"] for run in reversed(design["runs"])}
    parts += [_code([first[variant] for variant in comparison.variants])]
    parts += _section("Versions", ["what", "version"], version_rows(design))
    return "\n\n".join([*parts, "### Method", verdict.method]) + "\n"


def _section(title: str, headings: list[str], rows: Rows) -> list[str]:
    if not rows:
        return []
    under = ["---", *["---:"] * (len(headings) - 1)]
    lines = [
        [_escape(text.replace("\n", ", ")) for text in headings],
        under,
        *([_bold(text) for text in row] for row in rows),
    ]
    return [f"### {_escape(title)}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]


def _size_rows(sizes: Sequence[dict[str, object]]) -> tuple[list[str], Rows]:
    """All columns of the design."""
    headings = list(sizes[0]) if sizes else []
    return headings, [[f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()] for row in sizes]


def _code(commands: Sequence[list[str]]) -> str:
    return "\n".join(["```sh", *map(shlex.join, commands), "```"])


def _bold(text: str) -> str:
    return f"**{_escape(text[:-2])}**" if text.endswith(" *") else _escape(text)


def _escape(text: str) -> str:
    """Text that Markdown shows verbatim."""
    for mark in "\\|*<`[":
        text = text.replace(mark, f"\\{mark}")
    return text
