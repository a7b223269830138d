"""The runs below a folder, with what each was and how it ended; read without torch."""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldmodel.errors import UserError
from worldmodel.runs.files import check_readable, read_yaml

NO_RUNS = {"wandb", "checkpoints"}  # folders in a run's, which hold none


@dataclass(frozen=True)
class Run:
    """A run: its folder, its configuration as plain data, and the last value of each metric."""

    folder: Path
    config: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    time: float = 0.0  # of the last change, in seconds since 1970

    @property
    def rule(self) -> str:
        """The update rule; empty for what has none."""
        model = self.config.get("model")
        return str(model.get("rule", "")) if isinstance(model, dict) else ""

    @property
    def steps(self) -> int | None:
        """Optimizer steps; None if none was logged."""
        return int(self.metrics["step"]) if "step" in self.metrics else None

    @property
    def horizon(self) -> int | None:
        """T, the trained horizon; None for what has none."""
        data = self.config.get("data")
        steps = data.get("steps") if isinstance(data, dict) else None
        return steps if isinstance(steps, int) else None


def find_runs(folder: Path) -> list[Run]:
    """The runs in a folder and below it, the newest last; folders whose config.yaml cannot be read are left out.

    Raises:
        UserError: if there is no such folder.
    """
    if not check_readable(folder).is_dir():
        raise UserError(f"no folder {folder}: runs are made by worldmodel fit, in runs/ by default")
    found = []
    for path in _folders(folder):
        try:
            config = read_yaml(path / "config.yaml")
            found.append(Run(path, config if isinstance(config, dict) else {}, _metrics(path), _time(path)))
        except (UserError, OSError, csv.Error, UnicodeDecodeError):
            continue
    return sorted(found, key=lambda run: run.time)


def _folders(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in NO_RUNS]
        if "config.yaml" in files and ("metrics.csv" in files or "checkpoints" in os.listdir(path)):
            yield Path(path)


def _metrics(folder: Path) -> dict[str, float]:
    """The last value of each column of metrics.csv."""
    last: dict[str, float] = {}
    if (path := folder / "metrics.csv").is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                last |= {name: _number(value) for name, value in row.items() if name and value}
    return last


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _time(folder: Path) -> float:
    files = (folder / name for name in ("config.yaml", "metrics.csv", "checkpoints/last.ckpt"))
    return max(path.stat().st_mtime for path in files if path.exists())
