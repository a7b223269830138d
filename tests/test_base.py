"""The linear base against plain loops in float64, whatever an episode's age, and through a model for every rule."""

import pytest
import torch

from worldmodel import RULES, WorldModel
from worldmodel.base import CLIP, LinearBase, Rollout

B, T, O, A = 5, 12, 3, 2  # noqa: E741
EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.fixture(params=[1, 2, 4])
def base(request) -> LinearBase:
    return random_base(request.param)


def random_base(lags: int, scale: float = 0.3) -> LinearBase:
    base, generator = LinearBase(O, A, lags).double(), torch.Generator().manual_seed(lags)
    for name, buffer in base.named_buffers():
        if name in ("weights", "constants"):
            buffer.copy_(scale * torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
        elif name in ("scales", "spread"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    for c in range(1, lags):
        base.weights[c - 1, c * (O + A) :] = 0
    return base


@pytest.fixture
def segment() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Episodes that start at 0, everywhere else, and not at all."""
    generator = torch.Generator().manual_seed(0)
    is_first = torch.rand(B, T, generator=generator) < 0.25
    is_first[0], is_first[1, 0], is_first[2] = False, True, True
    shape = {"generator": generator, "dtype": torch.float64}
    return torch.randn(B, T, O, **shape), torch.randn(B, T, A, **shape), is_first


def by_loop(base, obs, action, is_first):
    """Predictions, innovations and scales of lanes that begin an episode, a frame at a time."""
    preds, innovations, scales = (torch.zeros(B, obs.shape[1], O, dtype=obs.dtype) for _ in range(3))
    for lane in range(B):
        frames: list[torch.Tensor] = []
        for t in range(obs.shape[1]):
            if is_first[lane, t]:
                frames = []
            if frames:
                missed = (obs[lane, t] - preds[lane, t - 1]) / scales[lane, t - 1]
                innovations[lane, t] = missed.clamp(-CLIP, CLIP)
            frames = [torch.cat([obs[lane, t], action[lane, t]]), *frames]
            c = min(len(frames), base.lags)
            preds[lane, t] = torch.cat(frames[:c]) @ base.weights[c - 1, : c * (O + A)] + base.constants[c - 1]
            scales[lane, t] = base.scales[c - 1]
    return preds, innovations, scales


@pytest.mark.parametrize("cut", [T, 1, 5])
def test_a_segment_equals_a_loop_wherever_it_is_cut(base, segment, cut):
    obs, action, is_first = segment
    expected, innovations, scales = by_loop(base, obs, action, is_first)
    carry, parts = None, []
    for begin in range(0, T, cut):
        memory, line, carry = base.observe(*(x[:, begin : begin + cut] for x in segment), carry)
        parts.append((line.pred, line.scale, base.unpacked(memory).innovation, memory))
    pred, scale, innovation, memory = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    torch.testing.assert_close(pred, expected, **EXACT)
    torch.testing.assert_close(scale, scales, **EXACT)
    torch.testing.assert_close(innovation, innovations, **EXACT)


def test_a_rollout_equals_a_loop_from_any_age(base, segment):
    """The observation that was reached takes the place of the one that is not seen."""
    obs, action, is_first = segment
    memory, _, _ = base.observe(obs, action, is_first, None)
    steps, correction = 6, torch.full((B, O), 0.2, dtype=torch.float64)
    ahead = torch.randn(B, steps, A, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for start in range(T - 1):
        run = Rollout(base, memory[:, start])
        features = torch.stack([run.step(a, correction) for a in ahead.unbind(dim=1)], dim=1)
        torch.testing.assert_close(features, base.features(run.memories()), **EXACT)
        reached = run.obs[1:]
        seen, acted, first = obs[:, : start + 1], action[:, :start], is_first[:, : start + 1]
        for step, found in enumerate(reached):
            acted = torch.cat([acted, ahead[:, step : step + 1]], dim=1)
            preds, _, scales = by_loop(base, seen, acted, first)
            expected = preds[:, -1] + scales[:, -1] * correction
            torch.testing.assert_close(found, expected, **EXACT)
            seen = torch.cat([seen, expected.unsqueeze(1)], dim=1)
            first = torch.nn.functional.pad(first, (0, 1))


def test_lanes_with_a_history_roll_out_alike_whether_a_young_one_is_among_them(base, segment):
    obs, action, is_first = segment
    memory, steps = base.observe(obs, action, is_first & False, None)[0][:, -1], action[:, :6].unbind(dim=1)
    memory = torch.cat([memory, base.begun(obs[:1, 0])])
    runs = Rollout(base, memory[:B]), Rollout(base, memory)
    for a in steps:
        runs[0].step(a, obs[:, 0])
        runs[1].step(torch.cat([a, a[:1]]), torch.cat([obs[:, 0], obs[:1, 0]]))
    torch.testing.assert_close(runs[0].memories(), runs[1].memories()[:B], **EXACT)


def test_nothing_passes_from_one_episode_to_the_next(base, segment):
    obs, action, is_first = segment
    is_first[:, 6] = True
    clean = base.observe(obs[:, 6:], action[:, 6:], is_first[:, 6:], None)
    carry = torch.full((B, base.carry_dim), float("nan"), dtype=torch.float64)
    carry[:, -1] = 3  # frames of an episode before
    obs[:, :6] = action[:, :6] = float("nan")
    memory, line, after = base.observe(obs, action, is_first, carry)
    for found, expected in zip(
        (memory[:, 6:], line.pred[:, 6:], after), (clean[0], clean[1].pred, clean[2]), strict=True
    ):
        torch.testing.assert_close(found, expected, **EXACT)


def model(rule: str, lags: int = 2, **arguments) -> WorldModel:
    torch.manual_seed(0)
    model = WorldModel(O, A, latent_dim=6, hidden_dim=8, width=10, rule=rule, base_lags=lags, **arguments).double()
    model.base = random_base(lags)
    model.base.feedback = arguments.get("feedback", True)
    return model.eval()


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_a_model_equals_a_loop_over_its_steps(rule, segment):
    """Closed loop in one pass, cut in the middle, and a step at a time: predictions, states and carry."""
    obs, action, is_first = segment
    own = model(rule)
    pred, h, carry = own.closed_loop(obs, action, is_first)
    for cut in (5, 1):
        parts, now = [], None
        for begin in range(0, T, cut):
            *part, now = own.closed_loop(*(x[:, begin : begin + cut] for x in segment), now)
            parts.append(part)
        for found, expected in zip(zip(*parts, strict=True), (pred, h), strict=True):
            torch.testing.assert_close(torch.cat(found, dim=1), expected, **EXACT)
        torch.testing.assert_close(now, carry, **EXACT)
    _, _, before = own.observe(obs[:, :3], action[:, :3], is_first[:, :3])
    z, states, after = own.observe(obs[:, 3:4], action[:, 3:4], is_first[:, 3:4], before)
    start = torch.where(is_first[:, 3:4], 0.0, before[:, : states.shape[-1]])
    torch.testing.assert_close(own.advance(z[:, 0], start, action[:, 3]), after, **EXACT)


@pytest.mark.parametrize("rule", RULES)
def test_an_open_loop_begins_as_the_closed_one(rule, segment):
    """Its first step is the prediction that saw everything, with gradients and without; later ones agree."""
    obs, action, is_first = segment
    own = model(rule)
    pred, h, _ = own.closed_loop(obs, action, is_first)
    z, states, _ = own.observe(obs, action, is_first)
    start = 4
    before = torch.where(is_first[:, start, None], 0.0, states[:, start - 1])
    rollouts = [own.open_loop(z[:, start], before, action[:, start:])]
    with torch.no_grad():
        rollouts.append(own.open_loop(z[:, start], before, action[:, start:]))
    for rollout in rollouts:
        torch.testing.assert_close(rollout.obs[:, 0], pred[:, start], **EXACT)
        torch.testing.assert_close(rollout.h[:, 0], h[:, start], **EXACT)
    torch.testing.assert_close(rollouts[0].obs, rollouts[1].obs, **EXACT)
    torch.testing.assert_close(in_parts(own, z[:, start], before, action[:, start:]), rollouts[0].obs, **EXACT)


def in_parts(model, z, h, action):
    """The observations of a rollout that goes on from where it was, every three steps."""
    parts = []
    for part in action.split(3, dim=1):
        rollout = model.open_loop(z, h, part)
        parts.append(rollout.obs)
        z, h = rollout.z[:, -1], rollout.h[:, -1]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_without_feedback_corrections_are_added_to_the_base_alone(rule, segment):
    obs, action, is_first = segment
    own = model(rule, feedback=False)
    own.base.drifts.uniform_(0.1, 0.9)
    own.base.shrinkage.uniform_(0.5, 0.9)
    start, base = 4, own.base
    z, states, _ = own.observe(obs, action, is_first)
    before = torch.where(is_first[:, start, None], 0.0, states[:, start - 1])
    found = own.open_loop(z[:, start], before, action[:, start:])
    run, latent, h, expected = Rollout(base, z[:, start, own.latent_dim :]), own.latent(z[:, start]), before, []
    for ahead, a_t in enumerate(action[:, start:].unbind(dim=1), start=1):
        pred, h = own.predictor.step(latent, h, a_t)
        latent = own.encoder(run.step(a_t, torch.zeros(B, O, dtype=torch.float64)))
        memory = run.memories()[:, -1]
        corrected = run.obs[-1] + base.drift(memory) * own.decoder(pred)
        expected.append(base._knots(base.shrinkage, torch.full((B, 1), float(ahead)).double()) * corrected)
        torch.testing.assert_close(base.corrected(found.z[:, ahead - 1, own.latent_dim :]), corrected, **EXACT)
    torch.testing.assert_close(found.obs, torch.stack(expected, dim=1), **EXACT)
    torch.testing.assert_close(found.h[:, -1], h, **EXACT)
    torch.testing.assert_close(in_parts(own, z[:, start], before, action[:, start:]), found.obs, **EXACT)


@torch.no_grad()
def test_a_new_model_is_nearly_its_base(segment):
    obs, action, is_first = segment
    own = model("gated_norm")
    _, line, _ = own.base.observe(obs, action, is_first, None)
    pred, _, _ = own.closed_loop(obs, action, is_first)
    assert 0 < float(((pred - line.pred) / line.scale).abs().max()) < 0.05
