"""The examples of CONTRIBUTING.md, carried out on a copy of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

BLOCK = re.compile(r"^```(python|diff)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIT = ["fit", "--data.path", "jsonl", "--run_dir", "run", "--wandb", "disabled", "--trainer.accelerator", "cpu"]
TINY = ["--trainer.max_steps", "2", "--data.steps", "8", "--data.lanes", "2", "--rollout.multiples", "[1]"]
COMMANDS = {
    "help": ["--help"],
    "check": ["data", "check", "jsonl"],
    "collect": ["collect", "worldmodel/Parity-v0", "--out", "parity", "--steps", "40"],
    "fit": [*FIT, *TINY, "--model.rule", "leaky", "--model.width", "8"],
    "size": ["size", "--ckpt", "run"],
    "diagnose": ["diagnose", "--ckpt", "run", "--batches", "2", "--out", "diagnosis"],
}
PROGRAM = """
import contextlib, io, json, sys

import torch

from worldmodel import LatentPredictor
from worldmodel.cli import main

torch.set_num_threads(1)
printed = {}
predictor = LatentPredictor(4, 2, 8, rule="clamped")
pred, h, carry = predictor.closed_loop(torch.randn(3, 5, 4), torch.randn(3, 5, 2), torch.zeros(3, 5, dtype=torch.bool))
printed["clamped"] = f"{tuple(h.shape)} {bool((h.detach().abs() <= 1).all())}"
for name, argv in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main(argv)
        except SystemExit as end:
            assert not end.code, name
    printed[name] = out.getvalue()
json.dump(printed, open("printed.json", "w"))
"""


def apply(path: Path, kind: str, text: str) -> None:
    """Write a new file, or change the lines of a diff in one that is there."""
    if kind == "python":
        assert not path.exists(), path
        path.write_text(text)
        return
    code = path.read_text()
    for hunk in text.split("@@\n"):
        lines = hunk.splitlines()
        old, new = ("".join(f"{line[1:]}\n" for line in lines if line[:1] != sign) for sign in "+-")
        assert code.count(old) == 1, f"{path} has these lines {code.count(old)} times:\n{old}"
        code = code.replace(old, new)
    path.write_text(code)


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Path:
    """A folder with the package and every example."""
    folder = tmp_path_factory.mktemp("contributing")
    shutil.copytree(ROOT / "worldmodel", folder / "worldmodel", ignore=shutil.ignore_patterns("__pycache__"))
    for kind, name, text in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()):
        apply(folder / name, kind, text)
    return folder


@pytest.fixture(scope="module")
def printed(changed) -> dict[str, str]:
    """What the commands print with the examples."""
    rng = np.random.default_rng(0)
    (changed / "jsonl").mkdir()
    for i in range(6):
        rows = rng.normal(size=(30, 3)).round(3) * [1, 1, i > 0]  # nothing is done in the first
        lines = [json.dumps({"obs": list(row[:2]), "action": list(row[2:])}) for row in rows]
        (changed / "jsonl" / f"{i}.jsonl").write_text("\n".join(lines))
    variables = os.environ | {"PYTHONPATH": str(changed), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(COMMANDS)]
    process = subprocess.run(command, cwd=changed, env=variables, capture_output=True, text=True, timeout=400)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads((changed / "printed.json").read_text())


def test_the_examples_are_formatted_and_typed_like_the_rest(changed):
    ruff = [sys.executable, "-m", "ruff"]
    rules = ["--config", str(ROOT / "pyproject.toml"), "worldmodel"]
    for command in (["check", *rules], ["format", "--check", *rules]):
        process = subprocess.run([*ruff, *command], cwd=changed, capture_output=True, text=True)
        assert process.returncode == 0, process.stdout


def test_a_rule(printed):
    assert printed["clamped"] == "(3, 5, 8) True"


def test_a_cell_a_format_and_a_callback_serve_a_fit(changed, printed):
    assert "leaky" in printed["fit"] and "run: run" in printed["fit"]
    assert (changed / "run" / "heartbeat").exists()


def test_a_check(printed):
    assert "idle" in printed["check"] and "1 episodes whose actions are all zero" in printed["check"]


def test_a_diagnosis(changed, printed):
    assert "movement of h in a step" in printed["diagnose"]
    assert 0 < json.loads((changed / "diagnosis" / "diagnosis.json").read_text())["movement"]["mean"] < 2


def test_a_task(changed, printed):
    assert (changed / "parity" / "manifest.json").exists()


def test_a_command(printed):
    assert "size " in printed["help"]
    assert re.search(r"last\.ckpt: [\d,]+ numbers", printed["size"])
