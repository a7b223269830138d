"""What the writer takes, the reader gives back: whatever the keys are called, whatever shape and type they have."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from gymnasium import spaces as gym
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.data.test_store import assert_equal, read
from worldmodel.data.episode import Episode
from worldmodel.data.episodes import Layout
from worldmodel.data.load import load_compressed
from worldmodel.data.spaces import DTYPES, describe, describe_observation
from worldmodel.data.writer import EpisodeWriter, compact
from worldmodel.errors import UserError

TAKEN = ["actions", "rewards", "lengths", "observations", "actions_", "a", "a/b", "a/b/c", "a%2Fb", "%61", "/", "", "."]
KEYS = st.one_of(st.sampled_from([*TAKEN, "./a", "..", "a//b", "a/", "é", "a.b", "x y"]), st.text(max_size=12))
SHAPES = st.lists(st.integers(1, 4), max_size=3).map(tuple)
LEAVES = st.tuples(SHAPES, st.sampled_from(DTYPES))


def values_of(rng, rows, shape, dtype):
    """Any bytes: NaN with its payload, minus zero and subnormal numbers too."""
    if dtype in ("bool", "float128"):
        return rng.integers(0, 2, (rows, *shape)).astype(dtype)
    return np.frombuffer(rng.bytes(rows * int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(rows, *shape)


def write(folder, leaves, action, lengths=(3, 1), **options):
    """A dataset with these leaves, (shape, dtype), and its episodes."""
    rng = np.random.default_rng(0)
    box = {key: {"type": "Box", "shape": list(shape), "dtype": dtype} for key, (shape, dtype) in leaves.items()}
    actions = {"type": "Box", "shape": list(action[0]), "dtype": action[1]}
    writer = EpisodeWriter(folder, {"observation_space": box, "action_space": actions}, **options)
    episodes = []
    for steps in lengths:
        observed = {key: values_of(rng, steps + 1, *leaf) for key, leaf in leaves.items()}
        episodes.append(
            Episode(observed, values_of(rng, steps, *action), rng.normal(size=steps), True, False, rate=10.0)
        )
        writer.add(episodes[-1])
    writer.finish()
    return episodes


@given(st.dictionaries(KEYS, LEAVES, min_size=1, max_size=5), LEAVES, st.sampled_from([300, 1 << 20]))
@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
def test_any_keys_shapes_and_types_come_back(leaves, action, shard_bytes):
    with TemporaryDirectory() as folder:
        written = write(Path(folder) / "d", leaves, action, shard_bytes=shard_bytes)
        for _ in range(2):
            for before, after in zip(written, read(Path(folder) / "d"), strict=True):
                assert_equal(before, after)
                assert before.actions.dtype == after.actions.dtype
            compact(Path(folder) / "d")


def test_all_awkward_keys_at_once(tmp_path):
    leaves = {key: ((2,), "float32") for key in TAKEN} | {"actions": ((3,), "int8"), "a/b": ((9, 8, 3), "uint8")}
    written = write(tmp_path / "d", leaves, ((2,), "float32"))
    for before, after in zip(written, read(tmp_path / "d"), strict=True):
        assert_equal(before, after)
    space = {"a/b": {"type": "Box", "shape": [9, 8, 3], "dtype": "uint8"}}
    loaded = load_compressed(tmp_path / "d", Layout(space, {"type": "Box", "shape": [2], "dtype": "float32"}))
    frames = loaded.episodes.images.take(np.arange(4))
    np.testing.assert_array_equal(frames, written[0].observations["a/b"].reshape(4, -1))


def test_what_no_reader_would_take_is_refused_before_it_is_recorded(tmp_path):
    box = {"type": "Box", "shape": [2], "dtype": "float32"}
    for space in ({}, {"x": box | {"dtype": "complex64"}}, {"x": box | {"shape": [0]}}):
        with pytest.raises(UserError, match="observation_space"):
            EpisodeWriter(tmp_path / "d", {"observation_space": space, "action_space": box})
        assert not (tmp_path / "d").exists()
    writer = EpisodeWriter(tmp_path / "d", {"observation_space": {"x": box}, "action_space": box})
    with pytest.raises(UserError, match="an episode's x are complex64, no numbers"):
        writer.add(Episode({"x": np.zeros((4, 2), np.complex64)}, np.zeros((3, 2)), np.zeros(3), True, False))
    writer.close()


def test_two_keys_that_would_be_one_are_refused():
    box = gym.Box(-1, 1, (2,))
    with pytest.raises(UserError, match="'a/b' twice"):
        describe_observation(gym.Dict({"a/b": box, "a": gym.Dict({"b": box})}))
    assert describe(box)["type"] == "Box"
