"""Whole fits on a GPU: near those of a CPU, the same with a graph, and going on bit for bit."""

import signal

import pytest
import torch
from faults.processes import run
from faults.same_run import leaves
from gpu.conftest import checkpoint_of, losses_of
from gpu.onlookers import Pinned, Waits

GRAPH = ["--model.cuda_graph", "true"]
KEPT = ("state_dict", "optimizer_states", "lr_schedulers", "EpisodeDataModule", "global_step")


def differences(found, expected):
    """What is not equal bit for bit of weights, moments, the carried state, random generators, the position."""
    one, other = (
        dict(
            leaves(
                [{name: run[name] for name in KEPT}, run["callbacks"]["TruncatedBPTT"], run["callbacks"]["RandomState"]]
            )
        )
        for run in map(checkpoint_of, (found, expected))
    )
    assert one.keys() == other.keys() and len(one) > 50
    return [n for n, x in one.items() if not (torch.equal(x, other[n]) if torch.is_tensor(x) else x == other[n])]


def test_a_fit_follows_that_of_a_cpu(fit):
    losses = losses_of(fit("gpu"))
    expected = losses_of(fit("cpu", "--trainer.accelerator", "cpu"))
    assert len(losses) == 40 and losses != expected
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--model.objective", "latent"],
        ["--trainer.accumulate_grad_batches", "2"],
        ["--trainer.callbacks", "gpu.onlookers.Change"],
        ["--tbptt.start", "zero"],
        ["--data.lanes", "3", "--trainer.limit_val_batches", "2", "--trainer.val_check_interval", "9"],
    ],
    ids=["plain", "latent", "accumulate", "change", "zero", "validate"],
)
def test_a_fit_with_a_graph_is_the_same(fit, options):
    losses, expected = losses_of(fit("graph", *GRAPH, *options)), losses_of(fit("plain", *options))
    assert len(losses) == 40 and losses == pytest.approx(expected, rel=1e-4)


def test_bfloat16_stays_near_and_carries_float32(fit):
    expected = losses_of(fit("plain"))
    for name, options in (("mixed", []), ("graph", GRAPH)):
        folder = fit(name, "--trainer.precision", "bf16-mixed", *options)
        losses = losses_of(folder)
        assert losses != expected and losses == pytest.approx(expected, rel=0.05)
        assert checkpoint_of(folder)["callbacks"]["TruncatedBPTT"]["carry"].dtype == torch.float32


@pytest.mark.parametrize("options", [[], GRAPH, ["--trainer.precision", "bf16-mixed"]], ids=["plain", "graph", "bf16"])
def test_a_stopped_fit_goes_on_bit_for_bit(fit, options):
    whole = fit("whole", *options)
    stopped = fit("stopped", "--trainer.max_steps", 20, *options)
    parts = fit("parts", "--ckpt_path", stopped, *options)
    assert checkpoint_of(parts)["global_step"] == 40 and not differences(parts, whole)


def test_a_killed_fit_goes_on_bit_for_bit(fit, config, tmp_path):
    arguments = ["fit", "--config", config, "--run_dir", tmp_path / "killed", *GRAPH]
    assert run(arguments, tmp_path, (17, "SIGKILL")).returncode == -signal.SIGKILL
    process = run([*arguments, "--resume"], tmp_path)
    assert process.returncode == 0 and "resume: from" in process.stdout, process.stderr
    whole = fit("whole", *GRAPH)
    assert not differences(tmp_path / "killed", whole)
    assert losses_of(tmp_path / "killed") == losses_of(whole)


@pytest.mark.parametrize("options", [[], GRAPH], ids=["plain", "graph"])
def test_a_fit_waits_for_the_gpu_once_a_step(fit, options):
    """The guard looks at the gradient's norm; nothing else of a step, its data and its callbacks does."""
    Waits.seen = []
    fit("waits", "--trainer.callbacks", "gpu.onlookers.Waits", "--trainer.log_every_n_steps", 1000, *options,
        "--checkpoint_every", 1000)  # fmt: skip
    waits = [message for message in Waits.seen if "synchronizing CUDA operation" in message]
    assert len(waits) == Waits.end - Waits.begin


def test_batches_are_pinned(fit):
    Pinned.seen = None
    fit("pinned", "--trainer.callbacks", "gpu.onlookers.Pinned", "--trainer.max_steps", 2)
    assert Pinned.seen is True
