"""The state of all random number generators, in checkpoints."""

import random
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from worldmodel.runs.structure import check


class RandomState(pl.Callback):
    """Saves the state of Python's, NumPy's and torch's generators (CPU, CUDA) of every rank in the checkpoint.

    They are restored at the first batch of a resumed fit, whatever was drawn before. With another number of ranks they
    are not.
    """

    def __init__(self) -> None:
        self._trainer: Any = None
        self._restore: Tensor | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._trainer = trainer

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._restore is not None:
            install(self._restore)
            self._restore = None

    def state_dict(self) -> dict[str, Any]:
        """A collective call: all ranks save together."""
        mine = self._restore if self._restore is not None else packed()
        if self._trainer is None:
            return {}
        gathered = self._trainer.strategy.all_gather(mine.to(self._trainer.strategy.root_device))
        return {"ranks": gathered.reshape(-1, len(mine)).cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check(state_dict, {"ranks?": Tensor}, "RandomState")
        ranks = state_dict.get("ranks", ())
        if self._trainer is not None and len(ranks) == self._trainer.world_size:
            self._restore = ranks[self._trainer.global_rank].clone()


def packed() -> Tensor:
    """The states of all generators as one int64 vector: [python, numpy, torch, CUDA ...]."""
    version, inner, gauss = random.getstate()
    _, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    floats = np.array([0.0 if gauss is None else gauss, cached]).view(np.int64)
    counts = [version, len(inner), gauss is not None, len(keys), position, has_gauss]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    parts = [torch.tensor([*counts, *floats.tolist(), *inner, *keys.tolist()])]
    return torch.cat([part.long() for part in (*parts, torch.get_rng_state(), *cuda)])


def install(state: Tensor) -> None:
    """Restore what `packed` returned."""
    numbers, sizes = state.tolist(), packed()
    if len(sizes) != len(numbers):
        return  # saved on a machine with other devices
    version, num_inner, has_python_gauss, num_keys, position, has_gauss, *floats = numbers[:8]
    gauss, cached = np.array(floats, np.int64).view(np.float64).tolist()
    inner, rest = numbers[8 : 8 + num_inner], numbers[8 + num_inner :]
    random.setstate((version, tuple(inner), gauss if has_python_gauss else None))
    keys = np.array(rest[:num_keys], np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, cached))
    torch_states = torch.tensor(rest[num_keys:], dtype=torch.uint8)
    cpu = len(torch.get_rng_state())
    torch.set_rng_state(torch_states[:cpu])
    if len(torch_states) > cpu:
        torch.cuda.set_rng_state_all(
            list(torch_states[cpu:].split((len(torch_states) - cpu) // torch.cuda.device_count()))
        )
