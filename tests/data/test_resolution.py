"""What float32 cannot resolve is named, and no error of it is reported."""

import numpy as np
import pytest
from memory import box, episodes_of

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.data.check import check_episodes
from worldmodel.data.episode import Episode
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
    assert "observation 'far away': too fine for a model" in named[0] and "by 0.00071 around 1e+06" in named[0]
    assert [key for key in FINE if any(repr(key) in what for what in named)] == [*FINE]
    constant = [finding.what for finding in found if finding.check == "constant"]
    assert len(constant) == 2 and not any(repr(key) in what for key in FINE for what in constant)


@pytest.mark.parametrize("memory_gb", [2, 0])
def test_a_fit_says_so_from_memory_and_from_each_cache(tmp_path, caplog, memory_gb):
    folder = write(tmp_path / "d", FINE | COARSE)
    for _ in range(2):
        caplog.clear()
        _ = EpisodeDataModule(folder, memory_gb=memory_gb).splits
        said = [record.getMessage() for record in caplog.records if "too fine" in record.getMessage()]
        assert len(said) == len(FINE) and all("give it in a unit" in line for line in said)


def test_where_nothing_varies_no_error_is_defined():
    still = episodes_of(np.full((20, 2), 3.0), np.zeros((20, 1)), [9, 9])
    truth = np.zeros((4, 5, 2))
    assert np.isnan(Ruler(still).error(truth[:, :1], truth)).all() and Ruler(still).error(truth, truth).shape == (4, 5)


def test_no_model_is_judged_by_errors_that_are_not_defined(tmp_path):
    data = EpisodeDataModule(write(tmp_path / "d", FINE), observations=["far away"])
    model = WorldModel(1, 1, latent_dim=4, hidden_dim=6, width=8).eval()
    curves = horizon_curves(model, data.splits["val"], 8, RolloutOptions(burn_in=4))
    assert np.isnan(curves.nmse).all() and np.isnan(curves.copy_last).all()
    assert curves.crossing is None and not shortfalls(curves)
    (line,) = horizon_lines(curves)
    assert line.startswith("the error is not defined")
