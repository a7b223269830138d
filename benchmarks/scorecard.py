"""What each rule's memory can do: count, hold a value, copy; and how close it comes to the Kalman filter.

    python benchmarks/scorecard.py [--tasks anbn,haystack,...] [--rules gated_norm,lstm,...] [--seeds 0,1,2] [--jobs 2]

Trains every rule with every seed, at equal parameters, on conf/TASK.yaml, unless runs/scorecard already holds that run.
Then writes a row for every run to docs/results/scorecard.csv, and prints the tables of docs/results/scorecard.md. The
regret is that of benchmarks/results.py: docs/results/linear.csv, linear_triad.csv, linear_memory.csv.
"""

import argparse
import csv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from fits import fit_once

from worldmodel.comparison.design import matched
from worldmodel.comparison.measure import size_of
from worldmodel.rules import RULES
from worldmodel.statistics import geometric
from worldmodel.tasks.sequences import make_task

ROOT = Path(__file__).parents[1]
RUNS, DOCS = ROOT / "runs" / "scorecard", ROOT / "docs" / "results"
COUNTING = ("anbn", "anbncn")
TASKS = (*COUNTING, "haystack", "selective_copy", "repeat_first", "balanced")
TIMES = (1, 5, 10, 50)  # multiples of the trained length T
Row = dict[str, Any]


def fits(tasks: list[str], rules: list[str], seeds: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """The folder and the options of every fit; hidden sizes give each rule as many parameters as the conf's own."""
    for task in tasks:
        conf = ROOT / "conf" / f"{task}.yaml"
        config = yaml.safe_load(conf.read_text())
        collect = config["data"]["collect"]
        vocabulary = make_task(collect["env_id"], **collect["env_kwargs"]).vocabulary
        arguments = {**config["model"], "obs_dim": len(vocabulary), "action_dim": 1}
        reference = size_of(arguments)
        for rule in rules:
            hidden = matched(rule, {**arguments, "rule": rule}, reference, "params").hidden_dim
            for seed in seeds:
                folder = RUNS / task / f"{rule}-s{seed}"
                words = ["--config", str(conf), "--model.rule", rule, "--model.hidden_dim", str(hidden)]
                words += ["--seed_everything", seed, "--wandb", "disabled"]
                yield folder, [*words, "--trainer.enable_progress_bar", "false"]


def fit(folder: Path, words: list[str]) -> None:
    """Train, unless it is done already."""
    if fit_once(folder, words):
        print(f"done: {folder.relative_to(RUNS)}", flush=True)


def results() -> list[Row]:
    """A row for every finished run."""
    rows = []
    for task in TASKS:
        for folder in sorted(done.parent for done in (RUNS / task).glob("*/done")):
            rule, seed = folder.name.rsplit("-s", 1)
            with (folder / "recall.csv").open() as file:
                accuracy = {int(row["length"]): float(row["accuracy"]) for row in csv.DictReader(file)}
            with (folder / "metrics.csv").open() as file:
                counts = [row["recall/counts_to"] for row in csv.DictReader(file) if row.get("recall/counts_to")]
            row: Row = {"task": task, "rule": rule, "seed": seed, "counts_to": int(float(counts[-1])) if counts else ""}
            rows.append(row | {f"accuracy_{times}x": accuracy[times * min(accuracy)] for times in TIMES})
    return rows


def table(rows: list[Row]) -> str:
    """By rule and task: each seed's count, or the mean accuracy at each of TIMES (the least at the longest; seeds)."""
    names = [task for task in TASKS if any(row["task"] == task for row in rows)]
    lines = ["| rule | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    trained = {row["rule"] for row in rows}
    for rule in filter(trained.__contains__, RULES):
        cells = []
        for task in names:
            mine = [row for row in rows if (row["task"], row["rule"]) == (task, rule)]
            if task in COUNTING or not mine:
                cells.append(", ".join(str(row["counts_to"]) for row in mine) or "-")
                continue
            ends = [[row[f"accuracy_{times}x"] for row in mine] for times in TIMES]
            cells.append(" / ".join(f"{fmean(end):.3f}" for end in ends) + f" ({min(ends[-1]):.3f}; {len(mine)})")
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def regrets() -> str:
    """Closed-loop regret with carry: geometric mean and 95% t-interval over seeds, at each horizon."""
    runs: dict[tuple[str, int], list[float]] = {}
    for numbers in sorted(DOCS.glob("linear*.csv")):
        with numbers.open() as file:
            for row in csv.DictReader(file):
                if (row["start"], row["loop"]) == ("carry", "closed") and row["regret"] and row["seed"]:
                    runs.setdefault((row["rule"], int(row["horizon"])), []).append(float(row["regret"]))
    horizons = sorted({horizon for _, horizon in runs})
    lines = ["| rule | " + " | ".join(map(str, horizons)) + " |", "|---" * (len(horizons) + 1) + "|"]
    for rule in RULES:
        if (rule, horizons[0]) in runs:
            means = [geometric(runs[rule, horizon]) for horizon in horizons]
            lines.append(f"| {rule} | " + " | ".join(f"{m.mean:.3f} [{m.low:.3f}, {m.high:.3f}]" for m in means) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    tasks, rules, seeds = (getattr(options, name).split(",") for name in ("tasks", "rules", "seeds"))
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda work: fit(*work), fits(tasks, rules, seeds)))
    rows = results()
    with (DOCS / "scorecard.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows), regrets(), sep="\n\n")


if __name__ == "__main__":
    main()
