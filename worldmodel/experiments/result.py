"""The result of a run, as it is printed at the end."""

from itertools import islice
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from worldmodel.envs.play import EpisodeReturns
from worldmodel.evaluation.cause import Cause
from worldmodel.evaluation.curves import BASELINES, HorizonCurves
from worldmodel.evaluation.free_run import FreeRun
from worldmodel.evaluation.shortfall import listed, share_within, shortfalls
from worldmodel.runs.display import console
from worldmodel.tasks.recall import RecallScores

FILES = (
    "config.yaml",
    "metrics.csv",
    "rollout.csv",
    "rollout.png",
    "rollout.gif",
    "recall.csv",
    "recall.png",
    "returns.png",
    "checkpoints/last.ckpt",
    "checkpoints/best.ckpt",
)

MOST_ROWS = 20  # episodes in a table
MOST_COLUMNS = 4  # entries of an observation in a table


def print_result(
    metrics: dict[str, float],
    curves: HorizonCurves | None,
    recalled: RecallScores | None,
    steps: int,
    folder: Path,
    cause: Cause | None = None,
) -> None:
    """Print a table of the open-loop error, or of a sequence task's accuracy, the other numbers, and the files.

    Args:
        metrics: the Trainer's callback_metrics as numbers.
        curves: of the last rollout evaluation, if any.
        recalled: of the last evaluation on a sequence task, if any.
        steps: T, the trained horizon.
        folder: of the run.
        cause: what the course of the training shows; printed where a baseline is ahead within T.
    """
    output = console()
    if curves is not None:
        output.print(horizon_table(metrics, steps))
        if any(name.startswith("rollout/crps@") for name in metrics):
            output.print(calibration_table(metrics))
        if any(name.startswith("rollout/nll_regret@") for name in metrics):
            output.print(regret_table(metrics))
        for line in [*horizon_lines(curves), *baseline_lines(curves, steps, cause)]:
            output.print(line)
    if recalled is not None:
        output.print(recall_table(recalled, steps))
        if recalled.counts_to is not None:
            output.print(f"counts to {recalled.counts_to} (tried up to {recalled.limit})")
    names = ("train/loss", "val/loss", "test/loss", "val/nll", "test/nll", "val/accuracy", "test/accuracy")
    shown = (*names, "free_run/rmse", "free_run/nmse")
    losses = {name: metrics[name] for name in shown if name in metrics}
    if losses:
        output.print("  ".join(f"{name} {value:.4g}" for name, value in losses.items()))
    print_files(folder)


def print_policy(metrics: dict[str, float], played: EpisodeReturns | None, stage: str, reset_every: int | None) -> None:
    """Print the return of a policy.

    Args:
        metrics: the Trainer's callback_metrics as numbers.
        played: whole episodes, if any.
        stage: in which they were played.
        reset_every: K, if the state was reset at every K-th frame.
    """
    output = console()
    if "policy/return_mean" in metrics:
        steps, speed = (metrics.get(f"policy/{name}", 0.0) for name in ("steps", "steps_per_second"))
        output.print(
            f"training: mean return {metrics['policy/return_mean']:.4g} in the last episodes,"
            f" {steps:,.0f} environment steps, {speed:,.0f} of them a second"
        )
    if played is None:
        return
    length = float(played.lengths.mean())
    without = "" if reset_every is None else f", the state reset at frame 0 and at every {reset_every} further ones"
    shown = _with_interval(played.mean, "{:.4g}")
    output.print(f"{stage}: mean return {shown} over {len(played.returns)} episodes of {length:.4g} steps{without}")
    if played.success is not None:
        output.print(f"{stage}: success {_with_interval(played.success_rate, '{:.1%}')}")


def _with_interval(estimate: tuple[float, float, float], pattern: str) -> str:
    """Mean and 95% interval in words; a single number has no interval."""
    mean, low, high = map(pattern.format, estimate)
    return mean if estimate[1] != estimate[1] else f"{mean} (95% interval {low} to {high})"


def print_files(folder: Path) -> None:
    """Print what a run's folder holds, and where it is."""
    output = console()
    files = [name for name in FILES if (folder / name).exists()] + sorted(
        p.name for p in folder.glob("predictions*.h5")
    )
    if (folder / "wandb").is_dir():
        files.append("wandb/")
    if not files:  # of fast_dev_run, which leaves nothing
        return
    output.print(f"files: {', '.join(files)}")
    output.print(f"run: {folder}")


def horizon_table(metrics: dict[str, float], steps: int) -> Table:
    """The errors `rollout/<name>@<horizon>` of the model and of the baselines, a row a horizon; steps: T.

    The last column is the best baseline's error over the model's. With several members there is their disagreement: the
    variance of their predictions, over the observations'.
    """
    table = Table(title="open-loop error / variance (1.0: no better than predicting the mean)", title_justify="left")
    horizons = sorted(int(name.split("@")[1]) for name in metrics if name.startswith("rollout/nmse@"))
    measured = [name for name in BASELINES if f"rollout/{name}@{horizons[0]}" in metrics]
    shown = [name.replace("_", " ") for name in measured]
    apart = [name for name in ("disagreement",) if f"rollout/{name}@{horizons[0]}" in metrics]
    named = ["members\napart"] * len(apart)
    for heading in ("horizon", "trained x", "model", *named, *shown, "baseline\n/ model"):
        table.add_column(heading, justify="right")
    for horizon in horizons:
        model, *baselines = (metrics[f"rollout/{name}@{horizon}"] for name in ("nmse", *measured))
        ratio = f"{min(baselines) / model:.3g}" if model else "inf"
        table.add_row(
            *(str(horizon), f"{horizon / steps:g}", f"{model:.4g}"),
            *(f"{metrics[f'rollout/{name}@{horizon}']:.3g}" for name in apart),
            *(f"{error:.3g}" for error in baselines),
            ratio,
        )
    return table


def calibration_table(metrics: dict[str, float]) -> Table:
    """How sure the model is, and how rightly: the scores `rollout/<name>@<horizon>` of its futures.

    The last columns are the share of the truth within the 90% interval as drawn, and as the validation episodes
    corrected it, and the width of the latter.
    """
    table = Table(title="how sure, in deviations of the observations", title_justify="left")
    headings = {
        "error of\nthe mean": "nmse_mean", "CRPS": "crps", "CRPS of\nthe point": "crps_point",
        "in 90%\nas drawn": "coverage90", "in 90%\ncorrected": "conformal90", "its\nwidth": "sharpness90",
    }  # fmt: skip
    for heading in ("horizon", *headings):
        table.add_column(heading, justify="right")
    for horizon in sorted(int(name.split("@")[1]) for name in metrics if name.startswith("rollout/crps@")):
        values = {name: metrics[f"rollout/{name}@{horizon}"] for name in headings.values()}
        shown = [f"{v:.1%}" if name in ("coverage90", "conformal90") else f"{v:.3g}" for name, v in values.items()]
        table.add_row(str(horizon), *shown)
    return table


def regret_table(metrics: dict[str, float]) -> Table:
    """What the futures lose to the Kalman filter of the system, which knows their true distribution."""
    table = Table(title="regret: beside the Kalman filter's own distribution", title_justify="left")
    headings = {"error / its": "nmse_regret", "CRPS / its": "crps_regret", "NLL - its": "nll_regret"}
    for heading in ("horizon", *headings):
        table.add_column(heading, justify="right")
    for horizon in sorted(int(name.split("@")[1]) for name in metrics if name.startswith("rollout/nll_regret@")):
        values = (metrics[f"rollout/{name}@{horizon}"] for name in headings.values())
        table.add_row(str(horizon), *(f"{value:.3f}" for value in values))
    return table


def recall_table(recalled: RecallScores, steps: int) -> Table:
    """Accuracy at each length; steps: T."""
    table = Table(title=f"right answers on fresh sequences (chance {recalled.chance:.0%})", title_justify="left")
    for heading in ("steps", "trained x", "accuracy"):
        table.add_column(heading, justify="right")
    for length, accuracy in zip(recalled.lengths, recalled.accuracy, strict=True):
        table.add_row(str(length), f"{length / steps:g}", f"{accuracy:.1%}")
    return table


def horizon_lines(curves: HorizonCurves) -> list[str]:
    """How far the model can be trusted, and what was measured."""
    last = int(curves.horizon[-1])
    if np.isnan(curves.nmse).all():
        return ["the error is not defined: no entry of the observations varies as far as float32 can tell"]
    crosses = f"stays below {curves.threshold:g} up to horizon {last}, the longest measured"
    if curves.crossing is not None:
        crosses = f"crosses {curves.threshold:g} at horizon {curves.crossing}"
    rollouts = f"{int(curves.rollouts[0])} rollouts after {curves.burn_in} observed frames"
    return [
        f"the error {crosses}; valid prediction time {curves.valid_time:.1f} steps on average",
        f"({rollouts}; {int(curves.rollouts[-1])} of them reach horizon {last})",
    ]


def print_free_run(run: FreeRun) -> None:
    """Print the errors of each free run, and of all together."""
    several = 1 < len(run.entries) <= MOST_COLUMNS
    title = f"free run after {run.seen} seen frames: error in the data's units, and over the variance (nmse)"
    table = Table(title=title, title_justify="left")
    table.add_column("episode", no_wrap=True)
    for heading in ("steps", "RMSE", *(f"RMSE {name}" for name in run.entries if several), "nmse"):
        table.add_column(heading, justify="right")
    rows = zip(run.names, run.steps, run.rmse, np.sqrt(run.mse), run.nmse, strict=True)
    for name, steps, rmse, each, nmse in islice(rows, MOST_ROWS):
        numbers = (f"{value:.4g}" for value in (rmse, *(each if several else ()), nmse))
        table.add_row(Text(name.rsplit(", ", 1)[-1]), f"{steps:,}", *numbers)
    total = run.metrics()
    each = (f"{value:.4g}" for value in run.rmse_of_entries if several)
    rmse, nmse = (f"{total[f'free_run/{name}']:.4g}" for name in ("rmse", "nmse"))
    table.add_section()
    table.add_row(f"all {len(run.names)}", f"{run.steps.sum():,}", rmse, *each, nmse)
    output = console()
    output.print(table)
    if len(run.names) > MOST_ROWS:
        output.print(f"{len(run.names) - MOST_ROWS} more episodes are in free_run.csv")


def baseline_lines(curves: HorizonCurves, steps: int, cause: Cause | None = None) -> list[str]:
    """Which baselines the model is no better than, and the likely cause, if that is so within T = `steps`."""
    found = shortfalls(curves)
    lines = [f"No better than {listed(found)}"] if found else []
    return [*lines, f"Likely cause: {cause}"] if cause and share_within(found, steps) else lines
