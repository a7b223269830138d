"""What a LeRobotDataset says about itself: meta/info.json and the index of its episodes.

v3 lists them in Parquet files below meta/episodes: many share one file of rows and one video. v2 lists them in
meta/episodes.jsonl, and each has files of its own.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldmodel.data.episode import inside
from worldmodel.data.readers.choice import Choice
from worldmodel.data.readers.lerobot_columns import Clip, Feature
from worldmodel.data.readers.parquet import open_parquet, readable
from worldmodel.data.spaces import Json
from worldmodel.errors import UserError, nearest

PREFIX, ACTIONS = "observation.", ("action", "actions")
# columns that every dataset has, and that are no observation
NOTES = {*ACTIONS, "timestamp", "frame_index", "episode_index", "index", "task_index", "subtask_index"}
NOTES |= {"reward", "done", "success", "is_first", "is_last", "is_terminal"}
NOTE_PREFIXES = ("next.", "action.", "actions.", "annotation.", "complementary_info")


@dataclass(frozen=True)
class Entry:
    """What meta/episodes says about an episode."""

    index: int
    length: int  # rows
    rows: Path
    clips: dict[str, Clip]  # video feature -> where its frames lie


def read_info(path: Path) -> Json:
    """The content of meta/info.json; a UserError for another version, storage format or a damaged file."""
    file = inside(path, path / "meta" / "info.json")
    if not file.is_file():
        raise UserError(f"{path} is no LeRobot dataset: it holds no meta/info.json")
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        version, features, fps = info["codebase_version"], info["features"], float(info["fps"])
        known = isinstance(features, dict) and all(isinstance(feature, dict) for feature in features.values())
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise UserError(f"{file} is damaged, or is not LeRobot's: {type(error).__name__} {error}") from error
    if not re.fullmatch(r"v?(2|3)(\.\d+)*", str(version)):
        raise UserError(
            f"{path} is a LeRobotDataset of version {version}; v2 and v3 are read: convert it with LeRobot's own"
            " converter (lerobot 0.1: python lerobot/common/datasets/v2/convert_dataset_v1_to_v2.py)"
        )
    if info.get("storage_format") not in (None, "parquet"):
        raise UserError(f"{path} is stored as {info['storage_format']!r}; only Parquet and MP4 files are read")
    if not known or not 0 < fps < math.inf:
        raise UserError(f"{file}: features must be a table of features, and fps ({fps}) a number above 0")
    return info


def pick_features(path: Path, info: Json, choice: Choice) -> tuple[dict[str, Feature], dict[str, str]]:
    """The chosen observations, key -> feature; and those that are not read, name -> why.

    Usually these are the `observation.*` features; where there is none, all that are no action, reward or index.
    """
    every = {name.removeprefix(PREFIX): name for name in info["features"]}
    usual = {key: name for key, name in every.items() if name.startswith(PREFIX)}
    if not usual:
        usual = {k: n for k, n in every.items() if n not in NOTES and not n.startswith(NOTE_PREFIXES)}
    keys = choice.keys(usual, path, every)
    picked, left_out = {}, {}
    for key in keys:
        feature = _observation(path, every[key], info["features"][every[key]])
        if isinstance(feature, Feature):
            picked[key] = feature
        elif key in choice.observations or every[key] in choice.observations:
            raise UserError(f"{path}: {every[key]!r} cannot be read: {feature}; leave it out with --skip {key}")
        else:
            left_out[every[key]] = feature
    left_out |= {name: "--observations reads it" for key, name in usual.items() if key not in keys}
    if not picked:
        why = ", ".join(f"{name} ({reason})" for name, reason in left_out.items()) or "none"
        names = ", ".join(info["features"])
        raise UserError(
            f"{path}: no feature can be read as an observation (left out: {why}); the features are: {names}"
        )
    return picked, left_out


def action_features(path: Path, info: Json, choice: Choice) -> list[Feature]:
    """What makes up the action: the chosen features, or `action` or `actions`."""
    names = choice.action or [name for name in ACTIONS if name in info["features"]][:1]
    for name in names or ACTIONS[:1]:
        if name not in info["features"]:
            hint = nearest(name, info["features"])
            raise UserError(f"{path}: there is no feature {name!r} for the action; {hint}, or name it: --action NAME")
    return [array_feature(path, info, name) for name in names]


def _observation(path: Path, name: str, feature: Json) -> Feature | str:
    """A feature, or why it cannot be read."""
    kind = feature.get("dtype")
    if kind not in ("image", "video"):
        known = _is_number(kind)
        return array_feature(path, {"features": {name: feature}}, name) if known else f"{kind}, no numbers"
    details = [feature[part] for part in ("info", "video_info") if isinstance(feature.get(part), dict)]
    if any(detail.get("is_depth_map") or detail.get("video.is_depth_map") for detail in details):
        return "a depth map: it encodes depths, not colours"
    names = feature["names"] if isinstance(feature.get("names"), list) else []
    shape, names = _shape(path, name, feature), [str(part)[:1] for part in names]
    if len(shape) != 3:
        return f"{kind} of the shape {list(shape)}, which must be 3 numbers"
    first = names[0] == "c" if len(names) == 3 and "c" in (names[0], names[2]) else shape[2] > 4
    shape = (*shape[1:], shape[0]) if first else shape
    if shape[2] not in ((1, 3, 4) if kind == "image" else (1, 3)):
        return f"{kind} of {shape[2]} channels; 1 and 3 can be read"
    return Feature(name, kind, shape, "uint8")


def array_feature(path: Path, info: Json, name: str) -> Feature:
    """A feature that holds numbers; a UserError if it does not."""
    feature = info["features"][name]
    if not _is_number(feature.get("dtype")):
        raise UserError(f"{path}: the feature {name!r} has the dtype {feature.get('dtype')!r}; it must hold numbers")
    shape = _shape(path, name, feature)
    if name.startswith("next.") and math.prod(shape) != 1:
        raise UserError(f"{path}: the feature {name!r} has the shape {list(shape)}; it must be one number per row")
    return Feature(name, "array", shape, feature["dtype"])


def _is_number(dtype: Any) -> bool:
    return isinstance(dtype, str) and re.fullmatch(r"bool|u?int(8|16|32|64)|float(16|32|64)", dtype) is not None


def _shape(path: Path, name: str, feature: Json) -> tuple[int, ...]:
    shape: Any = feature.get("shape")
    whole = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    if not whole or len(shape) > 8 or math.prod(shape) >= 2**31:
        raise UserError(f"{path}: the feature {name!r} has the shape {shape!r}; it must be a list of numbers above 0")
    return tuple(shape)


def read_entries(root: Path, path: Path, info: Json, videos: list[str]) -> tuple[list[Path], list[Entry]]:
    """The files of the index and the episodes that they list, in order."""
    files, rows = (_rows_v2 if is_v2(info) else _rows_v3)(root, path, info, videos)
    rows.sort(key=lambda row: row["episode_index"])
    total, distinct = info.get("total_episodes", len(rows)), len({row["episode_index"] for row in rows})
    if not rows or not len(rows) == total == distinct:
        listed = f"{len(rows)} ({distinct} distinct)"
        raise UserError(f"{path}: meta/info.json names {total} episodes, meta/episodes {listed}")
    return files, [_entry(root, path, info, row, videos) for row in rows]


def is_v2(info: Json) -> bool:
    """Whether each episode has files of its own, as in v2.0 and v2.1."""
    return str(info["codebase_version"]).lstrip("v").startswith("2")


def _rows_v2(root: Path, path: Path, info: Json, videos: list[str]) -> tuple[list[Path], list[dict[str, Any]]]:
    file, chunk = inside(root, path / "meta" / "episodes.jsonl"), info.get("chunks_size", 1000)
    if not file.is_file():
        raise UserError(f"{path}: the file meta/episodes.jsonl is missing: download it again")
    if not isinstance(chunk, int) or chunk < 1:
        raise UserError(f"{path}: meta/info.json says chunks_size {chunk!r}; it must be a number above 0")
    rows: list[dict[str, Any]] = []
    try:
        for line in filter(str.strip, file.read_text(encoding="utf-8").splitlines()):
            told = json.loads(line)
            index, length = int(told["episode_index"]), int(told["length"])
            if not 0 <= index < 2**48 or not 0 < length < 2**48:
                raise ValueError(f"episode {index} of {length} rows")
            row = {"episode_index": index, "length": length, "episode_chunk": index // chunk}
            times = {"from_timestamp": 0.0, "to_timestamp": length / float(info["fps"])}
            rows.append(row | {f"videos/{name}/{time}": at for name in videos for time, at in times.items()})
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{file}, line {len(rows) + 1}: it is damaged ({type(error).__name__} {error})") from error
    return [file], rows


def _rows_v3(root: Path, path: Path, info: Json, videos: list[str]) -> tuple[list[Path], list[dict[str, Any]]]:
    places = [f"videos/{name}/{part}" for name in videos for part in ("chunk_index", "file_index")]
    times = [f"videos/{name}/{part}_timestamp" for name in videos for part in ("from", "to")]
    whole = ["episode_index", "length", "dataset_from_index", "dataset_to_index", "data/chunk_index", "data/file_index"]
    files = [inside(root, file) for file in sorted((path / "meta" / "episodes").glob("*/*.parquet"))]
    rows: list[dict[str, Any]] = []
    for file in files:
        with open_parquet(file, [*whole, *places, *times]) as reader, readable(file):
            rows += reader.read(columns=[*whole, *places, *times]).to_pylist()
    for row in rows:
        where = f"{path}/meta/episodes, episode {row['episode_index']}"
        for name in (*whole, *places, *times):
            value = row[name]
            if not isinstance(value, int | float) or not 0 <= value < (2**30 if name in times else 2**48):
                raise UserError(f"{where}: {name} is {value}; it must be at least 0, and not huge")
            row[name] = value if name in times else int(value)
        if not 0 < row["length"] == row["dataset_to_index"] - row["dataset_from_index"]:
            raise UserError(f"{where}: its length, {row['length']}, contradicts dataset_from_index and _to_index")
    return files, rows


def _entry(root: Path, path: Path, info: Json, row: dict[str, Any], videos: list[str]) -> Entry:
    def file(template: str, prefix: str, key: str = "") -> Path:
        where = f"{path}, episode {row['episode_index']}"
        if is_v2(info):
            fields = {"episode_chunk": row["episode_chunk"], "episode_index": row["episode_index"], "video_key": key}
        else:
            parts = {part: row[f"{prefix}/{part}"] for part in ("chunk_index", "file_index")}
            fields = parts | {"video_key": key}
        name = _filled(info.get(template), fields, f"{path}: {template}")
        resolved = inside(root, path / name)
        if not resolved.is_file():
            way_out = f", or leave it out with --skip {key.removeprefix(PREFIX)}" if key else ""
            raise UserError(f"{where}: the file {resolved.relative_to(root)} is missing: download it again{way_out}")
        return resolved

    clips = {}
    for name in videos:
        prefix = f"videos/{name}"
        start, end = row[f"{prefix}/from_timestamp"], row[f"{prefix}/to_timestamp"]
        clips[name] = Clip(file("video_path", prefix, name), start, end)
    return Entry(row["episode_index"], row["length"], file("data_path", "data"), clips)


def _filled(template: Any, fields: dict[str, Any], where: str) -> str:
    """A path template with its {name} and {name:03d} replaced; str.format would let a template do more than that."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in fields:
            raise UserError(f"{where} is {template!r}: {match[1]!r} is unknown; {nearest(match[1], fields)}")
        return str(fields[match[1]]).rjust(int(match[2] or 0), "0")

    if not isinstance(template, str):
        raise UserError(f"{where} is {template!r}; it must be a path")
    return re.sub(r"\{(\w+)(?::0(\d)d)?\}", value, template)
