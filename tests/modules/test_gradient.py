"""Exact gradients in the world model: the segments of a stream add up to one long segment."""

import lightning.pytorch as pl
import pytest
import torch

from worldmodel import WorldModel
from worldmodel.callbacks.checkpoints import LastCheckpoint
from worldmodel.callbacks.evaluation import RolloutEvaluation
from worldmodel.callbacks.tbptt import TruncatedBPTT
from worldmodel.envs.collect import CollectOptions, collect
from worldmodel.errors import UserError
from worldmodel.modules.data_module import EpisodeDataModule

B, T, O_DIM, A = 3, 12, 2, 1


def stream(seed=0):
    generator = torch.Generator().manual_seed(seed)
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[:, 0] = is_first[0, 5] = is_first[1, 8] = True
    return {
        "obs": torch.randn(B, T + 1, O_DIM, generator=generator, dtype=torch.float64),
        "action": torch.randn(B, T, A, generator=generator, dtype=torch.float64),
        "reward": torch.randn(B, T, generator=generator, dtype=torch.float64),
        "terminated": torch.zeros(B, T, dtype=torch.bool),
        "is_first": is_first,
        "valid": torch.ones(B, T, dtype=torch.bool),
        "num_valid": torch.tensor(float(B * T), dtype=torch.float64),
        "position": 0,
    }


def segment(batch, begin, length, carry):
    inner, frames = slice(begin, begin + length), slice(begin, begin + length + 1)
    names = ("action", "reward", "terminated", "is_first", "valid")
    cut = {**batch, "obs": batch["obs"][:, frames]} | {name: batch[name][:, inner] for name in names}
    return cut if carry is None else {**cut, "carry": carry}


def gradients(model, batch, length):
    """Of the sum over all valid steps; the weights do not change between segments."""
    model.zero_grad()
    carry = None
    for begin in range(0, T, length):
        terms, _, carry = model.losses(segment(batch, begin, length, carry))
        model.total(terms).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def made(rule, gradient, **options):
    torch.manual_seed(0)
    sizes = {"latent_dim": 3, "hidden_dim": 4, "width": 5}
    return WorldModel(O_DIM, A, rule=rule, gradient=gradient, **sizes, **options).double()


@pytest.mark.parametrize("options", [{}, {"open_loop_steps": 2}, {"objective": "latent", "open_loop_steps": 2}])
@pytest.mark.parametrize(("rule", "gradient"), [("gated_norm", "rtrl"), ("lstm", "rtrl"), ("residual", "rtrl")])
def test_segments_add_up_to_the_whole(rule, gradient, options):
    if options.get("objective") == "latent":
        options = options | {"anti_collapse_weight": 0.0}  # of the whole batch, not a sum over its steps
    whole = gradients(made(rule, "tbptt", **options), stream(), T)
    exact = gradients(made(rule, gradient, **options), stream(), 4)
    truncated = gradients(made(rule, "tbptt", **options), stream(), 4)
    assert exact.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(exact[name], value, rtol=1e-10, atol=1e-13)
    assert any((truncated[name] - whole[name]).abs().max() > 1e-6 for name in whole), "truncation would have shown"


def test_one_layer_of_the_diagonal_cell_is_exact_by_traces():
    whole = gradients(made("diagonal", "tbptt", layers=1), stream(), T)
    exact = gradients(made("diagonal", "eligibility", layers=1), stream(), 4)
    for name in ("predictor.cell.output.weight", "predictor.cell.output.bias", "predictor.head.0.weight"):
        torch.testing.assert_close(exact[name], whole[name], rtol=1e-10, atol=1e-13)


def test_evaluation_carries_the_state_alone():
    model, batch = made("gated_norm", "rtrl"), stream()
    _, _, wide = model.losses(batch)
    model.eval()
    _, h, carry = model.losses(batch)
    assert wide.shape[1] > carry.shape[1] == model.initial_carry(batch["obs"]).shape[1]
    for part in (slice(h.shape[-1]), slice(h.shape[-1] - carry.shape[1], None)):  # the state, and the base's memory
        torch.testing.assert_close(wide[:, part], carry[:, part])


def test_traces_are_for_the_diagonal_cell():
    with pytest.raises(UserError, match="eligibility is for --model.rule diagonal"):
        made("gru", "eligibility")


# --- through the Trainer ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short_episodes(tmp_path_factory):
    """A pendulum's, of 5 to 20 steps."""
    folder = tmp_path_factory.mktemp("short") / "data"
    collect(
        CollectOptions(env_id="Pendulum-v1", steps=3000, observe=[0, 1], min_episode_steps=5, max_episode_steps=20),
        folder,
    )
    return folder


def fit(path, folder, max_steps, gradient="rtrl", rule="gated_norm", ckpt_path=None, **options):
    pl.seed_everything(0)
    data = EpisodeDataModule(path, **{"steps": 4, "lanes": 8} | options)
    model = WorldModel(
        data.obs_dim, data.action_dim, rule=rule, gradient=gradient, latent_dim=3, hidden_dim=4, width=5,
        layers=1, lr_schedule="constant",
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        val_check_interval=5,
        callbacks=[TruncatedBPTT(), LastCheckpoint(folder, 5), RolloutEvaluation(multiples=[1], max_episodes=1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(("gradient", "rule"), [("rtrl", "gated_norm"), ("eligibility", "diagonal")])
def test_a_fit_that_goes_on_carries_the_influence_on(short_episodes, tmp_path, gradient, rule):
    """With validations in between. A lost influence would change the weights."""
    whole = fit(short_episodes, tmp_path / "whole", 20, gradient, rule)
    fit(short_episodes, tmp_path / "half", 10, gradient, rule)
    resumed = fit(short_episodes, tmp_path / "rest", 20, gradient, rule, ckpt_path=tmp_path / "half" / "last.ckpt")
    assert torch.equal(whole, resumed)
    assert not torch.equal(whole, fit(short_episodes, tmp_path / "cut", 20, "tbptt", rule)), "truncation differs"


def test_bptt_sees_every_episode_whole(short_episodes, tmp_path):
    data = EpisodeDataModule(short_episodes, steps=21, lanes=4, whole_episodes=True)
    for _, batch in zip(range(20), data.train_dataloader(), strict=False):
        assert batch["is_first"][:, 0].all()
        for lane in range(4):
            assert len(set(batch["episode"][lane][batch["valid"][lane]].tolist())) <= 1
    assert fit(short_episodes, tmp_path, 5, "bptt", steps=21, whole_episodes=True).isfinite().all()
    with pytest.raises(UserError, match="do not fit segments of 20 steps: --data.steps 21"):
        fit(short_episodes, tmp_path / "too-short", 5, "bptt", steps=20, whole_episodes=True)
