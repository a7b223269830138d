"""One run of a comparison, in a process of its own: trains, measures, and leaves `result.json`.

python -m worldmodel.comparison.run OUT SLUG SEED

Between the two it leaves `trained.json`: a run that failed in being measured is not trained again.
"""

import os
import resource
import shutil
import signal
import stat
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from worldmodel.arguments import fail
from worldmodel.callbacks.guard import Diverged
from worldmodel.comparison.matching import size_of
from worldmodel.comparison.measure import measure
from worldmodel.comparison.plan import PLAN, same_command
from worldmodel.comparison.results import (
    Result,
    read_json,
    run_folder,
    write_curves,
    write_examples,
    write_json,
    write_result,
)
from worldmodel.errors import UserError
from worldmodel.experiments.errors import training_errors
from worldmodel.experiments.world_model import TrainingCLI
from worldmodel.runs.checkpoint import find_checkpoint, read_checkpoint
from worldmodel.runs.folder import is_first_rank


class TrainingTime(Timer):
    """Seconds of training without validation."""

    def __init__(self) -> None:
        super().__init__()
        self.validating = 0.0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self.end_time("train") is None:  # else it is the one behind the end of training
            self.validating += self.time_elapsed("validate")

    @property
    def seconds(self) -> float:
        """Of training."""
        return self.time_elapsed("train") - self.validating


class RunCLI(TrainingCLI):
    """`fit`, with a watch, and with the names of the comparison."""

    def __init__(self, run: dict[str, Any]) -> None:
        self.run = run
        super().__init__(run["argv"][1:])

    def names(self) -> tuple[str, str]:
        return f"{self.run['slug']}-s{self.run['seed']}", self.run["variant"]

    def fit(self, **kwargs: Any) -> None:
        """A training that diverged is a result: it is measured as it ended."""
        with suppress(Diverged):
            self.trainer.fit(**kwargs)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer: Any = super().instantiate_trainer(**kwargs)
        self.watch = TrainingTime()
        trainer.callbacks.insert(0, self.watch)  # the first to see the end: evaluation behind it does not count
        return trainer


class TrainedCLI(TrainingCLI):
    """A run that is trained already: its data, and the model with the weights that it ended with."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return self.checked_trainer(logger=False, **kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        self.model.load_state_dict(read_checkpoint(find_checkpoint(self.run_dir))["state_dict"])


@dataclass(frozen=True)
class Cost:
    """What a training took, as `trained.json` keeps it."""

    command: list[str]
    seconds: float  # from the start of the process
    train_steps: int
    steps_per_second: float
    peak_memory_mb: float
    losses: dict[str, float]


def main(argv: list[str]) -> None:
    """Train and measure the run that the plan of the comparison names."""
    began = time.monotonic()
    _end_with_the_starter()
    out, slug, seed = Path(argv[0]), argv[1], int(argv[2])
    run = next(run for run in read_json(out / PLAN)["runs"] if (run["slug"], run["seed"]) == (slug, seed))
    folder = run_folder(out, slug, seed)
    cost = _trained(folder, run["argv"])
    with training_errors(run["argv"][1:]):
        cli = _train(run, folder) if cost is None else TrainedCLI(run["argv"][1:])
    if not cli.trainer.is_global_zero:
        return
    if cost is None:
        cost = _cost(cli, run["argv"], time.monotonic() - began)
        write_json(folder / "trained.json", asdict(cost))
        began = time.monotonic()
    model = cli.model.to(cli.trainer.strategy.root_device).eval()
    measured = measure(model, cli.datamodule, cli.config_init["fit"]["rollout"].options)
    write_curves(folder / "curves.csv", measured.curves)
    write_examples(folder / "examples.npz", measured.examples)
    size = size_of(model.hparams)
    result = Result(
        run["variant"],
        run["axes"],
        seed,
        measured.errors,
        measured.valid_time,
        measured.norm_growth,
        size.parameters,
        size.recurrence_parameters,
        size.hidden_dim,
        size.flops,
        cost.train_steps,
        cost.steps_per_second,
        cost.seconds + time.monotonic() - began,
        cost.peak_memory_mb,
        cost.losses,
        run["argv"],
    )
    write_result(folder, result)


def _trained(folder: Path, command: list[str]) -> Cost | None:
    """What the training took that this run has behind it; None if there is none, or its weights are not there."""
    if not (folder / "trained.json").is_file() or not (folder / "checkpoints" / "last.ckpt").is_file():
        return None
    cost = Cost(**read_json(folder / "trained.json"))
    return cost if same_command(cost.command, command) else None


def _train(run: dict[str, Any], folder: Path) -> TrainingCLI:
    if is_first_rank():
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    return RunCLI(run)


def _cost(cli: Any, command: list[str], until_now: float) -> Cost:
    steps, seconds = cli.trainer.global_step, cli.watch.seconds
    known = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    losses = {name: known[name] for name in ("train/loss", "val/loss") if name in known}
    memory = _peak_memory_mb(cli.trainer.strategy.root_device)
    return Cost(command, until_now, steps, steps / max(seconds, 1e-9), memory, losses)


def _peak_memory_mb(device: torch.device) -> float:
    """Of the device if it is a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's ru_maxrss also counts what the process was before it became Python
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) / 2**10
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _end_with_the_starter() -> None:
    """Where stdin is a pipe, its end means that whoever started this run has died: end, with all its processes."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        fail(str(error))
