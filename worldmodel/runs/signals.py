"""Signals that ask a fit to stop: SIGTERM, Ctrl-C, and SIGUSR1, which SLURM sends before it preempts."""

import os
import signal
import sys
import threading
from typing import Any

import torch

ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(SystemExit):
    """Ends the program with 128 + the signal's number, as a shell reports it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Signals:
    """Remembers that a signal came, so that a training step can end first; the second one ends the process at once."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """From now on; only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in ASKED}

    def leave(self) -> None:
        """What was in force before is again."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def agreed(self, trainer: Any) -> int:
        """The signal's number, if one came to any rank; 0. A collective where there are several."""
        if trainer.world_size == 1:
            return self.received
        mine = torch.tensor(self.received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(mine, reduce_op="max"))

    def _hear(self, number: int, frame: Any) -> None:
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number
        name = signal.Signals(number).name
        os.write(
            sys.stderr.fileno(), f"\n{name}: this step ends, then a checkpoint; once more stops at once\n".encode()
        )
