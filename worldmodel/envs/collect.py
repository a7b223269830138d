"""Collecting a simulator's episodes into a dataset folder."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from filelock import FileLock

from worldmodel.data.manifest import MANIFEST, read_manifest
from worldmodel.data.spaces import describe
from worldmodel.data.writer import BEFORE, EpisodeWriter
from worldmodel.durable import sync_folder
from worldmodel.envs.make import make_simulator
from worldmodel.envs.observe import Observed
from worldmodel.envs.policies import CheckedPolicy, make_policy
from worldmodel.envs.recording import Session
from worldmodel.envs.render import frame_size
from worldmodel.envs.vector import SimulationError, Stepper, attribute, close, stop
from worldmodel.errors import UserError
from worldmodel.parts import digests, tell_changes
from worldmodel.runs.files import check_readable

log = logging.getLogger(__name__)


class CollectOptions(TypedDict):
    """What to collect, as `worldmodel collect` takes it and as the manifest keeps it."""

    env_id: str  # of Gymnasium's registry, module:ID where a module registers it, or file.py:name
    steps: int  # transitions in all
    seed: NotRequired[int]  # environment i gets seed + i
    policy: NotRequired[str]  # uniform, smooth, module:function or file.py:function
    observe: NotRequired[list[int] | list[str] | None]  # entries, or keys of a Dict, to record; None: all
    pixels: NotRequired[int | list[int] | None]  # side or [H, W] of the frames to record as `image`; None: no frames
    keep_state: NotRequired[bool]  # with pixels: also record the observation
    max_episode_steps: NotRequired[int | None]  # None: the environment's own limit
    min_episode_steps: NotRequired[int | None]  # each episode's limit is drawn between this and the maximum
    env_kwargs: NotRequired[dict[str, Any]]  # further arguments of gymnasium.make
    num_envs: NotRequired[int]


DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "policy": "uniform",
    "observe": None,
    "pixels": None,
    "keep_state": False,
    "max_episode_steps": None,
    "min_episode_steps": None,
    "env_kwargs": {},
    "num_envs": 8,
}


def collect(
    options: CollectOptions,
    out: Path,
    vectorization: Literal["sync", "async"] = "sync",
    keep_interrupted: bool = True,
    append: bool = False,
    on_steps: Callable[[int], None] = lambda steps: None,
    on_acknowledged: Callable[[int], None] = lambda episodes: None,
) -> dict[str, Any]:
    """Step an environment, write its episodes to `out`, and return the manifest.

    The same options give the same files. Exactly `steps` transitions are recorded, shared evenly by the environments;
    an episode still running at the end is kept and marked truncated. If the collection ends early (Ctrl-C, an error in
    the simulator or the policy, a full disk, a kill), the finished episodes are kept, and the same call collects the
    rest, with seeds that were not used. Where it has been collected already, nothing is done.

    Args:
        options: see `CollectOptions`.
        out: a folder without a dataset, or with one and `append`.
        vectorization: step the environments in this process, or each in its own.
        keep_interrupted: False: delete the dataset if the collection ends early.
        append: add to the dataset in `out`, of the same spaces, with seeds it has not used.
        on_steps: called with the number of new transitions after every step.
        on_acknowledged: called with the number of new episodes that are safe on the disk, when it changes.

    Raises:
        UserError: if the environment, policy, observation entries, frames or folder are invalid, or the simulator or
            the policy raised an error; it says what was kept.
        KeyboardInterrupt: on Ctrl-C, with a text that says what was kept.
    """
    settings, before = _checked(options), None
    if not append and (there := _finished(settings, out)) is not None:
        return there
    if (unfinished := _unfinished(settings, out, append)) is not None:
        settings, before = unfinished
        on_steps(options["steps"] - settings["steps"])
        append = True
        if not settings["steps"]:
            return EpisodeWriter(out, read_manifest(out), append).finish()
    earlier = _collected_before(out, settings) if append else []
    pixels = frame_size(settings["pixels"])
    num_envs = _num_envs(settings)
    simulator = make_simulator(
        settings["env_id"],
        num_envs,
        settings["max_episode_steps"],
        settings["env_kwargs"],
        vectorization,
        pixels,
        settings["min_episode_steps"],
    )
    envs = simulator.envs
    try:
        act = make_policy(settings["policy"], envs.single_action_space, num_envs, settings["seed"])
        picked = settings["observe"], pixels is not None, settings["keep_state"]
        observed = Observed(envs.single_observation_space, *picked)
        stepper = Stepper(envs, settings["seed"])
        manifest = {
            "collect": settings,
            "collected": [settings],
            **simulator.about,
            **({"parts": own} if (own := digests([settings["env_id"], settings["policy"]])) else {}),
            **({"render": attribute(envs, "render_settings")} if pixels else {}),
            "observation_space": observed.space,
            "action_space": describe(envs.single_action_space),
        }
        writer = EpisodeWriter(out, manifest, append)
        if append:
            there = {"steps": sum(entry["steps"] for entry in writer.manifest["files"]), "collected": len(earlier)}
            writer.manifest[BEFORE] = before or there
        writer.manifest["collected"] = [*earlier, settings]
        policy = CheckedPolicy(act, envs)
        session = Session(stepper, simulator.rate, policy, observed, writer, settings, on_steps, on_acknowledged)
        written = session.run(keep_interrupted)
    except BaseException as error:
        stop(envs)
        if isinstance(error, SimulationError):
            raise UserError(f"{settings['env_id']}, {error}") from error
        raise
    close(envs)
    return written


def collect_once(options: CollectOptions, path: Path) -> None:
    """Collect the dataset of an experiment, unless `path` already holds it.

    The episodes go into a folder beside `path`, which is renamed once it is complete.

    Raises:
        UserError: if the dataset at `path` was collected with other options, or is incomplete.
    """
    # complete once it is there: then no lock is needed, nor the right to write
    if not (check_readable(path) / MANIFEST).exists():
        try:  # ranks that torchrun starts side by side must not collect twice
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.parent / f".{path.name}.lock").acquire()
        except OSError as error:
            raise UserError(f"the dataset {path} cannot be written: {error.strerror}; choose another path") from error
        with lock:
            _collect_missing(options, path)
    manifest = read_manifest(path)
    have = manifest.get("collect", {})
    asked: dict[str, Any] = {**DEFAULTS, **options}
    tell_changes(manifest.get("parts", {}), path)
    differ = [f"{key} is {have.get(key)!r}, asked is {asked[key]!r}" for key in asked if have.get(key) != asked[key]]
    if differ:
        raise UserError(
            f"the dataset at {path} is not what data.collect asks for ({'; '.join(differ)}):"
            " choose another --data.path, remove the folder, or use it unchanged with --data.collect null"
        )


def _collect_missing(options: CollectOptions, path: Path) -> None:
    if (path / MANIFEST).exists():
        return
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(f"{path} holds something else than a dataset of this program: choose another path")
    unfinished = path.parent / f".{path.name}.collecting"
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that died
    print(f"no dataset at {path} yet: collecting {options['steps']} steps of {options['env_id']}", flush=True)
    collect(options, unfinished, keep_interrupted=False)
    unfinished.replace(path)
    sync_folder(path.parent)


def _checked(options: CollectOptions) -> dict[str, Any]:
    settings: dict[str, Any] = {**DEFAULTS, **options}
    for name, least in (("steps", 1), ("num_envs", 1), ("max_episode_steps", 1), ("min_episode_steps", 1), ("seed", 0)):
        if settings[name] is not None and settings[name] < least:
            raise UserError(f"--{name} {settings[name]}: it must be at least {least}")
    shortest, longest = settings["min_episode_steps"], settings["max_episode_steps"]
    if shortest is not None and (longest is None or longest < shortest):
        raise UserError(f"--min_episode_steps {shortest} needs --max_episode_steps, at least as many")
    if settings["keep_state"] and settings["pixels"] is None:
        raise UserError("--keep_state keeps the observation beside rendered frames: it needs --pixels")
    return settings


def _num_envs(settings: dict[str, Any]) -> int:
    return min(settings["num_envs"], settings["steps"])


def _finished(settings: dict[str, Any], out: Path) -> dict[str, Any] | None:
    """The manifest, if the folder holds this collection and nothing else."""
    there = read_manifest(out) if (check_readable(out) / MANIFEST).exists() else {}
    same = (there.get("collect"), there.get("steps")) == (settings, settings["steps"])
    return there if same and there.get("complete") and "converted" not in there else None


def _unfinished(settings: dict[str, Any], out: Path, append: bool) -> tuple[dict[str, Any], dict[str, int]] | None:
    """What is left of the same collection, if one ended early in the folder, and what was there before it."""
    there = read_manifest(out) if (check_readable(out) / MANIFEST).exists() else {}
    before = there.get(BEFORE, {"steps": 0, "collected": 0})
    if there.get("complete") is not False or before.keys() != {"steps", "collected"}:
        return None  # it is whole, or holds the part of a conversion
    began = there.get("collected", [])[before["collected"] :]
    if began[:1] != [settings] or (before["steps"] and not append) or ("converted" in there and BEFORE not in there):
        return None
    left = settings["steps"] - (there["steps"] - before["steps"])
    return settings | {"steps": left, "seed": _free_seed(there["collected"])}, before


def _free_seed(earlier: list[dict[str, Any]]) -> int:
    """The first seed after those of all environments."""
    return max(past["seed"] + _num_envs(past) for past in earlier)


def _collected_before(out: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The options of the collections in the folder; a UserError if one of them used one of our seeds."""
    if not (out / MANIFEST).exists():
        return []
    earlier = read_manifest(out).get("collected", [])
    for past in earlier[:1]:
        same = set(DEFAULTS) - {"seed", "num_envs"} | {"env_id"}
        differ = [
            f"{name} {settings[name]!r}, was {past.get(name)!r}"
            for name in sorted(same)
            if settings[name] != past.get(name)
        ]
        if differ:
            log.warning("%s gets episodes that were collected with other options: %s", out, "; ".join(differ))
    used = [(past["seed"], past["seed"] + _num_envs(past)) for past in earlier]
    seed, end = settings["seed"], settings["seed"] + _num_envs(settings)
    for first, after in used:
        if seed < after and first < end:
            raise UserError(
                f"--seed {seed}: this seed was already collected in {out} (its environments had the seeds {first} to"
                f" {after - 1}, these would have {seed} to {end - 1}), and episodes would repeat: give --seed"
                f" {_free_seed(earlier)}"
            )
    return earlier
