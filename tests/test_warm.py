"""A warm start is like a cold one."""

import os
import subprocess

import pytest
import warm

FIT = ["fit", "--data.steps", "8", "--data.lanes", "3", "--wandb", "disabled", "--trainer.accelerator", "cpu"]
FIT += ["--trainer.max_steps", "4", "--trainer.log_every_n_steps", "1"]
FIT += ["--model.latent_dim", "6", "--model.hidden_dim", "10", "--model.width", "12"]


@pytest.mark.full
def test_a_fit_has_the_same_numbers(toy_data, tmp_path):
    arguments = [*FIT, "--data.path", toy_data, "--run_dir"]
    ends = warm.run([*arguments, "warm"], tmp_path), warm.run([*arguments, "cold"], tmp_path, NOT="warm")
    assert [end.returncode for end in ends] == [0, 0], ends
    metrics = [(tmp_path / name / "metrics.csv").read_text() for name in ("warm", "cold")]
    assert metrics[0] == metrics[1] and "train/loss" in metrics[0]
    configs = [(tmp_path / name / "config.yaml").read_text() for name in ("warm", "cold")]
    assert configs[0] == configs[1].replace("run_dir: cold", "run_dir: warm")
    assert ends[0].stderr == ends[1].stderr


def test_two_run_at_a_time(tmp_path):
    first = warm.start(["collect", "Pendulum-v1", "--out", "x", "--steps", "100000000"], tmp_path)
    assert warm.run(["--version"], tmp_path).stdout.startswith("worldmodel ")
    assert first.poll() is None
    first.kill()
    assert first.returncode == -9


def test_one_that_does_not_end_is_killed(tmp_path):
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run(["collect", "Pendulum-v1", "--out", "x", "--steps", "100000000"], tmp_path, 1)
    assert warm.run(["--version"], tmp_path).returncode == 0


@pytest.mark.parametrize("program", [["-c", "import sys; print(sys.argv[1:], __name__)"], ["SCRIPT"]])
def test_code_and_scripts_run_as_python_runs_them(tmp_path, program):
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.argv[1:], __name__)")
    ended = warm.run(["a", 1], tmp_path, program=[str(script) if word == "SCRIPT" else word for word in program])
    assert ended.stdout == "['a', '1'] __main__\n", ended.stderr


def test_a_changed_environment_needs_a_cold_start(monkeypatch):
    server = warm.Server()
    assert server.fits(warm.variables())
    monkeypatch.setenv("HOME", os.devnull)
    assert not server.fits(warm.variables())


def test_a_server_that_starts_in_a_changed_environment_does_not_keep_it(monkeypatch):
    monkeypatch.setenv("HOME", os.devnull)
    server = warm.Server()
    monkeypatch.undo()
    assert server.fits(warm.variables())


@pytest.mark.parametrize("time", ["once", "again"])
def test_a_variable_ends_with_the_test_that_set_it(time):
    assert "SET_BY_A_TEST" not in os.environ
    os.environ["SET_BY_A_TEST"] = time
