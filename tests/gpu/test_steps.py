"""One training step on a GPU: as a graph, compiled, in bfloat16; and how often it waits."""

import copy

import pytest
import torch

from worldmodel import RULES, LatentPredictor, WorldModel
from worldmodel.modules.step_graph import StepGraph

B, T, OBS, A = 5, 12, 4, 2
SMALL = {"latent_dim": 6, "hidden_dim": 16, "width": 24}
MODELS = {
    **{rule: {"rule": rule} for rule in RULES},
    "one layer": {"layers": 1},
    "rollouts": {"open_loop_steps": 4},
    "latent": {"objective": "latent", "open_loop_steps": 4},
    "a value head": {"value_discount": 0.9},
    "two-hot heads": {"value_discount": 0.9, "reward_head": "two_hot"},
    "tokens": {"objective": "tokens", "rule": "triad"},
    "images": {"images": [(16, 16, 3)], "channels": 4},
}


def model_of(options) -> WorldModel:
    torch.manual_seed(0)
    obs_dim = OBS + 16 * 16 * 3 * ("images" in options)
    model = WorldModel(obs_dim, A, **SMALL, **options).cuda()
    model.reward_norm.mean.fill_(0.5)  # of tokens: how much is asked for
    return model


def batch_of(model, seed):
    """Resets within the segment, padding behind a lane's end, and a state from before."""
    generator = torch.Generator().manual_seed(seed)
    obs_dim = len(model.obs_norm.mean)
    is_first, valid = torch.zeros(2, B, T, dtype=torch.bool)
    is_first[0, 0] = is_first[1, [3, 4, 9]] = is_first[2, -1] = is_first[seed % B, 6] = True
    valid[:] = True
    valid[4, 7:] = False
    obs = torch.randn(B, T + 1, obs_dim, generator=generator)
    if model.is_tokens:
        obs = torch.eye(obs_dim)[torch.randint(obs_dim, (B, T + 1), generator=generator)]
    state, known = torch.randn(B, model.predictor.state_dim, generator=generator), model.initial_carry(obs)
    batch = {
        "obs": obs,
        "action": torch.randn(B, T, A, generator=generator),
        "reward": torch.rand(B, T, generator=generator),
        "terminated": torch.rand(B, T, generator=generator) < 0.1,
        "is_first": is_first,
        "valid": valid,
        "num_valid": valid.sum().float(),
        "carry": torch.cat([state, known[:, state.shape[1] :]], dim=1),
    }
    return {name: value.cuda() for name, value in batch.items()} | {"position": seed}


def stepped(model, run, batch):
    """The step's loss, terms, states and carry, and the gradients of half its loss."""
    model.zero_grad()
    loss, terms, h, carry = run(batch)
    (loss / 2).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    told = {"loss": loss.detach(), "h": h.detach(), "carry": carry}
    return told | {name: term.detach() for name, term in terms.items()}, gradients


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_a_graph_gives_what_the_plain_step_gives(options):
    """Three batches, with an update between them, so that neither batch nor weights are those of the capture."""
    model = model_of(options)
    graph, optimizer = StepGraph(model.step, model.parameters()), torch.optim.AdamW(model.parameters(), 0.01)
    seen = []
    for seed in range(3):
        batch = batch_of(model, seed)
        expected = copy.deepcopy(stepped(model, model.step, batch))
        found = stepped(model, graph, batch)
        assert len(found[1]) == len(expected[1]) > 10
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        seen.append(float(found[0]["loss"]))
        optimizer.step()
    assert len(set(seen)) == 3


def test_a_graph_adds_up_gradients_and_keeps_what_it_gave():
    model = model_of({})
    graph, batches = StepGraph(model.step, model.parameters()), [batch_of(model, seed) for seed in range(2)]
    one, other = (copy.deepcopy(stepped(model, graph, batch)[1]) for batch in batches)
    model.zero_grad()
    first = graph(batches[0])
    told = float(first.loss.detach()), {name: float(term) for name, term in first.terms.items()}
    first.loss.backward()
    graph(batches[1]).loss.backward()
    assert told == (float(first.loss.detach()), {name: float(term) for name, term in first.terms.items()})
    for name, parameter in model.named_parameters():
        if name in one:
            torch.testing.assert_close(parameter.grad, 2 * (one[name] + other[name]), rtol=1e-5, atol=1e-6)


def test_a_batch_of_another_size_is_captured_anew():
    model = model_of({})
    graph, whole = StepGraph(model.step, model.parameters()), batch_of(model, 0)
    graph(whole)
    part = {name: x[:3] if isinstance(x, torch.Tensor) and x.ndim else x for name, x in whole.items()}
    torch.testing.assert_close(stepped(model, graph, part), stepped(model, model.step, part), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["gated_norm", "gru"])
def test_compiled_equals_the_loop_alone_and_in_a_graph(rule):
    plain, compiled = model_of({"rule": rule}), model_of({"rule": rule})
    torch._dynamo.reset()
    compiled.predictor.compile_step()
    segments, unroll = [], compiled.predictor._compiled
    compiled.predictor._compiled = lambda *arguments: (segments.append(1), unroll(*arguments))[1]
    for run in (compiled.step, StepGraph(compiled.step, compiled.parameters())):
        for seed in range(2):
            batch = batch_of(plain, seed)
            found, expected = stepped(compiled, run, batch), stepped(plain, plain.step, batch)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert segments, "the compiled loop was taken"


@pytest.mark.parametrize("graphed", [False, True])
@pytest.mark.parametrize("rule", ["gated_norm", "lstm", "triad"])
def test_bfloat16_keeps_the_state_in_float32_and_its_loss_is_near(rule, graphed):
    model, reference = model_of({"rule": rule}), model_of({"rule": rule})
    run = StepGraph(model.step, model.parameters()) if graphed else model.step
    for seed in range(2):
        batch = batch_of(model, seed)
        with torch.autocast("cuda", torch.bfloat16):
            found, gradients = stepped(model, run, batch)
        expected, wanted = stepped(reference, reference.step, batch)
        assert found["h"].dtype == found["carry"].dtype == torch.float32
        assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
        assert abs(float(found["loss"] / expected["loss"]) - 1) < 0.01
        flat, true = (torch.cat([g[name].flatten() for name in wanted]) for g in (gradients, wanted))
        assert 0 < float((flat - true).norm() / true.norm()) < 0.1
        for parameter in (*model.parameters(), *reference.parameters()):
            parameter.data.mul_(1.2)  # what a graph cast to bfloat16 is not that of the capture


@pytest.mark.parametrize("graphed", [False, True])
@pytest.mark.parametrize("name", ["gated_norm", "gru", "rollouts", "latent", "tokens", "images"])
def test_a_step_does_not_wait_for_the_gpu(name, graphed):
    model = model_of(MODELS[name])
    run = StepGraph(model.step, model.parameters()) if graphed else model.step
    batch = batch_of(model, 0)
    stepped(model, run, batch)  # libraries set themselves up; a graph is captured
    torch.cuda.set_sync_debug_mode("error")
    stepped(model, run, batch)
    with pytest.raises(RuntimeError, match="synchroniz"):
        batch["obs"].sum().item()


def test_near_the_cpu_in_float32_and_further_in_tf32():
    predictor = LatentPredictor(6, A, 256)
    z, a, h = torch.randn(B, T, 6), torch.randn(B, T, A), torch.randn(B, 256)
    is_first = torch.rand(B, T) < 0.2
    expected, distances = predictor.states(z, a, is_first, h), {}
    predictor.cuda()
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        found = predictor.states(*(x.cuda() for x in (z, a, is_first, h))).cpu()
        distances[precision] = float((found - expected).abs().max())
    assert distances["highest"] < 1e-4 < distances["high"] < 0.05
