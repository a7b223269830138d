"""Truncated BPTT in the Trainer: the carry is right, and nothing beside the training can change the training."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.callbacks.checkpoints import LastCheckpoint
from worldmodel.callbacks.evaluation import RolloutEvaluation
from worldmodel.callbacks.hidden_norm import HiddenNormMonitor
from worldmodel.callbacks.tbptt import TruncatedBPTT
from worldmodel.errors import UserError

SMALL = {"latent_dim": 6, "hidden_dim": 10, "width": 12, "open_loop_steps": 4}


class Recorder(pl.Callback):
    """Keeps what each training step was given and returned."""

    def __init__(self):
        self.given, self.returned, self.batches, self.validated = [], [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.given.append(batch["carry"].clone() if "carry" in batch else None)
        self.returned.append(outputs["carry"].clone())
        self.batches.append({k: v for k, v in batch.items() if k != "carry"})

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.validated.append("carry" in batch)


def fit(path, folder, callbacks=(), workers=0, steps=40, model=None, ckpt_path=None, tbptt=None, **options):
    pl.seed_everything(0, verbose=False)
    data = EpisodeDataModule(path, steps=8, lanes=3, num_workers=workers)
    model = model or WorldModel(data.obs_dim, data.action_dim, **SMALL)
    if not any(isinstance(callback, RolloutEvaluation) for callback in callbacks):
        callbacks = [*callbacks, RolloutEvaluation(multiples=[1], max_episodes=1, starts=1)]
    trainer = pl.Trainer(
        **{"check_val_every_n_epoch": 1000, "num_sanity_val_steps": 0, **options},
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        default_root_dir=folder,
        callbacks=[tbptt or TruncatedBPTT(), *callbacks],
        logger=False,
        enable_checkpointing=any(isinstance(c, LastCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer, model


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_each_segment_starts_where_the_last_one_ended(toy_data, tmp_path):
    recorder = Recorder()
    fit(toy_data, tmp_path, [recorder])
    assert recorder.given[0] is None
    for returned, given in zip(recorder.returned, recorder.given[1:], strict=False):
        assert torch.equal(returned, given) and not given.requires_grad
    assert [int(b["position"]) for b in recorder.batches] == list(range(40)), "epochs follow each other without a gap"


def test_start_zero_never_carries(toy_data, tmp_path):
    recorder = Recorder()
    fit(toy_data, tmp_path, [recorder], tbptt=TruncatedBPTT("zero"))
    assert recorder.given == [None] * 40


@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 2, "check_val_every_n_epoch": None},
        {"val_check_interval": 7, "check_val_every_n_epoch": None},
        {"check_val_every_n_epoch": 1, "num_sanity_val_steps": 2},
        {"workers": 2},
    ],
    ids=["every 2 steps", "every 7 steps", "every epoch, with a sanity check", "two workers"],
)
def test_validation_and_workers_change_nothing_bit_for_bit(toy_data, tmp_path, options):
    _, alone = fit(toy_data, tmp_path)
    recorder = Recorder()
    _, beside = fit(toy_data, tmp_path, [recorder], **options)
    assert torch.equal(weights(alone), weights(beside))
    if "workers" not in options:
        assert recorder.validated and not recorder.validated[0] and any(recorder.validated)


def test_sigreg_draws_nothing_from_the_global_generator(toy_data, tmp_path):
    options = SMALL | {"objective": "latent", "anti_collapse": "sigreg"}
    made = []
    for every in (1000, 1):
        pl.seed_everything(0, verbose=False)
        made.append(fit(toy_data, tmp_path, model=WorldModel(2, 1, **options), check_val_every_n_epoch=every)[1])
    assert torch.equal(weights(made[0]), weights(made[1]))


def test_a_checkpoint_keeps_the_carry_and_the_position(toy_data, tmp_path):
    whole = Recorder()
    _, expected = fit(toy_data, tmp_path, [whole], steps=30)

    class SaveAt(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 17:
                trainer.save_checkpoint(tmp_path / "17.ckpt")

    fit(toy_data, tmp_path, [SaveAt()], steps=30)
    rest = Recorder()
    _, resumed = fit(toy_data, tmp_path, [rest], steps=30, ckpt_path=tmp_path / "17.ckpt")
    assert [int(b["position"]) for b in rest.batches] == list(range(17, 30))
    assert torch.equal(rest.given[0], whole.returned[16])
    assert torch.equal(weights(resumed), weights(expected))


def test_validation_has_its_own_state(toy_data, tmp_path):
    """The validation loss is that of each episode from its start, whatever the training carries."""
    data = EpisodeDataModule(toy_data, steps=8, lanes=3)
    pl.seed_everything(0, verbose=False)
    model = WorldModel(2, 1, **SMALL)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "use_distributed_sampler": False}
    trainer = pl.Trainer(callbacks=[TruncatedBPTT()], enable_checkpointing=False, enable_model_summary=False, **options)
    first, second = (trainer.validate(model, data, verbose=False)[0]["val/loss_prediction"] for _ in range(2))
    assert first == second
    total, count = 0.0, 0
    episodes = data.splits["val"]
    for i in range(len(episodes)):
        rows = episodes.rows(i)
        obs, action = (torch.from_numpy(part(rows))[None] for part in (episodes.obs, episodes.action))
        is_first = torch.zeros(1, obs.shape[1] - 1, dtype=torch.bool)
        pred, _, _ = model.closed_loop(obs[:, :-1], action[:, :-1], is_first)
        total += (pred - obs[:, 1:]).square().mean(-1).sum().item()
        count += pred.shape[1]
    assert first == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("every", [4, 6, 1000])
def test_an_evaluation_that_resets_in_mid_episode_is_that_of_pieces_from_zeros(toy_data, every):
    """Whether or not the segments of 8 steps are cut by it; and nobody else's tensors are written to."""
    data = EpisodeDataModule(toy_data, steps=8, lanes=3)
    pl.seed_everything(0, verbose=False)
    model = WorldModel(2, 1, **SMALL)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "use_distributed_sampler": False}
    options |= {"enable_checkpointing": False, "enable_model_summary": False}
    tbptt = TruncatedBPTT(reset_every=every)
    total, count = 0.0, 0
    episodes = data.splits["val"]
    for i in range(len(episodes)):
        rows = episodes.rows(i)
        obs, action = (torch.from_numpy(part(rows))[None] for part in (episodes.obs, episodes.action))
        for a in range(0, obs.shape[1] - 1, every):
            b = min(a + every, obs.shape[1] - 1)
            pred, _, _ = model.closed_loop(obs[:, a:b], action[:, a:b], torch.zeros(1, b - a, dtype=torch.bool))
            total += (pred - obs[:, a + 1 : b + 1]).square().mean(-1).sum().item()
            count += b - a
    batches = [dict(batch) for batch in data.val_dataloader()]
    before = [batch["is_first"].clone() for batch in batches]
    trainer = pl.Trainer(callbacks=[tbptt], **options)
    assert trainer.validate(model, data, verbose=False)[0]["val/loss_prediction"] == pytest.approx(
        total / count, rel=1e-4
    )
    for batch, is_first in zip(batches, before, strict=True):
        tbptt.on_validation_batch_start(trainer, model, dict(batch), 0)
        assert torch.equal(batch["is_first"], is_first)


def test_resets_in_validation_do_not_reach_the_training(toy_data, tmp_path):
    recorder, made = Recorder(), []
    for tbptt in (TruncatedBPTT(), TruncatedBPTT(reset_every=3)):
        made.append(fit(toy_data, tmp_path, [recorder], tbptt=tbptt, check_val_every_n_epoch=1)[1])
    assert recorder.validated and torch.equal(weights(made[0]), weights(made[1]))


def test_resets_need_to_know_a_frames_place_in_its_episode(toy_data):
    with pytest.raises(UserError, match="tbptt.reset_every 3 needs batches with `is_first` and `step`"):
        TruncatedBPTT(reset_every=3).on_test_batch_start(None, None, {"is_first": torch.ones(1, 2) > 0}, 0)
    with pytest.raises(UserError, match="tbptt.reset_every is 0"):
        TruncatedBPTT(reset_every=0)


class Accumulator(pl.LightningModule):
    """Somebody else's project: not a world model, only the carry contract."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        state = batch.get("carry", torch.zeros(batch["x"].shape[0], 1))
        self.seen.append(state.flatten().tolist())
        for x in batch["x"].unbind(1):
            state = state + self.scale * x.unsqueeze(-1)
        return {"loss": state.sum(), "carry": state.detach().clone()}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_the_callback_serves_any_module_with_the_contract(tmp_path):
    segments = [{"x": torch.ones(2, 3)}] * 3 + [{"x": torch.ones(4, 3)}] * 2
    module = Accumulator()
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=1, callbacks=[TruncatedBPTT()], enable_model_summary=False, **options)
    with pytest.warns(UserWarning, match="a batch of 4 lanes follows one of 2: their state starts from zeros"):
        trainer.fit(module, DataLoader(segments, batch_size=None))
    assert module.seen == [[0, 0], [3, 3], [6, 6], [0, 0, 0, 0], [3, 3, 3, 3]], "another number of lanes starts anew"


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("rule", ["gated_norm", "gru", "lstm"])
def test_other_precisions_train_and_roll_out(toy_data, tmp_path, rule, precision):
    rollout = RolloutEvaluation(multiples=[1, 2])
    model = WorldModel(2, 1, **SMALL, rule=rule)
    trainer, _ = fit(toy_data, tmp_path, [HiddenNormMonitor(), rollout], model=model, steps=5, precision=precision)
    assert trainer.global_step == 5 and rollout.curves is not None


def test_going_on_behind_max_steps_skips_nothing(toy_data, tmp_path):
    """Stopped by max_steps in mid-epoch, last.ckpt continues with the very next batch, to the same weights."""
    options = {"lr_schedule": "constant", **SMALL}  # a cosine depends on the steps that are planned
    torch.manual_seed(0)
    start = WorldModel(2, 1, **options).state_dict()

    def fit_from_start(callbacks, steps=-1, ckpt_path=None):
        model = WorldModel(2, 1, **options)
        model.load_state_dict(start)
        return fit(toy_data, tmp_path, callbacks, steps=steps, model=model, ckpt_path=ckpt_path, max_epochs=3)[1]

    whole, rest = Recorder(), Recorder()
    expected = fit_from_start([whole])
    fit_from_start([LastCheckpoint(tmp_path)], steps=27)
    resumed = fit_from_start([rest], ckpt_path=tmp_path / "last.ckpt")
    assert [int(b["position"]) for b in rest.batches] == list(range(27, len(whole.batches)))
    assert torch.equal(weights(resumed), weights(expected))
