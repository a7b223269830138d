"""How time and memory of a training step grow with the segment, the lanes, the state, and the ranks.

    python benchmarks/scaling.py [--rounds 10] [--ranks 1,2] [--json FILE]

Forward and backward of `WorldModel.losses` on noise, on one thread; the sizes of a column take turns. The column
"unroll" is the recurrence alone. Memory is what the first step adds to a process. Ranks: frames/s of DDP, with 16 lanes
and one thread on each, against one rank.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from noise import segment
from timing import in_turns, options_parser, save

from worldmodel import LatentPredictor, WorldModel

OBS, ACTIONS = 8, 2
COLUMNS = {  # lanes, steps, hidden
    "unroll": [(16, steps, 128) for steps in (16, 64, 256, 1024)],
    "steps": [(16, steps, 128) for steps in (16, 64, 256, 1024)],
    "lanes": [(lanes, 64, 128) for lanes in (1, 4, 16, 64, 256)],
    "hidden": [(16, 64, hidden) for hidden in (32, 64, 128, 256, 512)],
}
GOAL = 1.10  # a step of T = 1024 over one of T = 64


def main() -> None:
    """A table for each column."""
    parser = options_parser(__doc__, rounds=10)
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.peak:
        print(added_by_a_step(*map(int, options.peak.split("x"))))
    elif "RANK" in os.environ:
        frames_per_second()
    else:
        save(options.json, {"threads": 1} | columns(options.rounds) | {"ranks": of_ranks(options.ranks)})


def columns(rounds: int) -> dict[str, Any]:
    """Milliseconds, microseconds a step, and MB of every size."""
    figures: dict[str, Any] = {}
    for column, sizes in COLUMNS.items():
        make = unroll_of if column == "unroll" else step_of
        timed = in_turns({"x".join(map(str, size)): make(*size) for size in sizes}, rounds)
        print(f"\n{column}: {'B x T x H':>14}{'ms':>10}{'us a step':>12}{'MB added':>10}")
        figures[column] = {}
        for (name, taken), (_, steps, _) in zip(timed.items(), sizes, strict=True):
            each, added = 1e6 * taken.median / steps, _peak(name)
            print(f"{name:>{len(column) + 16}}{1000 * taken.median:10.1f}{each:12.0f}{added:10.1f}")
            figures[column][name] = {"ms": 1000 * taken.median, "us_a_step": each, "mb": added}
    ratios = {}
    for column in ("unroll", "steps"):
        ratios[column] = figures[column]["16x1024x128"]["us_a_step"] / figures[column]["16x64x128"]["us_a_step"]
        print(f"\n{column}: a step at T = 1024 over one at T = 64: {ratios[column]:.2f} (goal <= {GOAL:.2f})")
    return figures | {"step_at_1024_of_64": ratios}


def step_of(lanes: int, steps: int, hidden: int):
    """Forward and backward of a segment."""
    model = WorldModel(OBS, ACTIONS, hidden_dim=hidden)
    batch: Any = segment(lanes, steps, OBS, ACTIONS, torch.Generator().manual_seed(0), 0)

    def step() -> None:
        model.zero_grad()
        model.total(model.losses(batch)[0]).backward()

    return step


def unroll_of(lanes: int, steps: int, hidden: int):
    """Forward and backward of the recurrence, as wide as its inputs."""
    predictor = LatentPredictor(hidden, 0, hidden)
    z, a = torch.randn(lanes, steps, hidden, requires_grad=True), torch.zeros(lanes, steps, 0)
    is_first = torch.zeros(lanes, steps, dtype=torch.bool)
    return lambda: predictor.states(z, a, is_first).sum().backward()


def added_by_a_step(lanes: int, steps: int, hidden: int) -> float:
    """MB, in a process that has made no larger step."""
    step_of(2, 4, hidden)()
    step = step_of(lanes, steps, hidden)
    before = _most()
    step()
    return _most() - before


def _peak(size: str) -> float:
    command = [sys.executable, __file__, "--peak", size]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _most() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def of_ranks(ranks: str) -> dict[str, float]:
    """Frames/s of each number of ranks, up to the number of cores."""
    figures = {}
    for number in filter(lambda n: n <= (os.cpu_count() or 1), map(int, ranks.split(","))):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number), __file__]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.run([sys.executable, *launch], capture_output=True, text=True, check=True, env=environment)
        figures[str(number)] = float(process.stdout.split()[-1])
        of_one = figures[str(number)] / figures.get("1", float("nan"))
        print(f"{number} rank{'s' * (number > 1)}: {figures[str(number)]:,.0f} frames/s, {of_one:.2f} of one")
    return figures


def frames_per_second() -> None:
    """In a process of torchrun: prints the rate of all ranks."""
    torch.distributed.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(_Loss(WorldModel(OBS, ACTIONS, hidden_dim=128)))
    batch: Any = segment(16, 64, OBS, ACTIONS, torch.Generator().manual_seed(0), 0)
    seconds = []
    for _ in range(40):
        began = time.perf_counter()
        model(batch).backward()
        seconds.append(time.perf_counter() - began)
    if torch.distributed.get_rank() == 0:
        rate = 16 * 64 * torch.distributed.get_world_size() / sorted(seconds)[len(seconds) // 2]
        print(rate)
    torch.distributed.destroy_process_group()


class _Loss(torch.nn.Module):
    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> torch.Tensor:
        return self.model.total(self.model.losses(batch)[0])


if __name__ == "__main__":
    main()
