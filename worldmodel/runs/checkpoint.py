"""Checkpoints that a user names: found, and read as plain data."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from worldmodel.durable import digests, sha256
from worldmodel.errors import UserError, nearest

NAME = "last.ckpt"  # of the newest one, in a run's folder checkpoints/
NOT_OURS = "is not a checkpoint of this program, or it is damaged"


def find_checkpoint(path: Path) -> Path:
    """The file, or the last checkpoint of the run whose folder is named; a UserError names the nearest below runs/."""
    if path.is_dir() and (inside := path / "checkpoints" / NAME).is_file():
        return inside
    if not path.is_file():
        there = sorted(str(p) for p in Path("runs").glob("*/*/checkpoints/*.ckpt"))
        raise UserError(f"no checkpoint at {path}: {nearest(str(path), there)}")
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as plain data, on the CPU; a UserError if it is none, or damaged."""
    if problem := damage(path):
        raise UserError(f"{path} {problem}")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        _ = checkpoint["hyper_parameters"], checkpoint["state_dict"]
        tensors = [leaf for leaf in tree_leaves(checkpoint) if isinstance(leaf, Tensor)]
        if any(tensor.untyped_storage().nbytes() < tensor.nbytes for tensor in tensors):
            raise ValueError("a tensor that claims more numbers than are in the file")  # copied, it could fill memory
        return checkpoint
    except (RuntimeError, ValueError, EOFError, OSError, LookupError, TypeError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} {NOT_OURS}") from error


def damage(path: Path) -> str | None:
    """What is wrong with the file's bytes: not those of the SHA-256 beside it, or no archive as `torch.save` writes it.

    Without that digest it is held against its own checksums.
    """
    try:
        if (expected := digests(path)) and sha256(path) not in expected:
            return f"is damaged: its SHA-256 is not that of {path.name}.sha256"
        with zipfile.ZipFile(path) as archive:
            # torch.save packs nothing: what is packed may unfold to more than any memory
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return NOT_OURS
            return None if expected or archive.testzip() is None else "is damaged: a checksum in it is wrong"
    except (OSError, EOFError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile):
        return NOT_OURS
