"""Free runs of every rule on measured plants with published figures: python benchmarks/sysid.py --data FOLDER

Cascaded Tanks, Coupled Electric Drives, Silverbox and Wiener-Hammerstein with their official splits: a model sees the
test's first n outputs, then its inputs alone. FOLDER holds the files named in FILES; without --data the package
nonlinear_benchmarks downloads them (pip install nonlinear_benchmarks).

Everything is decided on the last fifth of the training recordings. First a few options are chosen for each plant, by
fits of gated_norm with a seed of its own; then every rule is trained with every seed, and the best rule is the one with
the least median error there. Test recordings are read once a model is trained. What has been run is kept in --out,
where an interrupted run goes on. Writes the tables of docs/results/sysid.md, and sysid.csv.
"""

import argparse
import csv
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np
import yaml

from worldmodel.comparison.measure import size_of
from worldmodel.rules import RULES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "results"
PROGRAM = Path(sys.executable).with_name("worldmodel")
FILES = {
    "tanks": ["cascaded_tanks_dataBenchmark.csv"],
    "ced": ["ced_DATAUNIF.csv"],
    "silverbox": ["silverbox_SNLS80mV.csv"],
    "wiener_hammerstein": [f"wiener_hammerstein_{part}.hdf5" for part in ("train", "valid", "test")],
}
LOADERS = {
    "tanks": "Cascaded_Tanks", "ced": "CED", "silverbox": "Silverbox", "wiener_hammerstein": "WienerHammerBenchMark",
}  # fmt: skip
TUNING_RULE, TUNING_SEED = "gated_norm", 100
MARK = "<!-- what follows is written by benchmarks/sysid.py -->"
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


@dataclass(frozen=True)
class Run:
    """One fit of a plant, and its free runs."""

    out: Path
    plant: str
    rule: str
    seed: int
    settings: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Of the fit."""
        words = [f"{name}-{value}" for name, value in self.settings.items()] if self.seed == TUNING_SEED else []
        return self.out / self.plant / "-".join([self.rule, f"s{self.seed}", *words])

    @property
    def test_names(self) -> list[str]:
        """Of the plant."""
        return list(PLANTS[self.plant].published)

    def call(self, *words: str, log: str) -> None:
        """Run the program; what it says goes to a file beside the fit."""
        with self.folder.with_name(f"{self.folder.name}.{log}.log").open("w") as output:
            subprocess.run([PROGRAM, *words], cwd=self.out, stdout=output, stderr=subprocess.STDOUT, check=True)

    def fit(self) -> None:
        """Train, unless it is done already; what an interrupted fit left is removed."""
        if (self.folder / "done").exists():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        config = PLANTS[self.plant].config(self.out / self.plant / "train.csv")
        config["model"] |= {"rule": self.rule, **self.settings}
        conf = self.folder.with_name(f"{self.folder.name}.yaml")
        conf.write_text(yaml.safe_dump(config))
        words = ["--config", str(conf), "--seed_everything", str(self.seed), "--run_dir", str(self.folder)]
        self.call("fit", *words, "--trainer.enable_progress_bar", "false", log="fit")
        (self.folder / "done").touch()
        print(f"{self.plant}: {self.folder.name}: {self.validation:.4g} on validation", flush=True)

    @property
    def validation(self) -> float:
        """The least error of a free run on validation, which chose best.ckpt."""
        with (self.folder / "metrics.csv").open() as file:
            errors = [row["free_run/rmse"] for row in csv.DictReader(file) if row["free_run/rmse"]]
        return min(map(float, errors)) * PLANTS[self.plant].scale

    @property
    def tested(self) -> list[Path]:
        """The free runs over the test recordings, if there are all of them."""
        found = sorted(self.folder.glob("test-*/free_run.csv"))
        return found if len(found) == len(self.test_names) else []

    def test(self) -> None:
        """Free runs of best.ckpt over the test recordings."""
        for number in range(len(self.test_names)):
            shown = self.folder / f"test-{number}"
            if (shown / "free_run.csv").exists():
                continue
            shutil.rmtree(shown, ignore_errors=True)
            words = ["--ckpt", str(self.folder / "checkpoints" / "best.ckpt"), "--split", "test", "--out", str(shown)]
            words += ["--from_start", str(PLANTS[self.plant].seen)]
            words += ["--data.test_path", str(self.out / self.plant / f"test-{number}.csv")]
            self.call("rollout", *words, log=f"test-{number}")

    def errors(self) -> list[float]:
        """RMSE of the tests, in the plant's unit."""
        errors = []
        for path in self.tested:
            with path.open() as file:
                errors.append(float(next(csv.DictReader(file))["rmse"]) * PLANTS[self.plant].scale)
        return errors


def parameters(run: Run) -> int:
    """Of a run's model, beside its base."""
    config = PLANTS[run.plant].config(run.out)
    return size_of({"obs_dim": 1, "action_dim": 2, **config["model"], "rule": run.rule}).parameters


def searched(out: Path, plant: str) -> list[Run]:
    """The fits that a plant's settings are chosen from."""
    return [
        Run(out, plant, TUNING_RULE, TUNING_SEED, dict(zip(PLANTS[plant].searched, values, strict=True)))
        for values in product(*PLANTS[plant].searched.values())
    ]


def runs(out: Path, plant: str, rules: list[str]) -> Iterator[Run]:
    """Every rule with every seed, with the settings that were best in the search."""
    best = min(searched(out, plant), key=lambda run: run.validation)
    for seed, rule in product(range(PLANTS[plant].seeds), rules):
        yield Run(out, plant, rule, seed, best.settings)


def complete(run: Run) -> None:
    """Train and test."""
    run.fit()
    run.test()


def report(out: Path, plants: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for every run and test, and the lines of sysid.md's tables."""
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    for name in plants:
        plant, done = PLANTS[name], [run for run in runs(out, name, list(RULES)) if run.tested]
        rules = [rule for rule in RULES if any(run.rule == rule for run in done)]
        medians = {rule: median(run.validation for run in done if run.rule == rule) for rule in rules}
        best = min(rules, key=lambda rule: medians[rule])
        errors = {rule: list(zip(*(run.errors() for run in done if run.rule == rule), strict=True)) for rule in rules}
        for run in done:
            for test, error in zip(run.test_names, run.errors(), strict=True):
                row = {"plant": name, "test": test, "unit": plant.unit, "rule": run.rule, "seed": run.seed}
                rows.append(row | run.settings | {"validation": run.validation, "rmse": error})
        settings = ", ".join(f"{key} {str(value).lower()}" for key, value in done[0].settings.items())
        lines += [
            f"## {plant.title}",
            "",
            f"n = {plant.seen}, {plant.updates} updates; {settings}.",
            "",
        ]
        lines += [
            "| RMSE, " + plant.unit + " | parameters | seeds | validation | " + " | ".join(plant.published) + " |"
        ]
        lines += ["|---|---:|---:|---:|" + "---:|" * len(plant.published)]
        for rule in sorted(rules, key=lambda rule: medians[rule]):
            cells = [f"{median(seeds):.3g} ({min(seeds):.3g} to {max(seeds):.3g})" for seeds in errors[rule]]
            label = f"**{rule}**" if rule == best else rule
            size = next(parameters(run) for run in done if run.rule == rule)
            lines += [
                f"| {label} | {size:,} | {len(errors[rule][0])} | {medians[rule]:.3g} | " + " | ".join(cells) + " |"
            ]
        for place, label in enumerate(PUBLISHED):
            cells = [f"{figures[place]:.3g}" for figures in plant.published.values()]
            lines += [f"| published: {label} | | | | " + " | ".join(cells) + " |"]
        lines += [""]
    return rows, lines


def main() -> None:
    """Train what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the plants' files; without it they are downloaded")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "sysid")
    parser.add_argument("--plants", default=",".join(PLANTS))
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    out, plants, rules = options.out.resolve(), options.plants.split(","), options.rules.split(",")
    for name in plants:
        train, tests = read_files(options.data, name) if options.data else download(name)
        write_table(out / name / "train.csv", train)
        for number, test in enumerate(tests):
            write_table(out / name / f"test-{number}.csv", [test])
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(Run.fit, [run for name in plants for run in searched(out, name)]))
        list(pool.map(complete, [run for name in plants for run in runs(out, name, rules)]))
    rows, lines = report(out, plants)
    with (DOCS / "sysid.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    page = DOCS / "sysid.md"
    page.write_text(page.read_text().split(MARK)[0] + "\n".join([MARK, "", *lines]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
