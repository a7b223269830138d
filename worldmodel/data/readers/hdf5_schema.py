"""Episodes in HDF5 files of any layout: D4RL, robomimic, stable-worldmodel, or what a schema describes."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from worldmodel.data.episode import Episode, Source
from worldmodel.data.hdf5 import open_hdf5
from worldmodel.data.readers.alignment import Rows, action_leaf, check_spaces, episode_of, leaf_of
from worldmodel.data.readers.fingerprint import fingerprint
from worldmodel.data.readers.layouts import known_layout
from worldmodel.data.readers.schemas import EXAMPLE, Schema, parse_schema
from worldmodel.data.readers.spans import Span, column, dataset_shapes, read_rows, spans_of
from worldmodel.data.spaces import Json
from worldmodel.errors import UserError


def read_hdf5(path: Path, schema: dict[str, Any] | None = None) -> Source:
    """The episodes in an HDF5 file, or in all .h5 and .hdf5 files of a folder, which have the same layout.

    Args:
        path: file or folder.
        schema: as in readers.schemas; None recognises D4RL, robomimic and stable-worldmodel by their keys.

    Raises:
        UserError: if the layout is unknown, the schema has a mistake or does not fit, or the file is no sound HDF5.
    """
    files = [path] if path.is_file() else sorted(f for f in path.glob("*") if f.suffix in (".h5", ".hdf5"))
    if not files:
        raise UserError(f"{path}: there is no .h5 or .hdf5 file" if path.is_dir() else f"{path} does not exist")
    root = path if path.is_dir() else path.resolve().parent
    files = files if path.is_dir() else [path.resolve()]  # the user may name a link
    state = fingerprint(files, root)
    with open_hdf5(files[0]) as file:  # once for all that is asked of it: the checks visit every dataset
        form, raw = ("schema", schema) if schema is not None else _recognised(file, files[0])
        layout = parse_schema(raw, f"{path}: its schema" if schema is None else "the schema")
        rate, provenance = _robomimic_notes(file) if form == "robomimic" else (layout.rate, {})
        spans = spans_of(file, files[0], layout)
        observation_space, action_space = _spaces(file, spans[0], layout)
    spans += [span for other in files[1:] for span in _spans_in(other, layout)]
    if action_space["type"] == "Discrete":
        action_space["n"] = 1 + _largest_action(spans, layout)
    if layout.final_observation == "missing":
        provenance |= {"dropped_transitions": len(spans), "dropped_because": "no observation follows them in the file"}
    return Source(
        path=path,
        format=form,
        observation_space=observation_space,
        action_space=action_space,
        alignment=layout.in_words,
        fingerprint=state,
        episodes=partial(_episodes, spans, layout, observation_space, action_space, rate),
        provenance=provenance,
    )


def _spans_in(path: Path, layout: Schema) -> list[Span]:
    with open_hdf5(path) as file:
        return spans_of(file, path, layout)


def _recognised(file: h5py.File, path: Path) -> tuple[str, Json]:
    found = known_layout(file)
    if found is None:
        listed = [f"{name} {shape}" for name, shape in dataset_shapes(file).items()]
        more = f" and {len(listed) - 12} more" if len(listed) > 12 else ""
        raise UserError(
            f"{path} is laid out as neither D4RL, robomimic nor stable-worldmodel; it holds {', '.join(listed[:12])}"
            f"{more}. Describe it by a schema such as {EXAMPLE}"
        )
    return found


def _robomimic_notes(file: h5py.File) -> tuple[float, Json]:
    """(steps a second, provenance) as far as `env_args`, which robomimic writes, tells them."""
    group: Any = file["data"]
    try:
        arguments = json.loads(group.attrs["env_args"])
        rate = float(arguments.get("env_kwargs", {}).get("control_freq") or "nan")
        return rate, {"env_id": str(arguments["env_name"])}
    except (KeyError, ValueError, TypeError, AttributeError):
        return float("nan"), {}


def _episodes(
    spans: list[Span], layout: Schema, observation_space: dict[str, Json], action_space: Json, rate: float
) -> Iterator[tuple[str, Episode]]:
    for path, of_file in groupby(spans, key=lambda span: span.path):
        with open_hdf5(path) as file:
            for span in of_file:
                rows = _rows(file, span, layout)
                if layout.final_observation == "missing" and not len(rows.actions):
                    continue  # its one transition has no outcome, and is among the dropped ones
                episode = episode_of(rows, layout.alignment, layout.outcomes, span.where, rate)
                check_spaces(episode, observation_space, action_space, span.where)
                yield span.where, episode


def _rows(file: h5py.File, span: Span, layout: Schema) -> Rows:
    group: Any = file[span.group]

    def read(name: str) -> np.ndarray:
        return read_rows(column(group, name, span.path), span.start, span.stop, f"{span.where}: {name}")

    observations = {key: read(name) for key, name in layout.observations.items()}
    for key, name in layout.next_observations.items():
        observations[key] = _continued(observations[key], read(name), name, span.where)
    length = len(next(iter(observations.values())))
    others = {
        what: read(name)
        for what, name in vars(layout).items()
        if what in ("actions", "rewards", "terminated", "truncated") and name
    }
    if layout.final_observation == "missing":
        for what, values in others.items():
            if len(values) != length or not length:
                raise UserError(
                    f"{span.where}: {length} observations and {len(values)} {what}; they must be as many where the"
                    " final observation is missing (with one observation more, it is 'included')"
                )
        others = {what: values[:-1] for what, values in others.items()}
    return Rows(observations, **others)


def _continued(values: np.ndarray, following: np.ndarray, name: str, where: str) -> np.ndarray:
    """Observations (N + 1, ...): `values` (N, ...) and the last of those that follow them."""
    if values.shape != following.shape:
        raise UserError(f"{where}: {name} has the shape {list(following.shape)}, observations {list(values.shape)}")
    inner, after = following[:-1], values[1:]
    close = (
        np.isclose(inner, after, rtol=1e-4, atol=1e-5, equal_nan=True) if values.dtype.kind == "f" else inner == after
    )
    steps = np.flatnonzero(~close.reshape(len(inner), -1).all(axis=1)) if len(inner) else []
    if len(steps):
        raise UserError(
            f"{where}: row {steps[0]} of {name} is not the observation of row {steps[0] + 1}: an episode ends there"
            " that is not marked; mark it, or read without next_observations by a schema"
        )
    return np.concatenate([values, following[-1:]])


def _spaces(file: h5py.File, first: Span, layout: Schema) -> tuple[dict[str, Json], Json]:
    """The leaves of the observations, and of the actions, by the shapes and types of the first episode's datasets."""
    group: Any = file[first.group]

    def none_of(name: str) -> np.ndarray:
        return read_rows(column(group, name, first.path), 0, 0, f"{first.where}: {name}")

    leaves = {key: leaf_of(none_of(name)) for key, name in layout.observations.items()}
    return leaves, action_leaf(none_of(layout.actions))


def _largest_action(spans: list[Span], layout: Schema) -> int:
    largest = 0
    for path, of_file in groupby(spans, key=lambda span: span.path):
        with open_hdf5(path) as file:
            for span in of_file:
                group: Any = file[span.group]
                values = read_rows(column(group, layout.actions, path), span.start, span.stop, span.where)
                largest = max(largest, int(values.max(initial=0)))
    return largest
