"""Standard output and error that are closed, that nobody reads, or whose disk is full."""

import subprocess
import sys

import pytest
import warm

START = "import runpy; runpy.run_module('worldmodel', run_name='__main__')"
CLOSED = "import os, sys; sys.{0} = sys.__{0}__ = None; os.close({1})\n"  # as Python starts under `>&-`
UNREAD = "import os; a, b = os.pipe(); os.close(a); [os.dup2(b, n) for n in {0}]\n"
FULL_DISK = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
STREAMS = {
    "stdout is closed": CLOSED.format("stdout", 1),
    "stderr is closed": CLOSED.format("stderr", 2),
    "both are closed": CLOSED.format("stdout", 1) + CLOSED.format("stderr", 2),
    "nobody reads stdout": UNREAD.format([1]),
    "nobody reads either": UNREAD.format([1, 2]),
}


USUAL = ["stdout is closed", "nobody reads either"]
FULL = [pytest.param(stream, marks=pytest.mark.full) for stream in STREAMS if stream not in USUAL]


@pytest.mark.parametrize("stream", [*USUAL, *FULL])
def test_a_command_does_its_work_without_an_output(tmp_path, stream):
    """And no file takes an output's place: all that it says would be written into it."""
    collect = ["collect", "CartPole-v1", "--out", "data", "--steps", "40"]
    process = warm.run(collect, tmp_path, program=["-c", STREAMS[stream] + START])
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr and "Exception" not in process.stderr
    assert warm.run(["data", "check", "data"], tmp_path).returncode == 0
    mistake = warm.run(["collect", "--nope"], tmp_path, program=["-c", STREAMS[stream] + START])
    assert mistake.returncode == 2 and "Traceback" not in mistake.stderr


def test_a_fit_goes_on_to_its_end_when_its_reader_has_gone(config, tmp_path):
    words = ["fit", "--config", config, "--run_dir", tmp_path / "run", "--trainer.max_steps", "2"]
    words += ["--trainer.limit_val_batches", "0"]
    process = warm.run(words, tmp_path, program=["-c", STREAMS["nobody reads either"] + START])
    assert process.returncode == 0 and not process.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_an_output_on_a_full_disk_is_named(toy_data, tmp_path):
    process = warm.run(["data", "info", toy_data], tmp_path, program=["-c", FULL_DISK + START])
    assert process.returncode == 2
    assert process.stderr.startswith("worldmodel: error: the output cannot be written: No space left on device")
    assert process.stderr.count("\n") == 1


def test_what_the_encoding_lacks_is_escaped(tmp_path):
    code = "from worldmodel.runs.streams import keep_open; keep_open(); print('\\udcff ±', flush=True)"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, env=warm.variables(PYTHONIOENCODING="ascii"), check=True)
    assert printed.stdout == b"\\udcff \\xb1\n"
