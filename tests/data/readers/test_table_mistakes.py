"""Tables with mistakes, each named by file, row and column."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import savemat

from tests.data.readers.test_table import FILES, PLANT, TABLE, columns_of, read, write_csv, write_parquet
from tests.data.readers.toy import LENGTHS, episodes
from worldmodel.errors import UserError


def test_a_folder_of_two_kinds_is_refused(tmp_path):
    write_csv(tmp_path / "a.csv", columns_of(episodes()))
    write_parquet(tmp_path / "a.parquet", columns_of(episodes()))
    with pytest.raises(UserError, match=r"holds csv and parquet files: choose one kind, '.*/\*.csv'"):
        read(tmp_path, TABLE)
    assert len(read(tmp_path / "*.parquet", TABLE)) == len(LENGTHS)


def test_where_there_is_no_next_input(tmp_path):
    path = write_csv(tmp_path / "a.csv", {"y": np.zeros(3), "u": np.arange(3.0)})
    with pytest.raises(UserError, match="u_next is u in the row below, which an action that led to its row"):
        read(path, PLANT | {"alignment": "previous"})
    savemat(tmp_path / "a.mat", {"y": np.zeros(4), "u": np.arange(3.0)})
    with pytest.raises(UserError, match="u_next needs a row of u for each of the 4 observations, not 3"):
        read(tmp_path / "a.mat", PLANT)


def test_an_episode_that_begins_again_is_an_error_that_says_to_sort(tmp_path):
    columns = {"trial": [1, 1, 2, 2, 1, 1], "y": np.arange(6.0), "u": np.zeros(6)}
    path = write_csv(tmp_path / "a.csv", columns)
    with pytest.raises(
        UserError, match=r"row 4 \(line 6\), column 'trial': the episode 1 begins again .* sort the rows"
    ):
        read(path, PLANT | {"episodes": {"column": "trial"}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("y,u\n1,2\n3\n5,6\n", r"a.csv: row 1 \(line 3\), column 'u' is empty or NaN"),
        ("y,u\n1,2\n\n,4\n5,6\n", r"row 1 \(line 4\), column 'y' is empty or NaN: correct it, take other rows"),
        ("y,u\n1,2\nNaN,4\n5,6\n", r"row 1 \(line 3\), column 'y' is empty or NaN"),
        ("y,u\n1,2\n3,inf\n5,6\n", r"row 1 \(line 3\), column 'u' is infinite"),
        ("y,u\n1,2\n3,on\n5,6\n", r"row 1 \(line 3\), column 'u' holds 'on', no number"),
        ("y;u\n1;2\n3,5;4\n", r"row 1 \(line 3\), column 'y' holds '3,5', no number \(decimals have a point"),
        ("y,force\n1,2\n3,4\n", "there is no column 'u'; choose one of: y, force"),
        ("y,U\n1,2\n3,4\n", "there is no column 'u'; did you mean 'U'"),
        ("y,u,u\n1,2,3\n3,4,5\n", "several columns are called 'u'"),
        ("1,2\n3,4\n", "its first line holds numbers; it must hold the names"),
        ("", "it has no header"),
        ("y,u\n", "a.csv holds no rows"),
        ("y,u\n1,2\n", "no episode has a transition"),
        ('y,u,note\n1,2,"a\nb"\n3,4,c\n', "a cell in quotes goes on in the next line"),
    ],
)
def test_a_mistake_in_a_csv_is_named(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.csv", PLANT)


def test_a_mistake_after_many_rows_is_named(tmp_path):
    """Files are parsed block by block."""
    lines = ["1,2"] * 70_000 + ["1,x"]
    (tmp_path / "a.csv").write_text("\n".join(["y,u", *lines]))
    with pytest.raises(UserError, match=r"row 70000 \(line 70002\), column 'u' holds 'x'"):
        read(tmp_path / "a.csv", PLANT)
    (tmp_path / "a.csv").write_text("\n".join(["y,u", *lines[:-1], "1,3"]))
    (one,) = read(tmp_path / "a.csv", PLANT)
    assert len(one) == 70_000 and one.actions[-1].tolist() == [2, 3]


def test_columns_of_matlab_that_do_not_fit(tmp_path):
    savemat(tmp_path / "a.mat", {"y": np.zeros(5), "u": np.zeros(3), "z": np.zeros(5) * 1j, "s": {"u": 1}})
    with pytest.raises(UserError, match="5 observations, but 3 actions"):
        read(tmp_path / "a.mat", PLANT | {"actions": "u"})
    with pytest.raises(UserError, match="'y' has 5 rows, 'u' 3: they must agree"):
        read(tmp_path / "a.mat", PLANT | {"actions": "u", "episodes": {"lengths": 2}})
    with pytest.raises(UserError, match="different numbers of rows: {'y': 5, 'u': 3}"):
        read(tmp_path / "a.mat", PLANT | {"observations": ["y", "u"]})
    with pytest.raises(UserError, match="there is no array of numbers 's'"):
        read(tmp_path / "a.mat", PLANT | {"observations": "s"})
    with pytest.raises(UserError, match="'z' holds complex128, not real numbers"):
        read(tmp_path / "a.mat", PLANT | {"observations": "z", "actions": "y"})


def test_columns_of_parquet_that_do_not_fit(tmp_path):
    pq.write_table(pa.table({"y": ["a", "b"], "u": [[1.0], [2.0, 3.0]], "v": [1.0, 2.0]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="the column 'y' holds (large_)?string, not numbers"):
        read(tmp_path / "a.parquet", PLANT | {"actions": "v"})
    with pytest.raises(UserError, match="the column 'u' has lists of different lengths: .'1', '2'."):
        read(tmp_path / "a.parquet", PLANT | {"observations": "v", "actions": "u"})
    with pytest.raises(UserError, match="there is no column 'w'; "):
        read(tmp_path / "a.parquet", PLANT | {"observations": "w"})


@pytest.mark.parametrize("name", ["a.csv.gz", "a.parquet", "columns.mat", "v73.mat"])
def test_a_damaged_file_is_named(tmp_path, name):
    FILES[name](tmp_path / name, columns_of(episodes((40, 50))))
    content = (tmp_path / name).read_bytes()
    for share in (0.1, 0.6):
        (tmp_path / name).write_bytes(content[: int(len(content) * share)])
        with pytest.raises(UserError, match=f"{name}.* cannot be read"):
            read(tmp_path / name, TABLE)


def test_text_of_another_encoding_is_named(tmp_path):
    path = write_csv(tmp_path / "a.csv", {"y": np.zeros(3), "u": np.zeros(3), "°C": np.zeros(3)}, encoding="latin-1")
    with pytest.raises(UserError, match="a.csv: it is not text in UTF-8"):
        read(path, PLANT)


def test_without_pyarrow_the_way_to_get_it_is_named(tmp_path, monkeypatch):
    write_parquet(tmp_path / "a.parquet", columns_of(episodes()))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'worldmodel\[parquet\]'"):
        read(tmp_path / "a.parquet", TABLE)


def test_words_of_other_files_are_refused(tmp_path):
    path = write_csv(tmp_path / "a.csv", columns_of(episodes()))
    with pytest.raises(UserError, match="groups are of HDF5 files; tables have column, ends or lengths"):
        read(path, TABLE | {"episodes": {"groups": "a*"}})
    with pytest.raises(UserError, match="there is no table here"):
        read(tmp_path / "b.csv", TABLE, format="table")
