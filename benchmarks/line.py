"""What the line below a rule is worth: docs/results/line.md, from the comparisons of results.py with and without one.

python benchmarks/results.py pendulum pendulum_none      # and the others; goes on where it was interrupted
python benchmarks/line.py
"""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
RUNS, PAGE = ROOT / "runs" / "results", ROOT / "docs" / "results" / "line.md"
RULES = ("gated_norm", "gru", "lstm")
SYSTEMS = {
    "linear": "The linear system",
    "pendulum": "Pendulum",
    "half_cheetah": "HalfCheetah",
    "cartpole": "CartPole",
    "acrobot": "Acrobot",
}
BEGIN = "<!-- what follows is written by benchmarks/line.py -->"
Errors = dict[tuple[str, int], list[float]]  # (loop, horizon) -> of each seed


def read(name: str) -> dict[str, Errors]:
    """Rule or baseline -> its errors, of a comparison; empty if it has not been made."""
    found: dict[str, Errors] = defaultdict(lambda: defaultdict(list))
    if not (RUNS / name / "results.csv").is_file():
        return {}
    with (RUNS / name / "results.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found[row["rule"] or row["variant"]][row["loop"], int(row["horizon"])].append(float(row["error"]))
    return found


def rows_of(name: str) -> dict[str, Errors]:
    """The rows of a system's tables."""
    found = read(name)
    rows = {rule: found[rule] for rule in RULES}
    if without := read(f"{name}_none"):
        rows[f"{RULES[0]} without a line"] = without[RULES[0]]
    rows |= {"the line alone": next(found[title] for title in found if title.startswith("linear autoregression"))}
    floor = [title for title in found if "filter" in title.lower()]
    return rows | {title: found[title] for title in ("mean", *floor)}


def table(rows: dict[str, Errors], loop: str) -> list[str]:
    """A table of the errors in one loop, against the horizon."""
    horizons = sorted({horizon for errors in rows.values() for of, horizon in errors if of == loop})
    head = [f"| {loop} loop | " + " | ".join(map(str, horizons)) + " |", "|---|" + "---:|" * len(horizons)]
    return head + [
        f"| {title} | " + " | ".join(cell(errors.get((loop, horizon), [])) for horizon in horizons) + " |"
        for title, errors in rows.items()
    ]


def cell(values: list[float]) -> str:
    """The geometric mean, and the range over seeds."""
    if not values:
        return ""
    mean = f"{np.exp(np.mean(np.log(values))):.3g}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    """Write the tables into the page, below what was written by hand, and the numbers beside."""
    lines, numbers = [BEGIN], []
    for name, title in SYSTEMS.items():
        if not read(name):
            continue
        rows = rows_of(name)
        lines += ["", f"## {title}", "", *table(rows, "closed"), "", *table(rows, "open")]
        for base, comparison in (("linear", name), ("none", f"{name}_none")):
            for variant, errors in read(comparison).items():
                found = ((key, seed, error) for key, values in errors.items() for seed, error in enumerate(values))
                numbers += [(name, base, variant, seed, *key, error) for key, seed, error in found]
    PAGE.write_text(PAGE.read_text().split(BEGIN)[0] + "\n".join(lines) + "\n")
    with PAGE.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([("system", "base", "variant", "seed", "loop", "horizon", "error"), *numbers])


if __name__ == "__main__":
    main()
