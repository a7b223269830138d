"""`worldmodel rollout`: the right frames of the right episodes, written and drawn; mistakes in one line."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from memory import episodes_of
from PIL import Image

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.cli import main
from worldmodel.data.episode import Episode
from worldmodel.data.spaces import box_of
from worldmodel.data.writer import EpisodeWriter
from worldmodel.errors import UserError
from worldmodel.evaluation.baselines import AutoRegression
from worldmodel.evaluation.curves import horizon_curves
from worldmodel.evaluation.rollouts import Ruler
from worldmodel.evaluation.selection import RolloutOptions, select_rollouts

STEPS = 4
SMALL = {"latent_dim": 6, "hidden_dim": 10, "width": 12}


def save_run(folder, data, config, **options):
    """A run's folder around a model with its first weights; `config` says of the data what differs from the default."""
    torch.manual_seed(0)
    model = WorldModel(data.obs_dim, data.action_dim, data.images, **SMALL, **options).eval()
    model.obs_norm.fit(*data.statistics["obs"])
    model.action_norm.fit(*data.statistics["action"])
    (folder / "checkpoints").mkdir(parents=True)
    state = {"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}
    torch.save(state, folder / "checkpoints" / "last.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 3, "data": config}))
    return model


@pytest.fixture
def run(toy_data, tmp_path, monkeypatch):
    """The run `run` in an empty folder: (its data, its model)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLDMODEL_RUN_DIR", "")  # what is set is taken back
    config = {"path": str(toy_data), "steps": STEPS, "val_fraction": 0.3, "lanes": 2}
    data = EpisodeDataModule(**config)
    return data, save_run(tmp_path / "run", data, config)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def roll(*arguments):
    main(["rollout", "--ckpt", "run", *map(str, arguments)])


@pytest.fixture
def undrawn(monkeypatch):
    """Without pictures, which take most of the time."""
    for name in ("rollout_figure", "save"):
        monkeypatch.setattr(f"worldmodel.commands.rollout.{name}", lambda *arguments, **options: None)


# --- what is predicted -------------------------------------------------------------------------------------------


def test_the_rollout_is_that_of_the_model_from_the_frames_that_were_asked_for(run, undrawn):
    data, model = run
    episodes = data.splits["val"]
    longest, second = np.argsort(-episodes.num_frames)[:2].tolist()
    numbers = f"{longest},{second}"
    roll("--split", "val", "--episodes", numbers, "--start", 9, "--burn_in", 3, "--horizon", 5, "--out", "out")
    rows = rows_of("out/trajectories.csv")
    assert list(rows[0]) == ["episode", "step", "entry", "truth", "prediction"] and len(rows) == 2 * 5 * 2
    ruler, errors = Ruler(episodes), []
    for part, number in ((rows[:10], longest), (rows[10:], second)):
        assert {row["episode"] for row in part} == {episodes.names[number]}
        assert [row["step"] for row in part[::2]] == ["1", "2", "3", "4", "5"]
        assert [row["entry"] for row in part[:2]] == ["observation[0]", "observation[1]"]
        frames = episodes.rows(number)
        obs, action = (torch.from_numpy(read(frames)).unsqueeze(0) for read in (episodes.obs, episodes.action))
        first = torch.tensor([[True, False, False]])
        with torch.no_grad():
            _, h, carry = model.observe(obs[:, 6:9], action[:, 6:9], first)  # three frames, then the ninth
            z, _, _ = model.observe(obs[:, 9:10], action[:, 9:10], ~first[:, :1], carry)
            expected = model.open_loop(z[:, 0], h[:, -1], action[:, 9:14]).obs[0].numpy()
        predicted = np.array([float(row["prediction"]) for row in part]).reshape(5, 2)
        truth = np.array([float(row["truth"]) for row in part]).reshape(5, 2)
        np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(truth, obs[0, 10:15].numpy())
        errors.append(ruler.error(predicted, truth))
    table = rows_of("out/rollout.csv")
    nmse = [float(row["value"]) for row in table if row["metric"] == "nmse"]
    np.testing.assert_allclose(nmse, np.mean(errors, axis=0), rtol=1e-5)
    assert {"copy_last", "mean", "linear"} <= {row["metric"] for row in table}


def test_the_errors_are_those_of_the_evaluation_from_the_same_starts(run, undrawn):
    data, model = run
    episodes = data.splits["val"]
    enough = [i for i, frames in enumerate(episodes.num_frames) if frames > 6 + 8]
    options = RolloutOptions((2,), burn_in=6, starts=1)
    expected = horizon_curves(model, episodes.select(enough), STEPS, options, reference=episodes)
    roll("--split", "val", "--episodes", ",".join(map(str, enough)), "--burn_in", 6, "--horizon", 8, "--out", "out")
    rows = rows_of("out/rollout.csv")
    assert list(rows[0]) == ["horizon", "metric", "value"], "as a run's rollout.csv"
    line = AutoRegression.fit(data.splits["train"], None, STEPS)
    linear = horizon_curves(line, episodes.select(enough), STEPS, options, reference=episodes).nmse
    expected = replace(expected, linear=linear)
    for name in ("nmse", "copy_last", "mean", "linear", "hidden_norm"):
        values = [float(row["value"]) for row in rows if row["metric"] == name]
        np.testing.assert_allclose(values, getattr(expected, name), rtol=1e-6, err_msg=name)


def test_the_baseline_is_fitted_to_what_the_model_was_trained_on(run, tmp_path, capsys, undrawn):
    """Whatever it is rolled out on; where that is not there, it is left out, and said so."""
    data, _ = run
    shutil.copytree(data.path, "other")
    options = ["--split", "val", "--horizon", 5, "--burn_in", 3]
    for out, further in (("own", []), ("another", ["--data", "other", "--data.val_fraction", 0.3])):
        roll(*options, *further, "--out", out)
    named = [[row for row in rows_of(f"{out}/rollout.csv") if row["metric"] == "linear"] for out in ("own", "another")]
    own, another = named
    assert own == another and len(own) == 5
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    Path("run/config.yaml").write_text(yaml.safe_dump({**config, "data": {**config["data"], "path": "gone"}}))
    capsys.readouterr()
    roll(*options, "--data", "other", "--out", "without")
    assert "without the linear autoregression" in capsys.readouterr().out
    assert "linear" not in {row["metric"] for row in rows_of("without/rollout.csv")}


def test_the_threshold_is_that_of_the_run_and_nothing_is_overwritten(run, tmp_path, capsys, undrawn):
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config | {"rollout": {"threshold": None}}))
    with pytest.raises(SystemExit):
        main(["rollout", "--ckpt", "run", "--horizon", "4", "--out", "none"])
    assert "(rollout.threshold is None, not a number)" in capsys.readouterr().err
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config | {"rollout": {"threshold": 1e-6}}))
    (tmp_path / "runs" / "rollout" / "gated_norm-toy_env-Toy-v0-s3").mkdir(parents=True)
    roll()
    said = capsys.readouterr().out
    assert "crosses 1e-06 at horizon 1" in said
    assert said.strip().splitlines()[-1] == "rollout: runs/rollout/gated_norm-toy_env-Toy-v0-s3-2"


def test_a_free_run_goes_from_the_first_frames_to_the_end(run, capsys):
    data, model = run
    episodes = data.splits["val"]
    chosen = [i for i, frames in enumerate(episodes.num_frames) if frames > 9]
    roll("--split", "val", "--from_start", 9, "--out", "out")
    said = capsys.readouterr().out
    rows, truths, expected = rows_of("out/trajectories.csv"), [], []
    for number in chosen:
        frames = episodes.rows(number)
        obs, action = (torch.from_numpy(read(frames)).unsqueeze(0) for read in (episodes.obs, episodes.action))
        first = torch.zeros(1, 8, dtype=torch.bool).index_fill(1, torch.tensor(0), True)
        with torch.no_grad():
            _, h, carry = model.observe(obs[:, :8], action[:, :8], first)
            z, _, _ = model.observe(obs[:, 8:9], action[:, 8:9], ~first[:, :1], carry)
            expected.append(model.open_loop(z[:, 0], h[:, -1], action[:, 8:-1]).obs[0].numpy())
        truths.append(obs[0, 9:].numpy())
    expected, truths = np.concatenate(expected), np.concatenate(truths)
    predicted = np.array([float(row["prediction"]) for row in rows]).reshape(-1, 2)
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal([float(row["truth"]) for row in rows], truths.flatten())
    rmse = np.sqrt(np.square(expected - truths).mean(axis=0))
    found = {row["metric"]: float(row["value"]) for row in rows_of("out/rollout.csv")}
    assert found["free_run/rmse"] == pytest.approx(rmse.mean(), rel=1e-5)
    assert found["free_run/rmse observation[1]"] == pytest.approx(rmse[1], rel=1e-5)
    assert found["free_run/nmse"] == pytest.approx(Ruler(episodes).error(expected, truths).mean(), rel=1e-5)
    assert [row["episode"] for row in rows_of("out/free_run.csv")[::2]] == [episodes.names[i] for i in chosen]
    left = len(episodes) - len(chosen)
    assert (f"{left} episodes of at most 9 frames are left out" in said) == (left > 0)
    assert f"all {len(chosen)}" in said and f"{rmse.mean():.4g}" in said and "val split" in said
    with Image.open("out/rollout.png") as picture:
        assert picture.width > 1000


def test_by_default_a_few_long_episodes_of_the_test_split(run, capsys):
    data, _ = run
    roll()
    said = capsys.readouterr().out
    folder = said.strip().splitlines()[-1].removeprefix("rollout: ")
    assert folder == "runs/rollout/gated_norm-toy_env-Toy-v0-s3" and "crosses 0.5 at horizon" in said
    episodes = data.splits["test"]
    assert "the rollouts end with their episodes" in said and "test split" in said and "copy last" in said
    longest = sorted(episodes.num_frames)[-3:]
    numbers = [
        list(episodes.names).index(name) for name in {row["episode"] for row in rows_of(f"{folder}/trajectories.csv")}
    ]
    assert sorted(episodes.num_frames[numbers]) == longest
    with Image.open(f"{folder}/rollout.png") as picture:
        assert picture.width > 1000


def test_images_become_an_animation_and_a_checkpoint_needs_no_run_where_the_data_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLDMODEL_RUN_DIR", "")
    space = {"camera": box_of(np.zeros((1, 16, 16, 3), np.uint8)), "place": box_of(np.zeros((1, 1), np.float32))}
    writer = EpisodeWriter(tmp_path / "dots", {"observation_space": space, "action_space": box_of(np.zeros((1, 1)))})
    rng = np.random.default_rng(0)
    for _ in range(9):
        frames = rng.integers(0, 256, (21, 16, 16, 3), dtype=np.uint8)
        seen = {"camera": frames, "place": np.arange(21, dtype=np.float32)[:, None]}
        writer.add(Episode(seen, rng.standard_normal((20, 1)).astype(np.float32), np.zeros(20), False, True))
    writer.finish()
    save_run(tmp_path / "run", EpisodeDataModule(tmp_path / "dots"), {"path": "dots"})
    shutil.copy("run/checkpoints/last.ckpt", "alone.ckpt")
    arguments = ["--data", "dots", "--data.steps", "4", "--burn_in", "4", "--horizon", "7", "--out", "out"]
    main(["rollout", "--ckpt", "alone.ckpt", *arguments])
    with Image.open("out/rollout.gif") as film:
        assert getattr(film, "n_frames", 1) == 7
    assert {row["entry"] for row in rows_of("out/trajectories.csv")} == {"place[0]"}


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--horizn 3", "unknown option --horizn: did you mean '--horizon'"),
        ("--horizon 0", "--horizon is 0: it must be at least 1"),
        ("--horizon 999", "--horizon 999 is longer than"),
        ("--burn_in 0", "--burn_in is 0: it must be at least 1"),
        ("--burn_in 999", "nothing is left to predict after frame 999"),
        ("--start 3 --burn_in 5", "--burn_in 5 reaches back before frame 0"),
        ("--from_start 0", "--from_start is 0: it must be at least 1"),
        ("--from_start 3 --horizon 5", "runs to each episode's end: leave out --horizon"),
        ("--from_start 999", "--from_start 999: the longest episode has"),
        ("--from_start 40 --episodes 0,1", "nothing is left to predict after the first 40; --from_start can be"),
        ("--episodes 0,99", "no episode '99' in the split: it has 0 to"),
        ("--episodes episod", "did you mean 'episode"),
        ("--split tst", "split is 'tst': did you mean 'test'"),
        ("--split test --data.test_fraction 0", "the test split is empty: choose --split val or train"),
        ("--data nowhere", "no dataset at nowhere"),
        ("--data PENDULUM", "has 1 entries of an action, the model takes 3"),
        ("--out run", "run is not empty: choose another --out"),
        ("--ckpt run/config.yaml", "is not a checkpoint of this program, or it is damaged"),
        ("--ckpt rum", "no checkpoint at rum"),
    ],
)
def test_a_mistake_is_one_clear_line(run, pendulum_data, tmp_path, capsys, arguments, message):
    data, _ = run
    if "PENDULUM" in arguments:  # as many entries of an observation, another number of actions
        checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
        checkpoint["hyper_parameters"]["action_dim"] = 3
        torch.save(checkpoint, "run/checkpoints/last.ckpt")
    with pytest.raises(SystemExit) as stop:
        roll(*arguments.replace("PENDULUM", str(pendulum_data)).split())
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("worldmodel: error: ") and message in line
    assert not (tmp_path / "runs").exists(), "a mistake leaves no folder"


def test_a_model_is_needed_and_its_data(run, capsys, tmp_path):
    (tmp_path / "run" / "config.yaml").unlink()
    for arguments, message in (
        (["--ckpt", "run"], "no config.yaml of its run beside it: say which data with --data PATH"),
        ([], "give --ckpt RUN"),
    ):
        with pytest.raises(SystemExit):
            main(["rollout", *arguments])
        assert message in capsys.readouterr().err


# --- selections --------------------------------------------------------------------------------------------------


def episodes(*lengths):
    frames = sum(lengths) + len(lengths)
    return episodes_of(np.zeros((frames, 1), np.float32), np.zeros((frames, 1), np.float32), lengths)


def test_where_rollouts_start_and_end():
    chosen = select_rollouts(episodes(500, 90, 400), 8, "0,2")
    assert (chosen.first, chosen.burn_in, chosen.lengths, chosen.notes) == (0, 8, [80, 80], [])
    chosen = select_rollouts(episodes(500, 90, 400), 8, start=30, burn_in=10, horizon=70)
    assert (chosen.first, chosen.burn_in, chosen.lengths) == (20, 10, [70, 70]), "what is too short is left out"
    assert chosen.episodes.num_frames.tolist() == [481, 381]
    chosen = select_rollouts(episodes(500, 90, 400), 8, "1", start=30)
    assert (chosen.first, chosen.burn_in, chosen.lengths) == (0, 30, [60]), "all before the start is seen"
    assert "after 60 steps" in chosen.notes[0]
    chosen = select_rollouts(episodes(20, 500), 8, "episode 0,1")
    assert (chosen.burn_in, chosen.lengths) == (5, [15, 80])
    assert "sees 5 frames" in chosen.notes[0] and "after 15 to 80 steps" in chosen.notes[1]


def test_the_last_step_that_fits():
    assert select_rollouts(episodes(20), 4, burn_in=12, horizon=8).lengths == [8]
    assert select_rollouts(episodes(20), 4, start=19).lengths == [1]
    for wrong in ({"burn_in": 12, "horizon": 9}, {"start": 20}):
        with pytest.raises(UserError):
            select_rollouts(episodes(20), 4, **wrong)


def test_a_model_with_a_distribution_has_intervals_around_its_predictions(run, tmp_path):
    data, _ = run
    shutil.rmtree("run")
    save_run(tmp_path / "run", data, {"path": str(data.path), "steps": STEPS, "lanes": 2}, output="gaussian")
    roll("--episodes", "0", "--horizon", "5", "--out", "out", "--samples", "8")
    rows = rows_of("out/trajectories.csv")
    assert len({row["step"] for row in rows}) == 5
    assert all(float(row["low90"]) < float(row["high90"]) for row in rows)
    with pytest.raises(SystemExit):
        roll("--samples", "1")
