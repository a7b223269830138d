"""What goes wrong in training, in one line with the way out: the user's mistakes, and what breaks a run."""

import logging
import multiprocessing
import re
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from worldmodel.errors import UserError
from worldmodel.experiments.configs import Kind, check_configs

KEPT = "What was saved is whole: continue with --resume"


@contextmanager
def training_errors(argv: list[str], kind: Kind | None = None) -> Iterator[None]:
    """Run an ExperimentCLI with these arguments: silences Lightning's usual remarks, turns errors into UserErrors.

    Args:
        argv: the words of `fit`, `policy fit`, and so on.
        kind: of the configurations that are taken; None: of several.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # these warnings are about what is intended: loading vectors in this process is fastest, the folder holds
    # config.yaml, before the first validation there is no best checkpoint
    intended = (
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
        r"module\(s\) in eval mode",  # of imagine: the world model is frozen
        "returned a view tensor",  # of fsdp2; nothing here changes an output in place
        "checkpoint that ended before the epoch ended",  # it holds the position in the data
    )
    for message in (f".*{words}.*" for words in intended):
        warnings.filterwarnings("ignore", message)
    check_configs(argv, kind)
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
        if isinstance(error.__cause__, UserError):  # jsonargparse wraps what is raised while it links arguments
            raise error.__cause__ from None
        if (message := explained(error)) is None:
            raise
        for worker in multiprocessing.active_children():  # the process would wait for one that hangs
            worker.kill()
        raise UserError(message) from error


def explained(error: BaseException) -> str | None:
    """What happened and what helps, for errors that break a run; None for any other."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return (
            f"out of memory: {_peak()}. A step takes less with smaller segments (--data.lanes, --data.steps) or a"
            " smaller model (--model.hidden_dim, --model.width), the dataset with a lower --data.memory_gb, and"
            " --data.num_workers 0 saves the workers' memory. The last checkpoint is whole; --resume needs its lanes,"
            " steps and model"
        )
    if match := re.search(r"`val_check_interval` \((\d+)\) must be .*training batches \((\d+)\)", text):
        return (
            f"trainer.val_check_interval {match[1]} is above the {match[2]} steps of an epoch: choose fewer, or add"
            " --trainer.check_val_every_n_epoch null to count the steps over all epochs"
        )
    if match := re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)", text):
        return (
            f"a data worker (process {match[1]}) died, usually for lack of memory: use fewer of them"
            f" (--data.num_workers), or 0. {KEPT}"
        )
    if match := re.search(r"DataLoader timed out after (\d+)", text):
        return (
            f"the data workers gave no batch for {match[1]} seconds: does the disk respond? --data.num_workers 0"
            f" shows where it hangs. {KEPT}"
        )
    lost = r"Connection (reset|closed) by peer|Broken pipe|remote process exited|ncclRemoteError"
    if isinstance(error, RuntimeError) and re.search(lost, text):  # a broken pipe of our own output is an OSError
        return f"another rank of this training has gone; its last words, if any, are above. {KEPT}"
    return None


def _peak() -> str:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peak = f"this process held {most / 2**30:.2f} GB at its peak"
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peak += f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GB of the GPU"
    return peak
