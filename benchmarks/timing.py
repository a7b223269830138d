"""What the benchmarks share: timing of functions that take turns, options, and figures as JSON."""

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
    """The options of every benchmark, with its docstring as help; `rounds`: the default number of timed rounds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help="timed rounds; default: %(default)s")
    return parser


@dataclass(frozen=True)
class Timed:
    """Seconds of one call: median and quartiles."""

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
        rounds: timed.
        warm_up: rounds before them, which are not.
        clock: in seconds; by default the processor time of this thread, which other processes do not disturb. Use
            `time.perf_counter` for what runs elsewhere, on a GPU or in another process.
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
    """Processor and number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"


def save(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write figures as JSON, with the date and the machine; None: nowhere."""
    if path is not None:
        about = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "torch": torch.__version__}
        path.write_text(json.dumps(about | dict(figures), indent=1) + "\n")
