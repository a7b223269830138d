"""What a LeRobotDataset v3 says about itself: meta/info.json and the index of episodes below meta/episodes."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldmodel.data.episode import inside
from worldmodel.data.readers.lerobot_columns import Clip, Feature
from worldmodel.data.readers.parquet import open_parquet, readable
from worldmodel.data.spaces import Json
from worldmodel.errors import UserError, choose, nearest

PREFIX, ACTION = "observation.", "action"


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
    if not re.fullmatch(r"v?3(\.\d+)*", str(version)):
        raise UserError(
            f"{path} is a LeRobotDataset of version {version}; only v3 is read: convert it with LeRobot's own converter"
            " (python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=...)"
        )
    if info.get("storage_format") not in (None, "parquet"):
        raise UserError(f"{path} is stored as {info['storage_format']!r}; only Parquet and MP4 files are read")
    if not known or not 0 < fps < math.inf:
        raise UserError(f"{file}: features must be a table of features, and fps ({fps}) a number above 0")
    return info


def pick_features(path: Path, info: Json, observations: list[str] | None) -> tuple[dict[str, Feature], list[str]]:
    """The picked observations, key -> feature, and the names of those that cannot be read."""
    known, left_out = {}, []
    for name in info["features"]:
        if name.startswith(PREFIX):
            if feature := _observation(path, name, info["features"][name]):
                known[name.removeprefix(PREFIX)] = feature
            else:
                left_out.append(name)
    picked = [choose("observation", key.removeprefix(PREFIX), known) for key in observations or known]
    if not picked:
        raise UserError(f"{path}: no feature is an observation that can be read (left out: {', '.join(left_out)})")
    if ACTION not in info["features"]:
        raise UserError(f"{path}: there is no feature {ACTION!r}; {nearest(ACTION, info['features'])}")
    return {key: known[key] for key in picked}, left_out


def _observation(path: Path, name: str, feature: Json) -> Feature | None:
    kind = feature.get("dtype")
    if kind not in ("image", "video"):
        return array_feature(path, {"features": {name: feature}}, name) if _is_number(kind) else None
    details = [feature[part] for part in ("info", "video_info") if isinstance(feature.get(part), dict)]
    if any(detail.get("is_depth_map") or detail.get("video.is_depth_map") for detail in details):
        return None  # encodes depths, not colours
    names = feature["names"] if isinstance(feature.get("names"), list) else []
    shape, names = _shape(path, name, feature), [str(part)[:1] for part in names]
    if len(shape) != 3:
        raise UserError(f"{path}: the {kind} {name!r} has the shape {list(shape)}; it must be 3 numbers")
    first = names[0] == "c" if len(names) == 3 and "c" in (names[0], names[2]) else shape[2] > 4
    shape = (*shape[1:], shape[0]) if first else shape
    if shape[2] not in ((1, 3, 4) if kind == "image" else (1, 3)):
        raise UserError(f"{path}: the {kind} {name!r} has {shape[2]} channels; 1 and 3 can be read")
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
    """The files below meta/episodes and the episodes that they list, in order."""
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
    rows.sort(key=lambda row: row["episode_index"])
    total, distinct = info.get("total_episodes", len(rows)), len({row["episode_index"] for row in rows})
    if not rows or not len(rows) == total == distinct:
        listed = f"{len(rows)} ({distinct} distinct)"
        raise UserError(f"{path}: meta/info.json names {total} episodes, meta/episodes {listed}")
    return files, [_entry(root, path, info, row, videos) for row in rows]


def _entry(root: Path, path: Path, info: Json, row: dict[str, Any], videos: list[str]) -> Entry:
    def file(template: str, prefix: str, key: str = "") -> Path:
        where = f"{path}, episode {row['episode_index']}"
        fields = {"chunk_index": row[f"{prefix}/chunk_index"], "file_index": row[f"{prefix}/file_index"]}
        name = _filled(info.get(template), fields | {"video_key": key}, f"{path}: {template}")
        resolved = inside(root, path / name)
        if not resolved.is_file():
            raise UserError(f"{where}: the file {resolved.relative_to(root)} is missing: download it again")
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
