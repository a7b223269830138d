"""The predictions of `worldmodel predict`, beside the true values, in one HDF5 file."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import h5py
import lightning.pytorch as pl
import numpy as np
import torch

from worldmodel.durable import whole_file


class PredictionWriter(pl.Callback):
    """Writes the closed-loop prediction of every transition, a row each, to predictions.h5 in the run's folder.

    Datasets: `obs`, `reward`, `continue` (predicted), `next_obs`, `true_reward` (true), for images `pixels` and
    `next_pixels` (uint8, all images of a frame side by side), `episode` and `step` of the frame that the prediction was
    made at, `episode_names`, and `origin`, to be added to `obs` and `next_obs`, where there is one. With several ranks,
    each writes its lanes to predictions-<rank>.h5.
    """

    def __init__(self) -> None:
        self._rows: dict[str, list[np.ndarray]] = defaultdict(list)
        self.path: Path | None = None

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        size = trainer.datamodule.layout.vector_dim
        kept = {"obs": outputs["obs"][..., :size], "next_obs": batch["obs"][:, 1:, :size]}
        if batch["obs"].shape[-1] > size:
            kept |= {"pixels": _uint8(outputs["obs"][..., size:]), "next_pixels": _uint8(batch["obs"][:, 1:, size:])}
        kept |= {name: outputs[name] for name in ("reward", "continue") if name in outputs}
        kept |= {"true_reward": batch["reward"], "episode": batch["episode"], "step": batch["step"]}
        for name, values in kept.items():
            self._rows[name].append(torch.as_tensor(values)[batch["valid"]].cpu().numpy())

    def on_predict_epoch_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        log_dir = trainer.log_dir  # a collective: on every rank
        if log_dir is None or not self._rows:
            return
        rank = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        self.path = Path(log_dir) / f"predictions{rank}.h5"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: np.concatenate(parts) for name, parts in self._rows.items()}
        order = np.lexsort((rows["step"], rows["episode"]))
        names = trainer.datamodule.splits["val"].names
        # made in memory, since HDF5 crashes when the disk is full
        with h5py.File(self.path.name, "w", driver="core", backing_store=False) as file:
            for name, values in rows.items():
                file.create_dataset(name, data=values[order], fletcher32=True)
            file["episode_names"] = list(names)
            if any(origin := trainer.datamodule.layout.vector_origin):
                file["origin"] = np.array(origin)
            file.flush()
            image = file.id.get_file_image()
        with whole_file(self.path) as temporary:
            temporary.write_bytes(image)


def _uint8(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)
