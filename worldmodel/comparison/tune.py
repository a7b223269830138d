"""Tuning: what --tune asks for, checked and planned; then trials on the comparison's own processes, rung by rung."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldmodel.comparison.design import OWN_OPTIONS, Variant, command_of, trial_command
from worldmodel.comparison.folder import tuned
from worldmodel.comparison.launch import Engine
from worldmodel.comparison.processes import Task
from worldmodel.comparison.progress import ComparisonProgress
from worldmodel.comparison.tuning import (
    SEED,
    Range,
    Tuning,
    ranges_of,
    read_scores,
    rungs_of,
    trial_folder,
    trials_of,
)
from worldmodel.errors import UserError, at_least
from worldmodel.experiments.monitor import best_by
from worldmodel.modules.world_model import WorldModel

TUNED = ("model.", "tbptt.", "trainer.gradient_clip_val")
MEANING = ("objective", "output", "base", "base_lags", "nll_beta", "open_loop_steps", "members", "anti_collapse")
FEWEST = 2


def check_tuning(
    asked: list[str], count: int | None, axes: Mapping[str, Any], seeds: list[int], settings: Mapping[str, Any]
) -> list[Range]:
    """The ranges that are asked for; none without --tune. It looks at no data.

    Args:
        asked: --tune.
        count: --trials.
        axes: of the comparison.
        seeds: of its verdict.
        settings: the configuration.

    Raises:
        UserError: for any mistake but a value that an option does not take.
    """
    if not asked:
        if count is not None:
            raise UserError(f"--trials {count}: say what is tuned, as in --tune model.learning_rate=log:1e-4..1e-2")
        return []
    at_least(FEWEST, "--", trials=count)
    for text in asked:
        _check_key(text.removeprefix("--").partition("=")[0], axes, best_by(settings)[0])
    if SEED in seeds:
        raise UserError(f"--seeds {SEED} is the seed of the tuning, which the verdict's runs must not share")
    trainer = settings["trainer"]
    if settings["early_stopping"]["patience"] is not None or trainer["max_time"] is not None:
        raise UserError(
            "--tune gives all trials the same steps: leave early_stopping.patience and trainer.max_time out"
        )
    if trainer["limit_val_batches"] == 0:
        raise UserError("--tune needs validations, and trainer.limit_val_batches 0 leaves them out")
    if trainer["max_epochs"] == -1 and trainer["max_steps"] == -1:
        raise UserError("--tune needs a length: set --trainer.max_steps or --trainer.max_epochs")
    return ranges_of(asked, own_values(asked, settings))


def _check_key(key: str, axes: Mapping[str, Any], metric: str) -> None:
    if key in OWN_OPTIONS:
        raise UserError(f"--tune {key}: use {OWN_OPTIONS[key]}")
    if key in axes:
        raise UserError(
            f"--tune {key}: --vary compares its values, and tuning would choose one: leave out one of the two"
        )
    if not key.startswith(TUNED):
        raise UserError(f"--tune {key}: only keys of model and tbptt, and trainer.gradient_clip_val, can be tuned")
    name = key.removeprefix("model.")
    if metric == "val/loss" and (name in MEANING or name.endswith("_weight")):
        raise UserError(
            f"--tune {key} changes val/loss itself, and trials are scored by it: score them by an open-loop error, such"
            " as --checkpoint_monitor rollout/nmse@T with T of data.steps"
        )


def own_values(asked: list[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration's values of the keys that are tuned; of none that it lacks."""
    values = {}
    for text in asked:
        key = text.removeprefix("--").partition("=")[0]
        group, name = key.split(".", 1)
        if name in (own := settings.get(group) or {}):
            values[key] = own[name]
    return values


def check_size(key: str, model: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise UserError if an option changes how large a model is: its hidden size was chosen without it.

    Args:
        key: of the option.
        model: arguments of WorldModel with the option's value.
        own: without it.
    """
    sizes = {sum(p.numel() for p in WorldModel.check(each).parameters()) for each in (model, own)}
    if len(sizes) > 1:
        raise UserError(f"--tune {key} changes the model's size, which is the same in all runs of a rule: --vary {key}")


def plan(
    asked: list[str], count: int, ranges: list[Range], settings: Mapping[str, Any], steps: int, before: Any
) -> Tuning:
    """The tuning of each variant.

    Args:
        asked: --tune.
        count: --trials.
        ranges: of `asked`.
        settings: the configuration.
        steps: optimizer steps of a run.
        before: that of the folder's design, if there is one: its draws stay.
    """
    metric, mode = best_by(settings)
    if before is not None and (before["asked"], before["count"]) == (asked, count):
        trials = before["trials"]
    else:
        trials = trials_of(ranges, own_values(asked, settings), count)
    return Tuning(ranges, trials, rungs_of(len(trials), steps), metric, mode, asked, count)


def planned_steps(trainer: Any, batches: int) -> int:
    """Optimizer steps of a fit.

    Args:
        trainer: Lightning's, not begun.
        batches: of an epoch.
    """
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    by_epochs = (
        math.inf
        if trainer.max_epochs == -1
        else trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches)
    )
    return int(min(by_epochs, math.inf if trainer.max_steps == -1 else trainer.max_steps))


def commands(out: Path, variants: list[Variant], hidden_dims: list[int]) -> dict[str, list[str]]:
    """Slug -> the command of a variant's trials up to what is tuned."""
    return {each.slug: command_of(out, each, dim) for each, dim in zip(variants, hidden_dims, strict=True)}


def tune(out: Path, design: Mapping[str, Any], engine: Engine) -> list[Any]:
    """Train the trials that are left, rung by rung, those of all variants side by side.

    Returns what failed, in words: the variant of such a trial has no winner.
    """
    if "tuning" not in design:
        return []
    tuning, failures, lost = Tuning.read(design["tuning"]), [], set()
    total = len(design["tuning"]["commands"]) * sum(rung.trials for rung in tuning.rungs)

    def failed(task: Task, reason: str) -> None:
        failures.append(f"{task.label}: {reason} (log: {task.log})")
        lost.add(task.words[1])

    def has_score(task: Task) -> bool:
        _, slug, number, steps = task.words
        command = trial_command(out, design, slug, int(number))
        return int(steps) in read_scores(trial_folder(out, slug, int(number)), command)

    while True:
        now = tuned(out, design)
        waiting = {slug: tuning.course(each.scores) for slug, each in now.items() if slug not in lost}
        tasks = [
            _task(out, engine, slug, now[slug].variant, number, tuning.rungs[course.rung].steps)
            for slug, course in waiting.items()
            for number in course.waiting
        ]
        if not tasks:
            return failures
        done = sum(len(scores) for each in now.values() for scores in each.scores)
        engine.train(tasks, has_score, failed, ComparisonProgress("tuning", "stages", done, total))


def _task(out: Path, engine: Engine, slug: str, variant: str, number: int, steps: int) -> Task:
    log = trial_folder(out, slug, number).with_suffix(".log")
    label = f"{variant}, trial {number} to step {steps:,}"
    return Task("trial", (str(out), slug, str(number), str(steps)), label, log, Path.cwd(), engine.environment)
