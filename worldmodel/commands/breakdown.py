"""What breaks a run and is nobody's mistake: memory, a data worker, another rank. Told in one line, with the way out."""

import re
import resource
import sys

import torch

KEPT = "What was saved is whole: --resume goes on from it"


def explained(error: BaseException) -> str | None:
    """What happened and what helps, if the error is of this kind; None for any other."""
    said = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in said:
        return (
            f"out of memory: {_peak()}. Smaller segments (--data.lanes, --data.steps) or a smaller model"
            " (--model.hidden_dim, --model.width) take less a step; --data.memory_gb bounds what the dataset takes,"
            f" and --data.num_workers 0 spares the workers' share. {KEPT}, if they stay as they were"
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
    if re.search(r"Connection (reset|closed) by peer|Broken pipe|remote process exited|ncclRemoteError", said):
        return f"another rank of this training has gone; what it said stands above, if it could. {KEPT}"
    return None


def _peak() -> str:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peak = f"this process held {most / 2**30:.2f} GB at its peak"
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peak += f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GB of the GPU"
    return peak
