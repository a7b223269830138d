"""Whether a W&B server refuses, stalls or dies, the run ends as without it, with all numbers on disk."""

import csv
import subprocess
import sys
import time

import pytest
import warm
from faults.processes import run
from faults.wandb_server import wandb_server

WAYS = {
    "answers": (None, "stall"),
    "is not there": ("", "die"),
    "stalls from the beginning": ("", "stall"),
    "stalls as the run is opened": ("upsertBucket", "stall"),
    "stalls in mid-run": ("file_stream", "stall"),
    "dies in mid-run": ("file_stream", "die"),
    "answers with errors in mid-run": ("file_stream", "error"),
}
MODES = ("offline", "online")
STEP = "trainer/global_step"


@pytest.mark.full
@pytest.mark.fault(14)
@pytest.mark.parametrize("way", WAYS)
def test_whatever_the_server_does_the_run_ends(config, whole, tmp_path, seen, way):
    arguments = ["fit", "--config", config, "--run_dir", "run", "--wandb", "online"]
    with wandb_server(*WAYS[way]) as server:
        account = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "HOME": str(tmp_path)}
        before = time.monotonic()
        process = run(arguments, tmp_path, **account)
        took = time.monotonic() - before
    assert process.returncode == 0, process.stderr
    for name in ("metrics.csv", "rollout.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
    runs = [path for path in (tmp_path / "run" / "wandb").glob("*run-*-*") if any(path.glob("run-*.wandb"))]
    offline = [path for path in runs if path.name.startswith("offline")]
    assert runs and "wandb sync" in process.stdout or not offline
    assert bool(offline) == (way in ("is not there", "stalls from the beginning", "stalls as the run is opened"))
    seen(f"{way}: status 0, metrics.csv as without it, {took:.0f} s in all")


SESSIONS = [(first, second, ends) for first in MODES for second in MODES for ends in ("killed", "ended")]


@pytest.mark.full
@pytest.mark.parametrize(("first", "second", "ends"), SESSIONS)
def test_a_resumed_run_is_in_wandb_once(config, tmp_path, first, second, ends):
    """Whichever sessions were online, in whatever order the others are sent: the rows of metrics.csv."""
    arguments = ["fit", "--config", config, "--run_dir", "run", "--resume", "--trainer.max_steps"]
    with wandb_server() as server:
        account = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "HOME": str(tmp_path)}
        kill = [17, "SIGKILL"] if ends == "killed" else []  # after a checkpoint of step 15 and a row
        run([*arguments, "18" if kill else "17", "--wandb", first], tmp_path, kill=kill, **account)
        process = run([*arguments, "18", "--wandb", second], tmp_path, **account)
        assert process.returncode == 0, process.stderr
        folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"), reverse=True)
        for folder in folders:
            command = [sys.executable, "-m", "wandb", "sync", folder]
            subprocess.run(command, cwd=tmp_path, env=warm.variables(**account), check=True)
    sent = [{name: value for name, value in row.items() if not name.startswith("_")} for row in server.history]
    found = [comparable(row, STEP) for row in sent if not any("picture" in name for name in row)]
    wanted = [comparable(row, "step") for row in csv.DictReader((tmp_path / "run" / "metrics.csv").open())]
    if ends == "ended":  # the row that its end made is taken back from metrics.csv, not from W&B
        found = [row for row in found if row in wanted]
    if (first, ends) == ("online", "killed"):  # what has arrived of its last seconds, nobody knows
        found, wanted = found[-1:], wanted[-1:]
    assert sorted(found) == wanted


def comparable(row, step):
    """Its step, and its numbers by their names."""
    return int(row[step]), sorted((name, float(value)) for name, value in row.items() if name != step and value != "")
