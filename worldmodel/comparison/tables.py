"""A verdict as tables: on a terminal, and as Markdown."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from worldmodel.comparison.findings import Cell, Verdict
from worldmodel.comparison.lines import counts
from worldmodel.comparison.results import Comparison, Loop, Reference
from worldmodel.comparison.statistics import Estimate

WIDTH = 120  # columns of a terminal that tables fit in
TITLES: dict[Loop, str] = {
    "open": "Open loop: error / variance at this step after the last observed frame",
    "closed": "Closed loop: error / variance, mean over the steps after the horizon before, up to this one",
}
BEST = "the winner, or, without one, the lowest and those that it does not beat"
INTERVALS = "95% intervals over seeds; diverged runs are not in the mean, unless all are"
TRAITS = {
    "norm_growth": ("growth of ‖h‖", "a step"),
    "valid_time": ("valid time", "steps"),
    "steps_per_second": ("training", "steps/s"),
    "peak_memory_mb": ("memory", "MB"),
    "seconds": ("a run", "seconds"),
}
REACHED: dict[Loop, str] = {"open": "rollouts", "closed": "episodes"}  # that a horizon's errors are of
SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
COUNTS = {"finished": "done", "diverged": "diverged", "failed": "failed"}
Detail = Literal["full", "side", "bare"]  # [0.29, 0.33]; ±6%; nothing
Rows = list[list[str]]


def number(value: float, regret: bool = False) -> str:
    """Three significant digits, or three decimals of a regret; powers of ten for what is very large or small."""
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


# --- on a terminal ----------------------------------------------------------------------------------------------------


def print_verdict(verdict: Verdict, comparison: Comparison, console: Console) -> None:
    """Both loops, regret where there is a floor, the traits, and, where it is seen first, the summary.

    Tables that are wider than the console, or 120 columns, have shorter cells.
    """
    for loop in ("open", "closed"):
        _print(console, lambda detail, loop=loop: _loop_table(verdict, comparison, loop, detail))
    if comparison.floor:
        for loop in ("open", "closed"):
            _print(console, lambda detail, loop=loop: _regret_table(verdict, comparison, loop, detail))
    console.print(f"* {BEST}; [], ± (upper side): {INTERVALS}", markup=False, highlight=False, style="dim")
    _print(console, lambda detail: _rich("Traits", *trait_rows(verdict, comparison, detail)))
    for sentence in verdict.summary:
        console.print(f"- {sentence}", markup=False, highlight=False)


def _print(console: Console, make: Callable[[Detail], Table]) -> None:
    """The most detailed table that fits."""
    unbounded = console.options.update(max_width=10 * WIDTH)
    table = make("full")
    for detail in get_args(Detail):
        table = make(detail)
        if Measurement.get(console, unbounded, table).maximum <= min(console.width, WIDTH):
            break
    if table.row_count:
        console.print(table)


def _loop_table(verdict: Verdict, comparison: Comparison, loop: Loop, detail: Detail) -> Table:
    return _rich(TITLES[loop], *error_rows(verdict, comparison, loop, detail))


def _regret_table(verdict: Verdict, comparison: Comparison, loop: Loop, detail: Detail) -> Table:
    return _rich(f"Regret, {loop} loop: error / floor", *regret_rows(verdict, comparison, loop, detail))


def _rich(title: str, headings: list[str], rows: Rows) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if i else "left", no_wrap=not i)
    starred = {i for row in rows for i, text in enumerate(row) if text.endswith(" *")}
    for row in rows:
        padded = [text if text.endswith(" *") or i not in starred else f"{text}  " for i, text in enumerate(row)]
        table.add_row(*(Text(text, style="bold" if text.endswith("*") else "") for text in padded))
    return table


# --- rows -------------------------------------------------------------------------------------------------------------


def error_rows(verdict: Verdict, comparison: Comparison, loop: Loop, detail: Detail = "full") -> tuple[list[str], Rows]:
    """Headings, and a row for every variant and reference; the best are marked with a star."""

    def text(cell: Cell) -> str:
        return interval(cell.error, detail=detail) + _star(verdict, cell)

    rows = _variant_rows(verdict, comparison, loop, text)
    references = [_reference_row(verdict, reference, loop, detail) for reference in comparison.references]
    return _headings(verdict, comparison), [*rows, *references] if rows else []


def regret_rows(
    verdict: Verdict, comparison: Comparison, loop: Loop, detail: Detail = "full"
) -> tuple[list[str], Rows]:
    """Headings, and every variant's error / the floor's."""

    def text(cell: Cell) -> str:
        return interval(cell.regret, True, detail) + _star(verdict, cell) if cell.regret else "-"

    return _headings(verdict, comparison), _variant_rows(verdict, comparison, loop, text)


def trait_rows(verdict: Verdict, comparison: Comparison, detail: Detail = "full") -> tuple[list[str], Rows]:
    """Headings, and what else is known of every variant."""
    rows = []
    for variant in comparison.variants:
        measured = [verdict.trait(variant, name) for name in TRAITS]
        counts = [verdict.trait(variant, name) for name in COUNTS]
        values = [interval(estimate, detail=detail) if estimate else "-" for estimate in measured]
        rows.append([variant, *values, *(f"{estimate.mean:.0f}" if estimate else "-" for estimate in counts)])
    return ["variant", *("\n".join(words) for words in TRAITS.values()), *COUNTS.values()], rows


def _headings(verdict: Verdict, comparison: Comparison) -> list[str]:
    steps = comparison.plan["steps"]
    return ["steps (x trained)", *(f"{horizon} ({horizon / steps:g}x)" for horizon in verdict.horizons)]


def _variant_rows(verdict: Verdict, comparison: Comparison, loop: Loop, text: Callable[[Cell], str]) -> Rows:
    if not any(cell.loop == loop for cell in verdict.cells):
        return []
    reached = counts(comparison, loop)
    return [
        *([[REACHED[loop], *(f"{reached.get(h, 0):,}" for h in verdict.horizons)]] if reached else []),
        *(
            [variant, *(text(cell) if (cell := verdict.cell(variant, loop, h)) else "-" for h in verdict.horizons)]
            for variant in comparison.variants
        ),
    ]


def _reference_row(verdict: Verdict, reference: Reference, loop: Loop, detail: Detail) -> list[str]:
    errors = reference.errors.get(loop, {})
    return [
        reference.title if detail == "full" else reference.name,
        *(number(errors[h]) if h in errors else "-" for h in verdict.horizons),
    ]


def _star(verdict: Verdict, cell: Cell) -> str:
    ranking = verdict.ranking(cell.loop, cell.horizon)
    return " *" if ranking and cell.variant in ranking.best else ""


# --- as Markdown ------------------------------------------------------------------------------------------------------


def version_rows(plan: Mapping[str, Any]) -> Rows:
    """What the runs were made with, at the beginning and, where it differs, when the comparison went on."""
    rows = [[name, str(value)] for name, value in plan["versions"].items() if value is not None]
    later = [versions.items() for versions in plan.get("versions_later", [])]
    return rows + [[f"{name}, later", str(value)] for items in later for name, value in items]


def markdown(verdict: Verdict, comparison: Comparison) -> str:
    """Summary, tables, sizes, commands, versions and method, for docs/results; headings begin at the third level."""
    plan = comparison.plan
    parts = ["\n".join(f"- {_escape(sentence)}" for sentence in verdict.summary)]
    for loop in ("open", "closed"):
        parts += _section(TITLES[loop], *error_rows(verdict, comparison, loop))
        if comparison.floor:
            parts += _section(f"Regret, {loop} loop: error / floor", *regret_rows(verdict, comparison, loop))
    parts += [f"Bold: {BEST}. In brackets: {INTERVALS}.", *_section("Traits", *trait_rows(verdict, comparison))]
    parts += _section(f"Sizes (--match {plan['match']})", *_size_rows(plan.get("sizes", [])))
    parts += ["### Commands", _code([plan["command"]]), "of which the runs are, with the first seed:"]
    parts += [_code([_first(plan["runs"], variant)["argv"] for variant in comparison.variants])]
    parts += _section("Versions", ["what", "version"], version_rows(plan))
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
    """The plan's own columns, whatever they are."""
    headings = list(sizes[0]) if sizes else []
    return headings, [[f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()] for row in sizes]


def _first(runs: Sequence[dict[str, list[str]]], variant: str) -> dict[str, list[str]]:
    return next(run for run in runs if run["variant"] == variant)


def _code(commands: Sequence[list[str]]) -> str:
    return "\n".join(["```sh", *map(shlex.join, commands), "```"])


def _bold(text: str) -> str:
    return f"**{_escape(text[:-2])}**" if text.endswith(" *") else _escape(text)


def _escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    for mark in "\\|*<`[":
        text = text.replace(mark, f"\\{mark}")
    return text
