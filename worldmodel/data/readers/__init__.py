"""Opens a dataset of any known format. A format is a module in this folder, with a `READER`, and its name below."""

import json
from collections.abc import Collection
from dataclasses import replace
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from worldmodel.data.episode import Reader, Source
from worldmodel.errors import UserError, choose
from worldmodel.runs.files import check_readable, read_yaml

Format = Literal["worldmodel", "lerobot", "minari", "npz", "hdf5", "table"]  # recognised in this order
FORMATS: tuple[str, ...] = get_args(Format)
Alignment = Literal["next", "previous"]


def open_source(
    path: Path,
    format: Format | None = None,
    alignment: Alignment | None = None,
    schema: dict[str, Any] | str | None = None,
    observations: Collection[str] | None = None,
) -> Source:
    """A dataset as a stream of canonical episodes.

    Args:
        path: a folder, a file (HDF5, CSV, Parquet, MATLAB), or a pattern of table names such as `lab/run-*.csv`.
        format: None: recognised. `hdf5` is D4RL, robomimic, stable-worldmodel, or what a schema describes.
        alignment: of npz rows, whose files do not record it; see data.readers.npz.
        schema: of your own HDF5 file or table, or a YAML file that holds it; see data.readers.schema.
        observations: the keys to read, which spares decoding the others where the format allows it; None: all.

    Raises:
        UserError: if nothing is at the path, its format is unknown, or the format does not take an option.
    """
    check_readable(path)
    if isinstance(schema, str):
        schema = _read_schema(Path(schema))
    name = choose("format", format, FORMATS) if format else _recognise(path, schema is not None)
    reader = _reader(name)
    options: dict[str, Any] = {"alignment": alignment, "schema": schema}
    for option, value in options.items():
        if value is not None and option not in reader.options:
            raise UserError(f"{path} is of the format {name}, which takes no {option}: leave it out")
    options["observations"] = list(observations) if observations else None
    source = reader.open(path, **{option: options[option] for option in reader.options})
    # the same files read in another way are another dataset
    how = json.dumps([source.format, alignment, schema], sort_keys=True)
    return replace(source, fingerprint=sha256(f"{source.fingerprint} {how}".encode()).hexdigest())


def _reader(name: str) -> Reader:
    return import_module(f"{__name__}.{name}").READER


def _recognise(path: Path, by_schema: bool) -> str:
    """The format of what lies at the path; with a schema, of those that take one."""
    formats = [name for name in FORMATS if not by_schema or "schema" in _reader(name).options]
    for name in formats:
        if _reader(name).recognises(path):
            return name
    if not path.exists():
        raise UserError(
            f"no dataset at {path}: it does not exist; make one with `worldmodel collect ENV_ID --out {path}`"
        )
    if by_schema and path.is_file():
        return "hdf5"  # whatever its name
    known = ", ".join(_reader(name).looks_like for name in formats)
    raise UserError(f"{path} is no dataset of a known format: {known}")


def _read_schema(path: Path) -> dict[str, Any]:
    schema = read_yaml(path)
    if not isinstance(schema, dict):
        raise UserError(f"{path} must hold a mapping such as `actions: path/of/the/actions`")
    return schema
