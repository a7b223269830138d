"""A model as graphs: what they give is what the model gives, carried over thousands of steps, with resets."""

import json
import sys

import numpy as np
import pytest
import torch

from worldmodel import RULES
from worldmodel.durable import sha256
from worldmodel.errors import UserError
from worldmodel.graphs import SUFFIX, difference, write_graphs
from worldmodel.model import Model

SIZES = {"obs_dim": 3, "action_dim": 2, "latent_dim": 4, "hidden_dim": 12, "width": 8}
FORMS = (
    {"base": "none"},
    {"base": "last"},
    {"base_lags": 4},
    {"base_lags": 4, "feedback": False},
    {"output": "mixture"},
    {"members": 3},
    {"objective": "latent"},
    {"objective": "tokens"},
    {"value_discount": 0.9},
    {"reward_head": "two_hot"},
    {"obs_dim": 3 + 16 * 16 * 3, "images": [(16, 16, 3)]},
)


def made(**arguments) -> Model:
    torch.manual_seed(0)
    model = Model(**{**SIZES, **arguments}).eval()
    if not model.is_tokens:
        model.obs_norm.fit(torch.randn(len(model.obs_norm.mean)), torch.rand(len(model.obs_norm.mean)) + 0.1)
    return model


@pytest.mark.full  # test_export has one of its own
@pytest.mark.parametrize("format", SUFFIX)
@pytest.mark.parametrize("rule", RULES)
def test_the_graphs_give_what_the_model_gives(tmp_path, rule, format):
    model = made(rule=rule, base_lags=2)
    assert write_graphs(tmp_path / "out", model, format, {"data": {"env_id": "X"}}) < 1e-4
    assert difference(tmp_path / "out", model, format, 10_000) < 1e-4
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert about["data"] == {"env_id": "X"}
    carry = model.initial_carry(torch.zeros(1, 3)).shape[1]
    inputs = {"obs": ["batch", 3], "is_first": ["batch"], "carry": ["batch", carry]}
    assert about["graphs"]["observe"]["inputs"] == inputs
    sums = dict(reversed(line.split("  ")) for line in (tmp_path / "out" / "SHA256SUMS").read_text().splitlines())
    assert {name: sha256(tmp_path / "out" / name) for name in sums} == sums and len(sums) == 3


@pytest.mark.full
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_whatever_the_form(tmp_path, form):
    assert write_graphs(tmp_path / "out", made(**form), "onnx", {}) < 1e-4


@torch.no_grad()
def test_repeated_it_predicts_as_a_rollout(tmp_path):
    """k calls of `predict` are a rollout of k steps; one lane among many gives what it gives alone."""
    model = made(rule="gru", base_lags=3)
    write_graphs(tmp_path / "out", model, "torch", {})
    observe, predict = (torch.export.load(tmp_path / "out" / f"{name}.pt2").module() for name in ("observe", "predict"))
    obs, actions = torch.randn(5, 3), torch.randn(5, 7, 2)
    z, h = start = observe(obs, torch.ones(5, dtype=torch.bool), model.initial_carry(obs))
    rolled = model.open_loop(*start, actions)
    for step in range(7):
        next_obs, reward, continues, z, h, _ = predict(z, h, actions[:, step])
        for ours, there in ((next_obs, rolled.obs), (reward, rolled.reward), (continues, rolled.continues)):
            np.testing.assert_allclose(ours.numpy(), there[:, step].numpy(), rtol=1e-5, atol=1e-6)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'worldmodel\[onnx\]'"):
        write_graphs(tmp_path / "out", made(), "onnx", {})
    assert not (tmp_path / "out").exists()
