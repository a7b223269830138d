"""Signals that ask the program to stop: SIGTERM, Ctrl-C, and SIGUSR1, which SLURM sends before it preempts."""

import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
TERMINATED = 128 + signal.SIGTERM  # an exit status; Ray's own handler exits with the bare number
STDERR = 2
LOST = 0.5  # seconds after which a Ctrl-C that was lost is raised again
A_STEP = "this step ends, then a checkpoint is saved"
A_VALIDATION = "the validation ends first, then a checkpoint is saved"


class Stopped(SystemExit):
    """Ends the program with status 128 + the signal's number, as a shell reports it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Signals:
    """Remembers a signal, so that a training step can end first; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received = 0
        self._first = A_STEP
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Start; only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in STOPPING}

    def leave(self) -> None:
        """Restore the handlers that were in force before."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def wait_for(self, first: str) -> None:
        """Say what ends before the program does, to a signal that comes from now on or has come already."""
        if self.received and first != A_STEP:
            self._say(first)
        self._first = first

    def agreed(self, trainer: Any) -> int:
        """The number of the signal that any rank received, or 0. A collective call if there are several ranks."""
        if trainer.world_size == 1:
            return self.received
        import torch  # not before: the command line imports this module before it knows the command

        mine = torch.tensor(self.received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(mine, reduce_op="max"))

    def _remember(self, number: int, frame: Any) -> None:
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number
        self._say(self._first)

    def _say(self, first: str) -> None:
        _write_line(self.received, f"{first}; once more stops at once")


def _write_line(number: int, text: str) -> None:
    """Write to stderr as a signal handler may."""
    with suppress(OSError):  # it may be closed
        os.write(STDERR, f"\n{signal.Signals(number).name}: {text}\n".encode())


def _interruptible() -> bool:
    """Whether Ctrl-C is for this program: a shell's script that starts it with `&` has it ignored."""
    here = threading.current_thread() is threading.main_thread()
    return here and signal.getsignal(signal.SIGINT) != signal.SIG_IGN


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Ctrl-C ends the program with status 130 at once: while modules are imported, or nothing is left to be done.

    An exception in the midst of an import leaves half a module, and what imports it next may take that for the whole.
    """

    def end(number: int, frame: Any) -> NoReturn:
        with suppress(OSError):
            os.write(STDERR, b"worldmodel: interrupted\n")
        os._exit(128 + number)

    if not _interruptible():
        yield
        return
    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Interrupt(KeyboardInterrupt):
    """A Ctrl-C of which one can tell whether it is still on its way: a reference to it in `alive` lives as long."""

    def __init__(self, alive: "list[weakref.ref[Interrupt]]") -> None:
        super().__init__()
        alive[:] = [weakref.ref(self)]


@contextmanager
def insistent() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, and again if it is lost, until it leaves the block.

    An exception raised in a signal handler can be lost: Python ignores it in a destructor, and libraries in callbacks
    of theirs. What catches it to save something holds it until that is done, and is left alone.
    """
    if not _interruptible():
        yield
        return
    process, ended = os.getpid(), threading.Event()
    alive: list[weakref.ref[Interrupt]] = []
    before, complain = signal.getsignal(signal.SIGINT), sys.unraisablehook

    def interrupt(number: int, frame: Any) -> NoReturn:
        if not alive and os.getpid() == process:  # a fork has not the thread
            threading.Thread(target=insist, daemon=True).start()
        raise Interrupt(alive)  # never a variable here, which its own traceback would keep

    def insist() -> None:
        while not ended.wait(LOST):
            if alive and alive[0]() is None:
                os.kill(process, signal.SIGINT)

    def ignored(what: Any) -> None:
        if not isinstance(what.exc_value, Interrupt):
            complain(what)

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = ignored
    try:
        yield
    finally:
        ended.set()
        sys.unraisablehook = complain
        signal.signal(signal.SIGINT, before)


@contextmanager
def interruptible(kept: Callable[[], str]) -> Iterator[Callable[[], None]]:
    """Ctrl-C and SIGTERM end the program with status 130 and 143, after a line that says what is `kept`.

    An exception raised in a signal handler can be lost: Python ignores it in a destructor, and Ray has many. The
    function that is yielded raises it again; call it now and then.
    """
    received: list[int] = []

    def stop(number: int, frame: Any = None) -> None:
        received.append(number)
        if len(received) == 1:
            _write_line(number, "the runs are stopped")
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(TERMINATED)

    def stop_if_asked() -> None:
        if received:
            stop(received[0])

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_if_asked
    except BaseException as end:  # Ray turns what is raised in a handler into errors and statuses of its own
        if isinstance(end, SystemExit) and end.code == signal.SIGTERM:  # of Ray's handler in place of this one
            received.append(signal.SIGTERM)
        if not received:
            raise
        print(f"interrupted: {kept()}; the same command goes on from there", flush=True)
        raise SystemExit(128 + received[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
