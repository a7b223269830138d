"""checkpoints/last.ckpt: the newest state, replaced whole."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from worldmodel.data.durable import publish
from worldmodel.errors import UserError


class LastCheckpoint(Checkpoint):
    """Saves every `every_n_steps` optimizer steps and at the end of training.

    A Checkpoint, so that the Trainer runs it behind all other callbacks: what they carry is up to date. The file is
    written beside its place and renamed: a run that dies while it saves leaves the checkpoint before.

    Args:
        folder: of the file.
        every_n_steps: between two saves.
    """

    def __init__(self, folder: Path, every_n_steps: int = 500) -> None:
        self.path = Path(folder) / "last.ckpt"
        if every_n_steps < 1:
            raise UserError(f"checkpoint_every is {every_n_steps}: it must be at least 1")
        self.every_n_steps = every_n_steps
        self._saved_step = -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if (step % self.every_n_steps == 0 or step == trainer.max_steps) and step != self._saved_step:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, but where max_steps stopped in mid-epoch: by now the Trainer counts that epoch as complete, and a fit
        that goes on from here would skip the rest of it. The save behind its last step is the right one."""
        whole_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if whole_epoch or self._saved_step != trainer.global_step:
            self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """On Ctrl-C, say what is kept: in the middle of a step the state is not worth saving."""
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            kept = "no checkpoint was saved yet"
            if self.path.exists():
                kept = f"the checkpoint of step {self._saved_step} is kept; go on from it with --ckpt_path {self.path}"
            print(f"\ninterrupted at step {trainer.global_step}: {kept}", flush=True)

    def _save(self, trainer: pl.Trainer) -> None:
        partial = self.path.with_name(".last.ckpt.partial")
        trainer.save_checkpoint(partial)  # on all ranks: what is saved may be gathered
        if trainer.is_global_zero:
            publish(partial, self.path)
        self._saved_step = trainer.global_step
