"""A run that is killed, whenever and however often, ends bit for bit like an undisturbed one."""

import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from faults.processes import run, start, wait_for
from faults.same_run import differences

from worldmodel.runs.checkpoint import read_checkpoint

SECONDS = 1.5  # a kill comes within so many after the first save of a process
RANKS = {1: [], 2: ["--trainer.devices", "2", "--trainer.strategy", "ddp"]}


@pytest.mark.slow
@pytest.mark.fault(1)
@pytest.mark.full
@pytest.mark.parametrize("ranks", [1, 2])
def test_kills_at_random_instants_change_nothing(config, tmp_path, seen, ranks):
    """A save every other step, so that many kills hit one."""
    kills = 20 if ranks == 2 else 50
    arguments = ["fit", "--config", config, "--checkpoint_every", "2", "--trainer.max_steps", 60 * kills, *RANKS[ranks]]
    dice, done, last = random.Random(ranks), 0, tmp_path / "run" / "checkpoints" / "last.ckpt"
    while done < kills:
        saved = last.stat().st_mtime_ns if last.exists() else 0
        process = start([*arguments, "--run_dir", "run", "--resume"], tmp_path)
        wait_for(last, process, newer_than=saved)
        time.sleep(dice.uniform(0, SECONDS))
        if process.poll() is not None:
            break
        process.kill()
        done += 1
    finished = run([*arguments, "--run_dir", "run", "--resume"], tmp_path, timeout=3000)
    assert finished.returncode == 0, finished.stderr
    assert run([*arguments, "--run_dir", "whole"], tmp_path, timeout=3000).returncode == 0
    assert not differences(tmp_path / "run", tmp_path / "whole")
    assert done >= 0.8 * kills, f"the run ended after {done} kills"
    seen(f"{done} kills of {'one process' if ranks == 1 else 'two ranks'}: nothing differs")


@pytest.mark.slow
@pytest.mark.fault(2)
def test_a_resume_at_every_step_changes_nothing(config, tmp_path, often, seen):
    """From every checkpoint of a run that saves at each step but an epoch's last (14, 28, ...)."""
    end = often(62, 16)
    arguments = ["fit", "--config", config, "--checkpoint_every", "1", "--trainer.max_steps", end]
    whole = tmp_path / "whole"
    assert run([*arguments, "--checkpoint_keep", "70", "--run_dir", whole], tmp_path).returncode == 0
    saved = {read_checkpoint(path)["global_step"]: path for path in (whole / "checkpoints").glob("last*.ckpt")}
    assert sorted(saved) == [step for step in range(1, end + 1) if step % 14]
    steps = often([step for step in saved if step <= 60], [13])

    def differ(step):
        folder = tmp_path / f"from{step}"
        # nor best.ckpt, which is of a later step
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("last*", "best*", ".lock"))
        shutil.copy(saved[step], folder / "checkpoints" / "last.ckpt")
        process = run([*arguments, "--run_dir", folder, "--resume"], tmp_path)
        assert process.returncode == 0 and "resume: from" in process.stdout, process.stderr
        return differences(folder, whole)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(differ, steps)) == [[]] * len(steps)
    seen(f"from each of {len(steps)} checkpoints of steps 1 to 60: nothing differs")


@pytest.mark.full
@pytest.mark.fault(3)
def test_another_number_of_workers_changes_nothing(config, tmp_path, often, seen):
    """0, then several, then 1: each run goes on where the one before stopped."""
    several = often(4, 2)
    arguments = ["fit", "--config", config, "--run_dir", "run", "--resume"]
    for workers, steps in ((0, 9), (several, 19), (1, 30)):
        options = ["--data.num_workers", workers, "--trainer.max_steps", steps, "--model.lr_schedule", "constant"]
        assert (process := run([*arguments, *options], tmp_path)).returncode == 0, process.stderr
    alone = ["--trainer.max_steps", 30, "--model.lr_schedule", "constant"]
    assert run(["fit", "--config", config, "--run_dir", "alone", *alone], tmp_path).returncode == 0
    names = ("state_dict", "optimizer_states", "TruncatedBPTT")
    assert not [name for name in differences(tmp_path / "run", tmp_path / "alone") if any(n in name for n in names)]
    seen(f"0, {several} and 1 of them, one after the other: weights, moments, states equal")


@pytest.mark.full
def test_a_kill_around_a_validation_in_mid_epoch(config, tmp_path):
    """A validation every 5 steps, whatever the epoch, which ends after step 14."""
    options = ["--trainer.val_check_interval", "5", "--trainer.check_val_every_n_epoch", "null"]
    arguments = ["fit", "--config", config, "--checkpoint_every", "1", *options, "--trainer.max_steps", "23"]
    assert run([*arguments, "--run_dir", "whole"], tmp_path).returncode == 0
    for step in (6, 16):
        name = f"run{step}"
        killed = run([*arguments, "--run_dir", name], tmp_path, (step, "SIGKILL"))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert (process := run([*arguments, "--run_dir", name, "--resume"], tmp_path)).returncode == 0, process.stderr
        assert not differences(tmp_path / name, tmp_path / "whole")
