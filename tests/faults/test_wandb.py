"""Whether a W&B server refuses, stalls or dies, the run ends as without it, with all numbers on disk."""

import time

import pytest
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
USUAL = "stalls as the run is opened"


@pytest.mark.slow
@pytest.mark.fault(14)
@pytest.mark.parametrize("way", [pytest.param(way, marks=[] if way == USUAL else pytest.mark.full) for way in WAYS])
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
