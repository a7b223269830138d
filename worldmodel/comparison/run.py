"""One run of a comparison, in a process of its own: train, measure, write `result.json`.

python -m worldmodel.comparison.run OUT SLUG SEED

`trained.json`, written after the training, spares a run whose measurement failed a second training.
"""

import resource
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from worldmodel.arguments import fail, same_command
from worldmodel.callbacks.guard import Diverged
from worldmodel.comparison.folder import DESIGN
from worldmodel.comparison.measure import measure, size_of
from worldmodel.comparison.results import Result, run_folder, write_curves, write_examples, write_result
from worldmodel.durable import intact, read_json, write_json
from worldmodel.errors import Damaged, UserError
from worldmodel.experiments.errors import training_errors
from worldmodel.experiments.world_model import TrainingCLI
from worldmodel.runs.checkpoint import damage, read_checkpoint
from worldmodel.runs.files import find_checkpoint
from worldmodel.runs.folder import is_first_rank

COST = {  # of a training, as entries of a Result
    **{"command": list, "losses": dict, "train_steps": int},
    **{"seconds": float, "steps_per_second": float, "peak_memory_mb": float},
}


class TrainingTime(Timer):
    """Measures the training without validation."""

    def __init__(self) -> None:
        super().__init__()
        self.validating = 0.0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self.end_time("train") is None:  # else it is the validation after the training
            self.validating += self.time_elapsed("validate")

    @property
    def seconds(self) -> float:
        """Seconds of training."""
        return self.time_elapsed("train") - self.validating


class RunCLI(TrainingCLI):
    """`fit` with a stopwatch, under the names of the comparison."""

    def __init__(self, run: dict[str, Any]) -> None:
        self.run = run
        super().__init__(run["argv"][1:])

    def names(self) -> tuple[str, str]:
        return f"{self.run['slug']}-s{self.run['seed']}", self.run["variant"]

    def fit(self, **kwargs: Any) -> None:
        """A training that diverges is a result too, and is measured with its last weights."""
        with suppress(Diverged):
            self.trainer.fit(**kwargs)

    def callbacks(self, **further: Any) -> list[pl.Callback]:
        self.stopwatch = TrainingTime()
        return super().callbacks(first=self.stopwatch, **further)


class TrainedCLI(TrainingCLI):
    """The data and the last weights of a run that is already trained."""

    def check_run_dir(self, run_dir: Path) -> None:
        """The folder holds the run."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return self.checked_trainer(logger=False, **kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        self.model.load_state_dict(read_checkpoint(find_checkpoint(self.run_dir))["state_dict"])


def main(argv: list[str]) -> None:
    """Train and measure one run of the comparison's design."""
    began = time.monotonic()
    out, slug, seed = Path(argv[0]), argv[1], int(argv[2])
    run = next(run for run in read_json(out / DESIGN)["runs"] if (run["slug"], run["seed"]) == (slug, seed))
    folder = run_folder(out, slug, seed)
    cost = _trained(folder, run["argv"])
    with training_errors(run["argv"][1:]):
        if cost is None and is_first_rank():
            shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
        cli: Any = RunCLI(run) if cost is None else TrainedCLI(run["argv"][1:])
    if not cli.trainer.is_global_zero:
        return
    if cost is None:
        cost = _cost(cli, run["argv"], time.monotonic() - began)
        write_json(folder / "trained.json", cost, summed=True)
        began = time.monotonic()
    model = cli.model.to(cli.trainer.strategy.root_device).eval()
    measurement = measure(model, cli.datamodule, cli.config_init["fit"]["rollout"].options)
    write_curves(folder / "curves.csv", measurement.curves)
    write_examples(folder / "examples.npz", measurement.examples)
    cost["seconds"] += time.monotonic() - began
    of_test = {name: getattr(measurement, name) for name in ("errors", "scores", "valid_time", "norm_growth")}
    size = asdict(size_of(model.hparams))
    write_result(folder, Result(run["variant"], run["axes"], seed, **of_test, **size, **cost))


def _trained(folder: Path, command: list[str]) -> dict[str, Any] | None:
    """The cost of the finished training of this run; None if there is none, or it or its weights are damaged."""
    path, last = folder / "trained.json", folder / "checkpoints" / "last.ckpt"
    if not path.is_file() or not last.is_file() or damage(last) is not None:
        return None
    with suppress(Damaged), intact(path, ""):
        cost = read_json(path)
        whole = {name: type(value) for name, value in cost.items()} == COST
        return cost if whole and same_command(cost["command"], command) else None
    return None


def _cost(cli: RunCLI, command: list[str], elapsed: float) -> dict[str, Any]:
    """The values of COST."""
    steps, known = cli.trainer.global_step, cli.trainer.callback_metrics
    return {
        "command": command,
        "seconds": elapsed,  # from the start of the process
        "train_steps": steps,
        "steps_per_second": steps / max(cli.stopwatch.seconds, 1e-9),
        "peak_memory_mb": _peak_memory_mb(cli.trainer.strategy.root_device),
        "losses": {name: float(known[name]) for name in ("train/loss", "val/loss") if name in known},
    }


def _peak_memory_mb(device: torch.device) -> float:
    """Peak memory of the device if it is a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's ru_maxrss includes the process before it became Python
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) / 2**10
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        fail(str(error))
