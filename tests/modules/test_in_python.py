"""What Lightning's users write: a Trainer, a model and data, and one call after the other in a session."""

from copy import deepcopy
from itertools import pairwise

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.callbacks import HiddenNormMonitor, RecallEvaluation, RolloutEvaluation, TruncatedBPTT

SMALL = {"latent_dim": 6, "hidden_dim": 10, "width": 12, "open_loop_steps": 4}
SESSION = ("fit", "test", "fit", "validate", "fit", "predict", "fit")


class Steps(pl.Callback):
    """What the training steps were given and returned; saves a checkpoint after the seventh."""

    def __init__(self, path=None):
        self.positions, self.given, self.returned, self.path = [], [], [], path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.positions.append(batch["position"])
        self.given.append(batch["carry"].clone() if "carry" in batch else None)
        self.returned.append(outputs["carry"].clone())

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 7 and self.path:
            trainer.save_checkpoint(self.path)


class Few(RolloutEvaluation):
    """A user's own, which is enough."""

    def __init__(self):
        super().__init__(max_episodes=1, multiples=[1])


def trainer_with(*callbacks, steps=12, **options):
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    return pl.Trainer(accelerator="cpu", max_steps=steps, callbacks=[*callbacks], **{**quiet, **options})


def small(data, **options):
    pl.seed_everything(0, verbose=False)
    return WorldModel(data.obs_dim, data.action_dim, **{**SMALL, **options})


def kinds(trainer):
    return sorted(type(callback).__name__ for callback in trainer.callbacks)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_plain_trainer_carries_the_state_evaluates_and_resumes(toy_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = EpisodeDataModule(toy_data, steps=8, lanes=3)
    whole, rest, model = Steps(tmp_path / "7.ckpt"), Steps(), small(data)
    trainer = trainer_with(whole, log_every_n_steps=4)
    trainer.fit(model, data)
    assert kinds(trainer) == ["HiddenNormMonitor", "RolloutEvaluation", "Steps", "TruncatedBPTT"]
    assert whole.positions == list(range(12)) and whole.given[0] is None
    assert all(torch.equal(after, before) for after, before in zip(whole.returned, whole.given[1:], strict=False))
    assert {"rollout/nmse@8", "rollout/linear@8", "hidden/norm_mean"} <= trainer.callback_metrics.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["7.ckpt"], "without a logger there is no folder for pictures"
    resumed = small(data)
    trainer_with(rest).fit(resumed, data, ckpt_path=tmp_path / "7.ckpt", weights_only=True)
    assert rest.positions == [*range(7, 12)] and torch.equal(rest.given[0], whole.returned[6])
    assert torch.equal(weights(resumed), weights(model))


def test_the_user_s_own_callbacks_stay_and_none_is_doubled(toy_data):
    data, own = EpisodeDataModule(toy_data, steps=8, lanes=3), (Few(), TruncatedBPTT("zero"), Steps())
    trainer = trainer_with(*own, steps=2)
    trainer.fit(small(data), data)
    trainer.validate(small(data), data, verbose=False)
    assert kinds(trainer) == ["Few", "HiddenNormMonitor", "Steps", "TruncatedBPTT"]
    assert all(any(callback is kept for kept in trainer.callbacks) for callback in own)
    assert own[2].given == [None, None]


def test_a_model_of_tokens_is_asked_to_recall():
    model = WorldModel(3, 1, objective="tokens")
    model.trainer = trainer_with()
    assert [type(c) for c in model.configure_callbacks()] == [HiddenNormMonitor, TruncatedBPTT, RecallEvaluation]


class Copies(pl.Callback):
    """Copies the module as it is set up, as those do that average weights."""

    def setup(self, trainer, pl_module, stage):
        self.copy = deepcopy(pl_module.state_dict())


def test_a_callback_that_copies_the_module_finds_what_the_data_chose(toy_data):
    """The line's number of lags, and with it the shapes of its tensors."""
    data, copies = EpisodeDataModule(toy_data, steps=8, lanes=3), Copies()
    average = EMAWeightAveraging(decay=0.5)
    model = small(data)
    trainer_with(copies, average, steps=2).fit(model, data)
    assert model.hparams["base_lags"] > 1, "more than before the data is known"
    for name in ("base.weights", "obs_norm.mean"):
        assert torch.equal(copies.copy[name], model.state_dict()[name]), name


def test_a_model_that_is_loaded_keeps_its_statistics_in_a_fit_on_other_data(toy_data, tmp_path):
    old, new = (EpisodeDataModule(toy_data, steps=8, lanes=3, split_seed=seed) for seed in (0, 1))
    first = small(old)
    trainer = trainer_with(steps=1)
    trainer.fit(first, old)
    trainer.save_checkpoint(tmp_path / "old.ckpt")
    loaded = WorldModel.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True, learning_rate=1e-30)
    trainer_with(steps=1).fit(loaded, new)
    for name, tensor in first.state_dict().items():
        if name != "base.shrinkage":
            assert torch.equal(loaded.state_dict()[name], tensor), name


def test_without_episodes_it_is_said_that_nothing_is_rolled_out(toy_data):
    data = EpisodeDataModule(toy_data, steps=8, lanes=3)
    with pytest.warns(UserWarning, match="RolloutEvaluation measures nothing.*EpisodeDataModule"):
        trainer_with(steps=1).fit(small(data), DataLoader([next(iter(data.train_dataloader()))], batch_size=None))


@pytest.mark.parametrize(("first", "second"), [*pairwise(SESSION)])
def test_calls_follow_each_other_in_a_session(toy_data, first, second):
    """Each does what it does in a session of its own, whatever mode the one before it ran in."""
    data = EpisodeDataModule(toy_data, steps=8, lanes=3)
    alone, behind, model, steps = [], [], small(data), Steps()

    def call(name, model, data, to):
        trainer = trainer_with(Few(), steps, steps=3)
        getattr(trainer, name)(model, datamodule=data)
        to.append({n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith(("val/", "test/"))})

    state = {name: value.clone() for name, value in model.state_dict().items()}
    call(first, model, data, [])
    model.load_state_dict(state)
    steps.positions.clear()
    call(second, model, data, behind)
    fresh = small(data)
    fresh.load_state_dict(state)
    positions = steps.positions.copy()
    steps.positions.clear()
    call(second, fresh, EpisodeDataModule(toy_data, steps=8, lanes=3), alone)
    assert alone == behind and positions == steps.positions == ([0, 1, 2] if second == "fit" else [])
    assert torch.equal(weights(model), weights(fresh))


def test_paths_are_strings_too(toy_data):
    data = EpisodeDataModule(str(toy_data), test_path=str(toy_data), steps=4, lanes=2)
    assert len(data.splits["test"]) == sum(map(len, EpisodeDataModule(toy_data).splits.values()))


def test_a_new_fit_takes_two_hot_bins_from_its_rewards_and_a_checkpoint_keeps_them(toy_data, tmp_path):
    """Their ends are those of the training split; the loss is the cross-entropy of the normalised reward."""
    data = EpisodeDataModule(toy_data, steps=8, lanes=3)
    model, saved = small(data, reward_head="two_hot", value_discount=0.9), Steps(tmp_path / "7.ckpt")
    trainer_with(saved, steps=8).fit(model, data)
    rewards = np.concatenate([episode.rewards for _, episode in data.source.episodes()])
    ends = model.reward_norm.inverse(model.reward_form.bins[[0, -1]])
    assert rewards.min() <= float(ends[0]) + 1e-5 and float(ends[1]) - 1e-5 <= rewards.max()
    per_step = model.value_form.bins[[0, -1]] * model.reward_norm.scale
    torch.testing.assert_close(per_step, torch.stack([ends[0].clamp(max=0), ends[1].clamp(min=0)]), atol=1e-4, rtol=0)
    batch = next(iter(data.val_dataloader()))
    terms, h, _ = model.eval().losses(batch)
    logits = model.heads(model.predictor.cell.read(h))[..., :-1]
    target = model.reward_norm(batch["reward"].unsqueeze(-1)).squeeze(-1)
    errors = -(model.reward_form.encode(target) * logits.log_softmax(dim=-1)).sum(dim=-1)[batch["valid"]]
    torch.testing.assert_close(terms["reward"], errors.mean())
    again = small(data, reward_head="two_hot", value_discount=0.9)
    assert not torch.equal(again.reward_form.bins, model.reward_form.bins)
    again.load_state_dict(torch.load(tmp_path / "7.ckpt", weights_only=True)["state_dict"])
    assert torch.equal(again.reward_form.bins, model.reward_form.bins)
