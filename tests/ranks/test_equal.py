"""On one rank or several, with DDP or FSDP2, the same lanes give the same losses and the same weights."""

import csv
import json

import pytest
import torch
import warm
import yaml
from conftest import one_line
from faults.processes import run_ranks

OBJECTIVES = {
    "reconstruction": [],
    "latent": ["--model.objective", "latent"],
    "sigreg": ["--model.objective", "latent", "--model.anti_collapse", "sigreg", "--model.target", "stop_gradient"],
    "members": ["--model.members", "2", "--model.bootstrap", "true", "--model.output", "gaussian"],
}


@pytest.fixture
def steps(often) -> int:
    return often(50, 26)


@pytest.fixture
def folder(tmp_path, toy_data, steps):
    trainer = {"accelerator": "cpu", "max_steps": steps, "max_epochs": -1, "log_every_n_steps": 1}
    conf = {
        "wandb": "disabled",
        "data": {"path": str(toy_data), "steps": 8, "lanes": 8},
        "model": {"latent_dim": 6, "hidden_dim": 10, "width": 12, "warmup_steps": 5, "open_loop_steps": 4},
        "trainer": trainer | {"limit_val_batches": 0, "enable_progress_bar": False},
        "checkpoint_every": steps,
        "rollout": {"multiples": [1], "max_episodes": 1, "starts": 1},
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(conf))
    return tmp_path


def fit(ranks, strategy, objective) -> list[str]:
    argv = ["fit", "--config", "toy.yaml", "--run_dir", f"{objective}-{strategy}-{ranks}"]
    return [*argv, "--trainer.devices", str(ranks), "--trainer.strategy", strategy, *OBJECTIVES[objective]]


def outcome(run):
    """The loss of each step, the last checkpoint's weights, and the moments of the optimizer."""
    with (run / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return losses, checkpoint["state_dict"], checkpoint["optimizer_states"][0]["state"]


ALL = [(strategy, objective) for objective in OBJECTIVES for strategy in ("ddp", "fsdp2")]
USUAL = [("ddp", "reconstruction"), ("fsdp2", "members")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "usual"), [(2, USUAL), pytest.param(4, [("ddp", "reconstruction")], marks=pytest.mark.full)]
)
def test_several_ranks_train_as_one(folder, steps, often, ranks, usual):
    fits = often(ALL, usual)
    alone = [fit(1, "auto", objective) for objective in dict(map(reversed, fits))]
    run_ranks(1, [json.dumps(alone)], folder, ["-m", "ranks.fits"])
    run_ranks(ranks, [json.dumps([fit(ranks, *way) for way in fits])], folder, ["-m", "ranks.fits"])
    for strategy, objective in fits:
        losses, weights, moments = outcome(folder / f"{objective}-{strategy}-{ranks}")
        expected, expected_weights, expected_moments = outcome(folder / f"{objective}-auto-1")
        assert len(losses) == len(expected) == steps
        assert losses == pytest.approx(expected, rel=1e-6, abs=1e-6), (strategy, objective)
        torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(moments, expected_moments, rtol=1e-3, atol=1e-5)
        assert sum(losses[-8:]) < sum(losses[:8]), "something was learned"


def torchrun(ranks, arguments, folder):
    """What docs/devices.md says, on one machine."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "worldmodel"]
    process = warm.run(arguments, folder, 600, program=launch)
    assert process.returncode == 0, process.stderr[-3000:]


@pytest.mark.full
@pytest.mark.slow
def test_a_run_goes_on_under_another_strategy(folder, steps, often):
    """DDP on two ranks, then FSDP2, then one rank: an uninterrupted run, up to rounding."""
    constant = ["--model.lr_schedule", "constant"]
    legs = [(often(torchrun, run_ranks), 2, "ddp", 14), (run_ranks, 2, "fsdp2", 20), (run_ranks, 1, "auto", steps)]
    for run, ranks, strategy, until in legs:
        argv = [*fit(ranks, strategy, "reconstruction"), "--run_dir", "legs", "--resume", *constant]
        run(ranks, [*argv, "--trainer.max_steps", until], folder)
    run_ranks(1, [*fit(1, "auto", "reconstruction"), "--run_dir", "whole", *constant], folder)
    losses, weights, _ = outcome(folder / "legs")
    expected, expected_weights, _ = outcome(folder / "whole")
    assert losses == pytest.approx(expected, rel=1e-6, abs=1e-6) and len(losses) == steps
    torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("fit", ["--model.gradient", "rtrl"], "model.gradient rtrl needs all weights on every rank"),
        ("fit", ["--model.compile", "true"], "model.compile or cuda_graph needs all weights on every rank"),
        ("compare", ["--rules", "gated", "--seeds", "0", "--out", "out"], "compare takes whole models"),
    ],
)
def test_what_cannot_be_divided_is_refused(folder, worldmodel, command, options, said):
    argv = ["--model.open_loop_steps", "0", "--trainer.devices", "1", "--trainer.strategy", "fsdp2", *options]
    assert said in one_line(worldmodel(command, "--config", folder / "toy.yaml", *argv))


def test_a_graph_of_the_cpu_is_refused(folder, worldmodel):
    argv = ["--trainer.devices", "1", "--model.cuda_graph", "true"]
    assert "model.cuda_graph is for a GPU" in one_line(worldmodel("fit", "--config", folder / "toy.yaml", *argv))


def test_a_parameter_that_no_rank_would_reduce_is_an_error(tmp_path):
    code = f"""
import torch, torch.distributed as dist
from worldmodel import WorldModel
from worldmodel.modules.sharding import shard
dist.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
model = WorldModel(2, 1)
model.forgotten = torch.nn.Parameter(torch.ones(3))
shard(model, dist.init_device_mesh("cpu", (1,)))
"""
    process = warm.run([], tmp_path, program=["-c", code])
    assert "RuntimeError: these parameters are not divided among the ranks: forgotten" in process.stderr
