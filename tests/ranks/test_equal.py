"""One rank or several, DDP or FSDP2: with the same lanes the same losses and the same weights."""

import csv
import json
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import one_line
from warm import variables

STEPS = 50
OBJECTIVES = {
    "reconstruction": [],
    "latent": ["--model.objective", "latent"],
    "sigreg": ["--model.objective", "latent", "--model.anti_collapse", "sigreg", "--model.target", "stop_gradient"],
}


@pytest.fixture
def folder(tmp_path, toy_data):
    trainer = {"accelerator": "cpu", "max_steps": STEPS, "max_epochs": -1, "log_every_n_steps": 1}
    conf = {
        "wandb": "disabled",
        "data": {"path": str(toy_data), "steps": 8, "lanes": 8},
        "model": {"latent_dim": 6, "hidden_dim": 10, "width": 12, "warmup_steps": 5, "open_loop_steps": 4},
        "trainer": trainer | {"limit_val_batches": 0, "enable_progress_bar": False},
        "checkpoint_every": STEPS,
        "rollout": {"multiples": [1], "max_episodes": 1, "starts": 1},
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(conf))
    return tmp_path


def torchrun(folder, ranks, arguments) -> subprocess.CompletedProcess:
    """What docs/devices.md says, on one machine."""
    environment = variables()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    command = [*launch, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1500)


def fit(ranks, objective, strategy) -> list[str]:
    argv = ["fit", "--config", "toy.yaml", "--run_dir", f"{objective}-{strategy}-{ranks}"]
    return [*argv, "--trainer.devices", str(ranks), "--trainer.strategy", strategy, *OBJECTIVES[objective]]


def outcome(run):
    """The loss of each step, the last checkpoint's weights, and the moments of the optimizer."""
    with (run / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return losses, checkpoint["state_dict"], checkpoint["optimizer_states"][0]["state"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_train_as_one(folder, ranks):
    fits = {1: [("auto", objective) for objective in OBJECTIVES]}
    fits[ranks] = [(strategy, objective) for objective in OBJECTIVES for strategy in ("ddp", "fsdp2")]
    for number, ways in fits.items():
        argv = [fit(number, objective, strategy) for strategy, objective in ways]
        process = torchrun(folder, number, ["ranks.fits", json.dumps(argv)])
        assert process.returncode == 0, process.stderr[-3000:]
    for strategy, objective in fits[ranks]:
        losses, weights, moments = outcome(folder / f"{objective}-{strategy}-{ranks}")
        expected, expected_weights, expected_moments = outcome(folder / f"{objective}-auto-1")
        assert len(losses) == len(expected) == STEPS
        assert losses == pytest.approx(expected, rel=1e-6, abs=1e-6), (strategy, objective)
        torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-5)  # relative where above 1
        torch.testing.assert_close(moments, expected_moments, rtol=1e-3, atol=1e-5)
        assert sum(losses[-16:]) < sum(losses[:16]), "something was learned"


@pytest.mark.slow
def test_a_run_goes_on_under_another_strategy(folder):
    """DDP on two ranks, then FSDP2, then one rank: what an uninterrupted run gives, up to rounding."""
    legs = [(2, "ddp", 14), (2, "fsdp2", 32), (1, "auto", STEPS)]
    for ranks, strategy, steps in legs:
        argv = ["fit", "--config", "toy.yaml", "--run_dir", "legs", "--trainer.max_steps", str(steps), "--resume"]
        argv += ["--trainer.devices", str(ranks), "--trainer.strategy", strategy, "--model.lr_schedule", "constant"]
        process = torchrun(folder, ranks, ["worldmodel", *argv])
        assert process.returncode == 0, process.stderr[-3000:]
    whole = [*fit(1, "reconstruction", "auto"), "--run_dir", "whole", "--model.lr_schedule", "constant"]
    assert torchrun(folder, 1, ["worldmodel", *whole]).returncode == 0
    losses, weights, _ = outcome(folder / "legs")
    expected, expected_weights, _ = outcome(folder / "whole")
    assert losses == pytest.approx(expected, rel=1e-6, abs=1e-6) and len(losses) == STEPS
    torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-5)  # relative where above 1


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
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "RuntimeError: these parameters are not divided among the ranks: forgotten" in process.stderr
