"""What a run leaves for W&B, read back from the offline file; and `worldmodel dashboard` without an account."""

import json
import subprocess
import sys

import pytest
import yaml
from conftest import one_line

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
    assert config["model"]["rule"] == "residual"
    assert config["variant"] == "residual, zero", "the dashboard groups by it"


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
