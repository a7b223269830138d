"""What the page is given of a run: the model as programs, names, controls, and how far validation trusts it."""

import base64
import csv
import math
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.agents.trained import Trained
from worldmodel.data.episodes import Episodes
from worldmodel.data.spaces import Json, num_features
from worldmodel.evaluation.selection import RolloutOptions
from worldmodel.losses import part_weights
from worldmodel.model import Model
from worldmodel.networks import LEVELS
from worldmodel.page import labels
from worldmodel.page.programs import programs

MOST_EPISODES, MOST_ENTRIES = 4, 2**21  # of recordings in the page, and entries of their observations
MEASURED = ("nmse", "mean", "linear", "coverage90")  # curves of rollout.csv that the page draws or quotes


def contents(trained: Trained, steps: int, threshold: float | None) -> dict[str, Any]:
    """All but the truth.

    Args:
        trained: the model; what validation measured is read beside its checkpoint.
        steps: T, the trained horizon.
        threshold: normalised error at which the run's validation ends the model's trust; None: the default.

    Raises:
        UserError: if the model cannot be written as programs.
    """
    layout, model = trained.layout, trained.model
    drawn = labels.drawing(trained)
    return {
        "environment": trained.env_id,
        "rule": str(trained.arguments.get("rule", "")),
        "steps": steps,
        "entries": labels.entries(trained),
        "images": [list(shape) for shape in layout.images.values()],
        "drawing": None if drawn is None else {"name": drawn[0], "entries": drawn[1]},
        "controls": controls(trained),
        "error_weights": _error_weights(model, list(layout.images.values())),
        "interval": _interval(model),
        "validation": validation(trained.path, RolloutOptions.threshold if threshold is None else threshold),
        "programs": programs(model),
    }


def controls(trained: Trained) -> dict[str, Any]:
    """How an action is chosen: entries with bounds, or one of several choices for each part."""
    leaf: Json = trained.layout.action_space
    if leaf["type"] in ("Discrete", "MultiDiscrete"):
        sizes = [leaf["n"]] if leaf["type"] == "Discrete" else np.ravel(leaf["nvec"]).tolist()
        names = labels.actions(trained, sizes[0]) if len(sizes) == 1 else []
        if names[:1] == ["action[0]"]:
            names = [str(leaf.get("start", 0) + i) for i in range(sizes[0])]
        return {"kind": "choices", "sizes": sizes, "names": names}
    names = labels.actions(trained, trained.layout.action_dim)
    if leaf["type"] == "MultiBinary":
        return {"kind": "entries", "low": [0] * len(names), "high": [1] * len(names), "step": 1, "names": names}
    norm = trained.model.action_norm
    usual = norm.mean.double().cpu().numpy(), 3 * norm.scale.double().cpu().numpy()
    low, high = bounds(leaf)
    low, high = np.where(np.isnan(low), usual[0] - usual[1], low), np.where(np.isnan(high), usual[0] + usual[1], high)
    return {"kind": "entries", "low": low.tolist(), "high": high.tolist(), "step": 0, "names": names}


def bounds(leaf: Json) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest values (A,) of a Box of actions; NaN where there is no bound."""
    low, high = (np.array(leaf.get(side), float) for side in ("low", "high"))  # null becomes NaN
    return np.broadcast_to(low, num_features(leaf)), np.broadcast_to(high, num_features(leaf))


def validation(checkpoint: Path, threshold: float) -> dict[str, Any] | None:
    """What the run's rollout.csv says; None without one.

    Curves by name, at horizons 1, 2, ...; `trust`, the first horizon at which the error passes the threshold, or null;
    `threshold`.
    """
    found = (folder / "rollout.csv" for folder in (checkpoint.parent.parent, checkpoint.parent))
    if (path := next((path for path in found if path.is_file()), None)) is None:
        return None
    curves: dict[str, dict[int, float]] = {name: {} for name in MEASURED}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["metric"] in curves and math.isfinite(value := float(row["value"])):
                    curves[row["metric"]][int(row["horizon"])] = float(f"{value:.4g}")
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None  # damaged: the page does without
    errors = curves["nmse"]
    if not errors:
        return None
    shown = {name: sorted(values.items()) for name, values in curves.items() if values}
    trust = next((horizon for horizon, error in sorted(errors.items()) if error > threshold), None)
    return {"curves": shown, "threshold": threshold, "trust": trust, "longest": max(errors)}


def recordings(episodes: Episodes, steps: int) -> list[dict[str, Any]]:
    """The longest episodes of a split, as many as a page should hold: name, frames, vectors, pixels and actions.

    Arrays are base64: of float32, and of bytes for pixels. T = `steps` frames at least are kept of the first.
    """
    layout = episodes.layout
    order = sorted(range(len(episodes)), key=lambda i: -int(episodes.num_frames[i]))
    found, room = [], MOST_ENTRIES
    for episode in order[:MOST_EPISODES]:
        frames = min(int(episodes.num_frames[episode]), max(room // layout.obs_dim, 0 if found else 2 * steps))
        if frames <= steps:
            break
        room -= frames * layout.obs_dim
        rows = episodes.rows(episode)[:frames]
        obs = episodes.obs(rows)
        vectors, pixels = obs[:, : layout.vector_dim].astype("<f4"), obs[:, layout.vector_dim :].astype(np.uint8)
        arrays = {"vectors": vectors, "pixels": pixels, "actions": episodes.action(rows).astype("<f4")}
        name = episodes.names[episode].split("/")[-1]
        found.append({"name": name, "frames": frames, **{key: encoded(array) for key, array in arrays.items()}})
    return found


def encoded(array: np.ndarray) -> str:
    """An array's bytes in base64."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _error_weights(model: Model, images: list[tuple[int, int, int]]) -> list[float]:
    """(O,) of squared errors, which then are divided by the training data's variance, as in validation."""
    scale = model.obs_norm.scale.double().cpu()
    return (part_weights(len(scale), images).double() / scale.square()).tolist()


def _interval(model: Model) -> dict[str, Any] | None:
    """Of a model with a distribution: its level, and half its width in deviations, for each knot and entry."""
    if model.noise is None:
        return {"members": model.members} if model.members > 1 else None
    return {"level": LEVELS[1], "widths": model.widths[1].tolist()}
