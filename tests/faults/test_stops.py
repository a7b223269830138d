"""A run that was stopped, by whatever, goes on as the run that never stopped."""

import signal
from pathlib import Path

import pytest
from faults.processes import run
from faults.same_run import differences

OFTEN = ["--trainer.val_check_interval", "5"]  # after steps 5, 10, 19, 24: an epoch has 14
TWO = ["--trainer.accumulate_grad_batches", "2"]  # an epoch has 7 steps
AVERAGED = ["--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay", "0.9"]


def ends(name: str, step: int) -> list[str]:
    return [f"--trainer.callbacks+=faults.stops.{name}", "--trainer.callbacks.step", str(step)]


STOPS = {  # options of the run, and what stops it
    "in mid-epoch": ([], ends("StopAt", 17)),
    "on the last step of an epoch": ([], ends("StopAt", 14)),
    "after an epoch": ([], ends("StopInValidation", 14)),
    "by an exception": ([], ends("FailAt", 17)),
    "by max_steps": ([], ["--trainer.max_steps", "17"]),
    "after an epoch without a validation": (
        ["--trainer.check_val_every_n_epoch", "2"],
        ["--trainer.max_epochs", "1"],
    ),
    "on a step that a validation follows": (OFTEN, ends("StopAt", 19)),
    "on a step before it": (OFTEN, ends("StopAt", 18)),
    "in a validation in mid-epoch": (OFTEN, ends("StopInValidation", 19)),
    "by max_steps, on a step that a validation follows": (OFTEN, ["--trainer.max_steps", "19"]),
    "where a validation follows every step": (["--trainer.val_check_interval", "1"], ends("StopAt", 17)),
    "with accumulated gradients": (TWO, ends("StopAt", 9)),
    "in a validation between two of them": ([*TWO, *OFTEN], ends("StopInValidation", 2)),
    "with averaged weights": (AVERAGED, ends("StopAt", 17)),
    "after an epoch, with averaged weights": (AVERAGED, ["--trainer.max_epochs", "1"]),
    "killed in the last validation": (["--trainer.max_steps", "13"], ends("DieInValidation", 13)),
}
USUAL = ("in mid-epoch", "killed in the last validation")


@pytest.fixture(scope="module")
def short(config) -> list:
    """A fit of two epochs that measures little."""
    epochs = ["--trainer.max_steps", "-1", "--trainer.max_epochs", "2"]
    return ["fit", "--config", config, *epochs, "--rollout.max_episodes", "2", "--model.lr_schedule", "constant"]


@pytest.fixture(scope="module")
def never_stopped(short, tmp_path_factory):
    """`never_stopped(*options)`: the folder of a run that ends by itself."""
    folders: dict[tuple, Path] = {}

    def once(*options):
        if options not in folders:
            folders[options] = tmp_path_factory.mktemp("whole") / "run"
            process = run([*short, *options, "--run_dir", folders[options]], folders[options].parent)
            assert process.returncode == 0, process.stderr
        return folders[options]

    return once


@pytest.mark.fault(21)
@pytest.mark.parametrize("how", [how if how in USUAL else pytest.param(how, marks=pytest.mark.full) for how in STOPS])
def test_it_goes_on_bit_for_bit(short, never_stopped, tmp_path, seen, how):
    options, stop = STOPS[how]
    arguments = [*short, *options, "--run_dir", tmp_path / "run"]
    stopped = run([*arguments, *stop], tmp_path)
    status = {"by an exception": 1, "killed in the last validation": -signal.SIGKILL}
    assert stopped.returncode == status.get(how, 0), stopped.stderr
    if stop[0].endswith(".StopAt"):
        assert f"\nstopped early at step {stop[-1]}: StopAt asked for it (stops.py, line " in stopped.stdout
    process = run([*arguments, "--resume"], tmp_path)
    assert process.returncode == 0 and "resume: from" in process.stdout, process.stderr
    assert "stopped early" not in process.stdout
    assert not differences(tmp_path / "run", never_stopped(*options))
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt")) == [
        "best.ckpt",
        "last-1.ckpt",
        "last.ckpt",
    ]
    seen(f"{how}: nothing differs")
