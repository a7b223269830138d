"""A warm run is as one from nothing."""

import os
import subprocess

import pytest
import warm

FIT = ["fit", "--data.steps", "8", "--data.lanes", "3", "--wandb", "disabled", "--trainer.accelerator", "cpu"]
FIT += ["--trainer.max_steps", "4", "--trainer.log_every_n_steps", "1"]
FIT += ["--model.latent_dim", "6", "--model.hidden_dim", "10", "--model.width", "12"]


def test_a_fit_has_the_same_numbers(toy_data, tmp_path):
    arguments = [*FIT, "--data.path", toy_data, "--run_dir"]
    ends = warm.run([*arguments, "warm"], tmp_path, 400), warm.run([*arguments, "cold"], tmp_path, 400, NOT="warm")
    assert [end.returncode for end in ends] == [0, 0], ends
    metrics = [(tmp_path / name / "metrics.csv").read_text() for name in ("warm", "cold")]
    assert metrics[0] == metrics[1] and "train/loss" in metrics[0]
    configs = [(tmp_path / name / "config.yaml").read_text() for name in ("warm", "cold")]
    assert configs[0] == configs[1].replace("run_dir: cold", "run_dir: warm")
    assert ends[0].stderr == ends[1].stderr


def test_one_that_does_not_end_is_ended(tmp_path):
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run(["collect", "Pendulum-v1", "--out", "x", "--steps", "100000000"], tmp_path, 1)
    assert warm.run(["--version"], tmp_path, 400).returncode == 0


def test_what_a_test_changes_in_the_environment_is_there_from_the_beginning(monkeypatch):
    server = warm.Server.__new__(warm.Server)
    server.environment = warm.variables()
    assert server.fits(warm.variables())
    monkeypatch.setenv("HOME", os.devnull)
    assert not server.fits(warm.variables())
