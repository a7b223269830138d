"""A run that is killed resumes as if nothing had happened."""

import csv
import shutil
import signal

import pytest
import torch
from conftest import TOY, one_line
from faults.processes import run, run_ranks, start, wait_for
from faults.same_run import differences

from worldmodel import EpisodeDataModule
from worldmodel.envs.collect import collect


@pytest.mark.parametrize("step", [13, 15, pytest.param(20, marks=pytest.mark.full)])  # see `config`
def test_a_killed_run_goes_on_bit_for_bit(config, whole, tmp_path, step):
    arguments = ["fit", "--config", config, "--run_dir", tmp_path / "run"]
    assert run(arguments, tmp_path, (step, "SIGKILL")).returncode == -signal.SIGKILL
    process = run([*arguments, "--resume"], tmp_path)
    assert process.returncode == 0 and "resume: from" in process.stdout, process.stderr
    assert not differences(tmp_path / "run", whole)
    assert "resuming from" not in process.stderr + process.stdout, "Lightning's warning does not apply"


@pytest.mark.full
def test_two_ranks_go_on_bit_for_bit(config, tmp_path):
    arguments = ["fit", "--config", config, "--trainer.devices", "2", "--trainer.strategy", "ddp", "--run_dir"]
    run_ranks(2, [*arguments, "whole"], tmp_path)
    stopped = run([*arguments, "run"], tmp_path, (16, "SIGTERM"))  # rank 1 hears it
    assert stopped.returncode == 143 and "stopped at step 16" in stopped.stdout, stopped.stderr
    run_ranks(2, [*arguments, "run", "--resume"], tmp_path)
    assert not differences(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.fault(4)
def test_another_number_of_ranks_goes_on_with_the_same_lanes(config, tmp_path, often, seen):
    """From 1 rank to 2 (to 4), to 1: the same batches and states a lane, the same losses within rounding."""
    shared = ["fit", "--config", config, "--trainer.log_every_n_steps", "1"]
    shared += ["--model.lr_schedule", "constant"]
    legs = [(1, 5), (2, 11), *often([(4, 19)], []), (1, 26)]  # ranks, up to step
    whole = run([*shared, "--run_dir", "whole", "--trainer.strategy", "ddp", "--trainer.max_steps", "26"], tmp_path)
    assert whole.returncode == 0, whole.stderr
    for ranks, steps in legs:
        options = ["--resume", "--trainer.devices", ranks, "--trainer.strategy", "ddp", "--trainer.max_steps", steps]
        run_ranks(ranks, [*shared, "--run_dir", "run", *options], tmp_path)
    losses = []
    for folder in (tmp_path / "run", tmp_path / "whole"):
        with (folder / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["train/loss"]]
        losses.append({int(row["step"]): float(row["train/loss"]) for row in rows})
    assert len(losses[0]) == len(losses[1]) == 26
    assert losses[0] == pytest.approx(losses[1], rel=1e-6, abs=1e-6)
    ended, expected = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("run", "whole")
    )
    assert ended["EpisodeDataModule"]["position"] == expected["EpisodeDataModule"]["position"] == 26
    carry, wanted = (checkpoint["callbacks"]["TruncatedBPTT"]["carry"] for checkpoint in (ended, expected))
    torch.testing.assert_close(carry, wanted, rtol=1e-5, atol=1e-6)
    assert carry.std(dim=0).min() > 1e-3, "lanes differ"
    most = max(abs(losses[0][step] / losses[1][step] - 1) for step in losses[0])
    apart = float((carry - wanted).abs().max())
    order = ", ".join(str(ranks) for ranks, _ in legs)
    seen(f"26 steps on {order} of them: the same batches; losses within {most:.0e}, states within {apart:.0e}")


@pytest.mark.fault(8)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(config, whole, tmp_path, seen):
    arguments = ["fit", "--config", config, "--run_dir", tmp_path / "run"]
    run(arguments, tmp_path, (30, "SIGKILL"))
    checkpoints = tmp_path / "run" / "checkpoints"
    last = checkpoints / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    named = run(["validate", "--config", config, "--ckpt_path", last], tmp_path)
    assert f"{last} is damaged: its SHA-256 is not that of last.ckpt.sha256" in one_line(named)
    process = run([*arguments, "--resume"], tmp_path)
    assert process.returncode == 0, process.stderr
    assert f"{last} is damaged" in process.stdout and "trying the one before" in process.stdout
    assert f"resume: from {checkpoints / 'last-1.ckpt'}" in process.stdout
    assert not differences(tmp_path / "run", whole)
    seen("one flipped bit: named, the one before is taken, and the end is equal bit for bit")


def test_resume_begins_and_ends_by_itself(config, tmp_path):
    arguments = ["fit", "--config", config, "--run_dir", tmp_path / "run", "--trainer.max_steps", "8", "--resume"]
    process = run(arguments, tmp_path)
    assert process.returncode == 0 and "no run to go on with: it begins" in process.stdout
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    process = run(arguments, tmp_path)
    assert process.returncode == 0 and "is finished" in process.stdout
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before
    other = run([*arguments, "--model.hidden_dim", "11", "--trainer.max_steps", "9"], tmp_path)
    assert "model.hidden_dim is 11, in the checkpoint 10" in one_line(other)


def test_a_refused_start_leaves_nothing_and_only_a_run_is_resumed(config, tmp_path):
    arguments = ["fit", "--config", config, "--experiment", "x", "--rollout.max_episodes", "1"]
    assert run([*arguments, "--trainer.max_steps", "3"], tmp_path).returncode == 0
    one_line(run([*arguments, "--trainer.gradient_clip_algorithm", "foo"], tmp_path))  # as the Trainer is made
    one_line(run([*arguments, "--rollout.free_run", "1000"], tmp_path))  # as the fit starts
    one_line(run([*arguments, "--run_dir", "own", "--rollout.free_run", "1000"], tmp_path))
    only = [path.name for path in (tmp_path / "runs" / "x").iterdir()]
    assert len(only) == 1 and not (tmp_path / "own").exists()
    files = sorted(tmp_path.rglob("*"))
    smoke = run([*arguments, "--run_dir", "smoke", "--trainer.fast_dev_run", "true"], tmp_path)
    assert smoke.returncode == 0 and sorted(tmp_path.rglob("*")) == files, smoke.stderr
    assert "leave out --resume" in one_line(run([*arguments, "--trainer.fast_dev_run", "true", "--resume"], tmp_path))
    process = run([*arguments, "--trainer.max_steps", "4", "--resume"], tmp_path)
    assert f"resume: from runs/x/{only[0]}/checkpoints/last.ckpt" in process.stdout, process.stderr


@pytest.mark.fault(19)
def test_a_dataset_that_was_replaced_is_refused(config, toy_data, tmp_path, seen):
    data = tmp_path / "data"
    shutil.copytree(toy_data, data)
    arguments = ["fit", "--config", config, "--data.path", data, "--run_dir", tmp_path / "run", "--resume"]
    assert run([*arguments, "--trainer.max_steps", "9"], tmp_path).returncode == 0
    shutil.rmtree(data)
    collect({**TOY, "seed": 1}, data)
    said = one_line(run([*arguments, "--trainer.max_steps", "12"], tmp_path))
    assert f"the files of {data} are not those that the checkpoint was trained on" in said
    accepted = run([*arguments, "--trainer.max_steps", "12", "--data.accept_changed", "true"], tmp_path)
    assert accepted.returncode == 0, accepted.stderr
    seen("replaced: refused, both fingerprints named; --data.accept_changed goes on")


def test_a_dataset_that_grew_goes_on_with_new_lanes_and_says_so(config, toy_data, tmp_path):
    data = shutil.copytree(toy_data, tmp_path / "data")
    arguments = ["fit", "--config", config, "--data.path", data, "--run_dir", tmp_path / "run", "--resume"]
    assert run([*arguments, "--trainer.max_steps", "9"], tmp_path).returncode == 0
    collect({**TOY, "seed": 9, "steps": 200}, data, append=True)
    grown = run([*arguments, "--trainer.max_steps", "10", "--data.accept_changed", "true"], tmp_path)
    assert "every lane starts an episode, from zeros" in grown.stdout + grown.stderr
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    epoch = len(EpisodeDataModule(data, steps=8, lanes=4).training_segments())
    assert epoch > 14 and last["EpisodeDataModule"]["position"] == epoch + 1, "the start of an epoch, and one step"


@pytest.mark.fault(15)
def test_two_trainers_in_one_folder(config, tmp_path, seen):
    arguments = ["fit", "--config", config, "--run_dir", tmp_path / "run", "--trainer.max_steps", "100000"]
    first = start(arguments, tmp_path)
    try:
        wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", first)
        said = one_line(run([*arguments, "--resume"], tmp_path))
        assert f"process {first.pid} on " in said and "is training into" in said and "--run_dir" in said
    finally:
        first.kill()
    assert run([*arguments[:-1], "30", "--resume"], tmp_path).returncode == 0, "the dead one's lock is nobody's"
    seen("trainers: the second is refused, process and host named; a killed one leaves no lock")
