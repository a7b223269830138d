"""SIGTERM, Ctrl-C, SIGUSR1: a checkpoint within a step; a second signal stops at once."""

import signal

import pytest
import warm
from faults.processes import run
from faults.same_run import differences

from worldmodel.runs.checkpoint import read_checkpoint


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    ("name", "status"), [("SIGTERM", 143), ("SIGINT", 130), pytest.param("SIGUSR1", 138, marks=pytest.mark.full)]
)
def test_a_signal_saves_within_a_step(config, whole, tmp_path, seen, name, status):
    arguments = ["fit", "--config", config, "--experiment", "x"]
    process = run(arguments, tmp_path, (16, name))
    assert process.returncode == status, process.stderr
    assert "stopped at step 16: the checkpoint of step 16 is kept; go on from it with --resume" in process.stdout
    assert "Traceback" not in process.stderr
    folder = next((tmp_path / "runs" / "x").iterdir())
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 16
    seen(f"{name}: a checkpoint of that step, status {status}")
    if name == "SIGTERM":  # the newest run of this name is found
        assert run([*arguments, "--ckpt_path", "last"], tmp_path).returncode == 0
        assert not differences(folder, whole)


@pytest.mark.fault(11)
def test_a_second_signal_stops_at_once(config, tmp_path, seen):
    """Both come within the same step."""
    process = run(["fit", "--config", config, "--run_dir", "run"], tmp_path, (16, "SIGTERM,SIGTERM"))
    assert process.returncode == -signal.SIGTERM
    assert "once more stops at once" in process.stderr and "stopped at step" not in process.stdout
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 15, "of the save before"
    seen("the second one stops at once")


def in_validation(step, name):
    return ["--trainer.callbacks+=faults.stops.DieInValidation", f"--trainer.callbacks.step={step}",
            f"--trainer.callbacks.name={name}"]  # fmt: skip


@pytest.mark.fault(11)
def test_a_signal_in_a_validation_says_what_it_waits_for(config, tmp_path, seen):
    process = run(["fit", "--config", config, "--run_dir", "run", *in_validation(14, "SIGTERM")], tmp_path)
    assert process.returncode == 143, process.stderr
    assert "SIGTERM: the validation ends first, then a checkpoint is saved; once more stops at once" in process.stderr
    assert "stopped at step 15: the checkpoint of step 15 is kept" in process.stdout
    seen("in a validation it says at once what it waits for")


@pytest.mark.fault(11)
def test_what_saves_nothing_ends_at_once(config, whole, tmp_path):
    """Lightning would take SIGTERM, and end with status 0."""
    arguments = ["validate", "--config", config, "--ckpt_path", whole, "--run_dir", "run"]
    process = run([*arguments, *in_validation(0, "SIGTERM")], tmp_path)
    assert process.returncode == -signal.SIGTERM and "val/loss" not in process.stdout, process.stderr


IMPORTED = """
import os, signal, sys
from contextlib import suppress
from worldmodel import cli

class Finder:
    def find_spec(self, name, *arguments):
        if name == "worldmodel.commands.configs":
            with suppress(KeyboardInterrupt):  # as libraries do that can be without what they import
                os.kill(os.getpid(), signal.SIGINT)
                signal.getsignal(signal.SIGINT)

sys.modules.pop("worldmodel.commands.configs", None)
sys.meta_path.insert(0, Finder())
cli.main(["configs"])
"""


def test_ctrl_c_while_modules_are_imported_ends_at_once(tmp_path):
    process = warm.run([], tmp_path, program=["-c", IMPORTED])
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "worldmodel: interrupted\n")


DRAWN = """
import os, signal
from worldmodel.envs.make import make_simulator
from worldmodel.envs.render import prepare_display
prepare_display()
envs = make_simulator("CartPole-v1", 1, env_kwargs={"render_mode": "rgb_array"}).envs
envs.reset()
print(len(envs.render()), flush=True)
os.kill(os.getpid(), signal.SIGTERM)
print("goes on")
"""


@pytest.mark.fault(11)
def test_a_simulator_that_draws_leaves_the_signals_alone(tmp_path):
    """SDL, which pygame draws with, would take SIGTERM for an event of a window."""
    process = warm.run([], tmp_path, program=["-c", DRAWN])
    assert process.returncode == -signal.SIGTERM and process.stdout.splitlines()[-1] == "1", process.stderr
