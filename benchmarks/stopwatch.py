"""The seconds of a training alone."""

import time
from typing import Any

from lightning.pytorch import Callback

from worldmodel.modules.experience_data import ExperienceDataModule


class Stopwatch:
    """CPU time of this process, which others do not disturb, and wall time."""

    def __init__(self) -> None:
        self.seconds, self._began = {"wall": 0.0, "cpu": 0.0}, {"wall": 0.0, "cpu": 0.0}

    def start(self) -> None:
        self._began = _now()

    def stop(self) -> None:
        now = _now()
        self.seconds = {name: total + now[name] - self._began[name] for name, total in self.seconds.items()}

    def figures(self, steps: int) -> dict[str, Any]:
        """The seconds of `steps` environment steps."""
        seconds: dict[str, Any] = {f"{name}_seconds": taken for name, taken in self.seconds.items()}
        return {"steps": steps, **seconds, "steps_per_cpu_second": steps / self.seconds["cpu"]}


class TrainingStopwatch(Callback):
    """Runs while `worldmodel policy fit` collects and trains, not while it validates; `last`: the newest figures."""

    last: dict[str, Any]

    def __init__(self) -> None:
        self.watch = Stopwatch()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.watch.start()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.watch.stop()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.watch.start()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.watch.stop()
        data = trainer.datamodule
        assert isinstance(data, ExperienceDataModule)
        TrainingStopwatch.last = self.watch.figures(data.steps) | {
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "training": list(data.returns),
        }


def _now() -> dict[str, float]:
    return {"wall": time.perf_counter(), "cpu": time.process_time()}
