"""A stranger's run, checkpoint and dataset: nothing that they name is imported, unless this command names it too."""

import json
import shutil
import sys

import lightning
import pytest
import torch
import yaml

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.cli import main
from worldmodel.durable import sha256
from worldmodel.envs.collect import CollectOptions, collect
from worldmodel.errors import UserError
from worldmodel.parts import PartError

EVIL = """
from pathlib import Path
import gymnasium, lightning.pytorch
Path(__file__).with_name("PWNED").touch()
class Evil(lightning.pytorch.Callback): pass
def act(observations, is_first): return observations
gymnasium.register("Evil-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=9)
"""
EVIL_ENV = {"env_id": "evil:Evil-v0", "steps": 20}
EVIL_POLICY = {"env_id": "CartPole-v1", "steps": 20, "policy": "evil.py:act"}
CLASS = {"class_path": "evil.Evil"}
QUICK = [f"--{name}=1" for name in ("episodes", "num_envs", "iterations")] + [
    "--horizon=2",
    "--candidates=4",
    "--elites=2",
]
COMMANDS = {
    "rollout": ["--ckpt", "run", "--episodes", "0", "--horizon", "2"],
    "diagnose": ["--ckpt", "run", "--batches", "1"],
    "plan": ["--ckpt", "run", *QUICK, "--no_film"],
    "export": ["--ckpt", "run", "--out", "exported"],
    "imagine": ["fit", "--model.world", "run", "--data.path", "data", "--trainer.max_steps", "0"],
    "validate": ["--ckpt_path", "run", "--data.path", "data", "--model.rule", "gru"],
    "test": ["--ckpt", "run", "--wandb", "disabled", "--rollout.multiples", "[1]"],
}  # fmt: skip
NO_DATA = {"path": "nowhere"}
CONFIGS = {  # what the configuration of the run says beside the rest
    "classes": {"trainer": {"callbacks": [CLASS], "logger": CLASS, "plugins": [CLASS], "profiler": CLASS}},
    "a policy": {"data": {**NO_DATA, "collect": EVIL_POLICY}},
    "a policy in dotted keys": {"data": {**NO_DATA, "collect.env_id": "CartPole-v1", "collect.policy": "evil.py:act"}},
    "an environment": {"data": {**NO_DATA, "collect": EVIL_ENV}},
    "an environment of the test": {"data": {"test_path": "nowhere", "test_collect": EVIL_ENV}},
    "a class for a mapping": {"data": {"schema": CLASS}},
    "a class for a module": {"model": CLASS, "data": CLASS | NO_DATA},
    "another file": {"data": "more.yaml"},
    "an encoder and a rule": {"model": {"encoder": "evil.py:act", "rule": "evil.py:act"}},
    "a reader": {"data": {"format": "evil.py:act"}},
    "a rule of a module": {"model": {"rule": "evil:act"}},
    "a callback's class": {"tbptt": CLASS, "rollout": CLASS, "recall": CLASS, "hidden": CLASS},
    "another experiment": {"experiment": CLASS, "wandb": CLASS, "project": CLASS},
}
CHECKPOINTS = {  # (where, what)
    "an environment": (("EpisodeDataModule", "data"), {"env_id": "evil:Evil-v0"}),
    "an environment's arguments": (
        ("EpisodeDataModule", "data"),
        {"env_id": "GymV26Environment-v0", "collect": {"env_id": "GymV26Environment-v0", "env_kwargs": EVIL_ENV}},
    ),
    "a policy": (("EpisodeDataModule", "data"), {"collect": EVIL_POLICY}),
    "a rule and an encoder": (("hyper_parameters",), {"rule": "evil.py:act", "encoder": "evil.py:act"}),
    "a decoder": (("hyper_parameters",), {"decoder": "evil.py:act"}),
    "Lightning's instantiator": (("hyper_parameters",), {"_instantiator": "evil.act", "_class_path": "evil.Evil"}),
}


def pairs(commands, ways):
    """Every command with every way in; each way once, the commands in turn, without --full."""
    every = [
        (command, way, (number + turn) % len(commands) == 0)
        for turn, way in enumerate(ways)
        for number, command in enumerate(commands)
    ]
    return [pytest.param(command, way, marks=() if usual else pytest.mark.full) for command, way, usual in every]


class Pickled:
    def __reduce__(self):
        return exec, ("open('PWNED', 'w')",)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run and its data, of CartPole."""
    folder = tmp_path_factory.mktemp("stranger")
    collect(CollectOptions(env_id="CartPole-v1", steps=300), folder / "data")
    data = EpisodeDataModule(folder / "data", steps=4, lanes=2)
    model = WorldModel(data.obs_dim, data.action_dim, data.images, latent_dim=4, hidden_dim=6, width=8)
    state = {"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}
    (folder / "run" / "checkpoints").mkdir(parents=True)
    torch.save(state | {"EpisodeDataModule": data.state_dict()}, folder / "run" / "checkpoints" / "last.ckpt")
    own = {"data": {"path": "data", "steps": 4, "lanes": 2}, "model": {"latent_dim": 4, "hidden_dim": 6, "width": 8}}
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 0, **own}))
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """The folder that the commands start in; whatever imports `evil` leaves PWNED there."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("WORLDMODEL_RUN_DIR", "")  # what is set is taken back
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(NO_DATA | {"collect": EVIL_POLICY}))
    return tmp_path


def run(command, *further):
    """The status of a command, which may do its work or refuse, and must not fail otherwise."""
    try:
        main([command, *COMMANDS[command], *further])
        return 0
    except SystemExit as stop:
        return stop.code


def change_config(here, change):
    path = here / "run" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for name, value in change.items():
        both = isinstance(value, dict) and isinstance(config.get(name), dict)
        config[name] = {**config[name], **value} if both else value
    path.write_text(yaml.safe_dump(config))


def change_checkpoint(here, change):
    path = here / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path)
    change(checkpoint)
    torch.save(checkpoint, path)
    path.with_name("last.ckpt.sha256").write_text(f"{sha256(path)}  last.ckpt\n")


OF_RUN = ["rollout", "diagnose", "plan", "export", "test"]  # read a run's configuration unasked


@pytest.mark.fault(22)
@pytest.mark.parametrize(("command", "way"), pairs(OF_RUN, [*CONFIGS, "a tag"]))
def test_nothing_that_a_run_s_configuration_names_is_run(here, command, way):
    if way == "a tag":
        (here / "run" / "config.yaml").write_text("data: !!python/object/apply:evil.act [{path: data}]\n")
    else:
        change_config(here, CONFIGS[way])
    assert run(command) in (0, 2)
    assert not (here / "PWNED").exists() and "evil" not in sys.modules


@pytest.mark.fault(22)
@pytest.mark.parametrize(("command", "way"), pairs([*COMMANDS], [*CHECKPOINTS, "a pickle"]))
def test_nothing_that_a_checkpoint_names_is_run(here, command, way):
    def change(checkpoint):
        if way == "a pickle":
            checkpoint["hyper_parameters"]["rule"] = Pickled()
            return
        place, (where, values) = checkpoint, CHECKPOINTS[way]
        for key in where:
            place = place[key]
        place.update(values)

    change_checkpoint(here, change)
    assert run(command) in (0, 2)
    assert not (here / "PWNED").exists() and "evil" not in sys.modules


@pytest.mark.fault(22)
@pytest.mark.parametrize("command", ["info", "check", "convert"])
def test_nothing_that_a_dataset_names_is_run(here, command):
    path = here / "data" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest |= {"env_id": "evil:Evil-v0", "env_entry_point": "evil:Evil", "collect": EVIL_POLICY}
    path.write_text(json.dumps(manifest | {"collected": [EVIL_POLICY]}))
    COMMANDS["data"] = [command, "data", *(["--out", "converted"] if command == "convert" else [])]
    assert run("data") in (0, 1, 2)
    assert not (here / "PWNED").exists() and "evil" not in sys.modules


def test_what_this_command_names_is_run(here, capsys):
    """So that the tests above would see it."""
    change_config(here, {"trainer": {"callbacks": [CLASS], "accelerator": "cpu"}})
    run("diagnose", "--config", "run/config.yaml")
    assert (here / "PWNED").exists()
    (here / "PWNED").unlink()
    del sys.modules["evil"]
    change_checkpoint(here, lambda c: c["EpisodeDataModule"]["data"].update(env_id="evil:Evil-v0"))
    assert run("plan") == 2 and not (here / "PWNED").exists()
    assert "names the environment evil:Evil-v0, which imports Python code: where you trust it, add --trust" in (
        capsys.readouterr().err
    )
    assert run("plan", "--trust") == 0 and (here / "PWNED").exists()
    assert run("plan", "--env", "evil:Evil-v0") == 0


@pytest.mark.parametrize("command", [*OF_RUN, "imagine"])
def test_own_code_that_a_checkpoint_names_is_run_with_the_user_s_word(here, command, capsys):
    change_checkpoint(here, lambda c: c["hyper_parameters"].update(rule="evil.py:act"))
    if command != "imagine":
        change_config(here, {"model": {"rule": "evil.py:act"}})
    assert run(command) == 2 and not (here / "PWNED").exists()
    told = capsys.readouterr().err
    assert "names evil.py:act, whose Python code would run: where you trust it, add --trust" in told
    run(command, "--model.trust=true" if command == "imagine" else "--trust")
    assert (here / "PWNED").exists()


def test_in_python_too(here):
    change_checkpoint(here, lambda c: c["hyper_parameters"].update(rule="evil.py:act"))
    change_checkpoint(here, lambda c: c.update({"pytorch-lightning_version": lightning.__version__}))
    for load in (WorldModel.load, WorldModel.load_from_checkpoint):
        with pytest.raises(PartError, match="names evil.py:act, whose Python code would run"):
            load("run/checkpoints/last.ckpt")
        assert not (here / "PWNED").exists()
    with pytest.raises(UserError):  # it has the weights of another rule
        WorldModel.load("run", trust=True)
    assert (here / "PWNED").exists()
