"""What a run has logged, as columns of numbers."""

import csv
from pathlib import Path

import numpy as np

from worldmodel.errors import UserError
from worldmodel.runs.files import NEWEST, find_checkpoint

METRICS = "metrics.csv"


def read_metrics(run: Path | str) -> dict[str, np.ndarray]:
    """The columns (N,) of a run's metrics.csv: `step`, `epoch`, `train/loss`, `val/loss`, ...; NaN where one is empty.

    Args:
        run: its folder, or @last; `pandas.DataFrame(read_metrics(run))` is a table.

    Raises:
        UserError: if there is no such run, or the file is damaged.
    """
    folder = find_checkpoint(Path(run)).parent.parent if str(run) == NEWEST else Path(run)
    if not (path := folder / METRICS).is_file():
        raise UserError(f"no {METRICS} in {folder}: give the folder of a run, which `worldmodel runs` lists")
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {name: np.array([float(row[name] or "nan") for row in rows]) for name in (rows[0] if rows else ())}
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is damaged: {error}") from error
