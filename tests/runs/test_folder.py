"""Which folder a run gets, and that one process at a time works in it."""

import pytest

from worldmodel.errors import UserError
from worldmodel.runs.folder import (
    CHOSEN,
    OWNER,
    UNFINISHED,
    RunLock,
    find_run,
    is_first_rank,
    new_folder,
    result_folder,
)


@pytest.fixture(autouse=True)
def alone_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(CHOSEN, "")


def test_a_name_that_is_taken_gets_a_number_and_the_newest_is_found(tmp_path, monkeypatch):
    folders = [new_folder("x", "run", None) for _ in range(3)]
    assert [folder.name for folder in folders] == ["run", "run-2", "run-3"]
    runs = folders[0].parent
    for name, file in {"run-9": "config.yaml", "run-10": "checkpoints/last.ckpt", "run-11": ".lock"}.items():
        (runs / name / file).parent.mkdir(parents=True)
        (runs / name / file).touch()
    (runs / "run-other").mkdir()
    assert find_run(runs, "run", None).name == "run-10", "a folder without a run is passed over"
    (runs / "run-10" / "checkpoints" / "last.ckpt").unlink()
    assert find_run(runs, "run", None).name == "run-9"
    assert find_run(folders[0].parent, "none", None) is None
    assert find_run(folders[0].parent, "run", tmp_path / "nowhere") is None
    monkeypatch.setenv("RANK", "1")
    assert not is_first_rank() and new_folder("x", "run", None) == folders[-1].resolve()


def test_the_folder_that_was_asked_for_must_be_free(tmp_path):
    assert new_folder("x", "run", tmp_path / "a" / "b") == tmp_path / "a" / "b"
    new_folder("x", "run", tmp_path / "a" / "b")  # empty
    (tmp_path / "a" / "b" / "file").touch()
    with pytest.raises(UserError, match="is not empty: choose another --out"):
        new_folder("x", "run", tmp_path / "a" / "b", "--out")
    with pytest.raises(UserError, match="cannot be made: .*; choose another folder with --run_dir"):
        new_folder("x", "run", tmp_path / "a" / "b" / "file" / "c")
    with pytest.raises(UserError, match="file cannot be made"):
        new_folder("x", "run", tmp_path / "a" / "b" / "file")


def test_a_folder_is_held_until_it_is_released(tmp_path):
    lock = RunLock(tmp_path / "new", "--out")
    owner = (tmp_path / "new" / OWNER).read_text().strip()
    with pytest.raises(UserError, match=f"{owner} is training into .*new: wait for it, or choose another --out"):
        RunLock(tmp_path / "new", "--out", timeout=0.1)
    lock.release()
    with RunLock(tmp_path / "new"):
        pass
    RunLock(tmp_path / "new").release()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to: .*; choose another --run_dir"):
        RunLock(tmp_path / "file")


def test_a_folder_of_results_that_is_not_finished_is_free(tmp_path):
    out = tmp_path / "out"
    (out / UNFINISHED).mkdir(parents=True)
    for path in (out / "a.csv", out / UNFINISHED / "b.csv"):  # killed as the files moved up
        path.write_text("old")
    with result_folder("rollout", "x", out) as made:
        assert not list(made.iterdir())
        (made / "a.csv").write_text("new")
    assert [path.read_text() for path in out.iterdir()] == ["new"]
    with pytest.raises(UserError, match="is not empty"), result_folder("rollout", "x", out):
        pass
    with pytest.raises(UserError, match="planned"), result_folder("rollout", "x", tmp_path / "failed"):
        raise UserError("planned")
    assert not list((tmp_path / "failed").iterdir())
