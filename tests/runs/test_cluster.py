"""Ray's clusters: one of a program's own beside another's, or the one that is named."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from worldmodel.errors import UserError
from worldmodel.runs.cluster import ray_cluster

pytest.importorskip("ray")
PROGRAM = """
import sys
from worldmodel.runs.cluster import ray_cluster
with ray_cluster("a test", 1) as ray:
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""
JOIN = """
from worldmodel.runs.cluster import ray_cluster
for _ in range(2):
    with ray_cluster("a test", 7) as ray:
        answer = ray.get(ray.remote(num_cpus=1)(lambda: 42).remote())
        print(ray.get_runtime_context().gcs_address, ray.cluster_resources()["CPU"], answer)
"""


@contextmanager
def another_program():
    """With a cluster of its own, whose address this yields."""
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()
        assert process.wait() == 0


def answers(ray) -> bool:
    return ray.get(ray.remote(num_cpus=1)(lambda: 42).remote()) == 42


@pytest.mark.full
def test_a_program_that_ends_takes_no_other_ones_cluster_with_it(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with another_program() as address:
        own = ray_cluster("this test", 1)
        ray = own.__enter__()
        assert ray.get_runtime_context().gcs_address != address
    try:
        assert answers(ray)
    finally:
        own.__exit__(None, None, None)


@pytest.mark.slow
@pytest.mark.full
def test_the_cluster_that_is_named_is_joined():
    with another_program() as address:
        named = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}  # the mode of a cluster that Ray itself starts
        joined = subprocess.run([sys.executable, "-c", JOIN], env=os.environ | named, capture_output=True, text=True)
        assert joined.stdout.split() == [address, "1.0", "42"] * 2, joined.stderr  # it is still up after the first time


def test_a_cluster_that_is_not_there_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    with pytest.raises(UserError, match="RAY_ADDRESS nowhere: unset it"), ray_cluster("this test", 1):
        pass
