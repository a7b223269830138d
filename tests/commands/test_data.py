"""`worldmodel data`: what it prints, what it finds, and that every format comes through `convert` unchanged."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import one_line

from tests.data.readers import test_hdf5, test_layouts, test_lerobot, test_npz, test_rlds, test_table
from tests.data.readers.toy import assert_same, episodes, is_exact
from worldmodel import EpisodeDataModule
from worldmodel.data.episode import Episode
from worldmodel.data.manifest import read_manifest
from worldmodel.data.readers import open_source
from worldmodel.data.readers.worldmodel import open_dataset
from worldmodel.data.spaces import box_of
from worldmodel.data.writer import EpisodeWriter

MANY = episodes((5, 4, 12, 3, 7, 9, 6))


def minari_folder(path):
    """By minari's own package."""
    import minari
    from gymnasium import spaces

    from tests.data.readers.test_minari import ACTION, STATE, buffer

    pixels = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    space = spaces.Dict({"state": STATE, "pixels": pixels})
    buffers = [buffer(one, one.observations) for one in MANY]
    minari.create_dataset_from_buffers(
        "toy-v0", buffers, observation_space=space, action_space=ACTION, jpeg_encoding=False
    )
    return path / "toy-v0"


def made(folder):
    folder.mkdir()
    return folder


FORMATS = {
    "minari": (minari_folder, []),
    "d4rl": (lambda path: test_hdf5.write_d4rl(path / "d.hdf5", MANY), []),
    "robomimic": (lambda path: test_hdf5.write_robomimic(path / "r.hdf5", MANY), []),
    "stable-worldmodel": (lambda path: test_hdf5.write_swm(path / "s.h5", MANY), []),
    "a lab's own": (lambda path: test_hdf5.write_lab(path / "lab.h5", MANY), ["--schema", "lab.yaml"]),
    "table": (
        lambda path: test_table.write_csv(path / "t.csv", test_table.columns_of(MANY)),
        ["--schema", "table.yaml"],
    ),
    "dreamer chunks": (lambda path: test_npz.write_chunks(made(path / "c"), MANY), ["--alignment", "next"]),
    "npz an episode": (
        lambda path: test_npz.write_files(made(path / "f"), MANY, alignment="previous"),
        ["--alignment", "previous"],
    ),
    "flat npz": (
        lambda path: test_layouts.write_npz(path / "n", test_layouts.flat(MANY, observation="obs", end="done")),
        [],
    ),
    "zarr": (
        lambda path: test_layouts.write_zarr(path / "z", test_layouts.flat(MANY, observation="obs", end="done")),
        [],
    ),
    "rlds": (lambda path: test_rlds.write(path / "r", MANY), ["--action", "move"]),
    "lerobot": (lambda path: test_lerobot.write_dataset(path / "l", image=True) or path / "l", []),
}
USUAL = ("robomimic", "zarr", "table")  # of each kind of container one


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in USUAL else pytest.mark.full) for n in FORMATS])
@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_every_format_comes_through_convert(worldmodel, tmp_path, monkeypatch, name):
    """And training on it directly is training on what was converted."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump(test_hdf5.LAB))
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(test_table.TABLE))
    write, options = FORMATS[name]
    path = write(tmp_path)
    process = worldmodel("data", "convert", path, "--out", "out", *options)
    assert process.returncode == 0, process.stderr
    how = dict(zip((word.removeprefix("--") for word in options[::2]), options[1::2], strict=True))
    if "schema" in how:
        how["schema"] = str(tmp_path / how["schema"])
    direct = [episode for _, episode in open_source(path, **how).episodes()]
    converted = [episode for _, episode in open_dataset(tmp_path / "out").episodes()]
    assert_same(converted, direct)
    if name not in ("lerobot", "flat npz", "zarr", "rlds"):  # which have no last transition
        expected = MANY if "state" in direct[0].observations and "pixels" in direct[0].observations else None
        assert len(direct) == len(MANY) and all(
            is_exact(one, min(one.observations, key=len)) for one in direct if not expected
        )
        if expected:
            assert_same(direct, MANY)
    (about,) = read_manifest(tmp_path / "out")["converted"]
    assert about["alignment"] and about["name"] == path.name and str(tmp_path) not in json.dumps(about)
    modules = [EpisodeDataModule(path, steps=4, lanes=2, **how), EpisodeDataModule(tmp_path / "out", steps=4, lanes=2)]
    for one, other in zip(*(module.train_dataloader().dataset for module in modules), strict=False):
        assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one)
        if one["position"] == len(modules[0].train_dataloader()) - 1:
            break


def test_compact_of_a_name_that_no_file_has(worldmodel):
    assert "cannot be read: File name too long" in one_line(worldmodel("data", "compact", "n" * 300))


def test_what_is_there_twice_is_refused(worldmodel, tmp_path):
    path = test_hdf5.write_d4rl(tmp_path / "d.hdf5", MANY)
    assert worldmodel("data", "convert", path, "--out", "out").returncode == 0
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(path, tmp_path / "elsewhere" / "copy.hdf5")
    os.utime(path, (1, 1))  # what it holds is the same
    for same in (path, copy):
        line = one_line(worldmodel("data", "convert", same, "--out", "out", "--append"))
        assert "was already converted into out: its episodes would be in it twice" in line
    other = test_hdf5.write_d4rl(tmp_path / "e.hdf5", episodes((5, 4, 12), seed=1))
    assert worldmodel("data", "convert", other, "--out", "out", "--append").returncode == 0
    assert len(list(open_dataset(tmp_path / "out").episodes())) == len(MANY) + 3
    assert [one["name"] for one in read_manifest(tmp_path / "out")["converted"]] == ["d.hdf5", "e.hdf5"]


def test_seeds_stay_known_through_convert(worldmodel, tmp_path):
    collect = ["collect", "CartPole-v1", "--steps", "50", "--num_envs", "2"]
    assert worldmodel(*collect, "--out", "a").returncode == 0
    assert worldmodel("data", "convert", "a", "--out", "b").returncode == 0
    assert "this seed was already collected" in one_line(worldmodel(*collect, "--out", "b", "--append"))


def test_info_says_what_there_is(worldmodel, toy_data, tmp_path):
    process = worldmodel("data", "info", toy_data, "--picture", "sheet.png")
    assert process.returncode == 0, process.stderr
    for words in ("600", "actions[t] is taken after observations[t]", "steps per episode", "return per episode"):
        assert words in process.stdout
    assert (tmp_path / "sheet.png").stat().st_size > 20_000


def test_check_names_the_episode_and_ends_with_status_1(worldmodel, pendulum_data, tmp_path):
    process = worldmodel("data", "check", pendulum_data)
    assert process.returncode == 0 and "nothing found" in process.stdout
    spaces = {key: read_manifest(pendulum_data)[key] for key in ("observation_space", "action_space")}
    writer = EpisodeWriter(tmp_path / "bad", spaces)
    for number, (_, episode) in enumerate(open_dataset(pendulum_data).episodes()):
        if number == 4:
            episode.observations["observation"][3] = np.nan
        writer.add(episode)
    writer.finish()
    process = worldmodel("data", "check", "bad")
    assert process.returncode == 1 and "1 error," in process.stdout
    assert "episodes-00000.h5, episode 4, step 3" in process.stdout


def test_compact_makes_one_file_of_many(worldmodel, tmp_path):
    space = {"observation_space": {"o": box_of(np.zeros((1, 2)))}, "action_space": box_of(np.zeros((1, 1)))}
    writer = EpisodeWriter(tmp_path / "d", space, flush_seconds=0)
    for length in (3, 4, 5):
        writer.add(Episode({"o": np.ones((length + 1, 2))}, np.ones((length, 1)), np.ones(length), False, True))
    writer.close()
    assert len(list((tmp_path / "d").glob("*.h5"))) == 3
    process = worldmodel("data", "compact", "d")
    assert process.returncode == 0 and "3 episodes in 1 file," in process.stdout
    assert [len(one) for _, one in open_dataset(tmp_path / "d").episodes()] == [3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chek", "d"], "unknown command 'data chek': did you mean 'check'"),
        (["info", "nowhere"], "no dataset at nowhere: it does not exist"),
        (
            ["info", "empty"],
            "is no dataset of a known format: a folder of `worldmodel collect` (manifest.json), ",
        ),
        (["info", "TOY", "--alignment", "next"], "is of the format worldmodel, which takes no alignment"),
        (["info", "TOY", "--format", "minary"], "unknown format 'minary': did you mean 'minari'?"),
        (["convert", "lab.h5", "--out", "TOY", "--schema", "lab.yaml"], "already holds a dataset"),
        (["convert", "npz", "--out", "x"], "--alignment"),
        (["convert", "lab.h5", "--out", "x"], "schema"),
        (["convert", "lab.h5", "--out", "x", "--schema", "none.yaml"], "there is no file none.yaml"),
        (
            ["check", "t.csv"],
            "to a file, correct it, and name the file with --schema: {episodes: {column: trial}, observ",
        ),
        (["info"], "PATH"),
        (["info", "TOY", "--picture", "nowhere/x.png"], "must be a .png file in an existing folder"),
        (["convert", "TOY", "--out", "TOY", "--append"], "is the dataset to convert: choose another --out"),
        (["compact", "lab.h5"], "is no dataset of this program, the only kind that can be compacted"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_clear_line(worldmodel, toy_data, tmp_path, arguments, message):
    test_npz.write_files(made(tmp_path / "npz"), MANY, alignment="next")
    made(tmp_path / "empty")
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump(test_hdf5.LAB))
    test_hdf5.write_lab(tmp_path / "lab.h5", MANY)
    test_table.write_csv(tmp_path / "t.csv", test_table.columns_of(MANY))
    arguments = [str(toy_data) if argument == "TOY" else argument for argument in arguments]
    assert message in one_line(worldmodel("data", *arguments))


def test_names_are_chosen_alike_in_every_command_and_in_a_config(worldmodel, tmp_path):
    """Convert by the options, or train by the same words: the batches are the same, bit for bit."""
    path = test_hdf5.write_robomimic(tmp_path / "r.hdf5", MANY)
    words = {"observations": "pixels,state", "rename": "state=whole", "skip": "pix*", "reward": "dones"}
    options = [word for name, value in words.items() for word in (f"--{name}", value)]
    process = worldmodel("data", "convert", path, "--out", "out", *options)
    assert process.returncode == 0, process.stderr
    found = [episode for _, episode in open_dataset(tmp_path / "out").episodes()]
    assert list(open_dataset(tmp_path / "out").observation_space) == ["whole"]
    assert [one.rewards.sum() for one in found] == [one.terminated for one in MANY]
    info = worldmodel("data", "info", path, *options)
    assert "observation whole" in info.stdout and "observation pixels" not in info.stdout
    assert worldmodel("data", "check", path, *options).returncode in (0, 1)
    modules = [
        EpisodeDataModule(path, steps=4, lanes=2, **words),
        EpisodeDataModule(tmp_path / "out", steps=4, lanes=2),
    ]
    assert modules[0].obs_dim == modules[1].obs_dim == 2
    one, other = (next(iter(module.train_dataloader())) for module in modules)
    assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one)
    line = one_line(worldmodel("data", "convert", path, "--out", "out", "--append", "--skip", "pixls"))
    assert "there is no observation 'pixls' to skip; did you mean 'pixels'?" in line
    line = one_line(worldmodel("data", "info", "out", "--action", "x"))
    assert "is of the format worldmodel, which takes no action" in line


def test_a_conversion_that_fails_keeps_what_it_read(worldmodel, tmp_path):
    path = test_hdf5.write_robomimic(tmp_path / "r.hdf5", MANY)
    import h5py

    with h5py.File(path, "r+") as file:
        del file["data/demo_4/actions"]
        file["data/demo_4/actions"] = np.zeros((3, 1))
    line = one_line(worldmodel("data", "convert", path, "--out", "out"))
    assert "demo_4" in line and "the 4 episodes before it are in out" in line
    assert len(list(open_dataset(tmp_path / "out").episodes())) == 4
