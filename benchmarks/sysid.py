"""Free runs of every rule on measured plants with published figures: python benchmarks/sysid.py --data FOLDER

Cascaded Tanks, Coupled Electric Drives, Silverbox and Wiener-Hammerstein with their official splits: a model sees the
test's first n outputs, then its inputs alone. FOLDER holds the files that plants.py names; without --data the package
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from fits import PROGRAM, fit_once
from plants import PLANTS, PUBLISHED, Plant, download, read_files, write_table

from worldmodel.comparison.measure import size_of
from worldmodel.rules import RULES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "results"
TUNING_RULE, TUNING_SEED = "gated_norm", 100
MARK = "<!-- what follows is written by benchmarks/sysid.py -->"


@dataclass(frozen=True, eq=False)
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

    def fit(self) -> None:
        """Train, unless it is done already."""
        config = PLANTS[self.plant].config(self.out / self.plant / "train.csv")
        config["model"] |= {"rule": self.rule, **self.settings}
        conf = self.folder.with_name(f"{self.folder.name}.yaml")
        conf.write_text(yaml.safe_dump(config))
        words = ["--config", str(conf), "--seed_everything", str(self.seed), "--trainer.enable_progress_bar", "false"]
        if fit_once(self.folder, words):
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
            with self.folder.with_name(f"{self.folder.name}.test-{number}.log").open("w") as log:
                subprocess.run([PROGRAM, "rollout", *words], stdout=log, stderr=subprocess.STDOUT, check=True)

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
        plant, errors = PLANTS[name], {run: run.errors() for run in runs(out, name, list(RULES)) if run.tested}
        for run, found in errors.items():
            for test, error in zip(run.test_names, found, strict=True):
                row = {"plant": name, "test": test, "unit": plant.unit, "rule": run.rule, "seed": run.seed}
                rows.append(row | run.settings | {"validation": run.validation, "rmse": error})
        lines += table(plant, errors)
    return rows, lines


def table(plant: Plant, errors: dict[Run, list[float]]) -> list[str]:
    """The lines about a plant, from its runs' errors, the best rule on validation first."""
    by_rule = {rule: [run for run in errors if run.rule == rule] for rule in RULES}
    medians = {rule: median(run.validation for run in of) for rule, of in by_rule.items() if of}
    settings = ", ".join(f"{key} {str(value).lower()}" for key, value in next(iter(errors)).settings.items())
    lines = [f"## {plant.title}", "", f"n = {plant.seen}, {plant.updates} updates; {settings}.", ""]
    lines += [f"| RMSE, {plant.unit} | parameters | seeds | validation | {' | '.join(plant.published)} |"]
    lines += ["|---|---:|---:|---:|" + "---:|" * len(plant.published)]
    for place, rule in enumerate(sorted(medians, key=lambda rule: medians[rule])):
        of_tests = list(zip(*(errors[run] for run in by_rule[rule]), strict=True))
        cells = [f"{median(seeds):.3g} ({min(seeds):.3g} to {max(seeds):.3g})" for seeds in of_tests]
        label, size = rule if place else f"**{rule}**", parameters(by_rule[rule][0])
        lines += [f"| {label} | {size:,} | {len(by_rule[rule])} | {medians[rule]:.3g} | {' | '.join(cells)} |"]
    for place, label in enumerate(PUBLISHED):
        cells = [f"{figures[place]:.3g}" for figures in plant.published.values()]
        lines += [f"| published: {label} | | | | {' | '.join(cells)} |"]
    return [*lines, ""]


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
