"""Folders of comparisons with made-up numbers like those of a linear system: to test without training.

A Kalman filter is the floor; a variant's error is the floor's times a factor of its rule and its seed; `diverging` ones
leave the data behind after a few trained horizons, up to 1e24 and infinity.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from worldmodel.comparison import results
from worldmodel.comparison.results import (
    Comparison,
    Curve,
    Curves,
    Errors,
    ExampleRollout,
    Failure,
    Reference,
    Result,
)
from worldmodel.durable import summed_file, write_json

T = 16
MULTIPLES = (1, 2, 5, 10, 50)
HORIZONS = [T * multiple for multiple in MULTIPLES]
STEPS = np.arange(1, HORIZONS[-1] + 1)
FOUR = ("gated_norm, carry", "gated_norm, zero", "residual, carry", "residual, zero")
ALL_RULES = ("residual", "gated", "gated_norm", "direct", "unit_norm", "gru", "lstm")
FOURTEEN = tuple(f"{rule}, {start}" for rule in ALL_RULES for start in ("carry", "zero"))
EXCESS = {"gated_norm": 0.01, "residual": 0.1, "gated": 0.04, "direct": 0.16, "unit_norm": 0.35, "gru": 0.06}


def make_comparison(
    out: Path,
    variants: Iterable[str] = FOUR,
    seeds: Iterable[int] = (0, 1, 2),
    diverging: Iterable[str] = ("residual, zero",),
    failing: Iterable[tuple[str, int]] = (),
    references: bool = True,
    floor: bool = True,
    images: bool = False,
    env_id: str = "worldmodel/LinearGaussian-v0",
) -> Comparison:
    """Write the folder of a finished comparison, and return what a reader of it gets."""
    variants, seeds, failing = list(variants), list(seeds), set(failing)
    out.mkdir(parents=True, exist_ok=True)
    runs = [_planned(variant, i, seed) for i, variant in enumerate(variants) for seed in seeds]
    design = {
        "runs": runs,
        "axes": {"rule": sorted({run["axes"]["rule"] for run in runs}), "start": ["carry", "zero"]},
        "seeds": seeds,
        "horizons": HORIZONS,
        "steps": T,
        "match": "params",
        "reference": {"rule": "gated_norm", **_size("gated_norm, carry")},
        "sizes": [{"variant": variant, **_size(variant), "difference_percent": 0.21} for variant in variants],
        "command": ["worldmodel", "compare", "--config", "conf/linear.yaml", "--start", "carry,zero", "--out", "OUT"],
        "versions": {
            "worldmodel": "0.1.0",
            "torch": "2.10.0",
            "lightning": "2.6.6",
            "python": "3.11.5",
            "platform": "Linux x86_64, 2 cores",
        },
        "data": {
            "env_id": env_id,
            "fingerprint": "0123456789ab",
            "splits": {"train": {"episodes": 150, "steps": 240000}, "test": {"episodes": 75, "steps": 120000}},
        },
        "created": "2026-02-14T09:30:00+00:00",
    }
    write_json(out / "comparison.json", design, summed=True)
    with summed_file(out / "config.yaml") as temporary:
        temporary.write_text("# a comparison of <rules>\nmodel:\n  rule: gated_norm\n  hidden_dim: 64\n")
    found, failures = [], []
    for run in runs:
        folder = results.run_folder(out, run["slug"], run["seed"])
        folder.mkdir(parents=True)
        if (run["variant"], run["seed"]) in failing:
            reason = "OutOfMemoryError: <no> memory left"
            log = str(folder.with_suffix(".log").relative_to(out))
            failures.append(Failure(run["variant"], run["axes"], run["seed"], reason, log))
            continue
        found.append(_write_run(folder, run, run["variant"] in set(diverging), images))
    named = _references(floor) if references else []
    results.write_references(out, named)
    return Comparison(out, design, found, failures, named)


def _planned(variant: str, number: int, seed: int) -> dict:
    rule, start, *more = variant.split(", ")
    argv = ["worldmodel", "fit", "--config", "OUT/config.yaml", "--model.rule", rule, "--tbptt.start", start]
    axes = {"rule": rule, "start": start} | dict(axis.split(" ") for axis in more)
    return {"variant": variant, "slug": f"v{number}", "axes": axes, "seed": seed, "argv": [*argv, "--seed", str(seed)]}


def _write_run(folder: Path, run: dict, diverges: bool, images: bool) -> Result:
    rng = np.random.default_rng([len(run["variant"]), *run["variant"].encode(), run["seed"]])
    curves = _curves(run, diverges, rng)
    results.write_curves(folder / "curves.csv", curves)
    results.write_examples(folder / "examples.npz", _examples(diverges, images, rng))
    if images:
        _write_gif(folder / "rollout.gif", rng)
    result = Result(
        variant=run["variant"],
        axes=run["axes"],
        seed=run["seed"],
        errors=errors_of(curves),
        valid_time=float(20 if diverges else 90 + 20 * rng.standard_normal()),
        norm_growth=float("inf") if diverges and run["seed"] == 1 else 3.1e20 if diverges else 1e-4 * rng.random(),
        **_size(run["variant"]),
        train_steps=2000,
        steps_per_second=float(24 + rng.standard_normal()),
        seconds=float(95 + 4 * rng.standard_normal()),
        peak_memory_mb=float(612 + 5 * rng.standard_normal()),
        losses={"train/loss": 0.051, "val/loss": 0.053},
        command=run["argv"],
    )
    results.write_result(folder, result)
    return result


def _size(variant: str) -> dict[str, int]:
    hidden_dim = 64 + 3 * len(variant)
    return {"hidden_dim": hidden_dim, "parameters": 21340, "recurrence_parameters": 12480, "flops": 53120}


def _curves(run: dict, diverges: bool, rng: np.random.Generator) -> Curves:
    """As the floor's, times a factor of the rule and start, and of the seed."""
    excess = EXCESS.get(run["axes"]["rule"], 0.05) * (1 if run["axes"]["start"] == "carry" else 1.5)
    factor = (1 + excess) * np.exp(0.1 * excess * rng.standard_normal())
    curves: Curves = {}
    for loop, floor in _floor().items():
        explosion = np.zeros(len(STEPS))
        if diverges:
            late = np.maximum(STEPS - T * (4 + rng.random()), 0)
            with np.errstate(over="ignore"):
                explosion = np.expm1(late * (2.0 if run["seed"] == 1 else 0.07))  # seed 1: infinite
        beyond = 1 + (excess if loop == "open" else 0.0) * np.log1p(STEPS / T)
        norm = 5.5 + 0.4 * np.log(STEPS) * rng.uniform(0.8, 1.2) + np.sqrt(explosion)
        curves[loop] = Curve(STEPS, floor * factor * beyond + explosion, norm, np.full(len(STEPS), 75.0))
    return curves


def _floor() -> dict[results.Loop, np.ndarray]:
    """Errors of the Kalman filter: falling as it sees more, rising as it looks further ahead; both with some ripple."""
    noise = 1 + 0.05 * np.random.default_rng(1).standard_normal(len(STEPS))
    closed = (0.09 + 0.7 * np.exp(-STEPS / 3)) * noise
    opened = (1 - 0.9 * np.exp(-STEPS / 60)) * (1 + 0.06 * np.sin(STEPS / 9)) * noise
    return {"closed": closed, "open": opened}


def _references(floor: bool) -> list[Reference]:
    flat = np.ones(len(STEPS))
    shapes = {
        "copy_last": ("copy last", 0.3 * flat, 2 - 1.7 * np.exp(-STEPS / 15)),
        "mean": ("mean", flat, flat),
        "autoregression": ("linear autoregression of order 16, least squares", *(1.3 * c for c in _floor().values())),
    }
    if floor:
        shapes["kalman"] = ("Kalman filter, the floor", *_floor().values())
    made = []
    for name, (title, closed, opened) in shapes.items():
        none, count = np.full(len(STEPS), np.nan), np.full(len(STEPS), 75.0)
        curves: Curves = {"closed": Curve(STEPS, closed, none, count), "open": Curve(STEPS, opened, none, count)}
        made.append(Reference(name, title, errors_of(curves), curves))
    return made


def errors_of(curves: Curves) -> Errors:
    """At the horizons, as `measure` takes them from the curves."""
    windows = zip([0, *HORIZONS], HORIZONS, strict=False)
    return {
        "closed": {end: float(curves["closed"].nmse[begin:end].mean()) for begin, end in windows},
        "open": {horizon: float(curves["open"].nmse[horizon - 1]) for horizon in HORIZONS},
    }


def _examples(diverges: bool, images: bool, rng: np.random.Generator) -> list[ExampleRollout]:
    if images:
        return [ExampleRollout("episode 3, from frame 16", np.zeros((65, 0)), np.zeros((64, 0)), [])]
    time = np.arange(10 * T + 1)
    made = []
    for number, entries in ((3, 2), (7, 2)):
        truth = np.stack([np.exp(-time / 400) * np.sin(time / (4 + number + i) + i) for i in range(entries)], axis=1)
        wrong = (
            0.02 * rng.standard_normal((len(time) - 1, entries)).cumsum(axis=0) * (1 - np.exp(-time[1:] / 50))[:, None]
        )
        if diverges:
            wrong = wrong + np.expm1(time[1:, None] / 12)
        names = [f"obs[{i}]" for i in range(entries)]
        made.append(ExampleRollout(f"episode {number}, from frame 16", truth, truth[1:] + wrong, names))
    return made


def _write_gif(path: Path, rng: np.random.Generator) -> None:
    """Twelve frames of a square that wanders."""
    frames = []
    for t in range(12):
        pixels = np.full((64, 192, 3), 30, np.uint8)
        pixels[20:40, 10 + 10 * t : 30 + 10 * t] = rng.integers(100, 255, 3)
        frames.append(Image.fromarray(pixels))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=80, loop=0)
