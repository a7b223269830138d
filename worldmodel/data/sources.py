"""Datasets of every format that is read, found out by what lies at the path."""

import json
from collections.abc import Collection
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import yaml

from worldmodel.data.episode import Source
from worldmodel.data.manifest import MANIFEST
from worldmodel.data.store import open_dataset
from worldmodel.errors import UserError, choose

Format = Literal["worldmodel", "minari", "lerobot", "npz", "hdf5"]
Alignment = Literal["next", "previous"]
FORMATS: tuple[Format, ...] = ("worldmodel", "minari", "lerobot", "npz", "hdf5")
HDF5 = (".h5", ".hdf5")


def open_source(
    path: Path,
    format: Format | None = None,
    alignment: Alignment | None = None,
    schema: dict[str, Any] | str | None = None,
    observations: Collection[str] | None = None,
) -> Source:
    """A dataset as a stream of canonical episodes.

    Args:
        path: a folder, or an HDF5 file.
        format: None: found out. `hdf5` is D4RL, robomimic, stable-worldmodel, or what a schema says.
        alignment: of npz rows, which cannot tell it themselves; see data.readers.npz.
        schema: of a lab's own HDF5 file, or the YAML file that holds it; see data.readers.hdf5_schema.
        observations: the keys that are wanted, which spares decoding the others where the format allows it; None: all.

    Raises:
        UserError: if nothing is there, or it is of no format that is known.
    """
    if isinstance(schema, str):
        schema = _read_schema(Path(schema))
    found = choose("format", format, FORMATS) if format else "hdf5" if schema else _detect(path)
    if alignment is not None and found != "npz":
        raise UserError(f"{path} is of the format {found}, which says its own alignment: leave the alignment out")
    if schema is not None and found != "hdf5":
        raise UserError(f"{path} is of the format {found}, which needs no schema: leave the schema out")
    source = _read(path, found, alignment, schema, observations)
    how = json.dumps([source.format, alignment, schema], sort_keys=True)  # the same files, read otherwise, are others
    return replace(source, fingerprint=sha256(f"{source.fingerprint} {how}".encode()).hexdigest())


def _read(
    path: Path, found: str, alignment: Alignment | None, schema: dict[str, Any] | None, keys: Collection[str] | None
) -> Source:
    match found:
        case "worldmodel":
            return open_dataset(path, keys)
        case "minari":
            from worldmodel.data.readers.minari import read_minari

            return read_minari(path)
        case "lerobot":
            from worldmodel.data.readers.lerobot import read_lerobot

            return read_lerobot(path, list(keys) if keys else None)
        case "npz":
            from worldmodel.data.readers.npz import read_npz

            return read_npz(path, alignment, list(keys) if keys else None)
    from worldmodel.data.readers.hdf5_schema import read_hdf5

    return read_hdf5(path, schema)


def _detect(path: Path) -> str:
    signs = {
        "worldmodel": MANIFEST,
        "lerobot": "meta/info.json",
        "minari": "data/main_data.hdf5",
    }
    for name, sign in signs.items():
        if (path / sign).exists():
            return name
    if (path / "main_data.hdf5").exists():
        return "minari"
    if path.is_dir() and any(path.glob("*.npz")):
        return "npz"
    if path.suffix in HDF5 or (path.is_dir() and any(p.suffix in HDF5 for p in path.iterdir())):
        return "hdf5"
    if not path.exists():
        raise UserError(
            f"no dataset at {path}: it does not exist; make one with `worldmodel collect ENV_ID --out {path}`"
        )
    raise UserError(
        f"{path} is no dataset that can be read: a folder of `worldmodel collect` ({MANIFEST}), Minari"
        " (data/main_data.hdf5), LeRobot v3 (meta/info.json), .npz episodes, or an HDF5 file is"
    )


def _read_schema(path: Path) -> dict[str, Any]:
    try:
        schema = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"there is no schema file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(schema, dict):
        raise UserError(f"{path} must hold a mapping such as `actions: path/of/the/actions`")
    return schema
