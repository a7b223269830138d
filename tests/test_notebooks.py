"""The notebooks of docs/: every cell runs; with --full in a kernel, as a user runs them."""

import ast
import json
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from worldmodel import WorldModel, plot, read_metrics
from worldmodel.cli import main
from worldmodel.errors import UserError

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SELDOM = ("compare",)  # commands that take long: in a kernel alone
PNG = b"\x89PNG"


def run(source: str, names: dict) -> object:
    """What a cell shows, run without a kernel: `!worldmodel ...` in this process, `%%writefile`, Python."""
    if source.startswith("%%writefile "):
        first, _, text = source.partition("\n")
        return Path(first.split()[1]).write_text(text)
    commands = [line[1:] for line in source.splitlines() if line.startswith("!")]
    code = ast.parse("\n".join(line for line in source.splitlines() if not line.startswith("!")))
    last = code.body.pop() if code.body and isinstance(code.body[-1], ast.Expr) else None
    exec(compile(code, "cell", "exec"), names)
    shown = None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    for program, command, *options in map(shlex.split, commands):
        assert program == "worldmodel"
        if command not in SELDOM:
            try:
                main([command, *options])
            except SystemExit as end:
                assert not end.code, command
    return shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace("max_steps: 200", "max_steps: 10")
            shown = run(source, names)
            if "plot(" in "".join(cell["source"]):
                assert shown._repr_png_().startswith(PNG)


@pytest.mark.full
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_kernel_runs_them(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert "report: runs/" in "".join(output.get("text", "") for output in shown)
    assert "error" not in {output.output_type for output in shown}


@pytest.fixture(scope="module")
def trained(pendulum_data, tmp_path_factory):
    """A run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ["fit", "--data.path", str(pendulum_data), "--data.steps=8", "--data.lanes=2", "--trainer.max_steps=3"]
    words += ["--model.hidden_dim=8", "--model.latent_dim=4", "--model.width=8", "--rollout.multiples=[1]"]
    words += ["--trainer.log_every_n_steps=1", "--wandb=disabled", "--trainer.accelerator=cpu"]
    main([*words, "--run_dir", str(folder)])
    return folder


def test_a_loaded_model_gives_what_the_command_gives(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = WorldModel.load(trained)
    assert not model.training
    rollout = model.rollout(horizon=20, episodes="0,1")
    main(["rollout", str(trained), "--horizon", "20", "--episodes", "0,1", "--out", "out"])
    written = [line.split(",") for line in Path("out/rollout.csv").read_text().splitlines()[1:]]
    for name, metric in {"model": "nmse", "linear": "linear", "copy_last": "copy_last"}.items():
        expected = [float(value) for _, what, value in written if what == metric]
        np.testing.assert_allclose(rollout.errors[name], expected, rtol=1e-6)
    assert len(rollout.errors["model"]) == 20
    plot(rollout).save("rollout.png")
    assert Path("rollout.png").read_bytes().startswith(PNG)


def test_metrics_are_columns(trained):
    metrics = read_metrics(trained)
    assert metrics["step"][np.isfinite(metrics["train/loss"])].tolist() == [0, 1, 2]
    assert np.isfinite(metrics["val/loss"]).sum() == 1
    assert plot(metrics)._repr_png_().startswith(PNG)
    with pytest.raises(UserError, match="no metric val/los: did you mean 'val/loss'"):
        plot(metrics, "val/los")


def test_what_is_missing_is_said(trained, tmp_path):
    with pytest.raises(UserError, match="no metrics.csv in"):
        read_metrics(tmp_path)
    with pytest.raises(UserError, match="no checkpoint at"):
        WorldModel.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="rollout needs data"):
        WorldModel(2, 1).rollout()
    (alone := tmp_path / "alone.ckpt").write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes())
    with pytest.raises(UserError, match="has no config.yaml of its run beside it: give the data"):
        WorldModel.load(alone).rollout()
