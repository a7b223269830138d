"""A source that has grown is appended by what is new in it, whatever it is stored as."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.data.readers import test_hdf5, test_npz, test_table
from tests.data.readers.toy import assert_same, cut, episodes
from worldmodel.commands import data
from worldmodel.data.manifest import MANIFEST, read_manifest
from worldmodel.data.readers.worldmodel import open_dataset
from worldmodel.data.spaces import box_of
from worldmodel.data.writer import EpisodeWriter
from worldmodel.errors import UserError

OUT = Path("out")
MANY = episodes((5, 4, 12, 3, 7, 9))
FORMATS = {
    "npz an episode": (lambda path, many: test_npz.write_files(path, many, alignment="next"), "--alignment next"),
    "dreamer chunks": (lambda path, many: test_npz.write_chunks(path, many), "--alignment next"),
    "robomimic": (lambda path, many: test_hdf5.write_robomimic(path / "r.hdf5", many), ""),
    "d4rl": (lambda path, many: test_hdf5.write_d4rl(path / "d.hdf5", many), ""),
    "table": (lambda path, many: test_table.write_csv(path / "t.csv", test_table.columns_of(many)), "--schema t.yaml"),
    "own": (lambda path, many: write_own(path, many), ""),
}


def write_own(folder, many):
    leaves = {key: box_of(values) for key, values in many[0].observations.items()}
    writer = EpisodeWriter(folder, {"observation_space": leaves, "action_space": box_of(many[0].actions)})
    for episode in many:
        writer.add(episode)
    writer.finish()
    return folder


@pytest.fixture(params=FORMATS)
def source(request, tmp_path, monkeypatch):
    """`source(episodes)`: write them where a source lies; then `source.convert(*options)` converts it into out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(test_table.TABLE))
    write, options = FORMATS[request.param]

    def made(many):
        shutil.rmtree("s", ignore_errors=True)
        (tmp_path / "s").mkdir()
        path = write(tmp_path / "s", many)
        made.convert = lambda *more: data.main(["convert", str(path), "--out", "out", *options.split(), *more])
        return made

    return made


def held():
    return [episode for _, episode in open_dataset(OUT).episodes()]


def test_only_what_is_new_is_appended(source, tmp_path):
    source(MANY[:3]).convert()
    source(MANY).convert("--append")
    grown = held()
    shutil.rmtree(OUT)
    source(MANY).convert()
    assert_same(grown, held())
    assert str(tmp_path) not in (tmp_path / "out" / MANIFEST).read_text()


def test_one_that_changed_is_named_and_nothing_is_written(source):
    source(MANY[:3]).convert()
    before, manifest = held(), read_manifest(OUT)
    changed = replace(MANY[1], rewards=MANY[1].rewards + 1)
    with pytest.raises(UserError, match=" changed since it was converted into out.*: convert the source into a new"):
        source([MANY[0], changed, *MANY[2:]]).convert("--append")
    assert read_manifest(OUT) == manifest
    assert_same(held(), before)


@pytest.mark.parametrize("source", [name for name in FORMATS if name != "npz an episode"], indirect=True)
def test_one_that_grew_is_named_though_it_was_alone(source):
    """(An .npz file's length is part of its name: one that grew is another.)"""
    source([cut(MANY[2])]).convert()
    with pytest.raises(UserError, match=" changed since it was converted into out"):
        source([MANY[2]]).convert("--append")


def test_what_is_twice_in_a_source_stays_twice(source):
    source([MANY[0], MANY[1], MANY[0]]).convert()
    source([MANY[0], MANY[1], MANY[0], MANY[0], MANY[2]]).convert("--append")
    assert [len(one) for one in held()] == [5, 4, 5, 5, 12]
    with pytest.raises(UserError, match="already converted"):
        source.convert("--append")


@pytest.mark.parametrize("source", ["robomimic"], indirect=True)
def test_other_data_of_the_same_name_is_added(source):
    """Another day's file, whose episodes are numbered alike."""
    other = episodes((6, 2), seed=1)
    source(MANY[:3]).convert()
    source(other).convert("--append")
    assert_same(held(), [*MANY[:3], *other])
