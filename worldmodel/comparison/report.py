"""The comparison as one self-contained HTML file."""

import base64
import io
import math
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from worldmodel.comparison.contest import Verdict
from worldmodel.comparison.figures import (
    HIGHEST,
    REFERENCE_DASHES,
    error_figure,
    looks,
    norm_figure,
    regret_figure,
    rollout_figure,
    styled,
)
from worldmodel.comparison.lines import counts
from worldmodel.comparison.matrix import LEGEND, outcome
from worldmodel.comparison.results import LOOPS, Comparison, ExampleRollout, Result, read_examples
from worldmodel.comparison.summary import shortly
from worldmodel.comparison.tables import SCORES, TRAITS, number, scored, version_rows
from worldmodel.comparison.tuned import tuning_figures, tuning_rows
from worldmodel.durable import whole_file

PANELS = 16  # of rollouts: two episodes, or one where variants are many
SHOWN = 10  # multiples of T that a rollout panel spans
FILM_BYTES = 600_000  # larger animations are made smaller
SHAPES = {"solid": "", "dash": "7 4", "dot": "2 4", "dashdot": "7 4 2 4", "longdash": "11 4", "longdashdot": "11 4 2 4"}


def write_report(comparison: Comparison, verdict: Verdict, path: Path) -> None:
    """Write `report.html`, whole or not at all.

    Args:
        comparison: its folder holds curves, examples and the configuration.
        verdict: on the comparison.
        path: of the report.
    """
    environment = Environment(
        loader=PackageLoader("worldmodel.comparison"),
        autoescape=True,  # names come from users
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "shell": shlex.join, "count": count, "shortly": shortly}
    page = environment.get_template("report.html.j2").render(
        **_head(comparison),
        verdict=verdict,
        comparison=comparison,
        loops=LOOPS,
        looks=looks(comparison),
        shapes=SHAPES,
        figures=_figures(comparison),
        films=list(_films(comparison)),
        sizes={row["variant"]: row for row in comparison.design["sizes"]},
        traits=TRAITS,
        outcome=partial(outcome, verdict),
        matrix_legend=LEGEND,
        tuning=comparison.tuning,
        trials=tuning_rows(comparison),
        scores={name: SCORES[name] for name in scored(verdict)},
        counts={loop: counts(comparison, loop) for loop in LOOPS},
        dashes=REFERENCE_DASHES,
        highest=HIGHEST,
        worst=lambda variant, loop, horizon: _worst(comparison.of(variant), loop, horizon),
        plotlyjs=Markup(get_plotlyjs()),
    )
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def count(many: int, noun: str) -> str:
    """A number with its noun: 1 run, 2 runs."""
    return f"{many:,} {noun}{'' if many == 1 else 's'}"


def _head(comparison: Comparison) -> dict[str, Any]:
    """The design, as text."""
    design, config = comparison.design, comparison.folder / "config.yaml"
    return {
        "title": str(design["data"].get("env_id") or comparison.folder.name),
        "steps": design["steps"],
        "budget": " or ".join(f"{steps:,}" for steps in sorted({run.train_steps for run in comparison.results})) or "-",
        "date": design["created"][:10],
        "data": list(_flat(design["data"])),
        "versions": version_rows(design),
        "config": config.read_text(encoding="utf-8") if config.is_file() else None,
    }


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as rows of (name, text)."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} ")
        elif value is not None:
            yield f"{prefix}{key}", f"{value:,}" if isinstance(value, int) else str(value)


def _worst(runs: list[Result], loop: str, horizon: int) -> float:
    """The largest error of any seed at this horizon."""
    errors = (of.get(horizon, math.nan) for run in runs for name, of in run.errors.items() if name == loop)
    return max((error for error in errors if not math.isnan(error)), default=math.nan)


def _figures(comparison: Comparison) -> dict[str, Any]:
    """Name -> HTML of a figure, without empty ones; the rollouts by episode and variant."""
    curves = comparison.curves
    figures = {
        f"{name} {loop}": figure
        for name, draw in (("error", error_figure), ("regret", regret_figure), ("norm", norm_figure))
        for loop in LOOPS
        if (figure := draw(comparison, curves, loop)) is not None
    }
    html: dict[str, Any] = {name: _html(figure, name.replace(" ", "-")) for name, figure in figures.items()}
    tuning = [
        (variant, key, _html(styled(figure, 260), f"tuning-{number}"))
        for number, (variant, key, figure) in enumerate(tuning_figures(comparison))
    ]
    return html | {"rollouts": _rollouts(comparison), "tuning": tuning}


def _rollouts(comparison: Comparison) -> dict[str, dict[str, Markup]]:
    """Episode -> variant -> figure."""
    by_name: dict[str, dict[str, list[ExampleRollout]]] = {}
    for variant in comparison.variants:
        for run in comparison.of(variant):
            for example in read_examples(comparison.folder_of(run) / "examples.npz"):
                if example.entries:
                    by_name.setdefault(example.name, {}).setdefault(variant, []).append(example)
    shown = max(1, min(2, PANELS // max(1, len(comparison.variants))))
    styles, steps = looks(comparison), comparison.design["steps"]
    html: dict[str, dict[str, Markup]] = {}
    for i, (name, of) in enumerate(list(by_name.items())[:shown]):
        longest = min(SHOWN * steps, max(len(examples[0].prediction) for examples in of.values()))
        html[name] = {
            variant: _html(rollout_figure(examples, styles[variant], steps, longest), f"rollout-{i}-{j}")
            for j, (variant, examples) in enumerate(of.items())
        }
    return html


def _html(figure: Figure, name: str) -> Markup:
    """A div and the script that draws into it; plotly escapes anything that could end the script."""
    options = {"displayModeBar": False, "responsive": True, "showTips": False}
    height = f"{figure.layout.height}px"  # type: ignore[attr-defined]
    return Markup(
        figure.to_html(options, include_plotlyjs=False, full_html=False, div_id=f"plot-{name}", default_height=height)
    )


def _films(comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    """The animation of each variant's first run that has one: variant, seed, data URI."""
    for variant in comparison.variants:
        for run in comparison.of(variant):
            path = comparison.folder_of(run) / "rollout.gif"
            if path.is_file():
                encoded = base64.b64encode(_small(path)).decode()
                yield variant, f"seed {run.seed}", f"data:image/gif;base64,{encoded}"
                break


def _small(path: Path) -> bytes:
    """The animation; if it is large, with fewer and smaller frames."""
    if path.stat().st_size <= FILM_BYTES:
        return path.read_bytes()
    with Image.open(path) as film:
        every = max(1, -(-getattr(film, "n_frames", 1) // 40))
        scale = min(1.0, 360 / film.width)
        size = (round(film.width * scale), round(film.height * scale))
        frames, pause = [], int(film.info.get("duration", 80))
        for i in range(0, getattr(film, "n_frames", 1), every):
            film.seek(i)
            frames.append(film.convert("RGB").resize(size).quantize(48))
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=pause * every, loop=0)
    return buffer.getvalue()
