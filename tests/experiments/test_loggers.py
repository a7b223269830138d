"""What a run leaves for W&B, read back from the offline file; and `worldmodel dashboard` without an account."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import one_line

from worldmodel import read_metrics
from worldmodel.cli import main

SMALL = ["--model.latent_dim", "6", "--model.hidden_dim", "10", "--model.width", "12"]


@pytest.fixture(scope="module")
def no_account(tmp_path_factory):
    """An environment without an account, whose server does not answer."""
    return {"HOME": str(tmp_path_factory.mktemp("home")), "WANDB_BASE_URL": "http://127.0.0.1:9"}


def records_of(folder):
    """Every record of the offline run, in order."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", path]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_an_offline_run_holds_what_groups_and_compares_it(worldmodel, toy_data, tmp_path):
    conf = {
        "wandb": "offline",
        "data": {"path": str(toy_data), "steps": 8, "lanes": 3},
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 3, "log_every_n_steps": 10},
        "rollout": {"multiples": [1, 2]},
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(conf))
    options = ["--model.rule", "residual", "--tbptt.start", "zero", "--run_dir", "run", "--experiment", "rules"]
    process = worldmodel("fit", "--config", "toy.yaml", *SMALL, *options)
    assert process.returncode == 0, process.stderr
    records = records_of(tmp_path / "run")
    run = next(record["run"] for record in records if record["type"] == "run")
    assert (run["run_group"], run["job_type"], run["display_name"]) == ("rules", "fit", "run")
    assert run["tags"] == ["residual", "zero", "toy_env:Toy-v0"]
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    everything = next(metric for metric in metrics if metric.get("glob_name") == "*")
    assert everything["step_metric"] == "trainer/global_step" and everything["options"]["step_sync"]
    summaries = {metric["name"]: metric for metric in metrics if "summary" in metric}
    assert set(summaries) == {"val/loss", "rollout/nmse@8", "rollout/nmse@16"}
    assert all(metric["summary"] == {"last": True, "min": True} for metric in summaries.values())
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    summary = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    for name in summaries:
        values = [item[name] for item in history if name in item]
        assert len(values) == 3
        assert summary[name] == pytest.approx({"last": values[-1], "min": min(values)})
    assert all("trainer/global_step" in item for item in history if "val/loss" in item or "train/loss" in item)
    config = dict(run["config"]["update"])
    for record in records:
        config |= record.get("config", {}).get("update", {})
    assert config["model"]["rule"] == "residual" and config["model"]["obs_dim"] == 2
    assert config.keys() & {"rule", "obs_dim", "_instantiator"} == set(), "each option stands once"
    assert config["variant"] == "residual, zero", "the dashboard groups by it"


@pytest.mark.parametrize("resumed", [False, pytest.param(True, marks=pytest.mark.full)])
def test_tensorboard_and_mlflow_have_the_metrics(worldmodel, toy_data, tmp_path, monkeypatch, resumed):
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"file:{tmp_path}/store")
    words = ["fit", f"--data.path={toy_data}", "--data.steps=8", "--data.lanes=3", *SMALL, "--trainer.accelerator=cpu"]
    words += ["--wandb=disabled", "--tensorboard", "--mlflow", "--run_dir=run", "--experiment=toys", "--resume"]
    words += ["--rollout.multiples=[1]", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
    if resumed:  # by another process, since this one would still hold the run's folder
        for steps in (2, 4):
            assert worldmodel(*words, f"--trainer.max_steps={steps}").returncode == 0
    else:
        main([*words, "--trainer.max_steps=4"])
    metrics = read_metrics("run")
    losses = metrics["train/loss"][np.isfinite(metrics["train/loss"])]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    seen = {event.step: event.value for event in events.Scalars("train/loss")}
    assert [seen[step] for step in range(4)] == pytest.approx(losses.tolist(), rel=1e-6)
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("toys").experiment_id])
    seen = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "train/loss")}
    assert [seen[step] for step in range(4)] == pytest.approx(losses.tolist(), rel=1e-6)
    assert run.data.metrics["rollout/nmse_at_8"] == pytest.approx(metrics["rollout/nmse@8"][-1])
    assert run.data.params["model/rule"] == "gated_norm" and run.data.tags["tags"].startswith("gated_norm, carry")


def test_a_flag_without_its_package_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("worldmodel.experiments.more_loggers.find_spec", lambda name: None)
    for flag in ("tensorboard", "mlflow"):
        with pytest.raises(SystemExit):
            main(["fit", "--data.path", str(tmp_path), f"--{flag}"])
        line = f"--{flag} needs the package {flag}, which is missing: pip install 'worldmodel[{flag}]'"
        assert line in capsys.readouterr().err


def test_the_dashboard_is_written_without_an_account(worldmodel, tmp_path, no_account, monkeypatch):
    for name, value in no_account.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    arguments = ["--project", "pendulum", "--group", "rules", "--horizons", "8,16", "--spec", "spec.json"]
    process = worldmodel("dashboard", *arguments)
    assert process.returncode == 0, process.stderr
    spec = json.loads((tmp_path / "spec.json").read_text())
    assert set(spec) == {"workspace", "report"} and spec["report"]["project"]["name"] == "pendulum"
    assert "rollout/nmse@16" in json.dumps(spec["workspace"]) and "rollout/nmse@16" in json.dumps(spec["report"])
    line = one_line(worldmodel("dashboard", "--project", "pendulum"))
    assert "W&B cannot be used" in line and "wandb login" in line and "--spec FILE" in line
    assert "32,64,160" in one_line(worldmodel("dashboard", "--project", "p", "--horizons", "8,x"))
    assert "required: --project" in one_line(worldmodel("dashboard"))


def horizons(spec):
    return set(map(int, re.findall(r"rollout/nmse@(\d+)", json.dumps(spec))))


def test_the_dashboard_shows_the_horizons_that_the_runs_reach(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def shown(*words):
        main(["dashboard", "--project", "mine", *words, "--spec", "spec.json"])
        return horizons(json.loads((tmp_path / "spec.json").read_text()))

    assert shown() == {32, 64, 160, 320}, "of the default configuration"
    for number, (project, reached) in enumerate([("mine", "8,16"), ("mine", "8,40"), ("another", "99")]):
        (run := tmp_path / "runs" / "rules" / str(number) / "checkpoints").mkdir(parents=True)
        (run.parent / "config.yaml").write_text(yaml.safe_dump({"project": project, "experiment": f"e{number}"}))
        header = ",".join(f"rollout/nmse@{horizon}" for horizon in reached.split(","))
        (run.parent / "metrics.csv").write_text(f"{header}\n{','.join('1' * (header.count(',') + 1))}\n")
    assert shown() == {8, 16, 40}
    assert shown("--group", "e1") == {8, 40}
    assert shown("--horizons", "5") == {5}
