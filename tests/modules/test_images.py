"""The world model on images: all its parts, checkpoints, and that it learns what moves."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from worldmodel import RULES, EpisodeDataModule, WorldModel
from worldmodel.callbacks.evaluation import RolloutEvaluation
from worldmodel.callbacks.predictions import PredictionWriter
from worldmodel.callbacks.tbptt import TruncatedBPTT
from worldmodel.data.episode import Episode
from worldmodel.data.spaces import box_of
from worldmodel.data.writer import EpisodeWriter

SIDE = 16


def dot_episode(length, rng):
    """A bright square that the action moves right or left around a ring; a number says how often it moved."""
    moves = rng.integers(0, 2, length)
    place = np.append(0, np.cumsum(2 * moves - 1)) * 2 % SIDE
    frames = np.full((length + 1, SIDE, SIDE, 3), 40, np.uint8)
    for frame, x in zip(frames, place, strict=True):
        frame[6:10, (x + np.arange(4)) % SIDE] = 220
    seen = {"camera": frames, "count": np.arange(length + 1, dtype=np.float32)[:, None] / 10}
    return Episode(seen, moves, (2.0 * moves - 1), False, True)


@pytest.fixture(scope="module")
def dots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dots") / "data"
    space = {"camera": box_of(np.zeros((1, SIDE, SIDE, 3), np.uint8)), "count": box_of(np.zeros((1, 1), np.float32))}
    writer = EpisodeWriter(folder, {"observation_space": space, "action_space": {"type": "Discrete", "n": 2}})
    rng = np.random.default_rng(0)
    for _ in range(40):
        writer.add(dot_episode(40, rng))
    writer.finish()
    return folder


def model_of(data, **options):
    small = {"latent_dim": 16, "hidden_dim": 32, "width": 32, "channels": 4, "warmup_steps": 10}
    return WorldModel(data.obs_dim, data.action_dim, data.images, **(small | options))


def trainer_of(folder, **options):
    return pl.Trainer(
        default_root_dir=folder, accelerator="cpu", devices=1, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        logger=CSVLogger(folder, name="", version=""), **options,
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"objective": "latent"}, {"objective": "latent", "anti_collapse": "sigreg"}])
@pytest.mark.parametrize("rule", ["gated_norm", "lstm"])
def test_every_parameter_learns(dots, rule, options):
    assert rule in RULES
    data = EpisodeDataModule(dots, steps=8, lanes=2)
    model = model_of(data, rule=rule, open_loop_steps=4, **options)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["obs"].shape == (2, 9, 1 + SIDE * SIDE * 3) and "pixels" not in batch
    terms, _, _ = model.losses(batch)
    model.total(terms).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_it_learns_what_moves(dots, tmp_path):
    """The open-loop error at the trained horizon is far below copying, and the animation shows it."""
    pl.seed_everything(0, verbose=False)
    data = EpisodeDataModule(dots, steps=8, lanes=8, observations=["camera"])
    model = model_of(data, learning_rate=3e-3, open_loop_steps=8)
    evaluation = RolloutEvaluation(multiples=[1, 2, 4], starts=2)
    trainer = trainer_of(tmp_path, max_steps=200, callbacks=[TruncatedBPTT(), evaluation], limit_val_batches=0)
    trainer.fit(model, data)
    curves = evaluation.curves
    assert curves.nmse[7] < 0.5 * curves.copy_last[7], (curves.nmse[7], curves.copy_last[7])
    assert curves.mean.mean() == pytest.approx(1, abs=0.15), "the mean image has the variance as its error"
    assert (tmp_path / "rollout.png").stat().st_size > 20_000
    with Image.open(tmp_path / "rollout.gif") as film:
        film.seek(0)
        first = np.asarray(film.convert("L")).astype(int)
        film.seek(5)
        later = np.asarray(film.convert("L")).astype(int)
        width = first.shape[1] // 3
        assert film.n_frames == 32
    assert (np.abs(later - first)[:120, :width] > 60).sum() > 200, "the truth moves"
    assert (np.abs(later - first)[:120, width : 2 * width] > 60).sum() > 100, "the prediction moves"


def test_a_checkpoint_comes_back_as_data(dots, tmp_path):
    data = EpisodeDataModule(dots, steps=8, lanes=4)
    model = model_of(data)
    trainer = trainer_of(tmp_path, max_steps=3, callbacks=[TruncatedBPTT()], limit_val_batches=0)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    again = WorldModel.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    obs = torch.from_numpy(data.splits["val"].obs(data.splits["val"].rows(0)))
    model.eval()
    assert torch.equal(model.encode(obs), again.eval().encode(obs))
    restored = model.obs_norm.inverse(model.obs_norm(obs))
    torch.testing.assert_close(restored, obs, atol=1e-3, rtol=1e-5)


def test_predictions_of_images_are_bytes(dots, tmp_path):
    import h5py

    data = EpisodeDataModule(dots, steps=8, lanes=4)
    writer = PredictionWriter()
    trainer_of(tmp_path, callbacks=[TruncatedBPTT(), writer]).predict(model_of(data), data, return_predictions=False)
    with h5py.File(writer.path) as file:
        split = data.splits["val"]
        count = split.num_transitions
        assert file["obs"].shape == (count, 1) and file["pixels"].shape == (count, SIDE * SIDE * 3)
        assert file["pixels"].dtype == np.uint8
        expected = np.concatenate([split.obs(split.rows(i)[1:]) for i in range(len(split))])
        np.testing.assert_array_equal(file["next_pixels"], expected[:, 1:])
        np.testing.assert_array_equal(file["next_obs"], expected[:, :1])


def test_half_precision(dots, tmp_path):
    data = EpisodeDataModule(dots, steps=8, lanes=4)
    evaluation = RolloutEvaluation(multiples=[1], starts=1)
    trainer = trainer_of(
        tmp_path, precision="bf16-mixed", max_steps=3, callbacks=[TruncatedBPTT(), evaluation], limit_val_batches=0
    )
    trainer.fit(model_of(data), data)
    assert np.isfinite(evaluation.curves.nmse).all()
