"""What the benchmarks share: functions that take turns, and the name of the machine."""

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


def options_parser(doc: str | None, rounds: int | None = None) -> argparse.ArgumentParser:
    """The options that every benchmark has, and its docstring as help; `rounds`: how many count, where they do."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="write the figures there too")
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds, help="that count; default: %(default)s")
    return made


@dataclass(frozen=True)
class Timed:
    """Seconds of one call: the median, and the quartiles."""

    median: float
    low: float
    high: float


def in_turns(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 3,
    clock: Callable[[], float] = time.thread_time,
) -> dict[str, Timed]:
    """Time functions that take turns, round by round, in this process: what disturbs one disturbs all.

    Args:
        ways: the functions, by name.
        rounds: that count.
        warm_up: rounds before them.
        clock: seconds; the processor time of this thread, of which neighbours take nothing. `time.perf_counter` for
            what runs elsewhere, on a GPU or in another process.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gc.collect()
    for number in range(warm_up + rounds):
        for name, call in ways.items():
            begin = clock()
            call()
            if number >= warm_up:
                seconds[name].append(clock() - begin)
    return {name: _timed(values) for name, values in seconds.items()}


def _timed(values: list[float]) -> Timed:
    low, median, high = statistics.quantiles(values, n=4)
    return Timed(median, low, high)


def machine() -> str:
    """Processor and cores, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"


def save(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Figures as JSON, with the day and what they were taken on; None: nowhere."""
    if path is not None:
        about = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "torch": torch.__version__}
        path.write_text(json.dumps(about | dict(figures), indent=1) + "\n")
