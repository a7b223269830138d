"""Checkpoints: found, read as plain data, and compared with what was asked for."""

import os
import struct
import traceback
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.durable import digests, sha256
from worldmodel.errors import UserError
from worldmodel.runs.files import NAME
from worldmodel.runs.folder import is_first_rank
from worldmodel.runs.structure import Counts, Plain, Unfit, check, check_tensors

CHOSEN = "WORLDMODEL_RESUME_FROM"  # environment variable, by which further ranks get the path
NOT_OURS = "is not a checkpoint of this program, or it is damaged"
LONGEST = 300  # characters of a library's reason
PROGRESS = {"ready": int, "completed": int}
FIT_LOOP = {
    "epoch_progress": {"total": PROGRESS, "current": PROGRESS},
    "epoch_loop.batch_progress": {"total": PROGRESS, "current": PROGRESS},
    "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": {"total": PROGRESS}}},
    "epoch_loop.manual_optimization.optim_step_progress": {"total": PROGRESS},
}
COLLECTED = {"env_id?": (str, None), "env_kwargs?": (Plain, dict), "pixels?": (int, [int], None)}
HELD = {  # what a checkpoint holds; the callbacks check their own states
    "hyper_parameters": {str: Plain},
    "state_dict": {str: Tensor},
    "EpisodeDataModule?": {
        "position?": int,
        "stream?": {"steps?": int, "files?": str},
        "data?": {"env_id?": str, "observation_space?": dict, "action_space?": dict, "collect?": (COLLECTED, None)},
    },
    "ExperienceDataModule?": {"steps": int, "rollouts": int},
    "parts?": {str: str},  # name of own code -> SHA-256 of its file
    "metrics_file?": {"rows": int, "pending": {str: Plain}},
}
TRAINING = {  # what it needs besides to continue a fit
    "epoch": int,
    "global_step": int,
    "loops": {"fit_loop": FIT_LOOP},
    "callbacks": {str: object},
    "optimizer_states": [{"state": dict, "param_groups": [dict]}],
    "lr_schedulers": [dict],
}


def newest_whole(folder: Path) -> Path | None:
    """The newest undamaged checkpoint of a run, the same on all ranks; None if the run has saved none.

    Prints which checkpoints are damaged.

    Raises:
        UserError: if all are.
    """
    if not is_first_rank() and CHOSEN in os.environ:
        return Path(os.environ[CHOSEN]) if os.environ[CHOSEN] else None
    checkpoints = folder / "checkpoints"
    paths = [path for path in (checkpoints / NAME, *sorted(checkpoints.glob("last-*.ckpt"))) if path.is_file()]
    whole: Path | None = None
    for path in paths:
        problem = damage(path)
        if problem is None:
            whole = path
            break
        print(f"{path} {problem}: trying the one before", flush=True)
    if paths and whole is None:
        raise UserError(f"no checkpoint in {checkpoints} is whole: start a new run, without --resume")
    os.environ[CHOSEN] = "" if whole is None else str(whole.resolve())
    return whole


def read_checkpoint(path: Path, finite: bool = True) -> dict[str, Any]:
    """A checkpoint as plain data, on the CPU; a UserError if it is none, damaged, or its weights are not `finite`."""
    if problem := damage(path):
        raise UserError(f"{path} {problem}")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except MemoryError:
        raise
    except Exception as error:  # whatever unpickling ends in
        raise UserError(f"{path} {NOT_OURS}") from error
    with taken_from(path):
        check_tensors(checkpoint)
        check(checkpoint, HELD)
        for name, tensor in checkpoint["state_dict"].items():
            if finite and not tensor.isfinite().all():
                raise Unfit(f"state_dict.{name} is not finite")
        check(checkpoint.get("EpisodeDataModule", {}), Plain, "EpisodeDataModule")
    return checkpoint


@contextmanager
def taken_from(path: Path) -> Iterator[None]:
    """Turn an error of what takes a checkpoint's content into a UserError that names the file.

    Nothing vouches for the content. What is no matter of the content passes: a UserError, a full disk, lack of memory.
    """
    try:
        yield
    except (UserError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:LONGEST] or "without a word"
        if not isinstance(error, Unfit):
            last = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {reason} ({Path(last.filename).name}, line {last.lineno})"
        raise UserError(f"{path} {NOT_OURS}: {reason}") from error


def check_training(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise UserError if a checkpoint lacks what a fit continues from, such as one of the weights alone."""
    with taken_from(path):
        check(checkpoint, TRAINING)
        check(checkpoint["loops"], Counts, "loops")
        loop = checkpoint["loops"]["fit_loop"]
        automatic = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
        steps = automatic["total"], loop["epoch_loop.manual_optimization.optim_step_progress"]["total"]
        if checkpoint["global_step"] not in [each["completed"] for each in steps]:
            raise Unfit(f"global_step is {checkpoint['global_step']}, and the loops' is not")


def damage(path: Path) -> str | None:
    """What is wrong with the file's bytes, or None.

    They are compared with the SHA-256 beside the file or, without one, with the archive's own checksums.
    """
    try:
        if (expected := digests(path)) and sha256(path) not in expected:
            return f"is damaged: its SHA-256 is not that of {path.name}.sha256"
        with zipfile.ZipFile(path) as archive:
            # torch.save compresses nothing: what is compressed may unpack to more than any memory
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return NOT_OURS
            return None if expected or archive.testzip() is None else "is damaged: a checksum in it is wrong"
    except PermissionError as error:
        return f"cannot be read: {error.strerror}"
    except (OSError, EOFError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile):
        return NOT_OURS


def config_of(checkpoint: Path) -> Path | None:
    """The config.yaml of the run that a checkpoint belongs to; None if there is none."""
    candidates = (folder / "config.yaml" for folder in (checkpoint.parent.parent, checkpoint.parent))
    return next((path for path in candidates if path.is_file()), None)


def data_spaces(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The observation space of the data that a checkpoint was trained on, key -> leaf; empty where it names none."""
    return checkpoint.get("EpisodeDataModule", {}).get("data", {}).get("observation_space", {})


def load_weights(model: Any, checkpoint: dict[str, Any], path: Path) -> None:
    """Load a checkpoint's weights into a model; a UserError, with the checkpoint's path, if they do not fit."""
    with taken_from(path):
        model.load_state_dict(checkpoint["state_dict"])


def check_arguments(checkpoint: dict[str, Any], model: Any) -> None:
    """Raise UserError, with every difference, if the checkpoint's model had other arguments."""
    had = checkpoint["hyper_parameters"]
    differ = [
        f"model.{name} is {value!r}, in the checkpoint {had.get(name)!r}"
        for name, value in model.hparams.items()
        if not name.startswith("_") and had.get(name) != value and not (name == "base_lags" and value is None)
    ]
    if differ:
        raise UserError(
            f"the checkpoint is of another model: {'; '.join(differ)}."
            " Give the arguments of its own run, or that run's config.yaml"
        )


def finished(checkpoint: dict[str, Any], trainer: dict[str, Any]) -> str | None:
    """A message if the checkpoint's run has nothing left to train under these options of the Trainer, else None."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
    done = {"max_epochs": epochs, "max_steps": checkpoint["global_step"]}
    for name, reached in done.items():
        if trainer[name] is not None and 0 <= trainer[name] <= reached:
            return f"the checkpoint's run is finished: trainer.{name} {trainer[name]} is reached; raise it to go on"
    return None
