"""How well models with a distribution know what they do not know.

    python benchmarks/calibration.py [--systems linear,pendulum,...] [--seeds 0,1,2] [--output gaussian] [--jobs 1]

Trains on the configuration of docs/results, unless runs/calibration already holds that run, and scores 64 futures of
rollouts of test episodes at horizons up to 50 T; on the linear system beside the Kalman filter, whose distribution is
exact. Writes a row for each number to docs/results/calibration.csv, and prints a table of means over seeds.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean

import torch
import yaml
from fits import ROOT, fit_once

from worldmodel import EpisodeDataModule
from worldmodel.envs.linear import linear_system
from worldmodel.evaluation.calibration import summary
from worldmodel.evaluation.floor import filtered
from worldmodel.evaluation.kalman import KalmanFilter
from worldmodel.evaluation.scores import scores
from worldmodel.evaluation.selection import MULTIPLES, RolloutOptions
from worldmodel.restore import rebuilt
from worldmodel.runs.checkpoint import read_checkpoint
from worldmodel.runs.files import find_checkpoint

RUNS, TABLE = ROOT / "runs" / "calibration", ROOT / "docs" / "results" / "calibration.csv"
CONFS = {name: f"conf/results/{name}.yaml" for name in ("pendulum", "cartpole", "acrobot", "half_cheetah")}
CONFS["linear"] = "conf/linear.yaml"
ROLLOUTS, SAMPLES = RolloutOptions(starts=4, max_episodes=64), 64
SHOWN = ("crps", "crps_point", "nmse_mean", "coverage90", "conformal90", "sharpness90")
Row = tuple[str, str, str, int, str, float]  # system, output, seed, horizon, metric, value


def fit(system: str, output: str, seed: str) -> None:
    """Train, unless it is done already."""
    words = ["--config", CONFS[system], "--model.output", output, "--seed_everything", seed, "--wandb", "disabled"]
    if fit_once(RUNS / system / f"{output}-s{seed}", [*words, "--trainer.enable_progress_bar", "false"]):
        print(f"done: {system}, {output}, seed {seed}", flush=True)


def measured(system: str, output: str, seed: str) -> Iterator[Row]:
    """The numbers of a finished run."""
    folder = RUNS / system / f"{output}-s{seed}"
    path = find_checkpoint(folder)
    checkpoint = read_checkpoint(path)
    model = rebuilt(checkpoint["hyper_parameters"], checkpoint["state_dict"], path)
    config = yaml.safe_load((ROOT / CONFS[system]).read_text())["data"]
    test = config.get("test_path")
    data = EpisodeDataModule(ROOT / config["path"], steps=config["steps"], test_path=test and ROOT / test)
    whole, steps = data.splits["test"], config["steps"]
    episodes = ROLLOUTS.first_episodes(whole)
    starts, _ = ROLLOUTS.rollouts(episodes, steps)
    found = scores(model, episodes, starts, steps, SAMPLES, [m * steps for m in MULTIPLES], whole, seed=1)
    exact = None
    if system == "linear":
        kalman = KalmanFilter(linear_system(**config["collect"]["env_kwargs"]))
        exact = filtered(kalman, episodes, starts, steps, found)
    columns = summary(found, model, exact).columns()
    for metric, values in columns.items():
        for horizon, value in zip(found.horizon.tolist(), values.tolist(), strict=True):
            yield system, output, seed, horizon, metric, value


def table(rows: list[Row]) -> str:
    """Means over seeds, a row for each system and multiple of T."""
    values: dict[tuple[str, str, int, str], list[float]] = defaultdict(list)
    for system, output, _, horizon, metric, value in rows:
        values[system, output, horizon, metric].append(value)
    metrics = [*SHOWN, *(m for m in ("nll_regret", "crps_regret") if any(key[3] == m for key in values))]
    lines = ["| system | output | horizon | " + " | ".join(metrics) + " |", "|---" * 3 + "|---:" * len(metrics) + "|"]
    for system, output in dict.fromkeys(key[:2] for key in values):
        steps = yaml.safe_load((ROOT / CONFS[system]).read_text())["data"]["steps"]
        horizons = sorted({key[2] for key in values if key[:2] == (system, output)})
        for horizon in [h for h in horizons if h in (1, *(m * steps for m in MULTIPLES))]:
            cells = [f"{fmean(v):.3g}" if (v := values.get((system, output, horizon, m))) else "" for m in metrics]
            lines.append(f"| {system} | {output} | {horizon} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, score everything, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default=",".join(CONFS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--output", default="gaussian")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    systems, seeds, outputs = (getattr(options, name).split(",") for name in ("systems", "seeds", "output"))
    wanted = [(system, output, seed) for system in systems for output in outputs for seed in seeds]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda work: fit(*work), wanted))
    torch.set_num_threads(options.jobs)
    rows = [row for work in wanted for row in measured(*work)]
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["system", "output", "seed", "horizon", "metric", "value"])
        writer.writerows((*row[:-1], f"{row[-1]:.6g}") for row in rows)
    print(table(rows))


if __name__ == "__main__":
    main()
