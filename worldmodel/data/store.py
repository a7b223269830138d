"""Reading a dataset folder of this program (see data.writer): what the manifest lists, and nothing else."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from worldmodel.data.damage import describe_damage
from worldmodel.data.episode import ALIGNMENT, Episode, Source
from worldmodel.data.manifest import read_manifest
from worldmodel.data.shards import chained, join, read_shard
from worldmodel.durable import sha256
from worldmodel.errors import UserError, choose


def open_dataset(folder: Path, observations: Collection[str] | None = None) -> Source:
    """A dataset folder as a stream of episodes.

    Args:
        folder: with a manifest.
        observations: the keys that are read; None: all.

    Raises:
        UserError: (while reading) naming the file and the episodes that are missing or damaged.
    """
    manifest = read_manifest(folder)
    for key in observations or ():
        choose("observation key", key, manifest["observation_space"])

    def episodes() -> Iterator[tuple[str, Episode]]:
        parts: list[Episode] = []
        for entry in manifest["files"]:
            number = 0
            for piece in read_shard(checked_path(folder, entry), observations):
                parts.append(piece.episode)
                if not piece.continues:
                    yield f"{entry['name']}, episode {number}", join(parts)
                    parts, number = [], number + 1

    about = {key: value for key, value in manifest.items() if key not in ("files", "observation_space", "action_space")}
    collected = manifest.get("collect")
    about["env_id"] = (collected.get("env_id") if isinstance(collected, dict) else None) or manifest.get("env_id")
    fingerprint = chained(manifest["files"])
    space = {k: leaf for k, leaf in manifest["observation_space"].items() if observations is None or k in observations}
    return Source(folder, "worldmodel", space, manifest["action_space"], ALIGNMENT, fingerprint, episodes, about)


def checked_path(folder: Path, entry: dict[str, Any]) -> Path:
    """Where a file that the manifest lists lies, if it is the file that was written; a UserError if it is not."""
    path, count = folder / entry["name"], max(1, entry["episodes"])  # of a very long one there may be a piece only
    if not path.is_file():
        if entry not in read_manifest(folder)["files"]:
            raise UserError(f"{folder} was compacted or written anew while it was read: read it again")
        raise UserError(f"{path} is missing, and its episodes 0 to {count - 1} with it: restore it from a copy")
    if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
        raise UserError(
            f"{path} was changed or damaged (its sha256 is not the manifest's): {describe_damage(path, count)};"
            " restore it from a copy, or record the data anew"
        )
    return path
