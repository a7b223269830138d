"""LeRobotDataset v2 and v3: Parquet rows, MP4 videos and an index of episodes, read without the lerobot package.

A row holds an observation and the action taken after it. LeRobot keeps no observation after the last action, so N rows
are N - 1 transitions: the last row gives the final observation; its action, reward and flags are dropped. Many episodes
share one Parquet file and one MP4; `meta/episodes` says where each lies. In v2 an episode has files of its own.

Source: huggingface/lerobot, docs/source/lerobot-dataset-v3.mdx and src/lerobot/datasets (v3.0, v2.1).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data.episode import Episode, Reader, Source, fingerprint
from worldmodel.data.readers.alignment import leaf_of, side_by_side
from worldmodel.data.readers.choice import Choice
from worldmodel.data.readers.lerobot_columns import Feature, frames_of, values_of
from worldmodel.data.readers.lerobot_index import (
    Entry,
    action_features,
    array_feature,
    pick_features,
    read_entries,
    read_info,
)
from worldmodel.data.readers.parquet import need, open_parquet, readable
from worldmodel.data.readers.view import View
from worldmodel.data.spaces import Json
from worldmodel.errors import UserError, nearest

FLAGS = ("next.done", "next.success", "next.terminated", "next.truncated")
REWARDS = ("next.reward", "reward")
ALIGNMENT = (
    "row t holds observation[t], action[t] taken after it and next.*[t] of the transition to row t + 1; the last row of"
    " an episode has no successor: its action, reward and end flags are dropped"
)


def read_lerobot(path: Path, choice: Choice | None = None, view: View | None = None) -> Source:
    """A LeRobotDataset folder, as episodes of its `observation.*` features (keys without this prefix).

    Numbers keep their shape and dtype, images and videos become uint8 (H, W, C); text and depth maps are left out.
    Videos that the choice leaves out are not opened. Frames are those nearest to start + row / fps, at most half a
    frame away. A missing `next.reward` is read as 0 (`provenance` says so). An episode of one row holds no transition
    and is skipped.

    Ends: `next.terminated` says whether the last transition with an outcome led to a terminal state. Without it,
    `next.done` means that the episode ended, for whatever reason: it counts as terminal if `next.truncated` is there
    and false, or `next.success` is there and true, else as a cut. Flags of the last row belong to an observation
    that was not recorded: an episode whose end is flagged only there is truncated.

    Raises:
        UserError: for another version, a file that is missing, damaged, outside the folder or declares more than it
            can hold, rows or frames that contradict the index, an unknown key, a missing optional package.
    """
    need("pyarrow", "lerobot")
    root = path.resolve()
    info = read_info(path)
    choice = choice or Choice()
    features, left_out = pick_features(path, info, choice)
    action = action_features(path, info, choice)
    if choice.reward and choice.reward not in info["features"]:
        raise UserError(f"{path}: there is no feature {choice.reward!r}; {nearest(choice.reward, info['features'])}")
    reward = choice.reward or next((name for name in REWARDS if name in info["features"]), None)
    signals = [array_feature(path, info, name) for name in (reward, *FLAGS) if name and name in info["features"]]
    names = _Names(features, action, signals, reward, view or View())
    index_files, entries = read_entries(root, path, info, [f.name for f in features.values() if f.kind == "video"])
    videos = [clip.path for entry in entries for clip in entry.clips.values()]
    files = {root / "meta" / "info.json", *index_files, *(entry.rows for entry in entries), *videos}

    def episodes() -> Iterator[tuple[str, Episode]]:
        for file in dict.fromkeys(entry.rows for entry in entries):
            of_file = [entry for entry in entries if entry.rows == file]
            yield from _file_episodes(root, file, of_file, names, float(info["fps"]))

    about = _provenance(info, names, left_out, entries)
    spaces = {key: _space(feature, names.view) for key, feature in features.items()}
    if names.view and not any(feature.is_image for feature in features.values()):
        raise UserError(f"{path} holds no images among {', '.join(features)} to crop or resize")
    actions = leaf_of(side_by_side([np.empty((0, *one.shape), one.dtype) for one in action]))
    return Source(path, "lerobot", spaces, actions, ALIGNMENT, fingerprint(files, root), episodes, about)


READER = Reader(
    looks_like="LeRobot (meta/info.json)",
    recognises=lambda path: (path / "meta" / "info.json").exists(),
    open=read_lerobot,
    options=("choice", "view"),
    names=True,
)


@dataclass(frozen=True)
class _Names:
    """Which features are what."""

    observations: dict[str, Feature]  # by key
    action: list[Feature]
    signals: list[Feature]  # the reward, and flags
    reward: str | None
    view: View  # of every image

    @property
    def stored(self) -> list[Feature]:
        """Those in Parquet files, once each."""
        every = (*self.observations.values(), *self.action, *self.signals)
        return list({one.name: one for one in every if one.kind != "video"}.values())


def _provenance(info: Json, names: _Names, left_out: dict[str, str], entries: list[Entry]) -> Json:
    return {
        "codebase_version": info["codebase_version"],
        "robot_type": info.get("robot_type"),
        "fps": info["fps"],
        "episodes": len(entries),
        "dropped_last_actions": len(entries),
        "episodes_without_transition": sum(entry.length < 2 for entry in entries),
        "rewards": names.reward or "not recorded, read as 0",
        "lossy_video": [key for key, feature in names.observations.items() if feature.kind == "video"],
        "left_out": left_out,
    }


def _space(feature: Feature, view: View) -> Json:
    shape = view.shape(feature.shape, f"the {feature.kind} {feature.name!r}") if feature.is_image else feature.shape
    return leaf_of(np.empty((0, *shape), feature.dtype))


def _file_episodes(
    root: Path, file: Path, entries: list[Entry], names: _Names, fps: float
) -> Iterator[tuple[str, Episode]]:
    """The episodes of one Parquet file, in its order."""
    by_index = {entry.index: entry for entry in entries}
    features, stored = names.observations, names.stored
    for index, table in _tables(file, by_index, stored):
        where, entry = f"{file.relative_to(root)}, episode {index}", by_index[index]
        if entry.length < 2:
            continue
        with readable(f"{file}, episode {index}") as spot:
            columns = {feature.name: values_of(table[feature.name], feature, spot, names.view) for feature in stored}
        for name, clip in entry.clips.items():
            feature = next(feature for feature in features.values() if feature.name == name)
            columns[name] = frames_of(clip, entry.length, fps, feature, f"{clip.path}, episode {index}", names.view)
        ends = {name: bool(columns[name].reshape(-1)[-2]) for name in FLAGS if name in columns}
        rewards = np.zeros(entry.length) if names.reward is None else columns[names.reward].reshape(-1)
        terminated = _is_terminal(ends)
        observed = {key: columns[feature.name] for key, feature in features.items()}
        rewards = rewards[:-1].astype(np.float32)
        actions = side_by_side([columns[feature.name] for feature in names.action])
        yield where, Episode(observed, actions[:-1], rewards, terminated, not terminated, fps)


def _is_terminal(ends: dict[str, bool]) -> bool:
    """Whether the flags of a transition mark its outcome as terminal; see `read_lerobot`."""
    if "next.terminated" in ends:
        return ends["next.terminated"]
    if "next.truncated" in ends:
        return ends.get("next.done", False) and not ends["next.truncated"]
    return ends.get("next.done", False) and ends.get("next.success", False)


def _tables(file: Path, entries: dict[int, Entry], features: list[Feature]) -> Iterator[tuple[int, Any]]:
    """(episode, its rows as a table) of one Parquet file, in its order, with one episode in memory at a time."""
    pa = need("pyarrow")
    names = ["frame_index", *(feature.name for feature in features)]
    with open_parquet(file, ["episode_index", *names]) as reader:
        runs = _runs(file, reader, entries)
        rows = 64 if any(feature.kind == "image" for feature in features) else 4096
        batches, held = reader.iter_batches(batch_size=rows, columns=names), []
        for index in runs:
            length, where = entries[index].length, f"{file}, episode {index}"
            with readable(where):
                while sum(batch.num_rows for batch in held) < length:
                    held.append(next(batches))
                table = pa.Table.from_batches(held)
                held = table.slice(length).to_batches()
            frame = values_of(table["frame_index"][:length], Feature("frame_index", "array", (), "int64"), where)
            if not np.array_equal(frame, np.arange(length)):
                raise UserError(f"{where}: frame_index does not count from 0 to {length - 1}: rows are missing")
            yield index, table.slice(0, length)


def _runs(file: Path, reader: Any, entries: dict[int, Entry]) -> list[int]:
    """The episodes of a Parquet file in its order; a UserError if their lengths are not those of the index."""
    with readable(file):
        column = reader.read(columns=["episode_index"])["episode_index"]
    index = values_of(column, Feature("episode_index", "array", (), "int64"), str(file))
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    lengths = np.diff(starts, append=len(index)).tolist()
    runs = [int(episode) for episode in index[starts]]
    missing = {episode: entry.length for episode, entry in entries.items()}
    for episode, length in zip(runs, lengths, strict=True):
        if (expected := missing.pop(episode, None)) != length:
            says = f"says {expected}" if expected else "says none, or they came before"
            raise UserError(f"{file}, episode {episode}: it holds {length} rows, meta/episodes {says}")
    if missing:
        raise UserError(f"{file}, episode {min(missing)}: it holds no row, meta/episodes says {missing[min(missing)]}")
    return runs
