"""Datasets on disk: closed HDF5 files of episodes and the manifest that lists them.

    DIR/manifest.json      what the data is (environment, seed, policy, spaces, alignment) and each file's sha256
    DIR/episodes-00000.h5  observations (sum of T + 1), actions, rewards (sum of T), and for each episode its length,
                           terminated, truncated

Only files that the manifest lists are data. Each file is written whole or not at all, the manifest after them.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from worldmodel.data import spaces
from worldmodel.data.durable import sha256, whole_file
from worldmodel.data.episodes import Episode, Episodes
from worldmodel.errors import UserError

MANIFEST = "manifest.json"
FORMAT = "worldmodel-episodes"
VERSION = 1
ALIGNMENT = "actions[t] is taken after observations[t] and leads, with rewards[t], to observations[t+1]"


class EpisodeWriter:
    """Writes episodes into a new dataset folder.

    Args:
        folder: made where it is missing; must not hold a dataset yet.
        manifest: what the data is; `observation_space` and `action_space` as made by `spaces.describe`.
        steps_per_file: a file is closed once it holds this many transitions.

    Raises:
        UserError: if the folder already holds a dataset.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], steps_per_file: int = 50_000) -> None:
        if missing := {"observation_space", "action_space"} - manifest.keys():
            raise ValueError(f"the manifest needs {' and '.join(sorted(missing))} (see spaces.describe)")
        if (folder / MANIFEST).exists():
            raise UserError(f"{folder} already holds a dataset: choose another folder, or remove it first")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the dataset's folder {folder} cannot be made: {error.strerror}") from error
        self.folder = folder
        self.steps_per_file = steps_per_file
        self.manifest = {"format": FORMAT, "version": VERSION, "alignment": ALIGNMENT, **manifest, "files": []}
        self._waiting: list[Episode] = []

    def add(self, episode: Episode) -> None:
        """Take an episode; it is on disk once its file is full or `finish` was called."""
        num_obs, num_actions = len(episode.observations), len(episode.actions)
        if not len(episode) or num_obs != len(episode) + 1 or num_actions != len(episode):
            raise ValueError(f"{num_obs} observations, {num_actions} actions, {len(episode)} rewards: not T+1, T, T")
        self._waiting.append(episode)
        if sum(map(len, self._waiting)) >= self.steps_per_file:
            self._write_file()

    def finish(self) -> dict[str, Any]:
        """Write what is waiting, then the manifest; from now on readers see the dataset. Returns the manifest."""
        if self._waiting:
            self._write_file()
        files = self.manifest["files"]
        self.manifest["episodes"] = sum(file["episodes"] for file in files)
        self.manifest["steps"] = sum(file["steps"] for file in files)
        with whole_file(self.folder / MANIFEST) as path:
            path.write_text(json.dumps(self.manifest, indent=1) + "\n")
        return self.manifest

    def _write_file(self) -> None:
        episodes, self._waiting = self._waiting, []
        path = self.folder / f"episodes-{len(self.manifest['files']):05d}.h5"
        with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
            for name in ("observations", "actions", "rewards"):
                values = np.concatenate([getattr(episode, name) for episode in episodes])
                # fletcher32: HDF5 itself notices a flipped bit when it reads
                file.create_dataset(name, data=values, chunks=_chunks(values), compression="lzf", fletcher32=True)
            file["lengths"] = np.array([len(episode) for episode in episodes], dtype=np.int64)
            file["terminated"] = np.array([episode.terminated for episode in episodes])
            file["truncated"] = np.array([episode.truncated for episode in episodes])
        entry = {"name": path.name, "sha256": sha256(path), "bytes": path.stat().st_size}
        self.manifest["files"].append(entry | {"episodes": len(episodes), "steps": sum(map(len, episodes))})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a dataset.

    Raises:
        UserError: if the folder or its manifest is missing, or is not of this format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = f"holds no {MANIFEST}" if folder.is_dir() else "does not exist"
        raise UserError(
            f"no dataset at {folder}: the folder {what}; make one with `worldmodel collect ENV_ID --out {folder}`"
        )
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore it, or collect the dataset anew") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise UserError(f"{path} is not a {FORMAT} manifest of version {VERSION}")
    if missing := {"files", "observation_space", "action_space"} - manifest.keys():
        raise UserError(f"{path} lacks {' and '.join(sorted(missing))}: restore it, or collect the dataset anew")
    return manifest


def read_file(folder: Path, entry: dict[str, Any]) -> Iterator[Episode]:
    """The episodes of one file of the manifest, in order, exactly as they were written.

    Raises:
        UserError: if the file is missing, differs from its checksum, or its lengths contradict each other.
    """
    path = folder / entry["name"]
    if path.parent != folder:
        raise UserError(f"{folder / MANIFEST} names the file {entry['name']!r}, which is not in its folder")
    if not path.is_file():
        raise UserError(f"{path} is missing, but the manifest lists it: restore it, or collect the dataset anew")
    if sha256(path) != entry["sha256"]:
        raise UserError(f"{path} was changed or damaged: its sha256 is not the manifest's; restore it, or collect anew")
    with h5py.File(path, "r") as file:
        data = {name: np.asarray(file[name]) for name in ("observations", "actions", "rewards")}
        lengths, terminated, truncated = (np.asarray(file[name]) for name in ("lengths", "terminated", "truncated"))
    steps = int(lengths.sum())
    sizes = {name: len(values) for name, values in data.items()}
    if sizes != {"observations": steps + len(lengths), "actions": steps, "rewards": steps}:
        raise UserError(f"{path}: {sizes} do not fit {len(lengths)} episodes with {steps} transitions in all")
    ends = np.cumsum(lengths)
    for i, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        if length < 1:
            raise UserError(f"{path}, episode {i}: it has one observation and no transition; leave it out of the data")
        start = end - length
        yield Episode(
            data["observations"][start + i : end + i + 1],
            data["actions"][start:end],
            data["rewards"][start:end],
            bool(terminated[i]),
            bool(truncated[i]),
        )


def load_episodes(folder: Path, non_finite: Literal["error", "skip"] = "error") -> tuple[Episodes, int]:
    """A dataset as float vectors in memory, and the number of episodes that were skipped.

    Args:
        folder: with a manifest.
        non_finite: what to do with an episode that holds a NaN or infinity.

    Raises:
        UserError: naming file, episode and step, if the data is missing, damaged, empty or (with "error") not finite.
    """
    manifest = read_manifest(folder)
    parts: list[Episodes] = []
    for entry in manifest["files"]:
        read = list(read_file(folder, entry))
        names = [f"{folder / entry['name']}, episode {i}" for i in range(len(read))]
        parts.append(_side_by_side(read, names, manifest["observation_space"], manifest["action_space"]))
    if not parts:
        raise UserError(
            f"{folder} holds no episodes: collect some with `worldmodel collect ENV_ID --out DIR --steps N`"
        )
    episodes = Episodes.concatenate(parts)
    bad = {i: found for i in range(len(episodes)) if (found := episodes.first_non_finite(i))}
    if bad and non_finite == "error":
        i, (field, step) = next(iter(bad.items()))
        raise UserError(
            f"{episodes.names[i]}, step {step}: the {field} is not finite"
            f" ({len(bad)} of {len(episodes)} episodes have such values); mend the data,"
            " or leave such episodes out with --data.non_finite skip"
        )
    if len(bad) == len(episodes):
        raise UserError(f"{folder}: every episode holds a NaN or an infinity; mend the data")
    return (episodes.select([i for i in range(len(episodes)) if i not in bad]) if bad else episodes), len(bad)


def _side_by_side(
    parts: list[Episode], names: list[str], obs_space: spaces.Json, action_space: spaces.Json
) -> Episodes:
    num_frames = np.array([len(episode) + 1 for episode in parts], dtype=np.int64)
    last = np.cumsum(num_frames) - 1  # rows without a transition
    has_step = np.ones(int(num_frames.sum()), dtype=bool)
    has_step[last] = False
    obs = _features([e.observations for e in parts], obs_space, names, "observations")
    steps = _features([e.actions for e in parts], action_space, names, "actions")
    action = np.zeros((len(obs), steps.shape[1]), dtype=np.float32)
    action[has_step] = steps
    reward = np.zeros(len(obs), dtype=np.float32)
    reward[has_step] = np.concatenate([e.rewards for e in parts])
    terminated = np.zeros(len(obs), dtype=bool)
    terminated[last - 1] = [e.terminated for e in parts]
    return Episodes(obs, action, reward, terminated, num_frames, names)


def _features(values: list[np.ndarray], space: spaces.Json, names: list[str], field: str) -> np.ndarray:
    shapes = {array.shape[1:] for array in values}
    if len(shapes) > 1:
        odd = next(i for i, array in enumerate(values) if array.shape[1:] != values[0].shape[1:])
        raise UserError(f"{names[odd]}: its {field} have shape {values[odd].shape[1:]}, others {values[0].shape[1:]}")
    try:
        made = spaces.features(np.concatenate(values), space)
    except ValueError as error:
        raise UserError(f"{names[0].split(', episode')[0]}: {field} {error}") from None
    if made.shape[1] != spaces.num_features(space):
        raise UserError(
            f"{names[0]}: {field} have {made.shape[1]} entries, the manifest's space {spaces.num_features(space)}"
        )
    return made


def _chunks(values: np.ndarray) -> tuple[int, ...]:
    """About 64 kB a chunk, whole rows."""
    row = max(1, math.prod(values.shape[1:]) * values.dtype.itemsize)
    return (max(1, min(len(values), 65_536 // row)), *values.shape[1:])
