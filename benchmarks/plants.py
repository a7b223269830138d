"""Four measured plants: their files and official splits, what is trained on them, and what others have found."""

import csv
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np

FILES = {
    "tanks": ["cascaded_tanks_dataBenchmark.csv"],
    "ced": ["ced_DATAUNIF.csv"],
    "silverbox": ["silverbox_SNLS80mV.csv"],
    "wiener_hammerstein": [f"wiener_hammerstein_{part}.hdf5" for part in ("train", "valid", "test")],
}
LOADERS = {
    "tanks": "Cascaded_Tanks", "ced": "CED", "silverbox": "Silverbox", "wiener_hammerstein": "WienerHammerBenchMark",
}  # fmt: skip
PUBLISHED = ("linear SS", "ARX", "poly NARX", "GP NARX", "RNN", "GRU", "LSTM", "OLSTM", "best published")
Recording = tuple[np.ndarray, np.ndarray]  # inputs (N,), outputs (N,)


@dataclass(frozen=True)
class Plant:
    """A plant, what is trained on it, and what others have found, in its unit.

    The published figures are those of Champneys, Beintema, Toth, Schoukens and Rogers (2024, arXiv 2405.10779); each
    neural network there is the best of 250 fits.
    """

    title: str
    unit: str
    seen: int  # n
    seeds: int
    rollout: int  # steps of a free run in training
    lanes: int
    updates: int
    published: dict[str, tuple[float, ...]]  # by test, in the order of PUBLISHED
    searched: dict[str, tuple[Any, ...]]  # options of the model, and what is tried of each
    scale: float = 1.0  # from the data's unit
    model: dict[str, Any] = field(default_factory=dict)

    def config(self, train: Path) -> dict[str, Any]:
        """Of a fit."""
        segment = self.seen - 1 + self.rollout
        schema = {"episodes": {"column": "recording"}, "observations": ["y"], "actions": ["u", "u_next"]}
        data = {"path": str(train), "schema": schema | {"final_observation": "included"}, "test_fraction": 0.0}
        data |= {"folds": 5, "fold": 4, "steps": segment, "crop": segment, "lanes": self.lanes}
        model = {"latent_dim": 8, "hidden_dim": 32, "width": 32, "depth": 0, "learning_rate": 0.005}
        model |= {"open_loop_steps": self.rollout, "open_loop_weight": 10.0, **self.model}
        trainer = {"accelerator": "cpu", "devices": 1, "max_steps": self.updates, "max_epochs": -1}
        trainer |= {"check_val_every_n_epoch": None, "val_check_interval": max(1, self.updates // 10)}
        return {
            "wandb": "disabled", "threads": 1, "data": data, "model": model, "trainer": trainer,
            "rollout": {"free_run": self.seen, "multiples": [1]}, "checkpoint_monitor": "free_run/rmse",
        }  # fmt: skip


PLANTS = {
    "tanks": Plant(
        "Cascaded Tanks", "V", seen=5, seeds=5, rollout=256, lanes=16, updates=500,
        searched={"feedback": (False, True), "weight_decay": (0.01, 0.3)},
        model={"open_loop_weight": 1.0},
        published={"test": (0.588, 0.685, 0.413, 0.622, 0.543, 0.396, 0.490, 0.471, 0.191)},
    ),
    "ced": Plant(
        "Coupled Electric Drives", "ticks/s", seen=4, seeds=5, rollout=60, lanes=32, updates=800,
        searched={"feedback": (False, True), "weight_decay": (0.01, 0.3)},
        published={
            "low": (0.224, 0.291, 0.100, 0.102, 0.096, 0.286, 0.303, 0.151, 0.115),
            "high": (0.384, 0.331, 0.141, 0.090, 0.235, 0.238, 0.145, 0.259, 0.074),
        },
    ),
    "silverbox": Plant(
        "Silverbox", "mV", seen=50, seeds=3, rollout=100, lanes=64, updates=2000, scale=1000.0,
        searched={"feedback": (False, True)}, model={"open_loop_weight": 1.0},
        published={
            "multisine": (6.96, 6.95, 0.640, 0.301, 1.64, 1.49, 1.50, 1.51, 0.36),
            "arrow": (14.4, 14.2, 2.25, 0.60, 4.88, 2.80, 2.68, 2.38, 1.4),
            "arrow, no extrapolation": (6.58, 6.59, 0.571, 0.259, 1.73, 0.947, 0.960, 1.08, 0.32),
        },
    ),
    "wiener_hammerstein": Plant(
        "Wiener-Hammerstein", "mV", seen=50, seeds=3, rollout=100, lanes=64, updates=3000, scale=1000.0,
        published={"test": (43.4, 43.4, 27.3, 23.1, 6.87, 3.97, 4.45, 4.55, 0.241)},
        searched={"feedback": (False, True)}, model={"base_lags": 20, "open_loop_weight": 100.0},
    ),
}  # fmt: skip


def read_files(folder: Path, name: str) -> tuple[list[Recording], list[Recording]]:
    """The recordings to train on, and those of the tests, in the order of the plant's published figures."""
    paths = [folder / file for file in FILES[name]]
    if missing := [path.name for path in paths if not path.exists()]:
        raise SystemExit(f"{folder} holds no {', '.join(missing)}: name the folder that does with --data")
    if name == "wiener_hammerstein":
        (u, y), valid, (test_u, test_y) = (
            [np.ravel(np.asarray(h5py.File(path)[key])) for key in "uy"] for path in paths
        )
        train = np.concatenate([u, valid[0]]), np.concatenate([y, valid[1]])
        return [train], [(test_u[:78800], test_y[:78800])]
    with paths[0].open() as file:
        header = [word.strip().strip('"') for word in file.readline().split(",")]
    table = dict(zip(header, np.genfromtxt(paths[0], delimiter=",", skip_header=1).T, strict=False))
    if name == "tanks":
        return [(table["uEst"], table["yEst"])], [(table["uVal"], table["yVal"])]
    if name == "ced":
        pairs = [(table["u11"], table["z11"]), (table["u12"], table["z12"])]
        return [(u[:400], y[:400]) for u, y in pairs], [(u[400:], y[400:]) for u, y in pairs]
    multisine, last = slice(40650, 105712), slice(105712, 127400)
    tests = last, slice(100, 40575), slice(100, 32100)
    u, y = table["V1"], table["V2"]
    return [(u[multisine], y[multisine])], [(u[rows], y[rows]) for rows in tests]


def download(name: str) -> tuple[list[Recording], list[Recording]]:
    """The same from the package nonlinear_benchmarks."""
    if find_spec("nonlinear_benchmarks") is None:
        raise SystemExit("name the folder of the plants' files with --data, or: pip install nonlinear_benchmarks")
    splits = getattr(import_module("nonlinear_benchmarks"), LOADERS[name])(always_return_tuples_of_datasets=True)
    train, tests = ([(recording.u, recording.y) for recording in split] for split in splits)
    return train, tests


def write_table(path: Path, recordings: list[Recording]) -> None:
    """A CSV with the columns recording, u, y."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["recording", "u", "y"])
        for number, (u, y) in enumerate(recordings):
            writer.writerows(zip([number] * len(u), u.tolist(), y.tolist(), strict=True))
