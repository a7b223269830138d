"""How checkpoints reach the disk, and come back: whole, or not at all."""

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor
from torch.utils._pytree import tree_leaves

from worldmodel.durable import digests, sha256, whole_file, write_digests
from worldmodel.errors import UserError

NOT_OURS = "is not a checkpoint of this program, or it is damaged"


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes beside the place, flushes, renames; a SHA-256 stands beside every checkpoint and is held against it.

    A process may die at any instant: the file is the old one or the new one, and its digest is right. A full disk
    leaves the old one. (Lightning's own way writes in TMPDIR and moves, without flushing: on another file system a full
    disk takes the old checkpoint too.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises UserError, naming file and size, where it cannot be written."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as temporary:
                torch.save(checkpoint, temporary)
                digest = sha256(temporary)
                write_digests(path, [digest, *digests(path)])  # right before the rename and behind it
            write_digests(path, [digest])
        except (OSError, RuntimeError) as error:  # torch's writer hides the OSError in a RuntimeError
            size = sum(leaf.nbytes for leaf in tree_leaves(checkpoint) if isinstance(leaf, Tensor))
            reason = error.strerror if isinstance(error, OSError) else "no space left on the device, most likely"
            kept = "the checkpoint before is kept" if path.exists() else "there is none before it"
            raise UserError(
                f"the checkpoint {path} of about {size:,} bytes cannot be written ({reason}); {kept}."
                " Make room and go on with --resume"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """As `read_checkpoint`; never by running what is in the file, whatever is asked."""
        return read_checkpoint(Path(path))


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
