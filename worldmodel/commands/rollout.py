"""`worldmodel rollout`: predictions of chosen episodes by a trained model, from actions alone."""

import csv
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from worldmodel.arguments import TRUST
from worldmodel.data.episodes import Episodes
from worldmodel.durable import whole_file
from worldmodel.errors import UserError, at_least
from worldmodel.evaluation.curves import HorizonCurves
from worldmodel.evaluation.figures import free_run_figure, rollout_figure, save, save_animation
from worldmodel.evaluation.free_run import FreeRun, free_run, long_enough
from worldmodel.evaluation.rollouts import Example
from worldmodel.evaluation.selection import MULTIPLES, RolloutOptions, episode_numbers
from worldmodel.experiments.result import horizon_lines, horizon_table, print_free_run
from worldmodel.experiments.world_model import TrainingParser
from worldmodel.model import Model
from worldmodel.modules.data_module import EpisodeDataModule
from worldmodel.modules.of_run import open_loop, split_of
from worldmodel.restore import rebuilt
from worldmodel.runs.checkpoint import data_spaces, read_checkpoint
from worldmodel.runs.config import read_config
from worldmodel.runs.display import console
from worldmodel.runs.files import UNTRAINED, find_checkpoint
from worldmodel.runs.folder import file_name, result_folder

MOST_DRAWN = 4  # rollouts in the picture
MOST_WRITTEN = 64  # free runs in trajectories.csv
# options of the data, dropped for another dataset
OF_ONE_DATASET = ("collect", "format", "alignment", "schema", "action", "reward", "rename", "skip")
OF_ONE_DATASET += ("test_path", "test_schema", "test_collect")


def main(argv: list[str]) -> None:
    """Roll the model out, write the results and pictures, and print the errors."""
    arguments, path, config = _arguments(argv)
    _check_from_start(arguments)
    at_least(2, "--", samples=arguments.samples)
    data = EpisodeDataModule(**arguments.data.as_dict())
    data.prepare_data()
    model, rule = _model(path, data, arguments.trust)
    split, episodes = split_of(data, arguments.split)
    seed = f"-s{config['seed_everything']}" if "seed_everything" in config else ""
    name, source = file_name(f"{rule}-{data.env_id}{seed}"), data.path
    if split == "test" and data.test_path:
        source = data.test_path
    of_split = f"of the {len(episodes)} episodes of the {split} split of {source}"
    if (seen := arguments.from_start) is not None:
        chosen = _whole(episodes, arguments.episodes, seen)
        run = free_run(model, chosen, data.steps, seen, episodes, MOST_WRITTEN)
        title = f"{data.env_id}, {rule}: free run after {seen} frames"
        with result_folder("rollout", name, arguments.out) as folder:
            files = _write_free_run(folder, run, chosen, data.steps, title)
        print_free_run(run)
        _print_end(f"{len(chosen)} {of_split}", files, folder.parent)
        return
    threshold = config.get("rollout", {}).get("threshold", RolloutOptions.threshold)
    train, missing = _trained_on(data, config, path)
    asked = {name: getattr(arguments, name) for name in ("start", "burn_in", "horizon")}
    how: dict[str, Any] = {"chosen": arguments.episodes, **asked}
    curves, selection = open_loop(model, episodes, data.steps, train, arguments.samples, threshold, **how)
    with result_folder("rollout", name, arguments.out) as folder:
        files = _write(folder, curves, selection.episodes, data.steps, f"{data.env_id}, {rule}: open loop")
    for note in [*selection.notes, *missing]:
        print(note)
    _print(curves, data.steps)
    _print_end(f"{len(selection.lengths)} {of_split}", files, folder.parent)


def _check_from_start(arguments: Any) -> None:
    """Raise UserError for options that a free run does not take."""
    at_least(1, "--", from_start=arguments.from_start)
    given = [name for name in ("start", "burn_in", "horizon") if getattr(arguments, name) is not None]
    if arguments.from_start is not None and given:
        raise UserError(
            f"--from_start {arguments.from_start} shows the model the first frames and runs to each episode's end:"
            f" leave out --{given[0]}"
        )


def _whole(episodes: Episodes, chosen: str | None, seen: int) -> Episodes:
    """The episodes that were chosen, or all that are long enough; a UserError if one that was chosen is too short."""
    if chosen is None:
        kept = long_enough(episodes, seen, "--from_start")
        if left := len(episodes) - len(kept):
            print(f"{left} episodes of at most {seen} frames are left out")
        return kept
    some = episodes.select(episode_numbers(chosen, episodes))
    for name, frames in zip(some.names, some.num_frames.tolist(), strict=True):
        if frames <= seen:
            raise UserError(
                f"{name} has {frames} frames: nothing is left to predict after the first {seen}; --from_start can be"
                f" at most {frames - 1}"
            )
    return some


def _arguments(argv: list[str]) -> tuple[Any, Path, dict[str, Any]]:
    """The options, with the run's data options as defaults; the checkpoint; the run's configuration."""
    argv = [f"--data.path{word[6:]}" if word == "--data" or word.startswith("--data=") else word for word in argv]
    bare = _parser(None)
    given: Any = bare.parse_args(argv)
    if given.ckpt is None:
        raise UserError(UNTRAINED.format("rollout"))
    path = find_checkpoint(given.ckpt)
    config = read_config(path, "say which data with --data PATH", given.trust)
    known = config["data"] if config else {"steps": _trained_steps(path)}
    if given.data.path is not None:
        known = {key: value for key, value in known.items() if key not in OF_ONE_DATASET}
    elif config is None:
        raise UserError(f"{path} has no config.yaml of its run beside it: say which data with --data PATH")
    parser = _parser(known)
    bare.parse_object({"data": known})  # a parser doesn't check its own defaults
    return parser.parse_args(argv), path, config or {}


def _parser(data: dict[str, Any] | None) -> TrainingParser:
    """With the data options of the run as defaults, where they are known."""
    parser = TrainingParser(
        prog="worldmodel rollout", description="Open-loop predictions of a trained model on chosen episodes."
    )
    add: Any = parser.add_argument
    add("--ckpt", type=Path, default=None, help="Folder of a run, or a checkpoint.")
    add("--horizon", type=int, default=None, help="Steps to predict. Default: 10 T, fewer in short episodes.")
    add("--episodes", type=str, default=None, help="Numbers in the split, or names: 0,3. Default: a few long ones.")
    add("--split", type=Literal["test", "val", "train"], default=None, help="Split. Default: test, or val without one.")
    add("--start", type=int, default=None, help="Last frame that the model sees. Default: --burn_in.")
    add("--burn_in", type=int, default=None, help="Frames seen before --start. Default: all, or T without --start.")
    add("--from_start", type=int, default=None, help="Free run to each episode's end, after its first N frames.")
    add("--samples", type=int, default=32, help="Futures drawn of each rollout, of a model with a distribution.")
    add("--trust", action="store_true", help=f"{TRUST}.")
    add("--out", type=Path, default=None, help="New folder. Default: runs/rollout/<rule>-<environment>.")
    parser.add_class_arguments(EpisodeDataModule, "data", skip={"path"})
    add("--data.path", type=Path, default=None, help="Dataset instead of the run's; --data PATH is the same.")
    parser._option_string_actions["--data"].help = SUPPRESS  # jsonargparse would read a file of options
    try:
        parser.set_defaults({f"data.{key}": value for key, value in (data or {}).items()})
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"the data options of the run's config.yaml are of another version: {error}") from error
    return parser


def _trained_steps(path: Path) -> int:
    """T, as the checkpoint itself records it."""
    return read_checkpoint(path).get("EpisodeDataModule", {}).get("stream", {}).get("steps", 32)


def _model(path: Path, data: EpisodeDataModule, trust: bool) -> tuple[Model, str]:
    """The model of a checkpoint in evaluation mode, and its rule; a UserError if the data does not fit it."""
    checkpoint = read_checkpoint(path)
    arguments = checkpoint["hyper_parameters"]
    sizes = {name: arguments.get(name) for name in ("obs_dim", "action_dim")}
    images = [list(shape) for shape in arguments.get("images") or []]
    for what, had, has in (
        ("entries of an observation", sizes["obs_dim"], data.obs_dim),
        ("entries of an action", sizes["action_dim"], data.action_dim),
        ("as the shapes of images", images, [list(shape) for shape in data.images]),
    ):
        if had != has:
            raise UserError(
                f"{data.path} has {has} {what}, the model takes {had}:"
                f" choose data of the kind that {path} was trained on"
            )
    data.take_origins(data_spaces(checkpoint))
    if arguments.get("objective") == "tokens":
        raise UserError(
            f"{path} predicts tokens, and rollout draws values: use `worldmodel validate --ckpt_path {path}`"
        )
    return rebuilt(arguments, checkpoint["state_dict"], path, trust, checkpoint.get("parts")), arguments["rule"]


def _trained_on(data: EpisodeDataModule, config: dict[str, Any], ckpt: Path) -> tuple[Episodes | None, list[str]]:
    """The run's training split, to which a baseline is fitted too; None, and a note, where it is not there any more."""
    path = Path(config["data"]["path"]) if config else None
    if path == data.path or data.images:  # of images there is no such baseline
        return data.splits["train"], []
    if path is None or not path.exists():
        why = "the checkpoint has no run beside it" if path is None else f"{path} is not there"
        return None, [f"without the linear autoregression, which is fitted to the run's training data: {why}"]
    own = EpisodeDataModule(**_parser(config["data"]).parse_args([]).data.as_dict())
    own.take_origins(data_spaces(read_checkpoint(ckpt)))
    return own.splits["train"], []


def _write(folder: Path, curves: HorizonCurves, episodes: Episodes, steps: int, title: str) -> list[str]:
    """Write the rollouts as numbers and as pictures; returns the files' names."""
    layout = episodes.layout
    curves.write_csv(folder / "rollout.csv")
    files = ["rollout.csv"]
    if layout.vector_dim:
        _write_trajectories(folder / "trajectories.csv", curves.examples, episodes.names)
        files.append("trajectories.csv")
    drawn = replace(curves, examples=curves.examples[:MOST_DRAWN])
    save(rollout_figure(drawn, steps, title, shown=len(curves.horizon)), folder / "rollout.png")
    files.append("rollout.png")
    if layout.images:
        save_animation(drawn.examples, folder / "rollout.gif", steps)
        files.append("rollout.gif")
    return files


def _write_free_run(folder: Path, run: FreeRun, episodes: Episodes, steps: int, title: str) -> list[str]:
    """Write free runs as numbers and as pictures; returns the files' names."""
    run.append_csv(folder / "rollout.csv")
    run.write_csv(folder / "free_run.csv")
    files = ["rollout.csv", "free_run.csv"]
    drawn = replace(run, examples=run.examples[:MOST_DRAWN])
    if episodes.layout.vector_dim:
        _write_trajectories(folder / "trajectories.csv", run.examples, episodes.names[: len(run.examples)])
        save(free_run_figure(drawn, title), folder / "rollout.png")
        files += ["trajectories.csv", "rollout.png"]
    if episodes.layout.images:
        save_animation(drawn.examples, folder / "rollout.gif", steps)
        files.append("rollout.gif")
    return files


def _write_trajectories(path: Path, examples: list[Example], names: Sequence[str]) -> None:
    """Write rows of episode, step, entry, truth, prediction; of vectors only, since images are in the animation.

    Of a model with a distribution, the ends of its 90% interval too.
    """
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        banded = any(example.band is not None for example in examples)
        writer.writerow(["episode", "step", "entry", "truth", "prediction"] + ["low90", "high90"] * banded)
        for name, example in zip(names, examples, strict=True):
            entries = example.layout.vector_entries
            columns = [example.truth[1:], example.prediction, *(() if example.band is None else example.band)]
            for step, rows in enumerate(zip(*columns, strict=True), start=1):
                values = zip(entries, *(row.tolist() for row in rows), strict=False)  # pixels come after the vector
                writer.writerows((name, step, *of_entry) for of_entry in values)


def _print(curves: HorizonCurves, steps: int) -> None:
    last = len(curves.horizon)
    horizons = sorted({m * steps for m in MULTIPLES if m * steps <= last} | {last})
    output = console()
    output.print(horizon_table(curves.metrics(horizons), steps))
    for line in horizon_lines(curves):
        output.print(line)


def _print_end(source: str, files: list[str], folder: Path) -> None:
    print(source)
    print(f"files: {', '.join(files)}")
    print(f"rollout: {folder}")
