"""Runs as processes: what they take, how they fail, and that failing ones do not stop the others."""

import signal

import pytest

from worldmodel.comparison.design import Variant, runs_of
from worldmodel.comparison.folder import FAILURES
from worldmodel.comparison.launch import Engine, Resources, devices_of, launch, side_by_side
from worldmodel.durable import read_json
from worldmodel.errors import UserError, failure_reason

TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 1, in <module>
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
[W1121 ProcessGroup.cpp:1] Warning: destroy_process_group() was not called
"""


@pytest.mark.parametrize(
    ("status", "log", "reason"),
    [
        (1, TRACEBACK, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        (2, "step 1/2\nworldmodel: error: no dataset at nowhere\n", "no dataset at nowhere"),
        (1, "ValueError: the first\n\nRuntimeError: the last\n", "RuntimeError: the last"),
        (3, "just words\n\n", "just words"),
        (3, "", "ended with status 3 and no output"),
        (-signal.SIGKILL, "step 1/2\n", "killed by SIGKILL: perhaps out of memory"),
        (-signal.SIGSEGV, "", "killed by SIGSEGV"),
    ],
)
def test_a_failure_has_its_reason_in_one_line(tmp_path, status, log, reason):
    path = tmp_path / "s0.log"
    path.write_text(log)
    assert failure_reason(status, path) == reason


def test_every_place_has_gpus_of_its_own(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [devices_of(place, 2) for place in range(3)] == ["0,1", "2,3", "4,5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-ab,5")
    assert [devices_of(place, 1) for place in range(3)] == ["3", "GPU-ab", "5"]
    assert devices_of(0, 0) == ""


def test_no_run_gets_a_gpu_that_is_not_there():
    one, two, none = (Resources(threads=1, cores=1, gpus=gpus) for gpus in (1, 2, 0))
    assert (side_by_side(None, one, 16, 2), side_by_side(None, two, 16, 5), side_by_side(2, two, 16, 4)) == (2, 2, 2)
    assert (side_by_side(None, none, 16, 0), side_by_side(99, none, 16, 0)) == (16, 99), "cores can be shared"
    with pytest.raises(UserError, match="--jobs 2 needs 2 GPUs, but 1 are visible: at most --jobs 1"):
        side_by_side(2, one, 16, 1)
    with pytest.raises(UserError, match="--jobs 3 needs 6 GPUs, but 5 are visible: at most --jobs 2"):
        side_by_side(3, two, 16, 5)


@pytest.mark.slow
def test_runs_that_fail_are_reported_each(tmp_path, capsys):
    """The folder holds no design: the process of each run fails."""
    chosen = [Variant({"rule": rule, "start": "zero"}) for rule in ("gated", "direct")]
    runs = runs_of(tmp_path, chosen, [8, 8], [0], "x")
    failures = launch(tmp_path, runs, Engine("local", 2, Resources(threads=1, cores=1, gpus=0)))
    assert {failure.variant for failure in failures} == {"gated, zero", "direct, zero"}
    for failure in failures:
        assert failure.reason.startswith("FileNotFoundError") and "comparison.json" in failure.reason
        assert (tmp_path / failure.log).read_text().count("Traceback") == 1
        assert failure.log == f"runs/{failure.axes['rule']}-zero/s0.log"
    assert len(read_json(tmp_path / FAILURES)) == 2
    assert capsys.readouterr().out.count("FAILED: ") == 2
