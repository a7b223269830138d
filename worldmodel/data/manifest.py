"""The manifest of a dataset folder: what the data is, which files hold it, and whether these are as they were written.

DIR/manifest.json names every file with its sha256, the spaces, the alignment and where the data comes from. It carries
its own sha256, taken over its text with the digits of that sum set to zero, so that no flipped bit in it goes unseen.

`python -m worldmodel.data.manifest SHARD` prints the numbers of the damaged episodes of a shard as JSON.
"""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data import spaces
from worldmodel.data.episode import ALIGNMENT
from worldmodel.data.hdf5 import open_hdf5
from worldmodel.data.shards import Shard, checksum
from worldmodel.durable import sha256, whole_file
from worldmodel.errors import UserError
from worldmodel.runs.files import check_readable

MANIFEST = "manifest.json"
FORMAT, VERSION = "worldmodel-episodes", 2
FILE_KEYS = {"name": str, "sha256": str, "bytes": int, "episodes": int, "steps": int, "pieces": int, "content": int}
FILE_NAME = re.compile(r"(part|episodes)-\d{5,}\.h5")
_OWN_SUM = re.compile(rb'"sha256": "([0-9a-f]{64})"')  # the first in the text is the manifest's own
_RESTORE = "restore it from a copy, or record the data again"


def write_manifest(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Replace the folder's manifest, whole or not at all. Returns what was written, with counts and sha256."""
    files = manifest["files"]
    counted = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": "",
        "episodes": sum(file["episodes"] for file in files),
        "steps": sum(file["steps"] for file in files),
        "alignment": ALIGNMENT,
    }
    text = sealed(counted | {key: value for key, value in manifest.items() if key not in counted})
    with whole_file(folder / MANIFEST) as temporary:
        temporary.write_text(text)
    return json.loads(text)


def sealed(manifest: dict[str, Any]) -> str:
    """The manifest's text, with its own sha256 in place of the value of that key."""
    text = json.dumps(manifest | {"sha256": "0" * 64}, indent=1) + "\n"
    return text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a dataset, checked: its sum, its keys, its spaces, the names of its files.

    Raises:
        UserError: if the folder or its manifest is missing or damaged, or is not of this format.
    """
    path = check_readable(folder) / MANIFEST
    if not check_readable(path).is_file():
        what = "exists, but is a file, not a folder" if folder.is_file() else f"holds no {MANIFEST}"
        raise UserError(
            f"no dataset at {folder}: it {what if folder.exists() else 'does not exist'};"
            f" make one with `worldmodel collect ENV_ID --out {folder}`"
        )
    raw = path.read_bytes()
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError too
        raise UserError(f"{path} is not valid JSON ({error}): {_RESTORE}") from None
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        way_out = f": {_RESTORE}"
        if isinstance(manifest, dict) and manifest.get("format") == FORMAT and manifest.get("version"):
            way_out = f" (it is version {manifest['version']}, of another worldmodel: collect it in a new folder)"
        raise UserError(f"{path} is not a {FORMAT} manifest of version {VERSION}{way_out}")
    own = _OWN_SUM.search(raw)
    text = raw[: own.start(1)] + b"0" * 64 + raw[own.end(1) :] if own else b""
    if own is None or hashlib.sha256(text).hexdigest() != own[1].decode():
        raise UserError(f"{path} was changed or damaged: its sha256 is not that of its text; {_RESTORE}")
    _check(manifest, path)
    return manifest


def _check(manifest: dict[str, Any], path: Path) -> None:
    """Check what a sum cannot promise: a manifest may be whole and still wrong or malicious."""
    if missing := {"files", "observation_space", "action_space"} - manifest.keys():
        raise UserError(f"{path} lacks {' and '.join(sorted(missing))}: {_RESTORE}")
    spaces.check_spaces(manifest["observation_space"], manifest["action_space"], str(path))
    files = manifest["files"]
    if not isinstance(files, list):
        raise UserError(f"{path}: files must be a list: {_RESTORE}")
    for i, entry in enumerate(files):
        if not isinstance(entry, dict) or any(not isinstance(entry.get(k), kind) for k, kind in FILE_KEYS.items()):
            raise UserError(f"{path}: entry {i} of files must have {', '.join(FILE_KEYS)}: {_RESTORE}")
        file = path.parent / entry["name"]
        if Path(entry["name"]).name != entry["name"] or file.resolve().parent != path.parent.resolve():
            raise UserError(f"{path} names the file {entry['name']!r}, which does not lie in its folder")
        if not FILE_NAME.fullmatch(entry["name"]):
            raise UserError(f"{path} names the file {entry['name']!r}: none of this program's; {_RESTORE}")


def checked_path(folder: Path, entry: dict[str, Any]) -> Path:
    """The path of a file that the manifest lists; a UserError if it is not the file that was written."""
    path, count = folder / entry["name"], max(1, entry["episodes"])  # a file may hold only a part of a long episode
    if not path.is_file():
        if entry not in read_manifest(folder)["files"]:
            raise UserError(f"{folder} was compacted or rewritten while it was read: read it again")
        raise UserError(f"{path} is missing, and its episodes 0 to {count - 1} with it: restore it from a copy")
    if check_readable(path).stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
        raise UserError(
            f"{path} was changed or damaged (its sha256 is not the manifest's): {_describe_damage(path, count)};"
            f" {_RESTORE}"
        )
    return path


def _describe_damage(path: Path, episodes: int) -> str:
    """In words, which of the shard's `episodes` episodes are damaged."""
    command = [sys.executable, "-P", "-m", "worldmodel.data.manifest", str(path)]
    try:  # in a process of its own, since HDF5 may crash on a file whose structure was hit
        process = subprocess.run(command, capture_output=True, text=True, timeout=60)
        damaged: list[int] | None = json.loads(process.stdout) if process.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError):
        damaged = None
    if damaged is None:
        return f"its structure is broken, so that none of its episodes 0 to {episodes - 1} can be read"
    if not damaged:
        return f"the values of its episodes 0 to {episodes - 1} are whole, but not what describes them"
    numbers = f"{', '.join(map(str, damaged[:20]))}{' ...' * (len(damaged) > 20)}"
    return f"episode{'s' * (len(damaged) > 1)} {numbers} of {episodes} cannot be trusted"


def damaged_episodes(path: Path) -> list[int]:
    """The episodes of a shard whose values are not those that were written; a UserError if none can be read."""
    damaged = set()
    with open_hdf5(path) as file:
        shard = Shard(file, path)
        episode_of = np.cumsum(shard.continues == 0) - (shard.continues == 0)  # a long episode has several pieces
        for i in range(len(shard)):
            try:
                whole = checksum(shard.piece(i).episode) == shard.checksums[i]
            except (OSError, RuntimeError):  # raised by fletcher32 or the decompression
                whole = False
            if not whole:
                damaged.add(int(episode_of[i]))
    return sorted(damaged)


if __name__ == "__main__":
    print(json.dumps(damaged_episodes(Path(sys.argv[1]))))
