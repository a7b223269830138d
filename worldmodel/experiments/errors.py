"""How a training's errors are told: a user's mistakes, and what breaks a run and is nobody's; one line, the way out."""

import logging
import multiprocessing
import os
import re
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException

from worldmodel.errors import UserError

KEPT = "What was saved is whole: --resume goes on from it"


@contextmanager
def training_errors(argv: list[str]) -> Iterator[None]:
    """Around a TrainingCLI of these arguments: Lightning's usual remarks are silent, its errors are this program's."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # what Lightning warns of here is meant so: in-process loading is fastest for vectors; the folder holds config.yaml
    # before the first validation, there is no best checkpoint yet
    meant = (
        "does not have many workers",
        "Experiment logs directory",
        "could not find the monitored key",
        "LeafSpec",
        "all_gather is deprecated",
        "LightningCLI's args parameter",
        "is smaller than the logging interval",
        "callbacks used to create the checkpoint",
        "Checkpoint directory .* exists and is not empty",
        "The `srun` command is available",
        r"module\(s\) in eval mode",  # of imagine: a world model that is not to change
        "returned a view tensor",  # of fsdp2; nothing here changes an output in place
        "checkpoint that ended before the epoch ended",  # the position in the data is in it
    )
    for message in (f".*{words}.*" for words in meant):
        warnings.filterwarnings("ignore", message)
    _check_yaml(argv)
    try:
        yield
    except SystemExit as stop:  # Lightning ends an interrupted run with status 1
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise SystemExit(130) from None
        raise
    except UserError:
        raise
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except Exception as error:
        if (said := explained(error)) is None:
            raise
        for worker in multiprocessing.active_children():  # one that hangs would be waited for
            worker.kill()
        raise UserError(said) from error


def _check_yaml(argv: list[str]) -> None:
    """A config that is no YAML is named with the line: the parser's own message names neither."""
    pairs = zip(["", *argv], argv, strict=False)
    paths = [
        word.split("=", 1)[-1] for flag, word in pairs if flag in ("--config", "-c") or word.startswith("--config=")
    ]
    for path in filter(os.path.isfile, paths):
        try:
            yaml.safe_load(Path(path).read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid YAML: {error}") from error


def explained(error: BaseException) -> str | None:
    """What happened and what helps, if the error is of this kind; None for any other."""
    said = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in said:
        return (
            f"out of memory: {_peak()}. Smaller segments (--data.lanes, --data.steps) or a smaller model"
            " (--model.hidden_dim, --model.width) take less a step; --data.memory_gb bounds what the dataset takes,"
            " and --data.num_workers 0 spares the workers' share. The last checkpoint is whole; --resume needs the"
            " lanes, steps and model that it has"
        )
    if found := re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)", said):
        return (
            f"a data worker (process {found[1]}) died, of too little memory most often: fewer of them"
            f" (--data.num_workers), or 0. {KEPT}"
        )
    if found := re.search(r"DataLoader timed out after (\d+)", said):
        return (
            f"the data workers gave no batch for {found[1]} seconds: does the disk answer? --data.num_workers 0 shows"
            f" where it hangs. {KEPT}"
        )
    lost = r"Connection (reset|closed) by peer|Broken pipe|remote process exited|ncclRemoteError"
    if isinstance(error, RuntimeError) and re.search(lost, said):  # a broken pipe of our own output is an OSError
        return f"another rank of this training has gone; what it said stands above, if it could. {KEPT}"
    return None


def _peak() -> str:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peak = f"this process held {most / 2**30:.2f} GB at its peak"
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peak += f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GB of the GPU"
    return peak
