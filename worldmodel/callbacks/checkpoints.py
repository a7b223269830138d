"""The checkpoints of a fit: when they are saved, also on a signal to stop, and how they reach the disk."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor
from torch.utils._pytree import tree_leaves

from worldmodel.callbacks.final_validation import as_in_the_epoch
from worldmodel.callbacks.guard import is_finite
from worldmodel.callbacks.metrics import LOGGED, MetricsFile, logged, pending_row
from worldmodel.durable import digests, keep_as, sha256, whole_file, write_digests
from worldmodel.errors import UserError, at_least
from worldmodel.runs.checkpoint import NAME, read_checkpoint
from worldmodel.runs.signals import Signals, Stopped


class LastCheckpoint(Checkpoint):
    """Saves last.ckpt every `every_n_steps` optimizer steps and at the end of training.

    A Checkpoint, so that the Trainer runs it after all other callbacks: what they carry is up to date. The checkpoint
    before is kept as last-1.ckpt, and so on. A model that is not finite is not saved.

    At SIGTERM, SIGINT or SIGUSR1 on any rank, all ranks finish the step, save together and exit with status
    128 + signal. A second signal stops at once.

    A save that is due on an epoch's last step, or on a step that is followed by a validation, waits for the next step:
    a fit resumed from there would omit the validation and count the epoch's steps differently.

    Args:
        folder: of the files.
        every_n_steps: optimizer steps between two saves.
        keep: number of checkpoints, last.ckpt included.
    """

    def __init__(self, folder: Path, every_n_steps: int = 500, keep: int = 2) -> None:
        self.folder, self.path = Path(folder), Path(folder) / NAME
        at_least(1, "", checkpoint_every=every_n_steps, checkpoint_keep=keep)
        self.every_n_steps, self.keep = every_n_steps, keep
        self.signals = Signals()
        self._pending: dict[str, Any] = {}
        self._saved_step, self._due = -1, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.listen()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, number = trainer.global_step, self.signals.agreed(trainer)
        self._due |= step != self._saved_step and (step % self.every_n_steps == 0 or step == trainer.max_steps)
        if is_before_validation(trainer):
            return
        if self._due or (number and step != self._saved_step):
            self.save(trainer)
        if number:
            self._stop(trainer, number)

    def save(self, trainer: pl.Trainer) -> None:
        """Save after a training step, which must not be one that `is_before_validation`."""
        self._pending = pending_row(trainer)
        self._save(trainer)
        self._pending = {}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, unless max_steps stopped in mid-epoch: by now the Trainer counts that epoch as complete, and a fit
        resumed from here would skip the rest of it. The save after its last step is the right one."""
        whole_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if whole_epoch or self._saved_step != trainer.global_step:
            with as_in_the_epoch(trainer.fit_loop):  # which max_time or EarlyStopping may have ended half-way
                self._save(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.signals.leave()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            print(f"\ninterrupted at step {trainer.global_step}: {self._kept()}", flush=True)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Flush metrics.csv before the checkpoint that says how much of it there is."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile) and trainer.is_global_zero:
                checkpoint[LOGGED] = {"rows": logger.keep(), "pending": self._pending}

    def _stop(self, trainer: pl.Trainer, number: int) -> None:
        if trainer.is_global_zero:
            print(f"\nstopped at step {trainer.global_step}: {self._kept()}", flush=True)
        raise Stopped(number)

    def _kept(self) -> str:
        if not self.path.exists():
            return "no checkpoint was saved yet"
        return f"the checkpoint of step {self._saved_step} is kept; go on from it with --resume"

    def _save(self, trainer: pl.Trainer) -> None:
        if not is_finite(trainer.lightning_module):
            if trainer.is_global_zero:
                print(f"\nstep {trainer.global_step}: weights are not finite, and are not saved: {self._kept()}")
            return
        if trainer.is_global_zero:
            older = [self.path, *(self.folder / f"last-{number}.ckpt" for number in range(1, self.keep))]
            for before, place in reversed(list(zip(older, older[1:], strict=False))):
                if before.exists():
                    keep_as(before, place)
        trainer.save_checkpoint(self.path)  # on all ranks: what is saved may be gathered
        self._saved_step, self._due = trainer.global_step, False


def is_before_validation(trainer: Any) -> bool:
    """Whether a fit resumed from a checkpoint of this step would omit something."""
    if 1 in (trainer.num_training_batches, trainer.val_check_batch):
        return False  # every step is, and some step must be saved
    loop = trainer.fit_loop.epoch_loop
    if loop.batch_progress.is_last_batch:
        return True
    return trainer.global_step != trainer.max_steps and loop._should_check_val_fx(trainer.fit_loop._data_fetcher)


class BestCheckpoint(ModelCheckpoint):
    """Saves best.ckpt whenever the metric is the best so far; one that is not finite is never the best.

    Args:
        folder: of the file.
        monitor: the metric; a UserError after the first validation that does not log it.
        mode: whether the lowest or the highest value is best.
    """

    def __init__(self, folder: Path, monitor: str = "val/loss", mode: Literal["min", "max"] = "min") -> None:
        super().__init__(folder, filename="best", monitor=monitor, mode=mode, enable_version_counter=False)
        self.metric = monitor
        self.best_step: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Without the folder's path, which is private and may change before the run is resumed."""
        score = None if self.best_model_score is None else self.best_model_score.cpu()
        return {"score": score, "step": self.best_step} if self.best_model_path else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "score" not in state_dict:
            return
        self.best_model_path = self.kth_best_model_path = str(Path(str(self.dirpath), "best.ckpt"))
        self.best_model_score = self.kth_value = state_dict["score"]
        self.best_k_models = {self.best_model_path: state_dict["score"]}
        self.best_step = state_dict["step"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            logged(trainer, self.metric)
        super().on_validation_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Any = None) -> bool:
        best = current is not None and bool(current.isfinite()) and super().check_monitor_top_k(trainer, current)
        if best:
            self.best_step = trainer.global_step
        return best

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self.best_model_score is not None and trainer.is_global_zero:
            score = float(self.best_model_score)
            print(f"best.ckpt: {self.metric} {score:.4g} at step {self.best_step:,}", flush=True)


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file beside the checkpoint, flushes and renames it, and keeps its SHA-256 in a file beside it.

    Whenever the process dies, the file is the old one or the new one and its digest is right. A full disk leaves the
    old one. (Lightning's own plugin writes in TMPDIR and moves without flushing: a full disk can take the old one too.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises UserError, with path and size, if it cannot be written."""
        # a checkpoint is data: nothing in it says what to import
        checkpoint.get(pl.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, {}).pop("_instantiator", None)
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
