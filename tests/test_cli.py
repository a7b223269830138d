"""The program as its users meet it: runs that end with a result, and mistakes that end with one clear line."""

import csv
import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import h5py
import pytest
import yaml
from conftest import ROOT, TOY, one_line

from worldmodel import RULES
from worldmodel.cli import main
from worldmodel.data.manifest import read_manifest, write_manifest

QUICK = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "12", "--trainer.log_every_n_steps", "4"]
SMALL = ["--model.latent_dim", "6", "--model.hidden_dim", "10", "--model.width", "12"]
OTHERS = ("policy", "imagine", "pbt")  # folders of other commands: tests/commands
CONFS = sorted(path for path in (ROOT / "conf").rglob("*.yaml") if path.parent.name not in OTHERS)


@pytest.fixture
def toy_conf(toy_data, tmp_path) -> Path:
    conf = {
        "wandb": "disabled",
        "data": {"path": str(toy_data), "steps": 8, "lanes": 3},
        "trainer": {"accelerator": "cpu", "devices": 1},
        "rollout": {"multiples": [1, 2], "examples": 1},
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(conf))
    return path


def run_of(process) -> str:
    assert process.returncode == 0, process.stderr[-3000:]
    last = process.stdout.strip().splitlines()[-1]
    assert last.startswith("run: ")
    return last.removeprefix("run: ")


# --- runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["policy"], ["imagine"]], ids=" ".join)
def test_help_imports_nothing_heavy(command):
    heavy = "{'torch', 'lightning', 'gymnasium'} & sys.modules.keys()"
    code = f"import sys; from worldmodel.cli import main; main([*{command}, '--help']); sys.exit(len({heavy}))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("usage: worldmodel") and "fit" in process.stdout


FULL = [pytest.param(name, marks=pytest.mark.full) for name in ("validate", "test", "predict")]  # of fit's parser


@pytest.mark.parametrize("command", ["fit", "collect", *FULL])
def test_every_command_answers_help(worldmodel, command):
    process = worldmodel(command, "--help")
    assert process.returncode == 0 and process.stdout.startswith(f"usage: worldmodel {command} ")


def test_help_is_short_and_begins_with_the_model(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    texts = []
    for option in ("--help", "--help-all"):
        with suppress(SystemExit):
            main(["fit", option])
        texts.append(capsys.readouterr().out)
    short, whole = texts
    assert len(short.splitlines()) < 200 < len(whole.splitlines())
    assert short.splitlines()[3].startswith("  --model.rule TEXT")
    options = [set(re.findall(r"^  .*?(--[\w.]+)", text, re.MULTILINE)) for text in texts]
    assert options[0] < options[1] and "--data.lanes" in options[0] and "--trainer.benchmark" not in options[0]


def test_a_fit_leaves_a_whole_run(worldmodel, toy_conf, tmp_path):
    process = worldmodel("fit", "--config", toy_conf, *QUICK, *SMALL, "--wandb", "offline")
    folder = tmp_path / run_of(process)
    assert folder.relative_to(tmp_path).as_posix() == "runs/toy/gated_norm-toy_env-Toy-v0-s0"
    for name in ("config.yaml", "metrics.csv", "rollout.csv", "rollout.png", "checkpoints/last.ckpt", "wandb"):
        assert (folder / name).exists(), name
    assert "open-loop error" in process.stdout and "crosses 0.5" in process.stdout or "stays below" in process.stdout
    rows = list(csv.DictReader((folder / "rollout.csv").open()))
    assert list(rows[0]) == ["horizon", "metric", "value"]
    assert {"nmse", "copy_last", "mean", "linear"} <= {row["metric"] for row in rows}
    assert "linear" in process.stdout, "the line is in the table"
    logged = set(next(csv.reader((folder / "metrics.csv").open())))
    assert logged >= CONTRACT
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["hidden_dim"] == 10 and config["seed_everything"] == 0 and config["experiment"] == "toy"
    assert not config["trainer"]["use_distributed_sampler"]
    check_wandb(folder)
    assert str(tmp_path) not in (folder / "config.yaml").read_text().replace(str(toy_conf), "").replace(
        config["data"]["path"], ""
    )


CONTRACT = {
    "train/loss", "train/loss_prediction", "val/loss", "hidden/norm_mean", "hidden/norm_max", "hidden/delta_norm",
    "hidden/gate_mean", "hidden/norm_growth", "rollout/nmse@8", "rollout/copy_last@8",
    "rollout/linear@8",
}  # fmt: skip


def check_wandb(folder: Path) -> None:
    """Read the offline run back from its file."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", path]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    records = [json.loads(line) for line in lines]
    history, config = {}, {}
    for record in records:
        history |= record.get("history", {}).get("item", {})
        config |= record.get("config", {}).get("update", {})
    assert set(history) >= CONTRACT, CONTRACT - set(history)
    run = next(record["run"] for record in records if record["type"] == "run")
    assert (run["run_group"], run["job_type"], run["display_name"]) == ("toy", "fit", folder.name)
    (picture,) = history["rollout/picture.filenames"]
    assert (path.parent / "files" / picture).stat().st_size > 10_000
    assert config["model"]["hidden_dim"] == 10 and config["data"]["lanes"] == 3 and "tbptt" in config
    assert b"PYTHONPATH" not in path.read_bytes(), "no environment variables in a run that may be shared"


ONE_OF_A_KIND = ("gated", "lstm", "triad", "lru", "gated_delta", "slstm", "attention")
OTHERS = [pytest.param(rule, marks=pytest.mark.full) for rule in RULES if rule not in ONE_OF_A_KIND]


@pytest.mark.parametrize("rule", [*ONE_OF_A_KIND, *OTHERS])
def test_every_rule_fits(worldmodel, toy_conf, rule):
    options = ["--trainer.max_steps", "3", "--rollout.max_episodes", "2", "--rollout.examples", "1", *SMALL]
    run_of(worldmodel("fit", "--config", toy_conf, *options, "--model.rule", rule))


@pytest.mark.parametrize("conf", CONFS, ids=lambda p: p.relative_to(ROOT / "conf").as_posix())
def test_every_conf_runs(worldmodel, conf, tmp_path):
    """Collects what it asks for, less of it, and trains for some steps."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")  # a policy is named from the project's root
    config = yaml.safe_load(conf.read_text())
    data, is_task = config["data"], config["model"].get("objective") == "tokens"
    asked = {name: data[name] for name in ("collect", "test_collect") if name in data}
    options = []
    for name, collect in asked.items():
        fewer = {"steps": 1600, "max_episode_steps": min(200, collect.get("max_episode_steps", 200))}
        options += [f"--data.{name}", json.dumps(collect | fewer)]
    options += ["--trainer.max_steps", "4", "--trainer.accelerator", "cpu", "--wandb", "disabled"]
    options += ["--trainer.limit_val_batches", "2", "--recall.sequences", "8", "--recall.limit", "50"]
    options += ["--rollout.examples", "1", "--rollout.starts", "2", "--rollout.max_episodes", "4"]
    process = worldmodel("fit", "--config", conf, *options)
    assert (tmp_path / run_of(process) / ("recall.png" if is_task else "rollout.png")).exists()
    if conf.stem == "quickstart":
        assert run_of(worldmodel("fit", "--config", conf, *options)).endswith("-2"), "a folder of its own"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "conf" / "imagine").glob("*.yaml")))
def test_every_conf_of_imagine_runs(worldmodel, name, tmp_path):
    """In the world of conf/plan's file of that name."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    worlds = ROOT / "conf" / "plan" / name
    collect = json.dumps(yaml.safe_load(worlds.read_text())["data"]["collect"] | {"steps": 1600})
    options = ["--data.collect", collect, "--trainer.max_steps", "2"]
    world = run_of(worldmodel("fit", "--config", worlds, *options, "--trainer.check_val_every_n_epoch", "9"))
    given = yaml.safe_load((ROOT / "conf" / "imagine" / name).read_text())["model"]["world"]
    assert str(world) == given, "the file names the run that the other one makes"
    options += ["--trainer.val_check_interval", "2", "--model.episodes", "2"]
    process = worldmodel("imagine", "fit", "--config", ROOT / "conf" / "imagine" / name, *options)
    assert "mean return" in process.stdout and run_of(process)


def test_validate_test_and_predict_from_a_checkpoint(worldmodel, toy_conf, tmp_path):
    fitted = worldmodel("fit", "--config", toy_conf, *QUICK, *SMALL)
    folder = run_of(fitted)
    rows = list(csv.DictReader((tmp_path / folder / "metrics.csv").open()))
    at_fit = {k: v for row in rows for k, v in row.items() if v and k.startswith("rollout/")}
    from_config = ["--config", f"{folder}/config.yaml", "--run_dir"]
    process = worldmodel("validate", *from_config, "v", "--ckpt_path", folder)
    assert run_of(process) == "v"
    (row,) = csv.DictReader((tmp_path / "v" / "metrics.csv").open())
    assert {k: float(v) for k, v in at_fit.items()} == pytest.approx({k: float(row[k]) for k in at_fit}, rel=1e-5)
    assert run_of(worldmodel("test", *from_config, "t", "--ckpt_path", f"{folder}/checkpoints/last.ckpt")) == "t"
    assert run_of(worldmodel("predict", *from_config, "p", "--ckpt_path", folder)) == "p"
    with h5py.File(tmp_path / "p" / "predictions.h5") as file:
        assert file["obs"].shape == file["next_obs"].shape and len(file["obs"]) == len(file["reward"]) > 50
        assert len({(e, s) for e, s in zip(file["episode"], file["step"], strict=True)}) == len(file["obs"])


def test_going_on_from_a_checkpoint(worldmodel, toy_conf, tmp_path):
    folder = run_of(worldmodel("fit", "--config", toy_conf, *QUICK, *SMALL))
    again = ["fit", "--config", f"{folder}/config.yaml", "--ckpt_path", folder]
    assert "run is finished: trainer.max_epochs 1 is reached" in one_line(worldmodel(*again))
    more = worldmodel(*again, "--trainer.max_epochs", "2")
    assert run_of(more) == f"{folder}-2" and "training: 24/24 steps" in more.stdout
    line = one_line(worldmodel(*again, "--trainer.max_epochs", "2", "--data.steps", "4"))
    assert "data.steps is 4, was 8" in line


@pytest.mark.full
def test_two_processes_train_on_their_own_lanes(worldmodel, toy_conf, tmp_path):
    options = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.lanes", "4"]
    options += [*QUICK, *SMALL, "--trainer.log_every_n_steps", "1"]
    folder = tmp_path / run_of(worldmodel("fit", "--config", toy_conf, *options))
    import torch

    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    (state,) = [value for key, value in checkpoint["callbacks"].items() if "TruncatedBPTT" in key]
    base = (checkpoint["hyper_parameters"]["base_lags"] - 1) * 3 + 2 + 1  # past frames, the last prediction, the age
    assert state["carry"].shape == (4, 10 + base), "(lanes of all ranks, hidden and what the base knows)"
    assert not torch.equal(state["carry"][:2], state["carry"][2:])
    assert len(list((tmp_path / "runs" / "toy").iterdir())) == 1, "one folder for both"
    # the same lanes in one process: the same maths
    alone = tmp_path / run_of(worldmodel("fit", "--config", toy_conf, *options, "--trainer.devices", "1"))
    expected = torch.load(alone / "checkpoints/last.ckpt", weights_only=True)
    assert expected["global_step"] == checkpoint["global_step"] == 12
    torch.testing.assert_close(checkpoint["state_dict"], expected["state_dict"], rtol=1e-4, atol=1e-6)
    (whole,) = [value for key, value in expected["callbacks"].items() if "TruncatedBPTT" in key]
    logged = [list(csv.DictReader((run / "metrics.csv").open())) for run in (folder, alone)]
    for two, one in zip(*logged, strict=True):
        numbers = [{k: float(v) for k, v in row.items() if v} for row in (two, one)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-4), "the numbers of all ranks, not of one"
    torch.testing.assert_close(state["carry"], whole["carry"], rtol=1e-4, atol=1e-5)


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt"], "unknown command 'fitt': did you mean 'fit'"),
        (
            ["fit", "--config", "CONF", "--model.rule", "gated_nrom"],
            "unknown rule 'gated_nrom': did you mean 'gated_norm'",
        ),
        (["fit", "--config", "CONF", "--model.rul", "gated"], "--model.rul: did you mean '--model.rule'"),
        (["fit", "--config", "CONF", "--modle.rule=gated"], "--modle.rule: did you mean '--model.rule'"),
        (["fit", "--config", "toi.yaml"], "no file toi.yaml in"),
        (["fit", "--config", "key.yaml"], "unknown key 'model.hiden_dim': did you mean 'model.hidden_dim'"),
        (
            ["fit", "--config", "CONF", "--model.objective", "latnt"],
            "model.objective is 'latnt': did you mean 'latent'",
        ),
        (["fit", "--config", "CONF", "--model.hidden_dim", "many"], "model.hidden_dim"),
        (["fit", "--config", "CONF", "--model.layers", "3"], "layers is 3"),
        (["fit", "--config", "broken.yaml"], "broken.yaml is not valid YAML"),
        (["fit", "--config", "CONF", "--data.collect", "{env_id: A, steps: 1, sed: 1}"], "mean 'data.collect.seed'"),
        (["fit", "--config", "CONF", "--data.val_fraction", "1.5"], "data.val_fraction is 1.5"),
        (["fit", "--config", "CONF", "--rollout.multiples", "[0]"], "rollout.multiples"),
        (["fit", "--config", "CONF", "--trainer.strategy", "dpp"], "invalid strategy name"),
        (["fit", "--config", "CONF", "--trainer.accelerator", "tpu"], "worldmodel: error"),
        (["validate", "--config", "CONF"], "needs a trained model: give --ckpt_path"),
        (["fit", "--config", "CONF", "--data.path", "nowhere"], "no dataset at nowhere"),
        (["fit", "--config", "CONF", "--data.lanes", "0"], "data.lanes is 0"),
        (["fit", "--config", "CONF", "--model.open_loop_steps", "99"], "is more than the segment"),
        (["fit", "--config", "CONF", "--ckpt_path", "nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
        (["fit", "--config", "CONF", "--run_dir", "full"], "is not empty: choose another --run_dir"),
        (["collect", "Pendulm-v1", "--out", "x"], "did you mean 'Pendulum-v1'"),
        (["collect", "Pendulum-v1", "--out", "x", "--step", "3"], "--step: did you mean '--steps'"),
        (["collect", "Pendulum-v1", "--out", "x", "--steps", "many"], "--steps: invalid int value"),
        (["collect", "Pendulum-v1", "--out", "x", "--observe", "0,7"], "entries 0 to 2"),
        (["collect", "Pendulum-v1"], "--out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_clear_line(worldmodel, toy_conf, tmp_path, arguments, message):
    (tmp_path / "key.yaml").write_text("model:\n  hiden_dim: 3\n")
    (tmp_path / "broken.yaml").write_text("model: [")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    arguments = [str(toy_conf) if argument == "CONF" else argument for argument in arguments]
    assert message in one_line(worldmodel(*arguments))


def test_a_checkpoint_of_another_model_is_named(worldmodel, toy_conf, tmp_path):
    folder = run_of(worldmodel("fit", "--config", toy_conf, *QUICK, *SMALL))
    process = worldmodel("validate", "--config", toy_conf, *SMALL[:2], "--model.rule", "direct", "--ckpt_path", folder)
    line = one_line(process)
    assert "model.rule is 'direct', in the checkpoint 'gated_norm'" in line and "model.hidden_dim is 128" in line
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes((tmp_path / folder / "checkpoints/last.ckpt").read_bytes()[:5000])
    assert "damaged" in one_line(worldmodel("validate", "--config", toy_conf, "--ckpt_path", broken))


def test_data_that_cannot_be_trained_on_is_named(worldmodel, toy_conf, tmp_path):
    assert worldmodel("collect", "Pendulum-v1", "--out", "one", "--steps", "1").returncode == 0
    line = one_line(worldmodel("fit", "--config", toy_conf, "--data.path", "one"))
    assert "holds 1 episode: too few to split" in line and "collect more episodes" in line
    manifest = read_manifest(tmp_path / "one")
    write_manifest(tmp_path / "one", manifest | {"files": []})
    assert "holds no episodes" in one_line(worldmodel("fit", "--config", toy_conf, "--data.path", "one"))


def test_a_dataset_that_is_not_the_one_asked_for_is_named(worldmodel, toy_conf, toy_data):
    other = json.dumps(TOY | {"seed": 5})
    line = one_line(worldmodel("fit", "--config", toy_conf, "--data.collect", other))
    assert "seed is 0, asked is 5" in line and "--data.collect null" in line


@pytest.mark.full
def test_wandb_without_an_account_falls_back_and_says_so(worldmodel, toy_conf, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    process = worldmodel("fit", "--config", toy_conf, *QUICK, *SMALL, "--wandb", "online")
    folder = tmp_path / run_of(process)
    assert "kept offline" in process.stdout and list(folder.glob("wandb/offline-run-*"))
