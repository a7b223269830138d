"""`worldmodel plan`, end to end on tiny checkpoints; its mistakes in one line."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.cli import main
from worldmodel.envs.collect import CollectOptions, collect

FEW = ["--episodes", "3", "--horizon", "3", "--candidates", "8", "--iterations", "1", "--elites", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    collect(CollectOptions(env_id="CartPole-v1", steps=300, observe=[0, 2]), folder / "data")
    return save_run(folder / "run", folder / "data")


@pytest.fixture
def cartpole_run(saved_run, tmp_path, monkeypatch):
    """The run `run` of a model with its first weights, on a little data of position and angle."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLDMODEL_RUN_DIR", "")  # what is set is taken back
    return shutil.copytree(saved_run, tmp_path / "run")


def save_run(folder, path):
    data = EpisodeDataModule(path, steps=4, lanes=2)
    torch.manual_seed(0)
    model = WorldModel(data.obs_dim, data.action_dim, latent_dim=4, hidden_dim=6, width=8).eval()
    model.obs_norm.fit(*data.statistics["obs"])
    (folder / "checkpoints").mkdir(parents=True)
    state = {"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}
    torch.save(state | {"EpisodeDataModule": data.state_dict()}, folder / "checkpoints" / "last.ckpt")
    (folder / "config.yaml").write_text(f"data: {{path: {path}}}\nseed_everything: 0\n")
    return folder


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_plays_beside_random_actions_and_the_data(cartpole_run, capsys):
    main(["plan", "--ckpt", "run", *FEW, "--out", "out"])
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "plan: out" and "files: episodes.csv, film.gif" in printed
    lines = {line.split("│")[1].strip(): line for line in printed.splitlines() if line.startswith("│")}
    assert set(lines) == {"cem", "random", "the data"}
    rows = rows_of("out/episodes.csv")
    assert [row["policy"] for row in rows] == ["cem"] * 3 + ["random"] * 3
    assert all(row["return"] == f"{int(row['steps'])}.0" for row in rows), "CartPole gives 1 a step"
    planned = np.mean([float(row["return"]) for row in rows[:3]])
    assert f" {planned:.1f} " in lines["cem"]
    with Image.open("out/film.gif") as film:
        shown = [film.seek(i) or film.info["duration"] for i in range(film.n_frames)]  # equal frames are one
        assert sum(shown) == int(rows[0]["steps"]) * min(shown) and film.size == (300, 200)


def test_it_is_said_why_the_returns_of_the_data_are_not_shown(cartpole_run, capsys):
    config = cartpole_run / "config.yaml"
    for text, why in (
        ("data: {path: nowhere}", "no dataset at nowhere: it does not exist"),
        ("data: 3", "is not the configuration of a run"),
        (None, "has no config.yaml of its run beside it"),
    ):
        config.unlink() if text is None else config.write_text(text)
        main(["plan", "--ckpt", "run", *FEW, "--no_film"])
        printed = capsys.readouterr().out
        assert "the data " not in printed.split("without")[0] and "without the returns of the data: " in printed
        assert why in printed


def test_a_return_below_the_datas_is_said_with_what_to_try(cartpole_run, capsys):
    """The model knows nothing, and these data balance; towards a goal no rewards are sought."""
    policy = str(ROOT / "conf" / "plan" / "drifting.py:act")
    collect(CollectOptions(env_id="CartPole-v1", steps=600, observe=[0, 2], policy=policy), Path("better"))
    (cartpole_run / "config.yaml").write_text("data: {path: better}\n")
    main(["plan", "--ckpt", "run", *FEW, "--no_film", "--out", "out", "--horizon", "3"])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("a mean return of ")]
    mean = np.mean([float(row["return"]) for row in rows_of("out/episodes.csv")[:3]])
    assert len(said) == 1 and said[0].startswith(f"a mean return of {mean:.1f}, less than ") and "the data (" in said[0]
    assert all(word in said[0] for word in ("--model.value_discount 0.98", "two_hot", "--horizon 6", "--penalty 1"))
    main(["plan", "--ckpt", "run", *FEW, "--no_film", "--goal", "2.0,0.1"])
    assert "a mean return of" not in capsys.readouterr().out


def test_the_same_seed_plays_the_same_and_a_goal_counts(cartpole_run):
    returns = {}
    for name, options in {"a": [], "b": [], "goal": ["--goal", "2.0,0.1"], "mppi": ["--planner", "mppi"]}.items():
        main(["plan", "--ckpt", "run/checkpoints/last.ckpt", *FEW, "--no_film", "--out", name, *options])
        returns[name] = [row["return"] for row in rows_of(f"{name}/episodes.csv")]
        assert not (cartpole_run.parent / name / "film.gif").exists()
    assert returns["a"] == returns["b"] and returns["a"][3:] == returns["goal"][3:], "random actions do not change"
    assert len({tuple(played[:3]) for played in returns.values()}) > 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--env", "Pendulum-v1"], ["Pendulum-v1 does not fit", "takes 1 entries of an action", "the model has 2"]),
        (["--env", "Acrobot-v1", "--observe", "0,1,2"], ["gives 3 entries", "the model takes 2"]),
        (["--env", "CartPole-v9"], ["CartPole-v"]),
        (["--planner", "mpi"], ["unknown planner 'mpi': did you mean 'mppi'?"]),
        (["--planner", "actor"], ["without an actor"]),
        (["--goal", "1,2,3"], ["has 3 entries", "has 2"]),
        (["--goal", "up"], ["--goal up: give numbers"]),
        (["--horizon", "0"], ["--horizon is 0: it must be at least 1"]),
        (["--episodes", "0"], ["--episodes is 0: it must be at least 1"]),
        (["--ckpt", "rum"], ["no checkpoint at rum"]),
        (["--candidate", "3"], ["--candidate: did you mean '--candidates'?"]),
    ],
)
def test_mistakes_are_told_in_a_line(cartpole_run, capsys, options, words):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--ckpt", "run", "--no_film", *options])
    told = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in told and told.startswith("worldmodel: error: ")
    assert all(word in told for word in words), told
    assert not (cartpole_run.parent / "runs").exists(), "no folder is left behind"
