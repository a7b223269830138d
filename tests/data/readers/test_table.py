"""Tables: the same episodes from CSV, Parquet, MATLAB and HDF5 files, by the same words."""

import gzip

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scipy.io import savemat

from tests.data.readers.toy import LENGTHS, assert_same, episodes, is_exact, only
from worldmodel import EpisodeDataModule
from worldmodel.data.readers import open_source
from worldmodel.errors import UserError

TABLE = {
    "episodes": {"column": "trial"},
    "observations": {"state": ["x", "v"]},
    "actions": ["u"],
    "rewards": "reward",
    "terminated": "done",
    "final_observation": "included",
    "outcomes": "previous",
    "rate": 20,
}
PLANT = {"observations": "y", "actions": ["u", "u_next"], "final_observation": "included"}
EMPTY = float("nan")


def columns_of(originals):
    """A row for each observation; the reward and the flag came with it, and the last row has no action."""
    parts = [
        {
            "trial": np.full(len(one) + 1, 7 + index),
            "time": np.arange(len(one) + 1) / 20,
            "x": one.observations["state"][:, 0],
            "v": one.observations["state"][:, 1],
            "u": np.append(one.actions[:, 0], EMPTY),
            "reward": np.append(0, one.rewards),
            "done": (np.arange(len(one) + 1) == len(one)) & one.terminated,
        }
        for index, one in enumerate(originals)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def write_csv(path, columns, delimiter=",", quote="", end="", encoding="utf-8"):
    def cell(value):
        return str(value) if isinstance(value, str) or value == value else ""

    lines = [delimiter.join(f"{quote}{name}{quote}" for name in columns) + end]
    lines += [delimiter.join(map(cell, row)) + end for row in zip(*(list(v) for v in columns.values()), strict=True)]
    content = ("\r\n".join(lines) + "\n").encode(encoding)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_parquet(path, columns):
    columns = columns | {"u": pa.array(columns["u"], from_pandas=True)} if "u" in columns else columns  # null, not NaN
    pq.write_table(pa.table(columns), path)
    return path


def write_mat73(path, columns):
    """As MATLAB writes it: HDF5 below 512 bytes of its own, by columns."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in columns.items():
            file[name] = (
                np.asarray(values).reshape(len(values), -1).T.astype("u1" if values.dtype == bool else values.dtype)
            )
            file[name].attrs["MATLAB_class"] = np.bytes_("logical" if values.dtype == bool else "double")
        file["note"] = np.array([[110], [111]], "u2")
        file["note"].attrs["MATLAB_class"] = np.bytes_("char")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return path


def write_hdf5(path, columns):
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = values
    return path


FILES = {
    "a.csv": write_csv,
    "quoted.csv": lambda path, columns: write_csv(path, columns, quote='"', end=",", encoding="utf-8-sig"),
    "semicolons.CSV": lambda path, columns: write_csv(path, columns, delimiter=";"),
    "a.tsv": lambda path, columns: write_csv(path, columns, delimiter="\t"),
    "a.csv.gz": write_csv,
    "a.parquet": write_parquet,
    "rows.mat": lambda path, columns: savemat(path, columns | {"Ts": 0.05, "note": "hello"}),
    "columns.mat": lambda path, columns: savemat(path, columns, oned_as="column", do_compression=True),
    "v73.mat": write_mat73,
    "a.h5": write_hdf5,
}


def read(path, schema=None, **how):
    return [episode for _, episode in open_source(path, schema=schema, **how).episodes()]


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_holds_the_same_episodes(tmp_path, name):
    FILES[name](tmp_path / name, columns_of(episodes()))
    source = open_source(tmp_path / name, schema=TABLE)
    found = dict(source.episodes())
    assert_same(list(found.values()), [only(one, state="state") for one in episodes()])
    assert all(map(is_exact, found.values()))
    assert list(found) == [f"{name}, episode {7 + index}" for index in range(len(LENGTHS))]
    assert {one.rate for one in found.values()} == {20}
    assert source.action_space["type"] == "Box" and source.action_space["shape"] == [1]


def test_a_vector_in_a_cell(tmp_path):
    """A matrix of MATLAB, a list of Parquet."""
    (one,) = episodes((9,))
    state, u = one.observations["state"], np.append(one.actions[:, 0], 0)
    savemat(tmp_path / "a.mat", {"state": state, "u": u})
    write_mat73(tmp_path / "b.mat", {"state": state, "u": u})
    pq.write_table(pa.table({"state": state.tolist(), "u": u}), tmp_path / "a.parquet")
    schema = {"observations": "state", "actions": "u", "final_observation": "included"}
    for name in ("a.mat", "b.mat", "a.parquet"):
        (found,) = read(tmp_path / name, schema)
        np.testing.assert_array_equal(found.observations["observation"], state)
        np.testing.assert_array_equal(found.actions, one.actions[:, 0])


@pytest.mark.parametrize("where", ["folder", "pattern"])
def test_a_file_an_episode(tmp_path, where):
    for index, one in enumerate(episodes()):
        write_csv(tmp_path / f"run-{index}.csv", columns_of([one]))
    (tmp_path / "notes.txt").write_text("no table")
    schema = {key: value for key, value in TABLE.items() if key != "episodes"}
    path = tmp_path if where == "folder" else tmp_path / "run-[0-2]*.csv"
    expected = episodes() if where == "folder" else episodes()[:3]
    assert_same(read(path, schema), [only(one, state="state") for one in expected])


@pytest.mark.parametrize("name", ["a.csv", "a.h5"])
@pytest.mark.parametrize("final", ["included", "missing"])
def test_the_next_input_of_a_plant_with_direct_feedthrough(tmp_path, name, final):
    """The action of row t is (u[t], u[t+1]), to the last row of an episode and no further."""
    u, y = np.arange(9.0), 10 + np.arange(9.0)
    FILES[name](tmp_path / name, {"y": y, "u": u})
    first, second = read(tmp_path / name, PLANT | {"episodes": {"lengths": [5, 4]}, "final_observation": final})
    np.testing.assert_array_equal(first.actions, [[0, 1], [1, 2], [2, 3], [3, 4]])
    np.testing.assert_array_equal(second.actions, [[5, 6], [6, 7], [7, 8]])
    np.testing.assert_array_equal(second.observations["observation"], [15, 16, 17, 18])


def test_a_column_of_that_name_is_itself(tmp_path):
    columns = {"y": np.zeros(3), "u": np.arange(3.0), "u_next": 5 * np.arange(3.0)}
    (one,) = read(write_csv(tmp_path / "a.csv", columns), PLANT)
    np.testing.assert_array_equal(one.actions, [[0, 0], [1, 5]])


@pytest.mark.parametrize("name", ["a.csv", "a.h5"])
def test_rows_and_lengths_take_parts_of_a_long_recording(tmp_path, name):
    FILES[name](tmp_path / name, {"y": np.arange(100.0), "u": np.zeros(100)})

    def parts(**words):
        return [
            (one.observations["observation"][0], one.observations["observation"][-1])
            for one in read(tmp_path / name, PLANT | words)
        ]

    assert parts() == [(0, 99)]
    assert parts(rows=[40, 60]) == [(40, 59)] and parts(rows=[90, None]) == [(90, 99)]
    assert parts(rows=[40, 65], episodes={"lengths": 10}) == [(40, 49), (50, 59), (60, 64)]
    assert parts(episodes={"lengths": [80, 20]}) == [(0, 79), (80, 99)]
    for words, message in (
        ({"rows": [40, 101]}, "has 100 rows: rows .40, 101. in the schema go beyond them"),
        ({"episodes": {"lengths": [80, 30]}}, "the lengths in the schema add up to 110, its rows 0 to 100 to 100"),
        ({"rows": [5, 5]}, r"rows must be \[first, stop\]"),
        ({"rows": 5}, r"rows must be \[first, stop\]"),
        ({"episodes": {"lengths": 1}}, "lengths must be a name, a number of rows"),
    ):
        with pytest.raises(UserError, match=message):
            parts(**words)


def test_ends_cut_episodes(tmp_path):
    columns = {"y": np.arange(6.0), "u": np.zeros(6), "done": [False, False, True, False, False, False]}
    schema = {"episodes": {"ends": "done"}, "observations": "y", "actions": "u", "final_observation": "included"}
    found = read(write_csv(tmp_path / "a.csv", columns), schema)
    assert [one.observations["observation"].tolist() for one in found] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.h5"])
def test_episodes_may_have_names(tmp_path, name):
    trials = ["warm up", "warm up", "b", "b", "b"]
    if name == "a.h5":
        trials = np.array(trials, object)
    FILES[name](tmp_path / name, {"trial": trials, "y": np.arange(5.0), "u": np.zeros(5)})
    found = dict(open_source(tmp_path / name, schema=PLANT | {"episodes": {"column": "trial"}}).episodes())
    later = read(tmp_path / name, PLANT | {"episodes": {"column": "trial"}, "rows": [2, 5]})[-1]
    assert later.observations["observation"].tolist() == [2, 3, 4]
    assert {where: len(one) for where, one in found.items()} == {f"{name}, episode warm up": 1, f"{name}, episode b": 2}


def test_single_rows_are_skipped_and_reported(tmp_path, worldmodel):
    columns = {"trial": [1, 2, 2, 3], "y": np.arange(4.0), "u": np.zeros(4)}
    write_csv(tmp_path / "a.csv", columns)
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump(PLANT | {"episodes": {"column": "trial"}}))
    process = worldmodel("data", "info", "a.csv", "--schema", "lab.yaml")
    assert process.returncode == 0 and "2 episodes of a single row: no transition" in process.stdout
    with pytest.raises(UserError, match="no episode has a transition"):
        read(tmp_path / "a.csv", PLANT | {"rows": [0, 2], "episodes": {"column": "trial"}})


def test_whole_numbers_are_discrete_where_the_schema_says_so(tmp_path):
    columns = {"y": np.zeros(4), "u": np.array([1, 0, 3, 0])}
    schema = {"observations": "y", "actions": "u", "final_observation": "included"}
    for path in (write_csv(tmp_path / "a.csv", columns), write_hdf5(tmp_path / "a.h5", columns)):
        discrete = open_source(path, schema=schema | {"discrete": True})
        assert discrete.action_space == {"type": "Discrete", "n": 4, "start": 0}
        assert [one.actions.tolist() for _, one in discrete.episodes()] == [[1, 0, 3]]
        assert open_source(path, schema=schema | {"discrete": False}).action_space["type"] == "Box"
    path = write_csv(tmp_path / "b.csv", columns | {"u": np.arange(4) / 2})
    with pytest.raises(UserError, match="b.csv, episode 0: u is not a whole number throughout"):
        read(path, schema | {"discrete": True})


@pytest.mark.parametrize("side", ["next", "previous"])
def test_a_placeholder_may_be_empty_and_nothing_else(tmp_path, side):
    u = np.array([EMPTY, 1, 2, 3, 4, EMPTY])[0 if side == "previous" else 1 :][:5]
    schema = {"observations": "y", "actions": "u", "final_observation": "included", "alignment": side}
    (one,) = read(write_csv(tmp_path / "a.csv", {"y": np.arange(5.0), "u": u}), schema)
    assert one.actions.tolist() == [1, 2, 3, 4]
    u[2] = EMPTY
    with pytest.raises(UserError, match=r"row 2 \(line 4\), column 'u' is empty"):
        read(write_csv(tmp_path / "a.csv", {"y": np.arange(5.0), "u": u}), schema)


def test_gaps_may_be_kept_for_fit_to_skip(tmp_path):
    columns = {"y": np.arange(50.0), "u": np.zeros(50)}
    columns["y"][13] = EMPTY
    schema = PLANT | {"episodes": {"lengths": 10}, "non_finite": "keep"}
    write_csv(tmp_path / "a.csv", columns)
    assert np.isnan(read(tmp_path / "a.csv", schema)[1].observations["observation"][3])
    with pytest.raises(UserError, match="a.csv, episode 1, step 3: the observation is not finite"):
        _ = EpisodeDataModule(tmp_path / "a.csv", schema=schema).splits
    splits = EpisodeDataModule(tmp_path / "a.csv", schema=schema, non_finite="skip").splits
    assert sum(map(len, splits.values())) == 4
    with pytest.raises(UserError, match="a.h5, episode 1: row 13 of 'y' is empty or NaN"):
        read(write_hdf5(tmp_path / "a.h5", columns), schema | {"non_finite": "error"})


@pytest.mark.parametrize(
    "header",
    ["time,position,force", "uEst,yEst", "V1,V2", "episode,x,y,action_x,action_y", "obs,act,reward,done", "q,u,note"],
)
def test_without_a_schema_there_is_one_to_start_from(tmp_path, header):
    names = header.split(",")
    rows = np.random.default_rng(0).random((20, len(names))).round(3).astype(object)
    for name, values in (
        ("episode", [1] * 12 + [2] * 8),
        ("done", [0] * 11 + [1] + [0] * 7 + [1]),
        ("note", ["a"] * 20),
    ):
        if name in names:
            rows[:, names.index(name)] = values
    path = write_csv(tmp_path / "a.csv", dict(zip(names, rows.T, strict=True)))
    with pytest.raises(UserError, match=rf"which says what its columns are \({', '.join(names)}\)") as caught:
        read(path)
    start = yaml.safe_load(str(caught.value).split("--schema: ")[1])
    found = read(path, start)
    assert len(found) == (2 if {"episode", "done"} & {*names} else 1)
    given = [*start["observations"], *start["actions"]]
    assert {*given} == {*names} - {"time", "episode", "reward", "done", "note"}
    assert start["actions"] == [name for name in names if name[0] in "aufV"][-len(start["actions"]) :]
    with pytest.raises(UserError, match="needs the key 'actions'; an example: .*observations: "):
        read(path, {"observations": names[0]})
