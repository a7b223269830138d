"""`worldmodel diagnose` as its users meet it."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from tests.diagnosis.models import SMALL
from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.cli import main


@pytest.fixture
def conf(toy_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLDMODEL_RUN_DIR", "")  # what is set is taken back
    monkeypatch.setenv("COLUMNS", "200")
    values = {
        "wandb": "disabled",
        "data": {"path": str(toy_data), "steps": 8, "lanes": 6},
        "model": SMALL,
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(values))
    return values


def save_checkpoint(folder, conf, damage=None):
    """A run's folder, with its configuration."""
    data = EpisodeDataModule(**conf["data"])
    model = WorldModel(data.obs_dim, data.action_dim, data.images, **SMALL)
    if damage is not None:
        damage(model)
    (folder / "checkpoints").mkdir(parents=True)
    state = {"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}
    torch.save(state, folder / "checkpoints" / "last.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(conf))


def test_it_prints_and_saves(conf, capsys):
    main(["diagnose", "--config", "toy.yaml", "--out", "out", "--batches", "4"])
    said = capsys.readouterr().out
    assert said.strip().splitlines()[-1] == "diagnosis: out" and "nothing found" in said
    values = json.loads(Path("out/diagnosis.json").read_text())
    assert values["findings"] == [] and (values["rule"], values["horizon"], values["steps"]) == ("gated_norm", 8, 32)
    assert values["growth"]["law"] == "bounded" and len(values["gradients"]["parameters"]) > 10
    with Image.open("out/diagnosis.png") as picture:
        assert picture.width > 1000


def test_options_of_fit_pass_through_and_faults_are_told(conf, capsys):
    main(["diagnose", "--config", "toy.yaml", "--model.gate_bias", "-30", "--data.steps", "6", "--batches", "2"])
    said = capsys.readouterr().out
    assert "saturated gate: 100% of the gate's values" in said and "change: --model.gate_bias nearer to 0" in said
    assert said.strip().splitlines()[-1] == "diagnosis: runs/diagnose/gated_norm-toy_env-Toy-v0"


def test_a_checkpoint_is_diagnosed_with_the_configuration_of_its_run(conf, tmp_path, capsys):
    save_checkpoint(tmp_path / "run", conf, lambda model: model.decoder[0].bias.data.fill_(float("nan")))
    main(["diagnose", "--ckpt", "run", "--out", "out"])
    assert "not finite: decoder.0.bias holds NaN or infinity" in capsys.readouterr().out
    (finding,) = json.loads(Path("out/diagnosis.json").read_text())["findings"]
    assert finding["kind"] == "not finite"


def test_a_learning_rate_that_is_too_high_is_named_before_what_it_does_to_the_gates(conf, toy_data, capsys):
    """By the fit at its end, and by its diagnosis; the loss of the first step shows it."""
    steps = ["--trainer.max_steps", "25", "--trainer.max_epochs", "-1", "--rollout.multiples", "[1]"]
    main(["fit", "--config", "toy.yaml", *steps, "--model.learning_rate", "1.0", "--run_dir", "run"])
    said = capsys.readouterr().out
    assert "No better than" in said and "Likely cause: the learning rate is too high (1): " in said
    with Path("run/metrics.csv").open(newline="") as file:
        first, *_ = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert first["step"] == "0"
    main(["diagnose", "--ckpt", "run", "--out", "out", "--batches", "2"])
    said = capsys.readouterr().out
    assert "1. no better than a baseline: " in said and "likely, the learning rate is too high (1)" in said
    values = json.loads(Path("out/diagnosis.json").read_text())
    assert values["findings"][0]["weight"] == 95 and set(values["open_loop"]) == {"nmse", "copy_last", "mean", "linear"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give --config conf/quickstart.yaml, or --ckpt RUN"),
        ("--config toy.yaml --batches 0", "--batches is 0: it must be at least 1"),
        ("--config toy.yaml --batchs 3", "unknown option --batchs: did you mean '--batches'"),
        ("--config toy.yaml --model.rule gatd", "unknown rule 'gatd'"),
        ("--config nowhere.yaml", "no file nowhere.yaml"),
        ("--config toy.yaml --ckpt rum", "no checkpoint at rum"),
        ("--config toy.yaml --ckpt toy.yaml", "is not a checkpoint of this program"),
        ("--config toy.yaml --ckpt run --model.rule gru", "model.rule is 'gru', in the checkpoint 'gated_norm'"),
        ("--config toy.yaml --run_dir out", "the folder is chosen with --out"),
        ("--config toy.yaml --out run", "run is not empty: choose another --out"),
        ("--config toy.yaml --data.path empty", "no dataset at empty"),
    ],
)
def test_a_mistake_is_one_clear_line(conf, tmp_path, capsys, arguments, message):
    if "run" in arguments.split():
        save_checkpoint(tmp_path / "run", conf)
    with pytest.raises(SystemExit) as stop:
        main(["diagnose", *arguments.split()])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("worldmodel: error: ") and message in line
    assert not (tmp_path / "runs").exists(), "a mistake leaves no folder"
