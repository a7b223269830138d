"""Checkpoints whose checksum is right and whose content is not: one line that names the file and the key."""

import shutil

import pytest
import torch
from conftest import one_line
from faults.processes import run

from worldmodel.durable import sha256, write_digests
from worldmodel.errors import UserError
from worldmodel.runs.checkpoint import check_training, read_checkpoint

DEEP = []
for _ in range(400):
    DEEP = [DEEP]
WHOLE = {  # where, what is put there; what the line says
    "arguments are a list": (["hyper_parameters"], [1], "hyper_parameters is a list, not a dict"),
    "an argument is a tensor": (
        ["hyper_parameters", "rule"],
        torch.ones(2),
        "rule is a Tensor, not plain",
    ),
    "an argument without end": (["hyper_parameters", "images"], DEEP, "hyper_parameters.images is a list, not plain"),
    "weights are a number": (["state_dict"], 5, "state_dict is 5, not a dict"),
    "a weight is a text": (["state_dict", "heads.0.bias"], "x", "state_dict.heads.0.bias is 'x', not a tensor"),
    "a weight is not finite": (["state_dict", "heads.0.bias"], torch.ones(12) / 0, "heads.0.bias is not finite"),
    "a sparse weight": (["state_dict", "heads.0.bias"], torch.ones(12).to_sparse(), "a tensor in it is not dense"),
    "a weight without storage": (["state_dict", "heads.0.bias"], torch.ones(9, device="meta"), "is not dense"),
    "a position below 0": (["EpisodeDataModule", "position"], -1, "EpisodeDataModule.position is -1, not a count"),
    "rows are a text": (["metrics_file", "rows"], "x", "metrics_file.rows is 'x', not a count"),
}
TO_CONTINUE = {
    "no loops": (["loops"], None, "it has no loops"),
    "no optimizer": (["optimizer_states"], None, "it has no optimizer_states"),
    "an epoch below 0": (["epoch"], -3, "epoch is -3, not a count"),
    "progress is a text": (["loops", "fit_loop", "epoch_progress", "total", "ready"], "x", "ready is 'x', not a count"),
    "steps of two kinds": (["global_step"], 7, "global_step is 7, and the loops' is not"),
    "callbacks are a list": (["callbacks"], [], "callbacks is a list, not a dict"),
}
RESTORED = {  # what only the run itself can tell
    "an optimizer's state of another shape": (["optimizer_states", 0, "state", 1, "exp_avg"], torch.ones(3, 5)),
    "a carry of another width": (["callbacks", "TruncatedBPTT", "carry"], torch.ones(4, 3)),
    "norms that are texts": (["callbacks", "NumericalGuard", "norms"], ["x"] * 30),
    "a schedule of text": (["lr_schedulers", 0, "last_epoch"], "x"),
}


USUAL = ["an optimizer's state of another shape"]
FULL = [pytest.param(name, marks=pytest.mark.full) for name in RESTORED if name not in USUAL]


def put(run_folder, place, value):
    """Put a value into a run's last checkpoint, or remove what is there (None); the checksum is made right."""
    path = run_folder / "checkpoints" / "last.ckpt"
    checkpoint = holder = torch.load(path, weights_only=True)
    *above, key = place
    for each in above:
        holder = holder[each]
    if value is None:
        del holder[key]
    else:
        holder[key] = value
    path.unlink()  # the folders' files are linked
    torch.save(checkpoint, path)
    write_digests(path, [sha256(path)])
    return path


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


@pytest.mark.parametrize("name", WHOLE | TO_CONTINUE)
def test_what_a_checkpoint_must_hold_is_named(folder, name):
    place, value, says = (WHOLE | TO_CONTINUE)[name]
    path = put(folder, place, value)
    with pytest.raises(UserError) as refused:
        check_training(read_checkpoint(path), path)
    assert str(refused.value).startswith(f"{path} is not a checkpoint of this program") and says in str(refused.value)


@pytest.mark.parametrize("name", [*USUAL, *FULL])
def test_what_cannot_be_restored_is_laid_to_the_checkpoint(folder, config, name):
    path = put(folder, *RESTORED[name])
    words = ["fit", "--config", config, "--run_dir", folder, "--resume", "--trainer.max_steps", "42"]
    assert f"{path} is not a checkpoint of this program" in one_line(run(words, folder.parent))


def test_an_export_of_a_checkpoint_that_lacks_an_argument_works(folder):
    """Arguments that are not there are the defaults, as everywhere."""
    put(folder, ["hyper_parameters", "channels"], None)
    exported = run(["export", "--ckpt", folder, "--out", "exported"], folder.parent)
    assert exported.returncode == 0, exported.stderr


def test_a_space_that_is_none_is_named(folder):
    put(folder, ["EpisodeDataModule", "data", "action_space"], {"type": "Box", "shape": [1], "dtype": "x"})
    assert "action_space: a Box of 'x' is not read" in one_line(run(["plan", "--ckpt", folder], folder.parent))
