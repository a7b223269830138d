"""After a weight swap the carried state is that of the new weights, as nearly as the policy says; and nothing else is
taken for a swap."""

import copy
import pickle
import weakref

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from evaluation.linear_data import sampled, stacked
from lightning.pytorch.loggers import CSVLogger
from memory import episodes_of
from torch import nn
from torch.utils.data import DataLoader, Dataset

from worldmodel import WorldModel
from worldmodel.callbacks.tbptt import TruncatedBPTT
from worldmodel.data.lanes import LaneSchedule
from worldmodel.data.segments import Segments, StreamSampler
from worldmodel.envs.linear import linear_system
from worldmodel.errors import UserError
from worldmodel.stale_state import LoadCounter

POLICIES = ("keep", "zero", "burn_in", "replay")
SMALL = {"latent_dim": 4, "hidden_dim": 6, "width": 8}


class Swap(pl.Callback):
    """Loads a donor's weights, or a part of them, at one hook of one batch."""

    def __init__(self, donor, batch, hook="on_train_batch_end", part=""):
        def load(trainer, pl_module, *arguments):
            if trainer.fit_loop.epoch_loop.batch_idx == batch:
                pl_module.get_submodule(part).load_state_dict(donor.get_submodule(part).state_dict())

        setattr(self, hook, load)


class Recorder(pl.Callback):
    """Keeps what each training step was given, behind TruncatedBPTT."""

    def __init__(self):
        self.batches, self.returned = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(dict(batch))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.returned.append(outputs["carry"].clone())


def fit(model, data, steps, callbacks, tbptt, folder, ckpt_path=None, **options):
    trainer = pl.Trainer(
        **{"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, **options},
        accelerator="cpu",
        max_steps=steps,
        callbacks=[tbptt, *callbacks],
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, DataLoader(data, batch_size=None), ckpt_path=ckpt_path)
    return trainer


def behind(model, batches, last=None):
    """The state behind these batches, or their last so many steps, in one unroll from zeros."""
    obs, action, is_first = (torch.cat([b[name] for b in batches], dim=1) for name in ("seen", "action", "is_first"))
    with torch.no_grad():
        return model.observe(*(x[:, -(last or x.shape[1]) :] for x in (obs, action, is_first)))[2]


def seen(recorder, until):
    return [{**b, "seen": b["obs"][:, :-1]} for b in recorder.batches[:until]]


# --- what each policy costs ------------------------------------------------------------------------------------------

SYSTEM = linear_system(damping=0.1)  # a memory of about ten steps: 16 frames from zeros are worth 1.013 of all


def linear_model(seed=0):
    torch.manual_seed(seed)
    model = WorldModel(
        1, 1, **SMALL | {"hidden_dim": 16}, learning_rate=1e-12, reward_weight=0, continue_weight=0, base="none"
    )
    model.action_norm.fit(torch.zeros(1), torch.full((1,), 3**-0.5))
    return model


def trained(model, steps, rate, seed):
    """Trained on, with a carry, from batches in an order of their own."""
    episodes = sampled(SYSTEM, 64, 300, seed=0)
    segments = Segments(episodes, LaneSchedule(episodes.num_frames, 16, 32, seed))
    optimizer = torch.optim.Adam(model.parameters(), rate)
    carry = None
    for n in range(steps):
        batch = segments[n] | ({} if carry is None else {"carry": carry})
        terms, _, carry = model.losses(batch)
        optimizer.param_groups[0]["lr"] = rate * (1 - n / steps)
        optimizer.zero_grad()
        sum(terms[name] for name in ("prediction", "autoencoding", "consistency")).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def pairs():
    """(old, new) weights: two branches of twenty steps from one ancestor, and trainings from two seeds."""
    torch.set_num_threads(1)
    ancestor, other = (trained(linear_model(seed), 100, 5e-3, seed) for seed in (0, 1))
    branches = [trained(copy.deepcopy(ancestor), 20, 1e-3, seed) for seed in (2, 3)]
    return {"related": branches, "unrelated": (ancestor, other)}


@pytest.mark.parametrize("kind", ["related", "unrelated"])
def test_burn_in_is_worth_the_right_state_whatever_the_weights(pairs, kind, tmp_path):
    """First-step error relative to that from the right state, of 256 lanes in mid-episode; and what the ratio that is
    logged says of it, the loss of the first batch of 32 steps relative to the second's."""
    old, new = pairs[kind]
    episodes = sampled(SYSTEM, 256, 160, seed=9)
    data = Segments(episodes, LaneSchedule(episodes.num_frames, 256, 32, shuffle=False))
    obs, action = map(torch.from_numpy, stacked(episodes))
    is_first = torch.zeros(256, 97, dtype=torch.bool)
    is_first[:, 0] = True

    def error(state):
        with torch.no_grad():
            pred = new.closed_loop(obs[:, 96:97], action[:, 96:97], is_first[:, 1:2], state)[0]
        return (pred - obs[:, 97:98]).square().mean().item()

    with torch.no_grad():
        right = new.observe(obs[:, :96], action[:, :96], is_first[:, :96])[2]
    cost, logged = {}, {}
    for policy in POLICIES:
        recorder, tbptt = Recorder(), TruncatedBPTT(stale_state=policy)
        trainer = fit(copy.deepcopy(old), data, 5, [Swap(new, 2), recorder], tbptt, tmp_path)
        logged[policy] = trainer.callback_metrics["hidden/refresh_ratio"].item()
        carry = recorder.batches[3]["carry"]
        lane = torch.cdist(recorder.batches[0]["obs"][:, :, 0], obs[:, :33, 0]).argmin(dim=1)  # the schedule's order
        cost[policy] = error(torch.empty_like(carry).index_copy_(0, lane, carry)) / error(right)
    for ratios in (cost, logged):
        print(kind, {policy: round(ratio, 3) for policy, ratio in ratios.items()})
    assert cost["burn_in"] < 1.05
    assert cost["replay"] == pytest.approx(1, abs=1e-4)
    assert logged["burn_in"] <= 1.05 and logged["burn_in"] == pytest.approx(logged["replay"], abs=0.005)
    assert cost["zero"] > 3 and logged["zero"] > logged["burn_in"] + 0.1
    assert cost["keep"] < 1.25 if kind == "related" else cost["keep"] > 3
    assert (logged["keep"] > logged["burn_in"] + 0.1) == (kind == "unrelated")


# --- when it is mended, and from what --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed():
    """Three lanes of episodes of mixed lengths; in the 12 steps before batches 4 and 5, two lanes begin one."""
    rng = np.random.default_rng(0)
    lengths = [5, 9, 13, 6, 11, 7, 40, 8, 12, 10, 38, 41]
    frames = sum(lengths) + len(lengths)
    episodes = episodes_of(rng.normal(size=(frames, 2)), rng.normal(size=(frames, 1)), lengths)
    return Segments(episodes, LaneSchedule(episodes.num_frames, 3, 8, seed=8))


def fresh(seed, dtype=torch.float64):
    torch.manual_seed(seed)
    return WorldModel(2, 1, **SMALL, learning_rate=1e-3).to(dtype)


@pytest.mark.parametrize("part", ["", "predictor", "predictor.cell"])
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_after_backward", "on_train_batch_end"])
def test_any_load_is_seen_also_in_the_middle_of_a_step(mixed, tmp_path, hook, part):
    """Burn-in over 12 steps: a batch and a half; episodes that start in between are begun from zeros there."""
    recorder = Recorder()
    check = Check(recorder, 5, 12)
    callbacks = [Swap(fresh(1), 4, hook, part), recorder, check]
    fit(fresh(0), mixed, 6, callbacks, TruncatedBPTT(burn_in_steps=12), tmp_path, precision="64-true")
    assert check.passed


class Check(pl.Callback):
    """At the start of a batch: its carry is that of the weights there are now, over the last steps from zeros."""

    def __init__(self, recorder, batch, last=None):
        self.recorder, self.batch, self.last, self.passed = recorder, batch, last, False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.batch:
            expected = behind(pl_module, seen(self.recorder, batch_idx), self.last)
            torch.testing.assert_close(batch["carry"], expected, rtol=1e-12, atol=1e-12)
            starts = torch.cat([b["is_first"] for b in self.recorder.batches[:batch_idx]], dim=1)[:, -12:]
            assert starts.any(dim=1).sum() == 2, "lanes with an episode's start within the last steps, and one without"
            self.passed = True


def test_replay_goes_back_to_the_start_of_each_lanes_episode(mixed, tmp_path):
    recorder = Recorder()
    check = Check(recorder, 5)
    callbacks = [Swap(fresh(1), 4), recorder, check]
    fit(fresh(0), mixed, 6, callbacks, TruncatedBPTT(stale_state="replay"), tmp_path, precision="64-true")
    assert check.passed


def test_two_swaps_in_a_row(mixed, tmp_path):
    recorder = Recorder()
    checks = Check(recorder, 4, 12), Check(recorder, 5, 12)
    callbacks = [Swap(fresh(1), 3), Swap(fresh(2), 4), recorder, *checks]
    fit(fresh(0), mixed, 6, callbacks, TruncatedBPTT(burn_in_steps=12), tmp_path, precision="64-true")
    assert all(check.passed for check in checks)


@pytest.mark.parametrize("policy", ["keep", "zero"])
def test_keep_and_zero(mixed, tmp_path, policy):
    recorder = Recorder()
    swap = Swap(fresh(1, torch.float32), 2)
    fit(fresh(0, torch.float32), mixed, 5, [swap, recorder], TruncatedBPTT(stale_state=policy), tmp_path)
    expected = recorder.returned[2] if policy == "keep" else torch.zeros_like(recorder.returned[2])
    assert torch.equal(recorder.batches[3]["carry"], expected)
    assert torch.equal(recorder.batches[4]["carry"], recorder.returned[3]), "only once"


def test_a_resume_is_no_swap_and_a_swapped_state_is_mended_before_it_is_saved(mixed, tmp_path):
    class SaveAt(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx in (1, 2):
                trainer.save_checkpoint(tmp_path / f"{batch_idx}.ckpt")

    swap, whole = Swap(fresh(1, torch.float32), 2), Recorder()
    policy = {"stale_state": "zero"}
    fit(fresh(0, torch.float32), mixed, 4, [swap, SaveAt(), whole], TruncatedBPTT(**policy), tmp_path)
    states = {}
    for n in (1, 2):
        tbptt = TruncatedBPTT(**policy)
        carry = torch.load(tmp_path / f"{n}.ckpt", weights_only=True)["callbacks"]["TruncatedBPTT"]["carry"]

        class First(pl.Callback):
            def on_train_start(self, trainer, pl_module, tbptt=tbptt, n=n):
                states[n] = tbptt.state_dict()["carry"]

        fit(fresh(3, torch.float32), mixed, 4, [First()], tbptt, tmp_path, tmp_path / f"{n}.ckpt")
        assert torch.equal(states[n], carry)
    assert torch.equal(states[1], whole.returned[1])
    assert torch.equal(states[2], torch.zeros_like(whole.returned[2])), "saved behind the swap"


# --- what it takes ---------------------------------------------------------------------------------------------------


class Fleeting(Dataset):
    """Batches of 8 steps that tell how many of them are still alive; every 40 steps an episode starts."""

    def __init__(self):
        self.made = []

    def __len__(self):
        return 40

    def __getitem__(self, n):
        obs = np.full((3, 9, 2), n, np.float32)
        self.made.append(weakref.ref(obs))
        is_first = torch.zeros(3, 8, dtype=torch.bool)
        is_first[:, 0] = n % 5 == 0
        return {"obs": torch.from_numpy(obs), "action": torch.zeros(3, 8, 1), "is_first": is_first}


class Toy(pl.LightningModule):
    """The carry contract and `observe`: the state sums what was seen."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), scale))
        self.losses = []

    def observe(self, obs, action, is_first, h=None):
        states = [torch.zeros(len(obs), 2) if h is None else h]
        for x, first in zip(obs.unbind(1), is_first.unbind(1), strict=True):
            states.append(states[-1].masked_fill(first.unsqueeze(-1), 0) + self.scale * x)
        return obs, torch.stack(states[1:], dim=1), states[-1].detach().clone()

    def training_step(self, batch, batch_idx):
        _, h, carry = self.observe(batch["obs"][:, :-1], batch["action"], batch["is_first"], batch.get("carry"))
        loss = (h - 1).square().mean()
        self.losses.append(loss.item())
        return {"loss": loss, "carry": carry}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_only_the_batches_that_are_needed_stay_in_memory(tmp_path):
    alive = {}

    class Count(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.most = max(getattr(self, "most", 0), sum(made() is not None for made in self.data.made))

    for name, options in {
        "none": {"start": "zero"},
        "burn_in of one batch": {"burn_in_steps": 8},
        "burn_in of 12": {"burn_in_steps": 12},
        **{policy: {"stale_state": policy} for policy in ("keep", "zero", "replay")},
    }.items():
        count = Count()
        count.data = Fleeting()
        fit(Toy(), count.data, 40, [count], TruncatedBPTT(**options), tmp_path)
        alive[name] = count.most
    more = {name: number - alive["none"] for name, number in alive.items()}
    assert more == {"none": 0, "keep": 0, "zero": 0, "burn_in of one batch": 1, "burn_in of 12": 2, "replay": 5}


def test_the_ratio_is_logged_at_once(tmp_path):
    """Between two of log_every_n_steps, the second batch's loss under the same weights below the first's."""
    model, logger = Toy(), CSVLogger(tmp_path)
    options = {"logger": logger, "log_every_n_steps": 50}
    tbptt = TruncatedBPTT(stale_state="zero")
    trainer = fit(model, Fleeting(), 9, [Swap(Toy(2.0), 2)], tbptt, tmp_path, **options)
    expected = pytest.approx(model.losses[3] / model.losses[4])
    assert trainer.callback_metrics["hidden/refresh_ratio"].item() == expected
    header, *rows = (tmp_path / logger.name / f"version_{logger.version}" / "metrics.csv").read_text().splitlines()
    assert float(rows[0].split(",")[header.split(",").index("hidden/refresh_ratio")]) == expected
    assert rows[0].split(",")[header.split(",").index("step")] == "5" and len(rows) == 1


def test_a_module_that_cannot_observe_starts_from_zeros_with_a_warning(tmp_path):
    class Blind(Toy):
        observe = None

        def training_step(self, batch, batch_idx):
            return {"loss": self.scale.sum(), "carry": torch.ones(3, 2)}

    recorder = Recorder()
    with pytest.warns(UserWarning, match="starts from zeros.*observe"):
        fit(Blind(), Fleeting(), 4, [Swap(Blind(), 1), recorder], TruncatedBPTT(), tmp_path)
    assert not recorder.batches[2]["carry"].any() and recorder.batches[3]["carry"].all()


def test_a_module_that_is_watched_can_be_copied_and_pickled():
    module, watch = nn.Sequential(nn.Linear(2, 2)), LoadCounter()
    watch.follow(module)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        other.load_state_dict(module.state_dict())
    assert watch.loads == 0, "a copy is no concern of ours"
    module[0].load_state_dict(module[0].state_dict())
    assert watch.loads == 1
    watch.leave()
    module.load_state_dict(module.state_dict())
    assert watch.loads == 1


def test_less_than_one_step_is_told():
    with pytest.raises(UserError, match="tbptt.burn_in_steps is 0"):
        TruncatedBPTT(burn_in_steps=0)


# --- what a resumed fit has not seen itself --------------------------------------------------------------------------


class Stream(pl.LightningDataModule):
    """Batches by their position, and where the training is."""

    def __init__(self, segments):
        super().__init__()
        self.segments, self.position = segments, 0

    def training_segments(self):
        return self.segments

    def train_dataloader(self):
        return DataLoader(self.segments, batch_size=None, sampler=StreamSampler(lambda: self.position, 12))

    def acknowledge(self, position):
        self.position = position + 1

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state_dict):
        self.position = state_dict["position"]


@pytest.mark.parametrize("policy", ["burn_in", "replay"])
def test_a_swap_right_behind_a_resume_finds_the_batches_before_it(mixed, tmp_path, policy):
    """As a swap of a fit that was not interrupted."""

    class At(pl.Callback):
        def __init__(self, hook, batch, act):
            def run(trainer, pl_module, *arguments):
                if trainer.fit_loop.epoch_loop.batch_idx in (batch, -1):
                    act(trainer, pl_module)

            setattr(self, hook, run)

    def swap(trainer, pl_module):
        pl_module.load_state_dict(donor.state_dict())

    def save(trainer, pl_module):
        trainer.save_checkpoint(tmp_path / "before.ckpt")

    donor, carries = fresh(1, torch.float32), []
    for swapped, ckpt_path in (
        (At("on_train_batch_end", 4, swap), None),
        (At("on_train_start", 4, swap), "before.ckpt"),
    ):
        recorder, tbptt = Recorder(), TruncatedBPTT(stale_state=policy, burn_in_steps=12)
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=6, logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, callbacks=[tbptt, recorder, At("on_train_batch_end", 4, save), swapped],
        )  # fmt: skip
        path = ckpt_path and tmp_path / ckpt_path
        trainer.fit(fresh(0, torch.float32), datamodule=Stream(mixed), ckpt_path=path)
        carries.append(recorder.batches[-1]["carry"])
    assert len(recorder.batches) == 1, "the resumed fit has seen no other batch"
    assert torch.equal(*carries) and carries[0][:, : SMALL["hidden_dim"]].abs().min() > 0
