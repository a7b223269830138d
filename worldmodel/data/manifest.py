"""The manifest of a dataset folder: what the data is, and which files hold it.

DIR/manifest.json names every file with its sha256, the spaces, the alignment and where the data comes from. It carries
its own sha256, taken over its text with the digits of that sum set to zero, so that no flipped bit in it goes unseen.
"""

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from worldmodel.data import spaces
from worldmodel.data.episode import ALIGNMENT
from worldmodel.durable import whole_file
from worldmodel.errors import UserError

MANIFEST = "manifest.json"
FORMAT, VERSION = "worldmodel-episodes", 2
FILE_KEYS = {"name": str, "sha256": str, "bytes": int, "episodes": int, "steps": int, "pieces": int, "content": int}
FILE_NAME = re.compile(r"(part|episodes)-\d{5,}\.h5")
_OWN_SUM = re.compile(rb'"sha256": "([0-9a-f]{64})"')  # the first in the text is the manifest's own
_RESTORE = "restore it from a copy, or record the data anew"


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
    with whole_file(folder / MANIFEST) as path:
        path.write_text(text)
    return json.loads(text)


def sealed(manifest: dict[str, Any]) -> str:
    """The manifest's text, with its own sha256 in place of the value of that key."""
    text = json.dumps(manifest | {"sha256": "0" * 64}, indent=1) + "\n"
    return text.replace("0" * 64, sha256(text.encode()).hexdigest(), 1)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a dataset, checked: its sum, its keys, its spaces, the names of its files.

    Raises:
        UserError: if the folder or its manifest is missing or damaged, or is not of this format.
    """
    path = folder / MANIFEST
    if not path.is_file():
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
        version = manifest.get("version") if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None
        older = f" (it is of version {version}, of another worldmodel: collect it anew in a new folder)" * bool(version)
        raise UserError(f"{path} is not a {FORMAT} manifest of version {VERSION}{older or ': ' + _RESTORE}")
    own = _OWN_SUM.search(raw)
    if own is None or sha256(raw[: own.start(1)] + b"0" * 64 + raw[own.end(1) :]).hexdigest() != own[1].decode():
        raise UserError(f"{path} was changed or damaged: its sha256 is not that of its text; {_RESTORE}")
    _check(manifest, path)
    return manifest


def _check(manifest: dict[str, Any], path: Path) -> None:
    """What a sum cannot promise: a manifest may be whole and still wrong, or made to harm."""
    if missing := {"files", "observation_space", "action_space"} - manifest.keys():
        raise UserError(f"{path} lacks {' and '.join(sorted(missing))}: {_RESTORE}")
    leaves = manifest["observation_space"]
    if not isinstance(leaves, dict) or not leaves:
        raise UserError(f"{path}: observation_space must name at least one key with its space")
    for key, leaf in leaves.items():
        spaces.check_leaf(leaf, f"{path}, observation_space, {key}")
    spaces.check_leaf(manifest["action_space"], f"{path}, action_space")
    files = manifest["files"]
    if not isinstance(files, list):
        raise UserError(f"{path}: files must be a list: {_RESTORE}")
    for i, entry in enumerate(files):
        if not isinstance(entry, dict) or any(not isinstance(entry.get(k), kind) for k, kind in FILE_KEYS.items()):
            raise UserError(f"{path}: entry {i} of files must have {', '.join(FILE_KEYS)}: {_RESTORE}")
        file = path.parent / entry["name"]
        if Path(entry["name"]).name != entry["name"] or file.resolve().parent != path.parent.resolve():
            raise UserError(
                f"{path} names the file {entry['name']!r}, which does not lie in its folder: it is not read"
            )
        if not FILE_NAME.fullmatch(entry["name"]):
            raise UserError(f"{path} names the file {entry['name']!r}: none of this program's; {_RESTORE}")
