"""The program on inputs that were changed at random: it must do its work, or refuse them by one line of error.

    cd tests && python -m faults.fuzz KIND [--count 1000] [--seed 0] [--jobs 2] [--only N] [--out DIR]

A case is one input of a kind, changed (mutations.py), and one command that reads it; its number and the seed choose
both. It is a failure if there is a traceback, another status than 0 or 2 (1 for what `data check` found), no end within
--seconds, or work done on what cannot be right, such as flipped bytes under a checksum. --only N shows what N prints.
"""

import argparse
import json
import resource
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import torch
import warm
import yaml
import zarr
from comparison.made_up import make_comparison
from faults.mutations import damaged, mutate_hdf5, mutated

from worldmodel.data.manifest import sealed
from worldmodel.durable import digests, sha256, write_digests
from worldmodel.envs.collect import CollectOptions, collect

SECONDS = 60  # that a case may take
MEMORY = 12 << 30  # bytes of addresses that a case may take, so that no size in a file fills the machine
MODEL = {"latent_dim": 4, "hidden_dim": 6, "width": 8}
TRAINER = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
# pictures take longer than all the rest
UNDRAWN = ["-c", "import runpy; from matplotlib.figure import Figure; from PIL import Image\n"]
UNDRAWN[1] += "Figure.savefig = lambda self, file, **_: Image.new('L', (9, 9)).save(file, 'PNG')\n"
UNDRAWN[1] += "runpy.run_module('worldmodel', run_name='__main__', alter_sys=True)"  # so that ranks start as it does
WORLD = {
    "wandb": "disabled",
    "threads": 1,
    "checkpoint_every": 2,
    "data": {"path": "data", "steps": 4, "lanes": 2},
    "model": MODEL,
    "trainer": TRAINER | {"max_steps": 4},
    "rollout": {"multiples": [1], "examples": 1},
}
POLICY = {
    "wandb": "disabled",
    "threads": 1,
    "checkpoint_every": 2,
    "data": {
        "env_id": "CartPole-v1",
        "num_envs": 2,
        "rollout_steps": 8,
        "total_steps": 64,
        "minibatches": 1,
    },
    "model": {"hidden_dim": 6, "width": 8},
    "trainer": TRAINER,
}
SCHEMA = {"observations": ["x", "y"], "actions": "u", "rewards": "r", "episodes": "e"}
STEP = "--trainer.max_steps 5 --trainer.limit_val_batches 0"
PLAN = "--episodes 1 --num_envs 1 --horizon 2 --candidates 4 --iterations 1 --elites 2 --no_film --out out"
COMMANDS = {
    "config": {
        "world.yaml": [
            f"fit --config world.yaml --run_dir out {STEP}",
            f"fit --config world.yaml --run_dir run --resume {STEP}",
            "validate --config world.yaml --ckpt_path run --run_dir out",
            "diagnose --config world.yaml --batches 1 --out out",
        ],
        "run/config.yaml": [
            "rollout --ckpt run --episodes 0 --horizon 2 --out out",
            "diagnose --ckpt run --batches 1 --out out",
            f"plan --ckpt run {PLAN}",
        ],
        "policy.yaml": ["policy fit --config policy.yaml --run_dir out --trainer.max_steps 1"],
        "schema.yaml": ["data info table.csv --schema schema.yaml", "data check table.csv --schema schema.yaml"],
    },
    "checkpoint": {
        "run": [
            *[f"fit --config world.yaml --run_dir run --resume {STEP}"] * 2,
            f"fit --config world.yaml --run_dir out --ckpt_path run {STEP}",
            "validate --config world.yaml --ckpt_path run --run_dir out --trainer.limit_val_batches 1",
            "predict --config world.yaml --ckpt_path run --run_dir out",
            "rollout --ckpt run --episodes 0 --horizon 2 --out out",
            "diagnose --ckpt run --batches 1 --out out",
            f"plan --ckpt run {PLAN}",
            *["export --ckpt run --out out"] * 3,
            f"imagine fit --config imagine.yaml --model.world run --run_dir out {STEP}",
        ],
        "policy": ["policy fit --config policy.yaml --run_dir policy --resume --data.total_steps 128"],
    },
    "dataset": {
        "data": [
            "data info data",
            "data check data",
            "data convert data --out out",
            f"fit --config world.yaml --run_dir out {STEP}",
        ],
        "npz": ["data check npz --alignment next", "data convert npz --alignment next --out out"],
        "store": ["data check store", "data convert store --out out"],
        "flat.hdf5": ["data check flat.hdf5", "data convert flat.hdf5 --out out"],
        "table.csv": ["data check table.csv --schema schema.yaml"],
    },
    "comparison": {"cmp": ["compare --out cmp --report_only"]},
}


@dataclass
class Case:
    """A command in a folder of its own, whose input was changed."""

    command: str
    changed: str  # what was changed, and how
    refused: bool = False  # whether the input cannot be right


def make(folder: Path, kinds: list[str]) -> None:
    """Make the inputs of these kinds, before they are changed."""
    if "comparison" in kinds:
        make_comparison(folder / "cmp", seeds=[0, 1])
    collect(CollectOptions(env_id="CartPole-v1", steps=300, max_episode_steps=30), folder / "data")
    for name, content in (("world", WORLD), ("policy", POLICY), ("schema", SCHEMA)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    imagine = {key: WORLD[key] for key in ("wandb", "threads", "data", "trainer")}
    (folder / "imagine.yaml").write_text(yaml.safe_dump(imagine))
    rng = np.random.default_rng(0)
    flat = {"observations": rng.normal(size=(60, 3)), "actions": rng.normal(size=(60, 1)), "rewards": np.ones(60)}
    flat |= {"terminals": np.arange(60) % 20 == 19, "timeouts": np.zeros(60, bool)}
    (folder / "npz").mkdir()
    np.savez(folder / "npz" / "flat.npz", **flat)
    store = zarr.open_group(str(folder / "store"), mode="w")
    with h5py.File(folder / "flat.hdf5", "w") as file:
        for name, array in flat.items():
            file[name] = array
            store.create_array(name, data=array, chunks=(25, *array.shape[1:]))
    rows = [f"{i % 7},{i % 5},{i % 3},1,{i // 20}" for i in range(60)]
    (folder / "table.csv").write_text("\n".join(["x,y,u,r,e", *rows]) + "\n")
    warm.restore()
    if "config" in kinds or "checkpoint" in kinds:
        _train("fit --config world.yaml --run_dir run", folder)
    if "checkpoint" in kinds:
        _train("policy fit --config policy.yaml --run_dir policy --trainer.limit_val_batches 0", folder)


def _train(command: str, folder: Path) -> None:
    process = warm.run(command.split(), folder, program=UNDRAWN)
    assert process.returncode == 0, process.stderr


def change(kind: str, folder: Path, dice: Random) -> Case:
    """Change one input of a kind."""
    name = dice.choices(list(COMMANDS[kind]), [len(commands) for commands in COMMANDS[kind].values()])[0]
    command, edits = dice.choice(COMMANDS[kind][name]), dice.choice([1, 1, 2, 5])
    path = folder / name
    if path.name in ("run", "policy"):
        path = path / "checkpoints" / "last.ckpt"
    elif path.is_dir():
        path = dice.choice(sorted(each for each in path.rglob("*") if each.is_file() and each.name[0] != "."))
    case, before = partial(Case, command), path.read_bytes()
    structural = dice.random() < (0.9 if kind == "checkpoint" else 0.6)
    match path.suffix if structural else "":
        case ".yaml":
            path.write_text(yaml.safe_dump(mutated(yaml.safe_load(before), dice, edits), allow_unicode=True))
        case ".json":
            tree = mutated(json.loads(before), dice, edits)
            seal = path.name == "manifest.json" and isinstance(tree, dict) and "sha256" in tree
            path.write_text(sealed(tree) if seal else json.dumps(tree))
        case ".ckpt":
            torch.save(mutated(torch.load(path, weights_only=True), dice, edits), path)
            write_digests(path, [sha256(path)])
        case ".h5" | ".hdf5":
            with h5py.File(path, "r+") as file:
                mutate_hdf5(file, dice)
            if path.suffix == ".h5":
                return case(f"the structure of {path.name}", refused=command != "data info data")
        case ".npz":
            held = {key: _tensor(array) for key, array in np.load(path).items()}
            arrays = mutated(held, dice, edits)
            if isinstance(arrays, dict):
                np.savez(path, **{str(key) or "_": np.asarray(value, dtype=None) for key, value in _plain(arrays)})
        case _:
            path.write_bytes(damaged(before, dice))
            summed = path.suffix == ".ckpt" or "data" in path.parts or path.name == "comparison.json"
            silent = "--resume" in command or command == "data info data" and path.suffix == ".h5"
            return case(f"bytes of {path.name}", refused=summed and not silent and path.read_bytes() != before)
    if path.suffix in (".json", ".yaml") and digests(path):  # what lies behind the digest
        write_digests(path, [sha256(path)])
    return case(f"the structure of {path.name}")


def _tensor(array: np.ndarray) -> Any:
    return torch.from_numpy(array) if array.dtype.kind in "biuf" else array.tolist()


def _plain(arrays: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """What NumPy can write without pickling."""
    for key, value in arrays.items():
        try:
            array = np.asarray(value.to_dense() if isinstance(value, torch.Tensor) else value)
        except (ValueError, TypeError, NotImplementedError):
            continue
        if array.dtype != object and "\0" not in str(key) and "/" not in str(key):
            yield key, array


def attempt(
    kind: str, made: Path, seed: int, number: int, out: Path, seconds: float = SECONDS
) -> tuple[Case, str | None, str]:
    """Carry out a case in a copy of the inputs: what it was, what is wrong with how it ended, and what it printed."""
    folder = out / f"{kind}-{seed}-{number}"
    shutil.copytree(made, folder)
    case = change(kind, folder, Random(f"{kind} {seed} {number}"))
    warm.restore()
    process = warm.start(case.command.split(), folder, UNDRAWN)
    with suppress(ProcessLookupError):  # it has ended already
        resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        ended = process.end(seconds)
    except subprocess.TimeoutExpired:
        return case, "HANGS", ""
    return case, wrong(ended, case), ended.stdout + ended.stderr


def wrong(ended: subprocess.CompletedProcess, case: Case) -> str | None:
    """What is wrong with how a command ended, if anything is."""
    lines = [line for line in ended.stderr.splitlines() if line.strip()] or [""]
    if "Traceback" in ended.stderr:
        return f"TRACEBACK {lines[-1][:300]}"
    if ended.returncode == 2:
        return None if lines[-1].startswith("worldmodel: error: ") else f"NO LINE OF ERROR {lines[-1][:300]}"
    if ended.returncode not in (0, 1 if "data check" in case.command else 0):
        return f"STATUS {ended.returncode} {lines[-1][:300]}"
    return "SILENT" if case.refused and ended.returncode == 0 else None


def main() -> None:
    """Carry out cases, and print those that failed; exit status 1 if any did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=COMMANDS)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that a case may take; more on a busy machine")
    parser.add_argument("--only", type=int, help="one case, whose output is shown")
    parser.add_argument("--out", type=Path, help="keep the folders of failed cases here")
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.count) if options.only is None else [options.only]
    counts = {"done": 0, "refused": 0, "failed": 0}
    with TemporaryDirectory() as temporary:
        made, out = Path(temporary, "made"), options.out or Path(temporary)
        made.mkdir()
        warm.listening()
        make(made, [options.kind])
        with ThreadPoolExecutor(options.jobs) as pool:
            attempts = pool.map(
                partial(attempt, options.kind, made, options.seed, out=out, seconds=options.seconds), numbers
            )
            for number, (case, problem, said) in zip(numbers, attempts, strict=True):
                if options.only is not None:
                    print(said)
                refused = "worldmodel: error: " in said
                counts["failed" if problem else "refused" if refused else "done"] += 1
                if problem or options.only is not None:
                    print(f"{options.kind} {number}: {case.changed}: {case.command}: {problem}", flush=True)
                if not (problem and options.out) and options.only is None:
                    shutil.rmtree(out / f"{options.kind}-{options.seed}-{number}", ignore_errors=True)
    print(f"{options.kind}, seed {options.seed}: {counts}")
    raise SystemExit(counts["failed"] > 0)


if __name__ == "__main__":
    main()
