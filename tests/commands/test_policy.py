"""`worldmodel policy` as its users meet it: a run that ends with a result, goes on, and is judged."""

import csv
import json

import pytest
import torch
import yaml
from conftest import ROOT

from worldmodel.cli import main

CONFS = sorted((ROOT / "conf" / "policy").glob("*.yaml"))
QUICK = ["--data.num_envs", "4", "--data.rollout_steps", "32", "--data.chunk_steps", "8", "--data.episodes", "4"]
QUICK += ["--data.total_steps", "600", "--model.hidden_dim", "8", "--wandb", "disabled"]
CONTRACT = {
    "train/policy_loss", "train/value_loss", "train/entropy", "train/kl", "train/clip_fraction", "policy/return_mean",
    "policy/episode_steps", "policy/steps", "policy/steps_per_second", "policy/value_error", "val/return_mean",
    "hidden/norm_mean", "hidden/gate_mean", "guard/grad_norm",
}  # fmt: skip


@pytest.fixture
def conf(tmp_path):
    path = tmp_path / "pole.yaml"
    text = {
        "data": {"env_id": "CartPole-v1", "observe": [0, 2], "max_episode_steps": 50},
        "threads": 1,
        "wandb": "disabled",
    }
    path.write_text(yaml.safe_dump({**text, "trainer": {"log_every_n_steps": 1}}))
    return path


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Run `worldmodel policy fit` in this process, in an empty folder; returns what it printed."""

    def run(*arguments) -> str:
        monkeypatch.chdir(tmp_path)
        main(["policy", "fit", *map(str, arguments)])
        return capsys.readouterr().out

    return run


def run_of(process) -> str:
    assert process.returncode == 0, process.stderr[-3000:]
    return folder_in(process.stdout)


def folder_in(printed: str) -> str:
    last = printed.strip().splitlines()[-1]
    assert last.startswith("run: ")
    return last.removeprefix("run: ")


def rows_of(folder):
    return list(csv.DictReader((folder / "metrics.csv").open()))


@pytest.mark.slow
def test_a_policy_is_trained_goes_on_and_is_judged(worldmodel, conf, tmp_path):
    fitted = worldmodel("policy", "fit", "--config", conf, *QUICK)
    folder = tmp_path / run_of(fitted)
    assert folder.relative_to(tmp_path).as_posix() == "runs/pole/gated_norm-CartPole-v1-s0"
    for name in ("config.yaml", "metrics.csv", "returns.png", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        assert (folder / name).stat().st_size > 100, name
    rows = rows_of(folder)
    assert set(rows[0]) >= CONTRACT, CONTRACT - set(rows[0])
    assert "validation: mean return" in fitted.stdout and "95% interval" in fitted.stdout
    steps = [float(row["policy/steps"]) for row in rows if row["policy/steps"]]
    assert steps == sorted(steps) and 128 * 4 - 40 <= steps[-1] <= 600

    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    state = checkpoint["state_dict"]
    assert state["obs_norm.batches"] == state["return_norm.batches"] + 1 == 5 and state["obs_norm.scale"][0] != 1

    more = worldmodel("policy", "fit", "--config", conf, *QUICK, "--resume", "--data.total_steps", "1200")
    assert run_of(more) == str(folder.relative_to(tmp_path)) and "resume: from" in more.stdout
    longer = [float(row["policy/steps"]) for row in rows_of(folder) if row["policy/steps"]]
    assert longer[: len(steps)] == steps and longer == sorted(longer) and 900 < longer[-1] <= 1200
    judge = ["--config", folder / "config.yaml", "--ckpt_path", folder, "--run_dir"]
    judged = worldmodel("policy", "validate", *judge, "v")
    assert run_of(judged) == "v" and "over 4 episodes" in judged.stdout
    told = [line for line in judged.stdout.splitlines() if line.startswith("validation:")]
    assert told == [line for line in more.stdout.splitlines() if line.startswith("validation:")], "the same episodes"
    without = worldmodel("policy", "test", *judge, "t", "--reset_every", "3")
    assert run_of(without) == "t" and "the state reset at frame 0 and at every 3 further ones" in without.stdout


@pytest.mark.parametrize("conf", CONFS, ids=lambda path: path.stem)
def test_every_conf_runs(here, conf, tmp_path):
    options = ["--trainer.max_steps", "3", "--data.episodes", "2", "--data.max_episode_steps", "60"]
    printed = here("--config", conf, *options, "--wandb", "disabled")
    assert (tmp_path / folder_in(printed) / "returns.png").exists()


def test_a_feed_forward_policy_is_one_option(here, conf):
    options = ["--model.rule", "none", "--data.burn_in_steps", "2", "--data.refresh", "true"]
    options += ["--data.target_kl", "1e-9"]
    printed = here("--config", conf, *QUICK, *options)
    assert folder_in(printed).endswith("none-CartPole-v1-s0") and "policy: none" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["policy", "fitt"], "unknown command 'policy fitt': did you mean 'fit'"),
        (["policy", "fit", "--config", "CONF", "--model.rule", "grru"], "unknown rule 'grru': did you mean 'gru'"),
        (["policy", "fit", "--config", "CONF", "--data.epochs", "3"], "did you mean '--data.update_epochs'"),
        (["policy", "fit", "--config", "CONF", "--data.env_id", "CartPol-v1"], "did you mean 'CartPole-v1'"),
        (["policy", "fit", "--config", "CONF", "--data.observe", "[0, 7]"], "entries 0 to 3"),
        (["policy", "fit", "--config", "CONF", "--data.total_steps", "9"], "less than one rollout"),
        (["policy", "fit", "--config", "CONF", "--data.minibatches", "99"], "only 32 chunks to share out"),
        (["policy", "fit", "--config", "CONF", "--data.chunk_steps", "0"], "data.chunk_steps is 0"),
        (["policy", "fit", "--config", "CONF", "--model.discount", "2"], "model.discount is 2.0"),
        (["policy", "fit", "--config", "CONF", "--model.clip_coef", "0"], "model.clip_coef is 0.0"),
        (["policy", "fit", "--config", "CONF", "--trainer.devices", "2"], "trained by one process"),
        (["policy", "fit", "--config", "CONF", "--ckpt_path", "gone.ckpt"], "no checkpoint at gone.ckpt"),
        (["policy", "validate", "--config", "CONF"], "validate needs a trained model: give --ckpt_path"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_clear_line(conf, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([str(conf) if argument == "CONF" else argument for argument in arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("worldmodel: error: ")]
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0], lines


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raise", "envs.odd_envs:Failing-v0, step 19, environment 1: ZeroDivisionError"),
        ("nan", "envs.odd_envs:Failing-v0 gave an observation or reward that is NaN or infinite"),
    ],
)
def test_an_environment_that_fails_is_named(here, conf, what, message, capsys):
    fails = ["--data.env_id", "envs.odd_envs:Failing-v0", "--data.env_kwargs", json.dumps({"what": what, "at": 20})]
    with pytest.raises(SystemExit):
        here("--config", conf, *QUICK, *fails, "--data.observe", "null")
    assert message in capsys.readouterr().err


def test_a_policy_sees_images_and_nested_observations(here, conf):
    options = ["--data.env_id", "envs.odd_envs:Robot-v0", "--data.observe", "null", "--trainer.max_steps", "2"]
    printed = here("--config", conf, *QUICK, *options, "--data.episodes", "2")
    assert "221 entries observed, actions Box" in printed and folder_in(printed)
