"""Opens a dataset of any known format. A format is a module in this folder, with a `READER`, and its name below."""

import json
from dataclasses import astuple, replace
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from worldmodel import parts
from worldmodel.data.episode import Reader, Source
from worldmodel.data.readers.choice import Names, choice_of, picked, renamed
from worldmodel.data.readers.own import own_reader
from worldmodel.data.readers.view import Numbers, view_of, viewed
from worldmodel.errors import UserError, choose
from worldmodel.runs.files import check_readable, read_yaml

# in the order in which they are recognised
Format = Literal["worldmodel", "lerobot", "minari", "rlds", "npz", "zarr", "hdf5", "table"]
FORMATS: tuple[str, ...] = get_args(Format)
Alignment = Literal["next", "previous"]
OPTIONS = ("format", "alignment", "schema", "observations", "action", "reward", "rename", "skip")  # of open_source
OPTIONS += ("image_crop", "image_size")


def open_source(
    path: Path,
    format: str | None = None,
    alignment: Alignment | None = None,
    schema: dict[str, Any] | str | None = None,
    observations: Names = None,
    action: Names = None,
    reward: str | None = None,
    rename: dict[str, str] | str | None = None,
    skip: Names = None,
    image_crop: Numbers = None,
    image_size: Numbers = None,
) -> Source:
    """A dataset as a stream of canonical episodes.

    Args:
        path: a folder, a file (HDF5, npz, CSV, Parquet, MATLAB), or a pattern of table names such as `lab/run-*.csv`.
        format: None: recognised. `hdf5`, `npz` and `zarr` are files of arrays, of a known layout or by a schema; or a
            reader of your own, file.py:name.
        alignment: of a row's action in files of arrays, where they do not show it.
        schema: of your own file of arrays or table, or a YAML file that holds it; see data.readers.schema.
        observations: the keys to read, in this order, a list or "a,b"; None: all that are observations by their names.
        action: the names of what makes up the action; None: `action` or `actions`.
        reward: the name of the reward; None: `reward` or `rewards`, if it is there.
        rename: key -> what it is called from here on, or "old=new,...".
        skip: keys to leave out, by name, pattern or group; nothing of them is opened.
        image_crop: the part of every image to keep: top, left, height, width, in pixels.
        image_size: the size to scale images to: the side of a square, or height, width.

    Raises:
        UserError: if nothing is at the path, its format is unknown, or the format does not take an option.
    """
    check_readable(path)
    choice = choice_of(observations, skip, action, reward, rename)
    view = view_of(image_crop, image_size)
    if isinstance(schema, str):
        schema = _read_schema(Path(schema))
    name = check_format(format) if format else _recognise(path, schema is not None)
    reader = own_reader(name) if parts.is_own(name) else _reader(name)
    options: dict[str, Any] = {"alignment": alignment, "schema": schema, "choice": choice, "view": view}
    taken = {*reader.options, *(("action", "reward") if reader.names else ())}
    given = {"alignment": alignment, "schema": schema, "action": choice.action or None, "reward": choice.reward}
    for option, value in given.items():
        if value is not None and option not in taken:
            raise UserError(f"{path} is of the format {name}, which takes no {option}: leave it out")
    source = reader.open(path, **{option: options[option] for option in reader.options})
    if "choice" not in reader.options and (choice.observations or choice.skip):
        source = picked(source, choice)
    if view and "view" not in reader.options:
        source = viewed(source, view)
    if choice.rename:
        source = renamed(source, choice.rename)
    # the same files read in another way are another dataset
    how = [source.format, alignment, schema, *([astuple(choice)] if choice else []), *([astuple(view)] if view else [])]
    how += parts.digests([name]).values()
    mark = sha256(f"{source.fingerprint} {json.dumps(how, sort_keys=True)}".encode())
    return replace(source, fingerprint=mark.hexdigest())


def check_format(name: str) -> str:
    """The format, if it is known or a reader of the user's own; else a UserError."""
    return name if parts.is_own(name) else choose("format", name, FORMATS)


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
