"""Ray: the cluster that is up, or one on this machine for as long as it is needed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from worldmodel.errors import UserError


@contextmanager
def ray_cluster(asked_by: str, cores: int, extra: str = "ray") -> Iterator[Any]:
    """Yield the module `ray`, connected. What still runs behind the block is ended.

    Args:
        asked_by: the option or command that needs it.
        cores: of a cluster that is started here; one that is up has its own.
        extra: of this package, that installs what is needed.

    Raises:
        UserError: without Ray.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without GPUs, leave their variable alone
    try:
        import ray
    except ImportError as error:
        raise UserError(f"{asked_by} needs Ray: pip install 'worldmodel[{extra}]'") from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:  # none is up
        ray.init(num_cpus=cores, include_dashboard=False, **quiet)
    try:
        yield ray
    finally:
        ray.shutdown()  # ends the tasks that still run, and with them their processes
