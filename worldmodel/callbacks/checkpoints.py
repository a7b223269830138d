"""The checkpoints of a fit: when they are saved, also on a signal to stop, and how they reach the disk."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor
from torch.utils._pytree import tree_leaves

from worldmodel.callbacks.final_validation import as_in_the_epoch
from worldmodel.callbacks.guard import is_finite
from worldmodel.callbacks.metrics import LOGGED, MetricsFile, logged, pending_row
from worldmodel.durable import digests, keep_as, remove, sha256, whole_file, write_digests
from worldmodel.errors import UserError, at_least
from worldmodel.runs.checkpoint import read_checkpoint
from worldmodel.runs.files import NAME
from worldmodel.runs.signals import A_STEP, A_VALIDATION, Signals, Stopped
from worldmodel.runs.structure import check


class LastCheckpoint(Checkpoint):
    """Saves last.ckpt every `every_n_steps` optimizer steps and at the end of training.

    A Checkpoint, so that the Trainer runs it after all other callbacks: what they carry is up to date. The checkpoint
    before is kept as last-1.ckpt, and so on. A model that is not finite is not saved.

    At SIGTERM, SIGINT or SIGUSR1 on any rank, all ranks finish the step, save together and exit with status
    128 + signal. A validation ends first, which is said. A second signal stops at once.

    A save that is due on an epoch's last step, or on a step that is followed by a validation, waits for the next step:
    a fit resumed from there would omit the validation and count the epoch's steps differently. Where gradients are
    accumulated, saves and stops wait for the optimizer's next step: a checkpoint holds no half gradient.

    The last checkpoint of a fit holds the state that one goes on from which had never stopped. It lies beside last.ckpt
    as ending.ckpt until the last weights have been evaluated: a fit that dies before still owes that.

    Args:
        folder: of the files.
        every_n_steps: optimizer steps between two saves.
        keep: number of checkpoints, last.ckpt included.
    """

    def __init__(self, folder: Path, every_n_steps: int = 500, keep: int = 2) -> None:
        self.folder, self.path, self.ending = Path(folder), Path(folder) / NAME, Path(folder) / "ending.ckpt"
        at_least(1, "", checkpoint_every=every_n_steps, checkpoint_keep=keep)
        self.every_n_steps, self.keep = every_n_steps, keep
        self.signals = Signals()
        self._pending: dict[str, Any] = {}
        self._saved_step, self._due = -1, False
        self._ended = self._stop_waits = False  # whether ending.ckpt is there; whether something asked for a stop

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._ended = self._stop_waits = False
        self.signals.listen()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, number = trainer.global_step, self.signals.agreed(trainer)
        self._due |= step != self._saved_step and step % self.every_n_steps == 0
        if self._wait(trainer, is_before_validation(trainer)):
            return
        if ends(trainer):  # a signal changes nothing any more
            if not self._ended:
                self.save(trainer)
            return
        if self._due or (number and step != self._saved_step):
            self.save(trainer)
        if number:
            self._stop(trainer, number)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.wait_for(A_VALIDATION)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.wait_for(A_STEP)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._wait(trainer, trainer.fit_loop._should_accumulate())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._wait(trainer, False)

    def save(self, trainer: pl.Trainer) -> None:
        """Save after a training step, which must not be one that `is_before_validation`."""
        with as_if_going_on(trainer):
            self._pending = pending_row(trainer)
        self._save(trainer, self.ending if ends(trainer) else self.path)
        self._pending = {}

    def end(self, trainer: pl.Trainer) -> None:
        """Save ending.ckpt once training has ended, unless that happened after its last step."""
        if self._ended:
            return
        loop, data = trainer.fit_loop.epoch_loop, cast(Any, trainer.fit_loop._data_fetcher)
        with as_in_the_epoch(trainer.fit_loop):
            with as_if_going_on(trainer):
                validated = not loop.batch_progress.is_last_batch and loop._should_check_val_fx(data)
            trainer.should_stop = True  # tells modules that this is the last checkpoint, as they see it in `save`
            loop._batches_that_stepped -= validated  # a resumed fit counts the step as it leaves out the validation
            self._save(trainer, self.ending)
            loop._batches_that_stepped += validated

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end(trainer)
        if self._ended and trainer.is_global_zero:
            keep_as(self.ending, self.path)
            remove(self.ending)
        self._ended = False

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

    def _wait(self, trainer: pl.Trainer, wait: bool) -> bool:
        """Hide for as long as we `wait` that something asked for a stop, which would log or leave out something."""
        self._stop_waits |= trainer.should_stop
        trainer.should_stop = self._stop_waits and not wait
        return wait

    def _save(self, trainer: pl.Trainer, path: Path) -> None:
        if not is_finite(trainer.lightning_module):
            if trainer.is_global_zero:
                print(f"\nstep {trainer.global_step}: weights are not finite, and are not saved: {self._kept()}")
            return
        if trainer.is_global_zero:
            older = [self.path, *(self.folder / f"last-{number}.ckpt" for number in range(1, self.keep))]
            for before, place in reversed(list(zip(older, older[1:], strict=False))):
                if before.exists():
                    keep_as(before, place)
        trainer.save_checkpoint(path)  # on all ranks: what is saved may be gathered
        self._due, self._ended = False, path == self.ending
        if not self._ended:
            self._saved_step = trainer.global_step


def ends(trainer: Any) -> bool:
    """Whether training ends with this step, be it in mid-epoch."""
    return 0 <= trainer.max_steps <= trainer.global_step or (trainer.should_stop and trainer.fit_loop._can_stop_early)


def is_before_validation(trainer: Any) -> bool:
    """Whether a fit resumed from a checkpoint of this step would omit something, if it did not end here."""
    loop = trainer.fit_loop.epoch_loop
    if loop._should_accumulate():
        return True
    if 1 in (trainer.num_training_batches, trainer.val_check_batch) and not ends(trainer):
        return False  # every step is, and some step must be saved
    with as_if_going_on(trainer):
        return loop.batch_progress.is_last_batch or loop._should_check_val_fx(trainer.fit_loop._data_fetcher)


@contextmanager
def as_if_going_on(trainer: Any) -> Iterator[None]:
    """Hide that training is to stop: for that the Trainer validates and logs what it would not otherwise."""
    stop, trainer.should_stop = trainer.should_stop, False
    try:
        yield
    finally:
        trainer.should_stop = stop


class BestCheckpoint(ModelCheckpoint):
    """Saves best.ckpt whenever the metric is the best so far; one that is not finite is never the best.

    Args:
        folder: of the file.
        monitor: the metric; a UserError after the first validation that does not log it.
        mode: whether the lowest or the highest value is best.
    """

    def __init__(self, folder: Path, monitor: str = "val/loss", mode: Literal["min", "max"] = "min") -> None:
        options: dict[str, Any] = {"enable_version_counter": False, "save_on_train_epoch_end": False}
        super().__init__(folder, filename="best", monitor=monitor, mode=mode, **options)
        self.metric = monitor
        self.best_step: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Without the folder's path, which is private and may change before the run is resumed."""
        score = None if self.best_model_score is None else self.best_model_score.cpu()
        return {"score": score, "step": self.best_step} if self.best_model_path else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "score" not in state_dict:
            return
        check(state_dict, {"score": (Tensor, None), "step": (int, None)}, "BestCheckpoint")
        self.best_model_path = self.kth_best_model_path = str(self._path)
        self.best_model_score = self.kth_value = state_dict["score"]
        self.best_k_models = {self.best_model_path: state_dict["score"]}
        self.best_step = state_dict["step"]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the state that best.ckpt has of itself: it may be of a later step, such as the last of a fit."""
        if self._path.is_file():
            with suppress(UserError):
                own = read_checkpoint(self._path).get("callbacks", {})
                checkpoint["callbacks"] |= {key: own[key] for key in (self.state_key,) if key in own}

    @property
    def _path(self) -> Path:
        return Path(str(self.dirpath), "best.ckpt")

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
            if "DataLoader worker" in str(error):  # whose death is raised wherever the program is
                raise
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
