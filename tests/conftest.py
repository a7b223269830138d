"""Shared fixtures: small real datasets, and the program as a user runs it."""

import os
import signal
import subprocess
from itertools import product
from pathlib import Path

import pytest
import torch
import warm
from opened import chromium, opened  # noqa: F401

from worldmodel import RULES
from worldmodel.envs.collect import CollectOptions, collect

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a shell's script with `&`; tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
TESTS = Path(__file__).parent
ROOT = TESTS.parent
TOY = CollectOptions(
    env_id="toy_env:Toy-v0", steps=600, num_envs=3, max_episode_steps=40, policy="toy_env:integer_actions"
)


# Tests over RULES repeat themselves for these in every usual run; for the others the exhaustive forms are `full`.
REPEATED = ("residual", "gated", "gated_norm", "direct", "unit_norm", "gru", "lstm", "diagonal", "slots", "triad")


def over_rules(*axes, repeated=REPEATED):
    """Arguments of a test: each rule of RULES with every value of the axes, most of them `full` but for the first."""
    rows = [(rule, *values) for rule in RULES for values in product(*axes)]
    first = tuple(values[0] for values in axes)
    return [
        pytest.param(*row, marks=() if row[0] in repeated or row[1:] == first else pytest.mark.full) for row in rows
    ]


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the exhaustive forms of the tests too (about an hour)")
    parser.addoption("--faults", help="run only the tests of these rows of docs/reliability.md, such as 5,6")


def pytest_configure(config):
    """Before the workers of pytest-xdist start, start the server of warm starts that they share."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        os.environ[warm.ROOM] = warm.listening()


def pytest_collection_modifyitems(config, items):
    """Choose tests by `--full` and `--faults`; each worker begins with a share of the files with slow tests.

    Of its quick ones the others then take what they can, so that all workers end together.
    Each test reports its rows of docs/reliability.md to benchmarks/faults.py.
    """
    chosen = items if config.getoption("--full") else [item for item in items if not item.get_closest_marker("full")]
    rows = {int(row) for row in (config.getoption("--faults") or "").split(",") if row}
    rows_of = {item: [row for mark in item.iter_markers("fault") for row in mark.args] for item in items}
    for item in items:
        item.user_properties += [("fault", row) for row in rows_of[item]]
    if rows:
        chosen = [item for item in chosen if rows & set(rows_of[item])]
    config.hook.pytest_deselected(items=list(set(items) - set(chosen)))
    slow = dict.fromkeys(item.path for item in chosen if item.get_closest_marker("slow"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker_of = {path: number % workers for number, path in enumerate(slow)}
    quick = [item for item in chosen if item.path not in slow]
    shares = [quick[number * len(quick) // workers : (number + 1) * len(quick) // workers] for number in range(workers)]
    first = [[item for item in chosen if worker_of.get(item.path) == number] for number in range(workers)]
    items[:] = [item for both in zip(first, shares, strict=True) for part in both for item in part]


@pytest.fixture(scope="session")
def often(request):
    """`often(full, usual)`: how often to repeat something, with `--full` and without."""
    return lambda full, usual: full if request.config.getoption("--full") else usual


@pytest.fixture
def seen(record_property):
    """`seen(text)`: report a result to the table of docs/reliability.md."""
    return lambda text: record_property("seen", text)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_environment():
    warm.restore()  # what a fixture of the session left
    yield
    warm.restore()


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "data"
    collect(TOY, folder)
    return folder


@pytest.fixture(scope="session")
def pendulum_data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pendulum") / "data"
    collect(CollectOptions(env_id="Pendulum-v1", steps=2000, max_episode_steps=100, observe=[0, 1]), folder)
    return folder


@pytest.fixture
def worldmodel(tmp_path):
    """`worldmodel(*arguments)`: run the program in an empty folder; returns the finished process."""

    def run(*arguments, cwd=tmp_path, timeout=400) -> subprocess.CompletedProcess:
        return warm.run(arguments, cwd, timeout)

    return run


def one_line(process):
    """The one line on stderr that reports a user's mistake, with status 2 and no traceback."""
    assert process.returncode == 2, process.stderr[-3000:]
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("worldmodel: error: "), process.stderr
    return lines[0]
