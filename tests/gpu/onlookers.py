"""Callbacks that look at a fit on a GPU, or change it."""

import warnings

import lightning.pytorch as pl
import torch


class Waits(pl.Callback):
    """Counts how often Python waits for the GPU from one step's beginning to another's."""

    begin, end = 10, 30
    seen: list[str] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.begin:
            self.caught = warnings.catch_warnings(record=True)
            self.messages = self.caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        if trainer.global_step == self.end:
            torch.cuda.set_sync_debug_mode("default")
            self.caught.__exit__(None, None, None)
            Waits.seen = [str(message.message) for message in self.messages]


class Change(pl.Callback):
    """Another weight of a term from step 10 on, as a population gives it."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 10:
            pl_module.change({"open_loop_weight": 5.0})


class Pinned(pl.Callback):
    """Whether the loader's batches are pinned."""

    seen: bool | None = None

    def on_train_start(self, trainer, pl_module):
        batch = next(iter(trainer.train_dataloader))
        Pinned.seen = all(x.is_pinned() for x in batch.values() if isinstance(x, torch.Tensor))
