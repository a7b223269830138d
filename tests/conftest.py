"""What several tests need: small real datasets and the program as a user runs it."""

import subprocess
from pathlib import Path

import pytest
import torch
import warm

from worldmodel.envs.collect import CollectOptions, collect

TESTS = Path(__file__).parent
ROOT = TESTS.parent
TOY = CollectOptions(
    env_id="toy_env:Toy-v0", steps=600, num_envs=3, max_episode_steps=40, policy="toy_env:integer_actions"
)


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="all faults of docs/reliability.md: half an hour")
    parser.addoption("--faults", help="of the tests of faults those of these rows of docs/reliability.md: 5,6")


def pytest_collection_modifyitems(config, items):
    """Which row of docs/reliability.md a test is of, for benchmarks/faults.py."""
    chosen = items if config.getoption("--full") else [item for item in items if "full" not in item.keywords]
    rows = {int(row) for row in (config.getoption("--faults") or "").split(",") if row}
    numbers = {item: [number for mark in item.iter_markers("fault") for number in mark.args] for item in items}
    for item in items:
        item.user_properties += [("fault", number) for number in numbers[item]]
    if rows:
        chosen = [item for item in chosen if rows & set(numbers[item])]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest.fixture(scope="session")
def often(request):
    """How often something happens: in full, or in the usual run of the tests."""
    return lambda full, usual: full if request.config.getoption("--full") else usual


@pytest.fixture
def seen(record_property):
    """Tell the table of docs/reliability.md what was seen."""
    return lambda text: record_property("seen", text)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


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
    """Run the program in an empty folder; returns the finished process."""

    def run(*arguments, cwd=tmp_path, timeout=400) -> subprocess.CompletedProcess:
        return warm.run(arguments, cwd, timeout)

    return run


def one_line(process):
    """The error of a user's mistake: one line on stderr, status 2, no traceback."""
    assert process.returncode == 2, process.stderr[-3000:]
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("worldmodel: error: "), process.stderr
    return lines[0]
