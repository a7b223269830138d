"""Comparisons from tables of errors, without a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worldmodel.comparison.results import LOOPS, Comparison, Errors, Failure, Loop, Reference, Result

T = 10
Table = Mapping[str, Mapping[int, float] | Sequence[float]]
"""variant -> its errors by seed (a list: seeds 0, 1, 2, ...)."""


def compare(
    table: Table,
    loop: Loop = "open",
    horizon: int = T,
    floor: float | None = None,
    failing: Sequence[tuple[str, int]] = (),
    baselines: Mapping[str, float] | None = None,
    **values: Any,
) -> Comparison:
    """One loop, one horizon."""
    errors = {
        (variant, seed): {loop: {horizon: error}} for variant, runs in table.items() for seed, error in _items(runs)
    }
    named = {**({"kalman": floor} if floor is not None else {}), **(baselines or {})}
    references = [Reference(name, name, {loop: {horizon: error}}, {}) for name, error in named.items()]
    return comparison_of(errors, [horizon], failing, references, **values)


def _items(runs: Mapping[int, float] | Sequence[float]) -> list[tuple[int, float]]:
    return list(runs.items()) if isinstance(runs, Mapping) else list(enumerate(runs))


def comparison_of(
    errors: Mapping[tuple[str, int], Errors],
    horizons: list[int],
    failing: Sequence[tuple[str, int]] = (),
    references: Sequence[Reference] = (),
    **values: Any,
) -> Comparison:
    """(variant, seed) -> errors. `values` of every Result, or a function of (variant, seed)."""
    runs = [
        {"variant": v, "slug": v, "axes": axes_of(v), "seed": seed, "argv": ["fit", v]}
        for v, seed in (*errors, *failing)
    ]
    design = {
        "runs": runs,
        "horizons": horizons,
        "steps": T,
        "match": "params",
        "command": ["worldmodel", "compare", "--out", "a folder"],
        "versions": {"python": "3.11"},
        "sizes": [{"variant": v, "parameters": 12345} for v in dict.fromkeys(run["variant"] for run in runs)],
    }
    results = [make_result(variant, seed, each, **values) for (variant, seed), each in errors.items()]
    failures = [Failure(variant, axes_of(variant), seed, "out of memory", "log") for variant, seed in failing]
    return Comparison(Path("nowhere"), design, results, failures, list(references))


def axes_of(variant: str) -> dict[str, str]:
    rule, *start = variant.split(", ")
    return {"rule": rule} | ({"start": start[0]} if start else {})


def make_result(variant: str, seed: int, errors: Errors, **values: Any) -> Result:
    given = {name: value(variant, seed) if callable(value) else value for name, value in values.items()}
    common: dict[str, Any] = {
        "valid_time": 50.0,
        "norm_growth": 0.0,
        "parameters": 12345,
        "recurrence_parameters": 1000,
        "hidden_dim": 64,
        "flops": 2000,
        "train_steps": 100,
        "steps_per_second": 20.0,
        "seconds": 60.0,
        "peak_memory_mb": 500.0,
        "losses": {"val/loss": 0.1},
        "command": ["fit", variant],
    }
    assert set(errors) <= set(LOOPS)
    return Result(variant=variant, axes=axes_of(variant), seed=seed, errors=errors, **{**common, **given})
