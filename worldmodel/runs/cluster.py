"""Ray: the cluster that RAY_ADDRESS names, or one on this machine for as long as it is needed."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from worldmodel.errors import UserError

TRIES = 5


@contextmanager
def ray_cluster(asked_by: str, cores: int, extra: str = "ray") -> Iterator[Any]:
    """Yield the module `ray`, connected. Tasks that still run when the block ends are stopped.

    A cluster is joined only if RAY_ADDRESS names it: one that merely runs on this machine may belong to another
    program and end with it.

    Args:
        asked_by: the option or command that needs it.
        cores: of a cluster that is started here; one that is joined has its own.
        extra: the extra of this package that installs what is needed.

    Raises:
        UserError: if Ray is not installed, does not start, or no cluster is up at RAY_ADDRESS.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without GPUs keeps CUDA_VISIBLE_DEVICES
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default of 15 starves beside any other program
    address = os.environ.get("RAY_ADDRESS")
    if address:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # Ray's default of 20 waits 12 minutes for no answer
    try:
        import ray
    except ImportError as error:
        raise UserError(f"{asked_by} needs Ray: pip install 'worldmodel[{extra}]'") from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    before = signal.getsignal(signal.SIGTERM)
    if address:
        _join(ray, address, **quiet)
    else:
        _start(ray, address="local", num_cpus=cores, include_dashboard=False, **quiet)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's handler ends the process silently
    try:
        yield ray
    finally:
        ray.shutdown()  # ends running tasks, and with them their processes


def _join(ray: Any, address: str, **options: Any) -> None:
    try:
        ray.init(address=address, **options)
    except Exception as error:  # Ray has no exception class of its own
        raise UserError(
            f"no Ray cluster can be joined at RAY_ADDRESS {address}: unset it, and one is started on this machine;"
            " a cluster that asks for a token also needs RAY_AUTH_MODE=token"
        ) from error


def _start(ray: Any, **options: Any) -> None:
    """Start Ray. On a busy machine its processes miss deadlines of half a minute; one more try is usually enough."""
    for number in range(1, TRIES + 1):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray has no exception class of its own
            ray.shutdown()
            if number == TRIES:
                raise UserError(f"Ray does not start on this machine: {' '.join(str(error).split())}") from error


def share(rooms: Iterable[float], members: int, wanted: float) -> float:
    """What each member may take so that all fit at once: as much as it wants, or less.

    Args:
        rooms: cores of each machine, or 1 for each GPU; a member takes its share from one of them.
        members: how many run side by side.
        wanted: what each would like.
    """
    rooms = [room for room in rooms if room > 0]
    if not rooms:
        return 0.0
    tries = {wanted, *(room / number for room in rooms for number in range(1, members + 1))}
    fitting = (each for each in tries if each <= wanted and sum(int(room / each + 1e-9) for room in rooms) >= members)
    return int(max(fitting) * 1e4) / 1e4  # Ray counts in ten-thousandths


def own_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
