"""Checkpoints on disk: whole or absent, damage is noticed, and nothing in them is run."""

import os
import pickle
import random
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from warm import variables

from worldmodel.callbacks.checkpoints import DurableCheckpointIO
from worldmodel.durable import digests, keep_as, sha256, write_digests
from worldmodel.errors import UserError
from worldmodel.runs.checkpoint import damage, read_checkpoint

CHECKPOINT = {"hyper_parameters": {"rule": "gated_norm"}, "state_dict": {"w": torch.arange(3000.0)}, "global_step": 7}


@pytest.fixture
def path(tmp_path) -> Path:
    DurableCheckpointIO().save_checkpoint(CHECKPOINT, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_what_is_saved_comes_back(path):
    assert [p.name for p in sorted(path.parent.iterdir())] == ["last.ckpt", "last.ckpt.sha256"]
    there = DurableCheckpointIO().load_checkpoint(path, weights_only=False)
    assert there["global_step"] == 7 and torch.equal(there["state_dict"]["w"], torch.arange(3000.0))
    assert subprocess.run(["sha256sum", "-c", "last.ckpt.sha256"], cwd=path.parent, capture_output=True).returncode == 0


@pytest.mark.fault(7)
@pytest.mark.parametrize("with_digest", [True, False])
def test_no_flip_and_no_cut_is_silent(path, often, seen, with_digest):
    """Without the digest, the archive's own checksums remain; what they do not cover changes no weight."""
    whole = path.read_bytes()
    if not with_digest:
        path.with_name("last.ckpt.sha256").unlink()
    dice, flips, cuts = random.Random(0), often(1000, 200), often(200, 100)
    for _ in range(flips):
        content = bytearray(whole)
        content[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        path.write_bytes(content)
        try:
            there = read_checkpoint(path)
        except UserError as error:
            assert str(path) in str(error)
        else:
            assert not with_digest and torch.equal(there["state_dict"]["w"], CHECKPOINT["state_dict"]["w"])
    for _ in range(cuts):
        path.write_bytes(whole[: dice.randrange(len(whole))])
        with pytest.raises(UserError, match=r"last\.ckpt"):
            read_checkpoint(path)
    path.write_bytes(whole)
    assert damage(path) is None
    what = "0 silent" if with_digest else "none that changes a weight is silent"
    seen(f"checkpoint {'with' if with_digest else 'without'} its SHA-256: {flips} flips, {cuts} cuts, {what}")


def test_between_two_renames_every_file_has_its_digest(path):
    """A process may die between the digest and the file: then both the old and the new file are valid."""
    old = digests(path)
    write_digests(path, ["0" * 64, *old])
    assert damage(path) is None
    keep_as(path, path.with_name("last-1.ckpt"))
    assert damage(path.with_name("last-1.ckpt")) is None
    DurableCheckpointIO().save_checkpoint({**CHECKPOINT, "global_step": 8}, path)
    assert read_checkpoint(path)["global_step"] == 8
    assert read_checkpoint(path.with_name("last-1.ckpt"))["global_step"] == 7, "a link, not the file itself"


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def pickled(path):
    path.write_bytes(pickle.dumps(Evil()))


def packed(path):
    """A hundred megabytes of zeros in a hundred kilobytes."""
    torch.save(CHECKPOINT, path.with_suffix(".plain"))
    with zipfile.ZipFile(path.with_suffix(".plain")) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry) if entry.file_size < 9_000 else b"0" * 100_000_000)


HOSTILE = {
    "a pickle": pickled,
    "an object with code": lambda path: torch.save(Evil(), path),
    "code among the arguments": lambda path: torch.save({**CHECKPOINT, "hyper_parameters": Evil()}, path),
    "code among the weights": lambda path: torch.save({**CHECKPOINT, "state_dict": {"w": Evil()}}, path),
    "a class path": lambda path: torch.save({**CHECKPOINT, "hyper_parameters": {"_instantiator": os.system}}, path),
    "an old format": lambda path: torch.save(CHECKPOINT, path, _use_new_zipfile_serialization=False),
    "a packed archive": packed,
    "a tensor of 2^40 numbers": lambda path: torch.save(
        {**CHECKPOINT, "state_dict": {"w": torch.zeros(1).expand(2**20, 2**20)}}, path
    ),
    "a list": lambda path: torch.save([1, 2], path),
    "another dictionary": lambda path: torch.save({"model": {}}, path),
    "nothing": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_in_a_checkpoint_is_run(tmp_path, monkeypatch, name, signed):
    """Nor unpacked; with the right digest, as an attacker would write it, and without."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.ckpt"
    HOSTILE[name](path)
    if signed:
        write_digests(path, [sha256(path)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="is not a checkpoint of this program"):
        DurableCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not (tmp_path / "executed").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kilobytes"


FULL = """
import resource, signal, sys, torch
from pathlib import Path
from worldmodel.callbacks.checkpoints import DurableCheckpointIO
from worldmodel.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    DurableCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(30_000)}}, Path(sys.argv[1]))
except UserError as error:
    sys.exit(str(error))
"""


@pytest.mark.fault(5)
def test_a_full_disk_leaves_the_checkpoint_before(path, seen):
    """A limit on the size of a file stands for a full disk: the write fails half-way."""
    command = [sys.executable, "-c", FULL, path]
    process = subprocess.run(command, capture_output=True, text=True, env=variables())
    assert (
        process.returncode == 1 and f"the checkpoint {path} of about 120,000 bytes cannot be written" in process.stderr
    )
    assert "the checkpoint before is kept" in process.stderr and "Traceback" not in process.stderr
    assert read_checkpoint(path)["global_step"] == 7
    assert [p.name for p in sorted(path.parent.iterdir())] == ["last.ckpt", "last.ckpt.sha256"]
    seen("a write that fails half-way (a limit on the file's size): the one before stays; path and bytes named")
