"""The numerical guard: what is not finite leaves no trace but a report of it."""

import warnings
from unittest.mock import MagicMock

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from worldmodel import WorldModel
from worldmodel.callbacks.evaluation import RolloutEvaluation
from worldmodel.callbacks.guard import NumericalGuard, is_finite, total_norm
from worldmodel.callbacks.tbptt import TruncatedBPTT
from worldmodel.errors import UserError
from worldmodel.modules.data_module import EpisodeDataModule

BAD = {3, 4, 11, 12, 13, 17, 19, 22, 25, 26, 30, 31, 33, 36, 38, 41, 44, 45, 47, 49}


class Poison(pl.Callback):
    """Puts a value into one lane's observations of some batches."""

    def __init__(self, batches, value=float("nan"), name="obs"):
        self.batches, self.value, self.name = batches, value, name

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch["position"] in self.batches:
            batch[self.name] = batch[self.name].clone()
            batch[self.name][1, 2] = self.value


class LeaveOut(pl.Callback):
    """What the guard is held against: on sound data, the updates of some batches are not made."""

    def __init__(self, batches):
        self.batches, self.position = batches, -1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.position = batch["position"]

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.position in self.batches:
            pl_module.zero_grad()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.position in self.batches:
            outputs["carry"] = batch.get("carry", torch.zeros_like(outputs["carry"]))


def fit(path, folder, callbacks, steps=60, **options):
    """A fit, and all that decides how it would go on."""
    torch.manual_seed(0)
    data = EpisodeDataModule(path, steps=8, lanes=3)
    model = WorldModel(data.obs_dim, data.action_dim, latent_dim=4, hidden_dim=6, width=8, **options)
    tbptt = TruncatedBPTT()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=[*callbacks, tbptt, RolloutEvaluation(multiples=[1], max_episodes=1, starts=1)],
        gradient_clip_val=1.0,
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer.fit(model, datamodule=data)
    optimizer = trainer.optimizers[0].state_dict()["state"]
    moments = {f"{i}.{name}": value for i, state in optimizer.items() for name, value in state.items()}
    told = [str(w.message) for w in told if "update was not finite" in str(w.message)]
    return {**model.state_dict(), **moments, "carry": tbptt.state_dict()["carry"]}, told, trainer


@pytest.mark.fault(9)
@pytest.mark.parametrize("objective", ["reconstruction", "latent"])
def test_twenty_nans_leave_what_a_run_without_these_updates_leaves(toy_data, tmp_path, seen, objective):
    guarded, told, trainer = fit(toy_data, tmp_path, [Poison(BAD), NumericalGuard(tmp_path)], objective=objective)
    expected, _, _ = fit(toy_data, tmp_path / "expected", [LeaveOut(BAD)], objective=objective)
    assert guarded.keys() == expected.keys() and len(guarded) > 40
    for name, value in expected.items():
        assert torch.equal(guarded[name], value), name
    assert len(told) == len(BAD) == trainer.callback_metrics["guard/skipped"]
    unguarded, _, _ = fit(toy_data, tmp_path / "unguarded", [Poison(BAD)], objective=objective)
    assert not any(value.isfinite().all() for name, value in unguarded.items() if name.endswith("weight"))
    seen(f"at 20 steps ({objective}): weights, moments, states as in a run without these updates, bit for bit")


class Apart(pl.Callback):
    """Moves the target encoder away from the encoder, so that an average of both would be seen."""

    def on_fit_start(self, trainer, pl_module):
        for parameter in pl_module.target_encoder.parameters():
            parameter.data.fill_(7.0)


def test_an_update_that_was_left_out_does_not_move_the_target_encoder(toy_data, tmp_path):
    callbacks = [Apart(), Poison({0, 1, 2}), NumericalGuard(tmp_path)]
    state, _, _ = fit(toy_data, tmp_path, callbacks, steps=3, objective="latent", target="ema")
    averages = [value for name, value in state.items() if name.startswith("target_encoder.")]
    assert averages and all((value == 7.0).all() for value in averages)


def test_what_was_left_out_is_named_and_kept(toy_data, tmp_path):
    _, told, _ = fit(toy_data, tmp_path, [Poison({2, 5}), NumericalGuard(tmp_path)], steps=8)
    kept = [torch.load(tmp_path / "skipped" / f"step-{step}.pt", weights_only=True) for step in (3, 6)]
    assert [batch["position"] for batch in kept] == [2, 5]
    assert kept[0]["obs"][1].isnan().any() and not kept[0]["obs"][[0, 2]].isnan().any()
    episodes = ", ".join(str(episode) for episode in kept[0]["episode"][1].unique().tolist() if episode >= 0)
    assert f"Step 3, numbers in the data of the training episodes {episodes}; its batch is kept in" in told[0]


def test_ten_in_a_row_end_the_training(toy_data, tmp_path):
    with pytest.raises(UserError, match="10 updates in a row were not finite.*--model.learning_rate"):
        fit(toy_data, tmp_path, [Poison(set(range(5, 60))), NumericalGuard(tmp_path)])
    assert len(list((tmp_path / "skipped").iterdir())) == 3, "a long fall does not fill the disk"


def test_a_gradient_that_overflows_is_left_out_too(toy_data, tmp_path):
    state, told, _ = fit(toy_data, tmp_path, [Poison({5}, 1e36), NumericalGuard(tmp_path)], steps=8)
    assert all(value.isfinite().all() for value in state.values()) and len(told) == 1


def test_spikes_are_told(toy_data, tmp_path):
    guard = NumericalGuard(tmp_path, spike=5)
    with warnings.catch_warnings(record=True):
        fit(toy_data, tmp_path, [Poison({50}, 1e4), guard])
    assert guard.spikes >= 1 and guard.skipped == 0


@pytest.mark.parametrize(
    ("norms", "clip", "spikes"),
    [
        ([*[0.0] * 60, 3.0], 1.0, 0),  # a task with few targets: most segments have no gradient
        ([*[0.1] * 60, 2.1], None, 1),  # above 20 times the median
        ([*[0.1] * 60, 1.9], None, 0),
        ([*[0.1] * 60, 2.9], 3.0, 0),  # nothing is clipped
        ([*[0.1] * 60, 3.1], 3.0, 1),
        ([*[0.1] * 19, 9.0], None, 0),  # too few norms to know what is usual
        ([*[0.1] * 20, 9.0], None, 1),
        ([*[9.0] * 60, *[0.1] * 60, 9.0], None, 1),  # the median is of the last hundred
    ],
)
def test_what_counts_as_a_spike(tmp_path, norms, clip, spikes):
    guard = NumericalGuard(tmp_path)
    trainer = MagicMock(gradient_clip_val=clip, loggers=[], callback_metrics={}, global_step=7)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for norm in norms:
            guard._watch(trainer, norm)
    assert guard.spikes == len(caught) == spikes


def test_counts_go_on_behind_a_resume(tmp_path):
    guard = NumericalGuard(tmp_path)
    guard.skipped, guard.in_row, guard.spikes = 3, 2, 1
    guard._norms.extend([1.0, 2.0])
    again = NumericalGuard(tmp_path)
    again.load_state_dict(guard.state_dict())
    assert again.state_dict() == guard.state_dict()


def test_finite_is_finite():
    linear = torch.nn.Linear(2, 2)
    assert is_finite(linear) and total_norm([]) == 0
    linear.bias.data[1] = float("inf")
    assert not is_finite(linear) and not total_norm(linear.parameters()).isfinite()
