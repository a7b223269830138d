"""Full disks, and folders without permission to write."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import one_line
from faults.processes import run
from PIL import Image
from warm import variables

SMALL_DISK = "1600k"

# In a mount namespace of its own, so that root is not needed and nothing stays mounted.
IN_A_SMALL_DISK = """
set -e
mount -t tmpfs -o size={size} tmpfs "$1"
shift
exec "$@"
"""

FILL = """
import sys
from pathlib import Path
import torch
from worldmodel.callbacks.checkpoints import DurableCheckpointIO
from worldmodel.runs.checkpoint import read_checkpoint
from worldmodel.errors import UserError

folder = Path(sys.argv[1])
path, io = folder / "last.ckpt", DurableCheckpointIO()
def checkpoint(step, numbers):
    return {"hyper_parameters": {}, "state_dict": {"w": torch.full((numbers,), float(step))}, "global_step": step}
io.save_checkpoint(checkpoint(0, 100_000), path)
(folder / "filler").write_bytes(b"x" * 600_000)
failed = 0
for step in range(1, 101):
    try:
        io.save_checkpoint(checkpoint(step, 150_000), path)
    except UserError as error:
        failed += "of about 600,000 bytes cannot be written" in str(error) and str(path) in str(error)
    assert read_checkpoint(path)["global_step"] == 0
    assert sorted(p.name for p in folder.iterdir()) == ["filler", "last.ckpt", "last.ckpt.sha256"]
print("failed and whole:", failed)
"""


def in_a_small_disk(folder: Path, size: str, command: list[str]) -> list[str]:
    """The command that runs a command with a file system of this size at the folder."""
    user = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    script = IN_A_SMALL_DISK.format(size=size)
    return ["unshare", *user, "--mount", "sh", "-c", script, "sh", str(folder), *map(str, command)]


@pytest.fixture(scope="module")
def can_mount(tmp_path_factory) -> None:
    command = in_a_small_disk(tmp_path_factory.mktemp("mount"), "100k", ["true"])
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here: test_checkpoint_io limits the size of a file instead")


@pytest.mark.full
@pytest.mark.fault(5)
def test_a_full_disk_leaves_the_checkpoint_before_a_hundred_times(can_mount, tmp_path, seen):
    """The disk of the run is full, that of TMPDIR is not."""
    command = in_a_small_disk(tmp_path, "1200k", [sys.executable, "-c", FILL, tmp_path])
    process = subprocess.run(command, capture_output=True, text=True, env=variables(TMPDIR="/tmp"))
    assert "failed and whole: 100" in process.stdout, process.stderr
    seen("tmpfs: of 100 saves none fits, and the checkpoint before loads 100 times of 100")


@pytest.mark.full
@pytest.mark.fault(5)
def test_a_run_on_a_full_disk_says_so(can_mount, config, tmp_path, seen):
    """Each checkpoint takes a third of the disk: the first is saved, a later one is not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = ["fit", "--config", config, "--run_dir", disk / "run", "--model.hidden_dim", "100"]
    arguments += ["--checkpoint_keep", "8", "--checkpoint_every", "2"]
    left = f"{sys.executable} -m worldmodel validate --config {config} --model.hidden_dim 100"
    left += f" --run_dir {tmp_path / 'v'} --ckpt_path {disk / 'run'} > v.log 2>&1"
    program = f'{sys.executable} -m worldmodel "$@"; status=$?; {left}; echo $? > {tmp_path / "v.status"}; exit $status'
    command = in_a_small_disk(disk, SMALL_DISK, ["sh", "-c", program, "sh", *arguments])
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=variables(TMPDIR="/tmp"))
    said = one_line(process)
    assert str(disk / "run" / "checkpoints") in said and "bytes cannot be written" in said and "--resume" in said
    assert (tmp_path / "v.status").read_text().strip() == "0", (tmp_path / "v.log").read_text()
    seen("a fit on a full tmpfs ends with status 2, and names path and bytes; its last checkpoint validates")


FULL_AFTER = [  # bytes of a file, and the command
    (3000, "fit --config {config} --run_dir OUT/run"),
    (20000, "rollout --ckpt {run} --out OUT/rollout"),
    (2000, "predict --config {config} --ckpt_path {run} --run_dir OUT/run"),
    (100, "diagnose --ckpt {run} --out OUT/diagnosis"),
    (20000, "fit --config {config} --run_dir OUT/run"),
    (100, "rollout --ckpt {run} --out OUT/rollout"),
    (20000, "diagnose --ckpt {run} --out OUT/diagnosis"),
    (100, "export --ckpt {run} --out OUT/exported"),
    (2000, "data info {data} --picture OUT/picture.png"),
    (2000, "data convert {data} --out OUT/converted"),
]


@pytest.mark.fault(5)
def test_every_file_is_written_whole_or_not_at_all(config, whole, toy_data, tmp_path, often, seen):
    """The disk is full after so many bytes of a file; all that stays behind can be read."""
    attempts = FULL_AFTER[: often(len(FULL_AFTER), 1)]
    words = [str(part) for limit, command in attempts for part in (limit, command)]
    words = [word.format(config=config, run=whole, data=toy_data) for word in words]
    script = Path(__file__).with_name("every_write.py")
    process = subprocess.run(
        [sys.executable, script, tmp_path, *words], capture_output=True, text=True, env=variables(), cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    for (limit, command), line in zip(attempts, process.stdout.splitlines(), strict=True):
        status, said, folder = json.loads(line)
        lines = said.splitlines()
        assert status == 2 and len(lines) == 1, f"{command}, {limit} bytes: {said[-2000:]}"
        assert "cannot be written" in lines[0] and folder in lines[0], lines[0]
        for path in Path(folder).rglob("*"):
            assert path.suffix != ".partial", "nothing half written"
            if path.suffix == ".csv":
                assert path.read_text().endswith("\n")
            if path.suffix in (".png", ".gif"):
                Image.open(path).load()
    seen(f"{len(attempts)} commands on a disk that is full: status 2, one line with path and bytes, whole files only")


@contextmanager
def read_only_folder():
    """A folder that only root may write to."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "runs").mkdir()
        (folder / "runs").chmod(0o555)
        folder.chmod(0o755)
        yield folder
        (folder / "runs").chmod(0o755)


@pytest.mark.fault(6)
def test_a_folder_without_permission_is_an_error_before_the_first_step(config, seen):
    """Root may write everywhere, so it gives up that right."""
    unprivileged = ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"]
    with read_only_folder() as folder:
        command = [sys.executable, "-m", "worldmodel", "fit", "--config", config]
        command += ["--run_dir", folder / "runs" / "new", "--trainer.max_steps", "3"]
        process = subprocess.run(
            list(map(str, [*(unprivileged if os.getuid() == 0 else []), *command])),
            cwd=folder, capture_output=True, text=True, env=variables(),
        )  # fmt: skip
        assert "cannot" in one_line(process) and str(folder / "runs") in process.stderr
        assert "model:" not in process.stdout, "before the first step"
    seen("an error before step 1, status 2")


def test_a_folder_that_is_renamed_while_it_is_trained_into_is_one_line(config, tmp_path):
    stop = ["--trainer.callbacks+=faults.stops.Rename", "--trainer.callbacks.step=16"]
    process = run(["fit", "--config", config, "--run_dir", "run", *stop], tmp_path)
    assert "run/metrics.csv is gone: was its folder removed or renamed" in one_line(process)
    assert not (tmp_path / "run").exists()
