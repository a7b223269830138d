"""An export gives the same predictions without Lightning, and nothing in its folder can do harm."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import one_line, over_rules
from safetensors.torch import save_file

from worldmodel import WorldModel, load_exported
from worldmodel.errors import UserError
from worldmodel.export import write_export
from worldmodel.runs.checkpoint import read_checkpoint

SIZES = {"obs_dim": 3, "action_dim": 2, "latent_dim": 4, "hidden_dim": 12, "width": 8}
ALONE = """
import sys
for name in ("lightning", "pytorch_lightning", "torchmetrics", "gymnasium", "wandb", "jsonargparse"):
    sys.modules[name] = None  # importing it fails
import torch
from worldmodel import load_exported

folder, inputs, outputs = sys.argv[1:]
x = torch.load(inputs)
model = load_exported(folder)
with torch.no_grad():
    closed = model.closed_loop(x["obs"], x["action"], x["is_first"])
    imagined = model.open_loop(model.encode(x["obs"][:, 0]), closed[1][:, 0], x["action"])
torch.save([*closed, *imagined], outputs)
"""


def made(folder: Path, **arguments) -> WorldModel:
    torch.manual_seed(0)
    model = WorldModel(**{**SIZES, **arguments}).eval()
    model.obs_norm.fit(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 0.1, 3.0]))
    write_export(folder, dict(model.hparams), model.state_dict(), {}, "this test")
    return model


def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    is_first = torch.zeros(2, 9, dtype=torch.bool)
    is_first[0, 4] = True
    return {"obs": torch.randn(2, 9, 3), "action": torch.randn(2, 9, 2), "is_first": is_first}


def predictions(model, x) -> list[torch.Tensor]:
    with torch.no_grad():
        closed = model.closed_loop(x["obs"], x["action"], x["is_first"])
        return [*closed, *model.open_loop(model.encode(x["obs"][:, 0]), closed[1][:, 0], x["action"])]


@pytest.mark.parametrize(("rule", "objective"), over_rules(("reconstruction", "latent", "tokens")))
def test_every_rule_and_objective_comes_back(tmp_path, rule, objective):
    model, x = made(tmp_path / "out", rule=rule, objective=objective), inputs()
    before = torch.get_rng_state()
    loaded = load_exported(tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), before), "loading draws no random numbers"
    assert not loaded.training
    for one, other in zip(predictions(model, x), predictions(loaded, x), strict=True):
        assert torch.equal(one, other)


def test_members_come_back(tmp_path):
    model, x = made(tmp_path / "out", members=3, output="gaussian"), inputs()
    loaded = load_exported(tmp_path / "out")
    assert loaded.members == 3
    for one, other in zip(predictions(model, x), predictions(loaded, x), strict=True):
        assert torch.equal(one, other)


def test_a_trained_run_is_exported_and_loads_without_lightning(worldmodel, toy_data, tmp_path, often):
    conf = tmp_path / "toy.yaml"
    conf.write_text(yaml.safe_dump({
        "wandb": "disabled",
        "data": {"path": str(toy_data), "steps": 8, "lanes": 4},
        "model": {"latent_dim": 6, "hidden_dim": 10, "width": 12, "objective": "latent"},
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 5, "enable_progress_bar": False},
    }))  # fmt: skip
    assert worldmodel("fit", "--config", conf, "--run_dir", tmp_path / "run").returncode == 0
    process = worldmodel("export", "--ckpt", tmp_path / "run", "--out", tmp_path / "out")
    assert process.returncode == 0 and "verified" in process.stdout, process.stderr
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "out", check=True)
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert about["data"]["action_space"]["type"] and about["trained_steps"] == 5
    as_graphs = ["export", "run", "--format", "onnx", "--out"]
    for _ in range(often(2, 1)):  # the same command again
        process = worldmodel(*as_graphs, "graphs")
        assert process.returncode == 0 and "from the model over 200 steps" in process.stdout, process.stderr
        assert "Warning" not in process.stderr and "torchvision" not in process.stderr
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "graphs", check=True)
    assert "out is not empty: choose a new --out" in one_line(worldmodel(*as_graphs, "out"))
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    model = WorldModel(**checkpoint["hyper_parameters"]).eval()
    model.load_state_dict(checkpoint["state_dict"])
    x = {"obs": torch.randn(2, 9, model.hparams["obs_dim"]), "action": torch.randn(2, 9, model.hparams["action_dim"])}
    x["is_first"] = torch.zeros(2, 9, dtype=torch.bool)
    torch.save(x, tmp_path / "x.pt")
    command = [sys.executable, "-c", ALONE, *(str(tmp_path / name) for name in ("out", "x.pt", "y.pt"))]
    subprocess.run(command, check=True)
    for one, other in zip(predictions(model, x), torch.load(tmp_path / "y.pt"), strict=True):
        assert torch.equal(one, other)
    (tmp_path / "out" / "thesis.tex").touch()
    again = worldmodel("export", "--ckpt", tmp_path / "run", "--out", tmp_path / "out")
    assert f"{tmp_path / 'out'} is not empty: choose a new --out" in one_line(again)


def sign(folder: Path) -> None:
    """As an attacker would: the digests are right."""
    names = ("model.safetensors", "model.json")
    digest = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "SHA256SUMS").write_text("".join(f"{digest[name]}  {name}\n" for name in names))


def with_arguments(folder: Path, **changed) -> None:
    about = json.loads((folder / "model.json").read_text())
    about["arguments"] |= changed
    (folder / "model.json").write_text(json.dumps(about))
    sign(folder)


def outside(folder: Path) -> None:
    secret = folder.parent / "secret.safetensors"
    os.rename(folder / "model.safetensors", secret)
    (folder / "model.safetensors").symlink_to(secret)


def pickled(folder: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, folder / "model.safetensors")
    sign(folder)


def vast_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    sign(folder)


def claims_a_tebibyte(folder: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**20, 2**18], "data_offsets": [0, 2**40]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    sign(folder)


def nested(folder: Path) -> None:
    (folder / "model.json").write_text("[" * 2_000_000)
    sign(folder)


def fewer_tensors(folder: Path) -> None:
    save_file({"w": torch.zeros(1)}, folder / "model.safetensors")
    sign(folder)


HOSTILE = {
    "a link that leaves the folder": (outside, "is no file"),
    "a pickle": (pickled, "not of this program, or damaged"),
    "a header of 2^62 bytes": (vast_header, "not of this program, or damaged"),
    "a tensor of 2^40 bytes": (claims_a_tebibyte, "not of this program, or damaged"),
    "two million brackets": (nested, "not of this program, or damaged"),
    "a file too large": (
        lambda folder: (folder / "model.json").write_bytes(b" " * (2**24 + 1)),
        "more than any export",
    ),
    "weights of another model": (fewer_tensors, "it holds no obs_norm.mean"),
    "a class path": (lambda folder: with_arguments(folder, rule="os.system"), "unknown rule 'os.system'"),
    "a vast state": (lambda folder: with_arguments(folder, hidden_dim=2**40), "is of another version"),
    "a vast encoder": (lambda folder: with_arguments(folder, depth=2**40), "layers and holds"),
    "a vast head": (lambda folder: with_arguments(folder, head_depth=2**40), "layers and holds"),
    "many layers": (lambda folder: with_arguments(folder, layers=2**40), "layers"),
    "a vast picture": (lambda folder: with_arguments(folder, images=[[2**30, 2**30, 3]]), "is of another version"),
    "words for numbers": (
        lambda folder: with_arguments(folder, hidden_dim="__import__('os')"),
        "is of another version",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_export_is_refused(tmp_path, name):
    folder = tmp_path / "out"
    made(folder)
    change, said = HOSTILE[name]
    change(folder)
    with pytest.raises(UserError, match=said):
        load_exported(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "SHA256SUMS"])
def test_no_flipped_bit_and_no_cut_is_silent(tmp_path, name):
    folder = tmp_path / "out"
    made(folder)
    path = folder / name
    whole, generator = path.read_bytes(), torch.Generator().manual_seed(0)
    for _ in range(60):
        position, bit = (int(torch.randint(n, (), generator=generator)) for n in (len(whole), 8))
        flipped = bytearray(whole)
        flipped[position] ^= 1 << bit
        for content in (bytes(flipped), whole[:position]):
            path.write_bytes(content)
            if content.splitlines() == whole.splitlines():
                continue  # the last end of line of the digests
            with pytest.raises(UserError, match="model"):
                load_exported(folder)
