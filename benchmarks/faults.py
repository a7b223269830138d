"""A run that is killed again and again: does it end as one that nothing happened to?

    python benchmarks/faults.py [--kills 50] [--ranks 1] [--out FOLDER]

Trains one run to its end. Trains a second one that is killed (SIGKILL, the whole process group) at random instants and
started again with --resume, until it was killed so often, and then to its end. Checkpoints are saved every other step,
so that many kills hit a save. Then every number of both is compared, bit for bit: weights, moments, carried states,
random generators, metrics.csv, rollout.csv.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from same_run import differences  # noqa: E402

PROGRAM = [sys.executable, "-m", "worldmodel.cli"]
SECONDS = 4.0  # a kill comes within so many behind the first save of a process


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    """The program, in a process group of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("a") as output:
        return subprocess.Popen(
            [*PROGRAM, *arguments], stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def kill_once(arguments: list[str], last: Path, log: Path, dice: random.Random) -> bool:
    """Start it, and kill it at a random instant behind its first save; False, where it came to its end before."""
    saved = last.stat().st_mtime_ns if last.exists() else 0
    process = start(arguments, log)
    while process.poll() is None and (last.stat().st_mtime_ns if last.exists() else 0) == saved:
        time.sleep(0.002)
    deadline = time.monotonic() + dice.uniform(0, SECONDS)
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    if process.poll() is not None:
        if process.returncode:
            raise SystemExit(f"a resumed run ended with status {process.returncode}: see {log}")
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def main() -> None:
    """Both runs, and what differs; status 1, where anything does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keep the runs there; default: a temporary folder")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="faults-"))
    out.mkdir(parents=True, exist_ok=True)
    trainer = {"accelerator": "cpu", "devices": options.ranks, "max_epochs": -1, "enable_progress_bar": False}
    if options.ranks > 1:
        trainer["strategy"] = "ddp"
    config = {
        "wandb": "disabled",
        "threads": 1,
        "checkpoint_every": 2,
        "data": {
            "path": str(out / "data"),
            "collect": {"env_id": "Pendulum-v1", "steps": 6000, "max_episode_steps": 100, "observe": [0, 1]},
            "steps": 8,
            "lanes": 8,
        },
        "model": {"latent_dim": 6, "hidden_dim": 16, "width": 16, "objective": "latent"},
        "trainer": {**trainer, "max_steps": 60 * options.kills, "log_every_n_steps": 5},
        "rollout": {"multiples": [1, 2]},
    }
    conf = out / "faults.yaml"
    conf.write_text(yaml.safe_dump(config))
    whole, run, log = out / "whole", out / "run", out / "log.txt"
    for folder in (whole, run):
        shutil.rmtree(folder, ignore_errors=True)
    if start(["fit", "--config", str(conf), "--run_dir", str(whole)], log).wait():
        raise SystemExit(f"the run that nothing should happen to failed: see {log}")
    arguments = ["fit", "--config", str(conf), "--run_dir", str(run), "--resume"]
    dice, kills = random.Random(0), 0
    while kills < options.kills and kill_once(arguments, run / "checkpoints" / "last.ckpt", log, dice):
        kills += 1
        print(f"\rkilled {kills} of {options.kills} times", end="", flush=True)
    print()
    if start(arguments, log).wait():
        raise SystemExit(f"the last start failed: see {log}")
    differ = differences(run, whole)
    said = f"DIFFERENT: {', '.join(differ)}" if differ else "nothing differs"
    print(f"{kills} kills, {options.ranks} ranks: {said}")
    if options.out is None and not differ:
        shutil.rmtree(out)
    raise SystemExit(bool(differ))


if __name__ == "__main__":
    main()
