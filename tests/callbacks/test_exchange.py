"""An exploit takes all of the donor that makes its training go on, and leaves the member what is its own."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.callbacks.checkpoints import DurableCheckpointIO, LastCheckpoint
from worldmodel.callbacks.evaluation import RolloutEvaluation
from worldmodel.callbacks.exchange import CLIP, Exchange, Report, report_of
from worldmodel.callbacks.final_validation import FinalValidation
from worldmodel.callbacks.metrics import MetricsFile
from worldmodel.callbacks.random_state import RandomState
from worldmodel.callbacks.tbptt import TruncatedBPTT
from worldmodel.errors import UserError
from worldmodel.modules.experience_data import ExperienceDataModule
from worldmodel.modules.policy import Policy
from worldmodel.runs.checkpoint import read_checkpoint

RATE, DECAY = "model.learning_rate", "model.weight_decay"
SMALL = {"latent_dim": 4, "hidden_dim": 6, "width": 8, "open_loop_steps": 4}


class Recorder(pl.Callback):
    """The position, the rate and the weights that each step began with."""

    def __init__(self):
        self.positions, self.rates, self.weights = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.positions.append(batch["position"])
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.weights.append(torch.cat([p.detach().flatten().clone() for p in pl_module.parameters()]))


def fit(data, folder, seed, answers=None, steps=12, rate=1e-3, metric="val/loss", ckpt_path=None, interval=4, also=()):
    """Reports every 4 steps; returns what it was asked, and what its steps began with."""
    pl.seed_everything(seed)
    asked, recorder = [], Recorder()

    def ask(report):
        asked.append(report)
        return (answers or {}).get(report.step)

    last = LastCheckpoint(Path(folder) / "checkpoints", 10**9)
    exchange = Exchange(interval, metric, float("inf"), {RATE: rate}, last, ask)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, check_val_every_n_epoch=10**9, log_every_n_steps=1,
        logger=MetricsFile(folder), plugins=[DurableCheckpointIO()], enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False, gradient_clip_val=1.0,
        callbacks=[FinalValidation(), RandomState(), TruncatedBPTT(burn_in_steps=8), recorder, *also, exchange, last,
                   RolloutEvaluation(multiples=[1], max_episodes=1, starts=1)],
    )  # fmt: skip
    module = WorldModel(2, 1, **{**SMALL, "learning_rate": rate, "warmup_steps": 6, "lr_schedule": "constant"})
    trainer.fit(module, datamodule=EpisodeDataModule(data, steps=8, lanes=3, seed=seed), ckpt_path=ckpt_path)
    return trainer, exchange, asked, recorder


@pytest.fixture(scope="module")
def donor(pendulum_data, tmp_path_factory):
    """The run of a member; its last checkpoint is of step 12, the one before of step 8."""
    folder = tmp_path_factory.mktemp("donor")
    fit(pendulum_data, folder, seed=1, rate=0.01)
    return folder / "checkpoints"


def test_reports_follow_validations_and_are_in_the_checkpoint(pendulum_data, donor, tmp_path):
    trainer, exchange, asked, _ = fit(pendulum_data, tmp_path, seed=2)
    assert [(report.step, report.exploits) for report in asked] == [(4, 0), (8, 0)], "the last step asks nobody"
    assert exchange.report.step == 12 and exchange.report.score == trainer.callback_metrics["val/loss"].item()
    here = report_of(tmp_path / "checkpoints" / "last.ckpt")
    assert here == exchange.report and here.hyperparameters == {RATE: 1e-3}
    assert report_of(tmp_path / "checkpoints" / "last-1.ckpt") == asked[1]
    assert asked[0].score > asked[1].score > here.score


def test_an_exploit_takes_weights_moments_and_schedule_and_sets_hyperparameters(pendulum_data, donor, tmp_path):
    exploit = (donor / "last-1.ckpt", {RATE: 0.02, DECAY: 0.3, "model.open_loop_weight": 0.7, CLIP: 0.25})
    state = {}

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 8:
                of = trainer.optimizers[0].state
                state["moments"] = [of[p]["exp_avg"].abs().sum().item() for p in pl_module.parameters() if p in of]
                state["decay"] = [group["weight_decay"] for group in trainer.optimizers[0].param_groups]
                state["weights"], state["clip"] = dict(pl_module.weights), trainer.gradient_clip_val

    trainer, exchange, _, recorder = fit(pendulum_data, tmp_path, 2, {8: exploit}, also=[Look()])
    there = read_checkpoint(donor / "last-1.ckpt")
    names = [name for name, _ in trainer.lightning_module.named_parameters()]
    weights = torch.cat([there["state_dict"][name].flatten() for name in names])
    assert torch.equal(recorder.weights[8], weights) and not torch.equal(recorder.weights[7], weights)
    moments = [values["exp_avg"] for values in there["optimizer_states"][0]["state"].values()]
    assert sorted(state["moments"]) == sorted(moment.abs().sum().item() for moment in moments)
    assert recorder.positions == list(range(12)), "its own place in the data"
    assert recorder.rates[5:8] == [1e-3] * 3 and recorder.rates[8:] == pytest.approx([0.02] * 4), "behind the warm-up"
    assert state["decay"] == [0.3, 0.0] and state["weights"]["open_loop"] == 0.7 and state["clip"] == 0.25
    hparams = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["hyper_parameters"]
    assert (hparams["learning_rate"], hparams["weight_decay"], hparams["open_loop_weight"]) == (0.02, 0.3, 0.7)
    assert exchange.report.exploits == 1 and exchange.report.hyperparameters == exploit[1]
    metrics = (tmp_path / "metrics.csv").read_text()
    assert "pbt/exploitation_count" in metrics and "pbt/post_exploit_loss_ratio" in metrics
    assert 0.3 < trainer.callback_metrics["pbt/post_exploit_loss_ratio"].item() < 3


@pytest.mark.full
def test_a_rate_is_set_also_in_the_midst_of_its_warm_up(pendulum_data, donor, tmp_path):
    *_, recorder = fit(pendulum_data, tmp_path, 2, {4: (donor / "last-1.ckpt", {RATE: 0.6})}, rate=0.06)
    assert recorder.rates[:4] == pytest.approx([0.01, 0.02, 0.03, 0.04])
    assert recorder.rates[4:6] == pytest.approx([0.6, 0.6]), "the donor is at step 8 of its schedule"


@pytest.mark.parametrize("answered", [True, pytest.param(False, marks=pytest.mark.full)])
def test_a_fit_that_dies_behind_a_report_asks_again_and_ends_as_it_would_have(pendulum_data, donor, tmp_path, answered):
    """Whether the answer was followed when it died, or had not come: the exploit follows right after the resume."""
    answers = {8: (donor / "last-1.ckpt", {RATE: 0.02})} if answered else {}
    whole, *_ = fit(pendulum_data, tmp_path / "whole", 2, answers)
    path = tmp_path / "whole" / "checkpoints" / "last-1.ckpt"
    resumed, exchange, asked, recorder = fit(pendulum_data, tmp_path / "resumed", 2, answers, ckpt_path=path)
    assert [report.step for report in asked] == [8] and recorder.positions == [8, 9, 10, 11]
    for name, values in whole.lightning_module.state_dict().items():
        assert torch.equal(values, resumed.lightning_module.state_dict()[name]), name
    assert exchange.report.score == whole.callback_metrics["val/loss"].item()


@pytest.mark.full
def test_a_fit_that_dies_behind_its_last_report_still_owes_it(pendulum_data, donor, tmp_path):
    """Until all is measured and logged, its last checkpoint is that of the report before."""

    class Dies(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            raise RuntimeError("as planned")

    with pytest.raises(RuntimeError, match="as planned"):
        fit(pendulum_data, tmp_path, seed=1, rate=0.01, also=[Dies()])
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert report_of(last).step == 8
    fit(pendulum_data, tmp_path, seed=1, rate=0.01, ckpt_path=last)
    assert report_of(last) == report_of(donor / "last.ckpt")


@pytest.mark.full
def test_what_is_due_on_an_epochs_last_step_comes_behind_the_next_one(pendulum_data, tmp_path):
    """For LastCheckpoint's reason; where no step follows it is in the last checkpoint all the same."""
    batches = fit(pendulum_data, tmp_path / "one", 2, steps=1)[0].num_training_batches
    _, exchange, asked, recorder = fit(pendulum_data, tmp_path, 2, steps=2 * batches, interval=batches)
    saved = read_checkpoint(tmp_path / "checkpoints" / "last-1.ckpt")
    assert [report.step for report in asked] == [batches] and saved["global_step"] == batches + 1
    assert report_of(tmp_path / "checkpoints" / "last.ckpt") == exchange.report and exchange.report.step == 2 * batches
    assert recorder.positions == list(range(2 * batches))


def test_a_score_that_is_no_number_is_the_worst(pendulum_data, tmp_path):
    exchange = Exchange(4, "val/loss", float("inf"), {}, LastCheckpoint(tmp_path), lambda report: None)

    class Told:
        callback_metrics = {"val/loss": torch.tensor(float("nan"))}
        global_step = 9

    exchange._write_report(Told())
    assert exchange.report == Report(8, float("inf"), {}, 0)


def test_a_metric_that_there_is_not_is_told(pendulum_data, tmp_path):
    with pytest.raises(UserError, match="no metric 'val/los': did you mean 'val/loss'"):
        fit(pendulum_data, tmp_path, 2, metric="val/los")


class Steps(pl.Callback):
    """What each step of a policy's training came to."""

    def __init__(self):
        self.kl, self.segments, self.rollouts, self.discount = [], [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.kl.append(outputs["kl"].item())
        self.segments.append(outputs["segment_losses"])
        self.rollouts.append(trainer.datamodule.rollouts)
        self.discount.append(pl_module.hparams["discount"])


def fit_policy(folder, seed, answers, epochs=3, minibatches=2):
    """Four rollouts of 4 x 16 steps, six optimizer steps each; reports every 8 steps: in the midst of one."""
    pl.seed_everything(seed)
    asked, steps = [], Steps()

    def ask(report):
        asked.append(report)
        return answers.get(report.step)

    data = ExperienceDataModule(
        "CartPole-v1", observe=[0, 2], num_envs=4, total_steps=256, rollout_steps=16, chunk_steps=8,
        update_epochs=epochs, minibatches=minibatches, episodes=2, val_every=256, max_episode_steps=40, seed=seed,
    )  # fmt: skip
    last = LastCheckpoint(Path(folder) / "checkpoints", 10**9)
    exchange = Exchange(8, "val/return_mean", float("-inf"), {"model.discount": 0.99}, last, ask)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=20, max_epochs=-1, check_val_every_n_epoch=10**9, logger=MetricsFile(folder),
        plugins=[DurableCheckpointIO()], enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, gradient_clip_val=0.5,
        callbacks=[FinalValidation(), RandomState(), steps, exchange, last],
    )  # fmt: skip
    module = Policy(data.obs_dim, data.action_space, hidden_dim=8, latent_dim=8, width=8, lr_schedule="constant")
    trainer.fit(module, datamodule=data)
    return trainer, asked, steps


def test_a_rollout_is_left_where_its_policy_is_replaced(tmp_path):
    fit_policy(tmp_path / "donor", 1, {})
    donor = tmp_path / "donor" / "checkpoints" / "last-1.ckpt"
    exploit = (donor, {"model.discount": 0.9, "model.learning_rate": 0.002})
    trainer, asked, steps = fit_policy(tmp_path / "here", 2, {8: exploit})
    assert [report.step for report in asked] == [8, 16]
    assert steps.rollouts == [1] * 6 + [2] * 2 + [3] * 6 + [4] * 6, "of the second, two steps of six"
    fresh = [0, 6, 8, 14]  # steps on what their own policy has just played
    assert all(abs(steps.kl[step]) < 1e-7 for step in fresh) and abs(steps.kl[7]) > 1e-6
    assert steps.discount == [0.99] * 8 + [0.9] * 12
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.002
    first, second = steps.segments[8].tolist()
    assert trainer.callback_metrics["pbt/post_exploit_loss_ratio"].item() == pytest.approx(first / second)
    assert trainer.callback_metrics["pbt/exploitation_count"] == 1
