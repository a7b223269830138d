"""Paths that cannot be read, or that never end, are named in one line."""

import os
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import TOY

from worldmodel.data.readers import open_source
from worldmodel.data.writer import EpisodeWriter
from worldmodel.envs.collect import collect_once
from worldmodel.errors import UserError

CSV = {"observations": "y", "actions": "u", "final_observation": "included"}
DEEP = "[" * 3000 + "]" * 3000
NOBODY = 65534


@contextmanager
def without_rights():
    """As a user to whom permissions apply, whoever runs the tests."""
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(NOBODY)
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder in which anyone may read, as the working folder."""
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def datasets(here):
    """Three datasets: (path, the file with the values, options)."""
    rows = np.arange(20.0)[:, None]
    Path("npz").mkdir()
    np.savez("npz/a.npz", image=rows, action=rows, reward=np.zeros(20), is_first=np.arange(20) == 0)
    with h5py.File("a.hdf5", "w") as file:
        for name in ("observations", "actions"):
            file[name] = rows
        file["rewards"], file["terminals"], file["timeouts"] = np.zeros(20), np.zeros(20, bool), np.arange(20) == 9
    Path("a.csv").write_text("y,u\n" + "1,2\n" * 20)
    return [("npz", "npz/a.npz", {"alignment": "next"}), ("a.hdf5", "a.hdf5", {}), ("a.csv", "a.csv", {"schema": CSV})]


def test_a_file_without_permission_is_not_called_damaged(datasets, toy_data):
    for path, file, options in datasets:
        open_source(Path(path), **options)
        Path(file).chmod(0)
        with pytest.raises(UserError, match=f"{file} cannot be read: Permission denied"), without_rights():
            open_source(Path(path), **options)
    Path("own").mkdir()
    for name in ("manifest.json", "episodes-00000.h5"):
        Path("own", name).write_bytes((toy_data / name).read_bytes())
    for name in ("episodes-00000.h5", "manifest.json"):
        Path("own", name).chmod(0)
        with pytest.raises(UserError, match=f"own/{name} cannot be read: Permission denied"), without_rights():
            next(open_source(Path("own")).episodes())
    Path("own").chmod(0)
    with pytest.raises(UserError, match="own cannot be read: Permission denied"), without_rights():
        open_source(Path("own"))


def test_a_pipe_or_a_device_is_not_waited_for(datasets):
    for path, file, options in datasets:
        Path(file).unlink()
        os.mkfifo(file)
        with pytest.raises(UserError, match=f"{file} is a pipe or a device"):
            open_source(Path(path), **options)
    for options in ({}, {"format": "hdf5"}, {"format": "table", "schema": CSV}, {"schema": "a.csv"}):
        with pytest.raises(UserError, match="is a pipe or a device"):
            open_source(Path("/dev/zero"), **options)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("n" * 300, "cannot be read: File name too long"),
        ("n" * 300 + "/*.csv", "cannot be read: File name too long"),
        (os.fsdecode(b"\xff.csv"), "is no name in UTF-8"),
        ("a\0b", "cannot be read: embedded null byte"),
        ("there.csv/in.csv", "it does not exist"),
    ],
)
def test_names_that_no_file_has(here, path, message):
    Path("there.csv").touch()
    for schema in (None, CSV):
        with pytest.raises(UserError, match=message):
            open_source(Path(path), schema=schema)
    if "exist" not in message:
        with pytest.raises(UserError, match=message):
            EpisodeWriter(Path(path), {"observation_space": {}, "action_space": {}})


def test_json_and_yaml_of_any_depth(here):
    for file in ("own/manifest.json", "minari/data/metadata.json", "lerobot/meta/info.json", "deep.yaml"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(DEEP)
    Path("minari/data/main_data.hdf5").touch()
    Path("a.csv").touch()
    for path, options in (("own", {}), ("minari", {}), ("lerobot", {}), ("a.csv", {"schema": "deep.yaml"})):
        with pytest.raises(UserError, match="(recursion depth|nested too deeply)"):
            open_source(Path(path), **options)


def test_a_dataset_that_is_there_needs_no_right_to_write(toy_data, here):
    Path("data").symlink_to(toy_data)
    Path(".data.lock").mkdir()  # as little of a lock as in a folder that cannot be written to
    collect_once(TOY, Path("data"))
    with pytest.raises(UserError, match="the dataset there cannot be written: .*; choose another path"):
        Path(".there.lock").mkdir()
        collect_once(TOY, Path("there"))
