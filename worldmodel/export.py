"""A trained model in a folder that other programs can read: safetensors, JSON, and the SHA-256 of both."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldmodel.durable import sha256, whole_file
from worldmodel.errors import UserError
from worldmodel.model import Model
from worldmodel.restore import ARGUMENTS, own_parts, rebuilt

FORMAT = 1
WEIGHTS, ABOUT, DIGESTS = "model.safetensors", "model.json", "SHA256SUMS"
MOST_BYTES = 2**24  # of model.json and SHA256SUMS; larger files are not ours


def write_export(
    folder: Path,
    arguments: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    source: Any,
    trust: bool = False,
    recorded: Mapping[str, str] | None = None,
) -> Model:
    """Write a model to an empty or new folder, or one that holds it already, read it back, and return what was read.

    `arguments` and `tensors` are a checkpoint's `hyper_parameters` and `state_dict`, of which those of the model are
    kept; `about` is further JSON for the reader; `source` names the file that the model comes from, in messages.
    `trust` and `recorded` are those of `restore.rebuilt`.

    Raises:
        UserError: if the folder is not empty, cannot be written to, or the weights are of another model.
    """
    weights = rebuilt(arguments, tensors, source, trust, recorded).state_dict()
    if parts := own_parts(arguments):
        about = {**about, "parts": parts}
    own = {name: arguments[name] for name in ARGUMENTS if name in arguments}
    text = json.dumps({"format": FORMAT, "arguments": own, **about}, indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in folder.iterdir() if path.suffix != ".partial"}
        # without their digests weights and arguments are of an export that was killed
        if there - {WEIGHTS, ABOUT} and not _holds(folder, text, weights, trust):
            raise UserError(f"{folder} is not empty: choose a new --out, or empty it")
        with whole_file(folder / WEIGHTS) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary)
        with whole_file(folder / ABOUT) as temporary:
            temporary.write_text(text)
        write_sums(folder, WEIGHTS, ABOUT)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{folder} cannot be written to ({reason}): choose another --out") from error
    if not _holds(folder, text, weights, trust):
        raise UserError(f"{folder} does not hold what was written to it: check the disk")
    return load_exported(folder, trust)


def write_sums(folder: Path, *names: str) -> None:
    """Write the SHA-256 of these files; last, since a folder without them is incomplete."""
    with whole_file(folder / DIGESTS) as temporary:
        temporary.write_text("".join(f"{sha256(folder / name)}  {name}\n" for name in names))


def _holds(folder: Path, about: str, weights: Mapping[str, Tensor], trust: bool) -> bool:
    """Whether the folder holds the export of these; a UserError if it is damaged."""
    if {path.name for path in folder.iterdir()} != {WEIGHTS, ABOUT, DIGESTS}:
        return False
    there = load_exported(folder, trust).state_dict()
    same = there.keys() == weights.keys() and all(torch.equal(tensor, weights[name]) for name, tensor in there.items())
    return same and (folder / ABOUT).read_text() == about


def load_exported(folder: Path | str, trust: bool = False) -> Model:
    """The model that `worldmodel export` wrote, in evaluation mode on the CPU; nothing in the folder is executed.

    A model with a rule, encoder or decoder of someone's own code names its file, which runs with `trust` alone.

    Raises:
        UserError: naming the file, if one is missing, damaged, a link, or not of this program.
    """
    folder = Path(folder)
    for name, most in ((WEIGHTS, None), (ABOUT, MOST_BYTES), (DIGESTS, MOST_BYTES)):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise UserError(
                f"{path} is no file: give a folder that `worldmodel export` wrote, complete and without links"
            )
        if most is not None and path.stat().st_size > most:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, more than any export of this program")
    digests = (folder / DIGESTS).read_text(errors="replace").splitlines()
    for name in (WEIGHTS, ABOUT):
        if f"{sha256(folder / name)}  {name}" not in digests:
            raise UserError(f"{folder / name} is damaged: its SHA-256 is not that of {DIGESTS}")
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text())
        if about["format"] != FORMAT:
            raise UserError(f"{path} is of format {about['format']!r}, and this program reads {FORMAT}")
        arguments, recorded = dict(about["arguments"]), dict(about.get("parts", {}))
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not of this program, or damaged") from error
    path = folder / WEIGHTS
    try:
        return rebuilt(arguments, load_file(path), path, trust, recorded)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not of this program, or damaged: {error}") from error
