"""What float32 cannot resolve is subtracted first, or named, and no error of it is reported."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from memory import box, episodes_of

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.callbacks import RolloutEvaluation
from worldmodel.data.check import check_episodes
from worldmodel.data.episode import Episode
from worldmodel.data.episodes import Layout
from worldmodel.data.readers import open_source
from worldmodel.data.writer import EpisodeWriter
from worldmodel.evaluation.curves import horizon_curves
from worldmodel.evaluation.rollouts import Ruler
from worldmodel.evaluation.selection import RolloutOptions
from worldmodel.evaluation.shortfall import shortfalls
from worldmodel.experiments.result import horizon_lines

WAVE = np.sin(np.arange(50.0))[:, None]
FINE = {
    "far away": 1e6 + 1e-3 * WAVE,
    "counts": 2**60 + np.arange(50)[:, None],
    "volts": 1e-30 * WAVE,
}
COARSE = {
    "near": 1e3 + WAVE,
    "numbers": np.arange(50)[:, None],
    "resting": np.full((50, 1), 0.1),
    "rounded": np.float64(0.1) * 3 + np.where(WAVE > 0, 0, 5e-17),
    "single": np.float32(1000) + WAVE.astype(np.float32),
}


def write(folder, streams):
    """Three episodes; the last key is `state`, which is as it should be."""
    streams = streams | {"state": WAVE}
    spaces = {key: box(1, dtype=str(values.dtype)) for key, values in streams.items()}
    writer = EpisodeWriter(folder, {"observation_space": spaces, "action_space": box(1)})
    for _ in range(3):
        writer.add(Episode(streams, WAVE[:-1].astype(np.float32), np.zeros(49), False, True))
    writer.finish()
    return folder


def test_data_check_names_the_key(tmp_path):
    found = check_episodes(open_source(write(tmp_path / "d", FINE | COARSE)))
    named = [finding.what for finding in found if finding.check == "resolution"]
    assert len(named) == len(FINE)
    assert "observation 'far away': too far from zero" in named[0] and "by 0.00071 around 1e+06" in named[0]
    assert "observation 'volts': too fine for a model" in named[2]
    assert [key for key in FINE if any(repr(key) in what for what in named)] == [*FINE]
    constant = [finding.what for finding in found if finding.check == "constant"]
    assert len(constant) == 2 and not any(repr(key) in what for key in FINE for what in constant)


@pytest.mark.parametrize("memory_gb", [2, 0])
def test_a_fit_says_so_from_memory_and_from_each_cache(tmp_path, caplog, memory_gb):
    folder = write(tmp_path / "d", FINE | COARSE)
    for _ in range(2):
        caplog.clear()
        _ = EpisodeDataModule(folder, memory_gb=memory_gb).splits
        said = [record.getMessage() for record in caplog.records if "too f" in record.getMessage()]
        assert len(said) == len(FINE)
        assert "its first value is subtracted" in said[0] and "its first value is subtracted" in said[1]
        assert "give it in a unit" in said[2]


def test_where_nothing_varies_no_error_is_defined():
    still = episodes_of(np.full((20, 2), 3.0), np.zeros((20, 1)), [9, 9])
    truth = np.zeros((4, 5, 2))
    assert np.isnan(Ruler(still).error(truth[:, :1], truth)).all() and Ruler(still).error(truth, truth).shape == (4, 5)


@pytest.mark.fault(24)
def test_no_model_is_judged_by_errors_that_are_not_defined(tmp_path, seen):
    data = EpisodeDataModule(write(tmp_path / "d", FINE), observations=["volts"])
    model = WorldModel(1, 1, latent_dim=4, hidden_dim=6, width=8).eval()
    curves = horizon_curves(model, data.splits["val"], 8, RolloutOptions(burn_in=4))
    assert np.isnan(curves.nmse).all() and np.isnan(curves.copy_last).all()
    assert curves.crossing is None and not shortfalls(curves)
    (line,) = horizon_lines(curves)
    assert line.startswith("the error is not defined")
    seen("1e-30: named, and its error is not defined")


FAR = {"float64": (1e6, 1.0, np.float64), "uint64": (2**63, 1000, np.uint64)}
QUIET = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)


def write_pair(folder, dtype):
    """Datasets `near` zero and `far` from it, and both again in another order, so that another step is the first."""
    origin, unit, kind = FAR[dtype]
    rng = np.random.default_rng(0)
    near = [np.cumsum(rng.normal(size=(30, 2)), axis=0) * unit for _ in range(12)]
    near = near if unit == 1 else [np.round(values) for values in near]
    far = [values.astype(np.int64).astype(kind) + kind(origin) for values in near]
    far = [values + kind(origin) for values in near] if unit == 1 else far
    datasets = {"near": near, "far": far, "near-later": near[3:] + near[:3], "far-later": far[3:] + far[:3]}
    for name, streams in datasets.items():
        space = {"x": box(2, dtype=str(streams[0].dtype))}
        writer = EpisodeWriter(folder / name, {"observation_space": space, "action_space": box(1)})
        for values in streams:
            writer.add(Episode({"x": values}, np.zeros((29, 1), np.float32), np.zeros(29), False, True))
        writer.finish()


def data_of(path):
    return EpisodeDataModule(path, steps=5, lanes=2, memory_gb=0)


@pytest.mark.fault(24)
@pytest.mark.parametrize("dtype", FAR)
def test_far_from_zero_a_model_learns_what_it_learns_near(tmp_path, seen, dtype):
    """On other data too, in the session and from a checkpoint: what was subtracted from its own is subtracted."""
    write_pair(tmp_path, dtype)
    losses = {}
    for name in ("near", "far"):
        pl.seed_everything(0, verbose=False)
        model = WorldModel(2, 1, latent_dim=4, hidden_dim=6, width=8)
        few = RolloutEvaluation(multiples=(1,), max_episodes=1)
        trainer = pl.Trainer(accelerator="cpu", max_steps=12, callbacks=[few], limit_val_batches=4, **QUIET)
        trainer.fit(model, data_of(tmp_path / name))
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        later = data_of(tmp_path / f"{name}-later")
        assert later.episodes.layout.origins.keys() == {"x"} - {"x" if name == "near" else ""}
        found = [trainer.validate(model, data, verbose=False)[0] for data in (data_of(tmp_path / name), later)]
        anew, checkpoint = data_of(tmp_path / f"{name}-later"), tmp_path / "last.ckpt"
        found += trainer.validate(model, anew, ckpt_path=checkpoint, weights_only=True, verbose=False)
        assert found[2] == found[1]
        losses[name] = found
    for near, far in zip(*losses.values(), strict=True):
        assert far == pytest.approx(near, rel=1e-3)
    kept = torch.load(checkpoint, weights_only=True)["EpisodeDataModule"]["data"]["observation_space"]["x"]
    assert all(abs(at - FAR[dtype][0]) < 10 * FAR[dtype][1] for at in kept["origin"])
    assert data_of(tmp_path / "far").episodes.layout.vector_entries[1] == f"x[1] - {kept['origin'][1]}"
    assert Layout({"x": kept}, {}).difference(np.array(kept["origin"], np.longdouble)).tolist() == [0, 0]
    loss = "val/loss"
    apart = max(abs(far[loss] / near[loss] - 1) for near, far in zip(*losses.values(), strict=True))
    seen(f"{dtype} around {FAR[dtype][0]:g}: the losses of the same data around 0, within {apart:.0e}")
