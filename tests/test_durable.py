"""Files that are whole or absent: what is left of processes that died, and who writes."""

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest

import worldmodel
from worldmodel.durable import digests, keep_as, sha256, whole_file, write_digests
from worldmodel.errors import CannotWrite

PACKAGE = Path(worldmodel.__file__).parent
# what opens a file to write, and which
WRITES = (
    r"(\w+|[)\]])\.(?:open\(\"[wax]|write_text\(|write_bytes\()",
    r"\.savefig\((\w+)",
    r"torch\.save\(\w+, (\w+)",
    r"\.save\((\w+), \"GIF\"",
    r"h5py\.File\((\w+), \"[wax]\"",
)
NOT_THE_USERS = {
    "durable.py": "the helper itself",
    "runs/folder.py": "who holds a lock",
    "comparison/processes.py": "a log, which grows as its run does",
    "data/load.py": "a cache, which is valid once its index is there",
}


def test_all_that_a_user_reads_is_written_by_the_helper():
    found = [
        f"{path.relative_to(PACKAGE)}: {match[0]}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for match in re.finditer("|".join(WRITES), path.read_text())
        if path.relative_to(PACKAGE).as_posix() not in NOT_THE_USERS
        and not {"temporary", "buffer"} & set(match.groups())
    ]
    assert not found


def test_what_a_killed_process_left_is_removed_by_the_next_and_a_living_ones_stays(tmp_path):
    path = tmp_path / "metrics[1].csv"
    with whole_file(path) as of_this:
        dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
        left = tmp_path / f".{path.name}.{dead.stdout.strip()}-abc.partial"
        left.write_text("half")
        with whole_file(path) as temporary:
            temporary.write_text("second")
            assert of_this.exists() and not left.exists()
        of_this.write_text("first")
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_text() == "first"


def test_a_file_that_is_kept_twice_leaves_nothing(tmp_path):
    path, other = tmp_path / "best.ckpt", tmp_path / "best-1.ckpt"
    path.write_text("weights")
    write_digests(path, [sha256(path)])
    for _ in range(2):  # the second renames a link to the file that it is
        keep_as(path, other)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best-1.ckpt",
        "best-1.ckpt.sha256",
        "best.ckpt",
        "best.ckpt.sha256",
    ]
    assert other.read_text() == "weights" and digests(other) == digests(path)


def test_an_error_names_the_file_and_what_was_written(tmp_path):
    said = r"a\.csv cannot be written: No space left .after 4 bytes."
    with pytest.raises(CannotWrite, match=said) as raised, whole_file(tmp_path / "a.csv") as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left")
    assert isinstance(raised.value, OSError) and raised.value.errno == errno.ENOSPC
    said = "missing/a.csv cannot be written: No such file"
    with pytest.raises(CannotWrite, match=said), whole_file(tmp_path / "missing" / "a.csv"):
        pass
    with pytest.raises(FileNotFoundError, match="source"), whole_file(tmp_path / "a.csv"):
        (tmp_path / "source").read_text()  # another file's error stays its own
    assert not list(tmp_path.iterdir())
