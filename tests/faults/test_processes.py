"""A data worker or a rank that dies alone, a worker that hangs, too little memory: an error that says what to do."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from conftest import one_line
from faults.processes import children, gone, run_ranks, start, wait_for
from faults.same_run import differences

from worldmodel.modules import data_module
from worldmodel.runs.checkpoint import read_checkpoint

ENDLESS = ["--trainer.max_steps", "1000000", "--checkpoint_every", "2"]


def training(config, cwd, *options):
    """A fit that has just saved its first checkpoint, and all processes that it started."""
    process = start(["fit", "--config", config, "--run_dir", "run", *options], cwd)
    wait_for(cwd / "run" / "checkpoints" / "last.ckpt", process)
    return process, children(process.pid)


def workers_of(pid) -> list[int]:
    """Its data workers, which have its command line."""
    mine = Path(f"/proc/{pid}/cmdline").read_bytes()
    return [child for child in children(pid) if Path(f"/proc/{child}/cmdline").read_bytes() == mine]


@pytest.mark.fault(12)
def test_a_killed_worker_is_told(config, tmp_path, seen):
    process, started = training(config, tmp_path, *ENDLESS, "--data.num_workers", "2")
    worker, before = workers_of(process.pid)[0], time.monotonic()
    os.kill(worker, signal.SIGKILL)
    assert f"a data worker (process {worker}) died" in one_line(process.end(60)) and gone(started)
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"]
    seen(f"killed: an error {time.monotonic() - before:.0f} s later, no process left")


HANGING = """
import sys, time
from worldmodel.cli import main
from worldmodel.data.segments import Segments

get = Segments.__getitem__
def get_or_hang(self, n):
    if n == 5:  # as where the disk does not answer
        time.sleep(1000)
    return get(self, n)
Segments.__getitem__ = get_or_hang
main(sys.argv[1:])
"""


@pytest.mark.full
@pytest.mark.fault(12)
def test_a_worker_that_hangs_is_told(config, tmp_path, seen):
    options = ["--run_dir", "run", "--data.num_workers", "1", "--checkpoint_every", "2"]
    process = start(["fit", "--config", config, *options], tmp_path, program=["-c", HANGING])
    wait_for(tmp_path / "run" / "checkpoints" / "last-1.ckpt", process)  # after step 4
    started, before = children(process.pid), time.monotonic()
    said = one_line(process.end(90))
    took = time.monotonic() - before
    assert f"gave no batch for {data_module.WORKER_SECONDS} seconds" in said and took < 60 and gone(started)
    seen(f"hanging: an error {took:.0f} s later, no process left")


@pytest.mark.fault(12)
def test_no_worker_outlives_a_killed_run(config, tmp_path, seen):
    process, started = training(config, tmp_path, *ENDLESS, "--data.num_workers", "2")
    os.kill(process.pid, signal.SIGKILL)
    assert gone(started)
    process.kill()
    seen("the run itself killed: its workers end by themselves")


@pytest.mark.fault(13)
@pytest.mark.full
@pytest.mark.parametrize("who", ["the first rank", "the second rank"])
def test_a_rank_that_dies_alone(config, tmp_path, often, seen, who):
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--checkpoint_every", "2"]
    ranks += ["--trainer.max_steps", often(200, 40)]
    process, started = training(config, tmp_path, *ranks)
    second = workers_of(process.pid) or started
    before = time.monotonic()
    os.kill(process.pid if who == "the first rank" else second[0], signal.SIGKILL)
    finished = process.end(60) if who == "the second rank" else None
    assert gone(started)
    took = time.monotonic() - before
    if finished is not None:
        assert finished.returncode not in (0, None) and "another rank of this training has gone" in finished.stderr
    process.kill()
    arguments = ["fit", "--config", config, *ranks, "--run_dir"]
    run_ranks(2, [*arguments, "run", "--resume"], tmp_path)
    run_ranks(2, [*arguments, "whole"], tmp_path)
    assert not differences(tmp_path / "run", tmp_path / "whole")
    seen(f"{who} killed: all gone {took:.0f} s later; resumed, nothing differs")


LIMITED = """
import resource, sys
from worldmodel.callbacks.checkpoints import LastCheckpoint
from worldmodel.cli import main

saved = LastCheckpoint._save
def save_and_limit(self, trainer, path):  # after the first save the process gets no more memory than it holds
    saved(self, trainer, path)
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held, held))
    LastCheckpoint._save = saved
LastCheckpoint._save = save_and_limit
main(sys.argv[1:])
"""


@pytest.mark.fault(16)
def test_too_little_memory_names_the_peak_and_the_options(config, tmp_path, seen):
    """`ulimit -v`, set after the first save; the validation needs more."""
    options = ["--run_dir", tmp_path / "run", "--model.hidden_dim", "1500"]
    arguments = ["fit", "--config", config, *options, "--checkpoint_every", "2"]
    said = one_line(start(arguments, tmp_path, program=["-c", LIMITED]).end())
    assert re.search(r"out of memory: this process held \d+\.\d\d GB at its peak", said) and "--data.lanes" in said
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] >= 2
    seen("ulimit -v: status 2, peak and options named, the last checkpoint whole")
