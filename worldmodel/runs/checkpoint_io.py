"""Lightning's plugin that writes and reads checkpoints: whole, or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor
from torch.utils._pytree import tree_leaves

from worldmodel.durable import digests, sha256, whole_file, write_digests
from worldmodel.errors import UserError
from worldmodel.runs.checkpoint import read_checkpoint


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file beside the checkpoint, flushes and renames it, and keeps its SHA-256 in a file beside it.

    Whenever the process dies, the file is the old one or the new one and its digest is right. A full disk leaves the
    old one. (Lightning's own plugin writes in TMPDIR and moves without flushing: a full disk can take the old one too.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises UserError, with path and size, if it cannot be written."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as temporary:
                torch.save(checkpoint, temporary)
                digest = sha256(temporary)
                write_digests(path, [digest, *digests(path)])  # right both before the rename and after it
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
        """As `read_checkpoint`: nothing in the file is ever executed, whatever the arguments."""
        return read_checkpoint(Path(path))
