"""Dataset folders of this program (see data.writer): the files that the manifest lists, and nothing else."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from worldmodel.data.episode import ALIGNMENT, Episode, Reader, Source
from worldmodel.data.manifest import MANIFEST, checked_path, read_manifest
from worldmodel.data.readers.choice import Choice
from worldmodel.data.shards import chained, join, read_shard
from worldmodel.errors import choose


def open_dataset(folder: Path, observations: Collection[str] | None = None) -> Source:
    """A dataset folder as a stream of episodes.

    Args:
        folder: the folder that holds the manifest.
        observations: keys to read; None: all.

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
    space = {k: leaf for k, leaf in manifest["observation_space"].items() if observations is None or k in observations}
    state = chained(manifest["files"])
    return Source(folder, "worldmodel", space, manifest["action_space"], ALIGNMENT, state, episodes, about)


def open_chosen(folder: Path, choice: Choice) -> Source:
    """Like `open_dataset`, with the keys that the user chose."""
    if not (choice.observations or choice.skip):
        return open_dataset(folder)
    keys = choice.keys({key: key for key in read_manifest(folder)["observation_space"]}, folder)
    source = open_dataset(folder, keys)
    return replace(source, observation_space={key: source.observation_space[key] for key in keys})


READER = Reader(
    looks_like=f"a folder of `worldmodel collect` ({MANIFEST})",
    recognises=lambda path: (path / MANIFEST).exists(),
    open=open_chosen,
    options=("choice",),
)
