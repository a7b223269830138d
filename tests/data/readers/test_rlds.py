"""RLDS episodes in TFRecord files, which the tfrecord package writes, by features.json as TFDS writes it."""

import json

import numpy as np
import pytest
from tfrecord.writer import TFRecordWriter

from tests.data.readers.test_lerobot import png
from tests.data.readers.toy import assert_same, episodes, is_exact
from worldmodel.data.readers import open_source
from worldmodel.data.readers.tfrecord import parse_example, read_records
from worldmodel.errors import UserError


def tensor(dtype, *shape, encoding="none"):
    told = {"dtype": dtype, "encoding": encoding, "shape": {"dimensions": [str(n) for n in shape]} if shape else {}}
    return {"pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor", "tensor": told}


def features_of(leaves):
    return {"featuresDict": {"features": leaves}, "pythonClassName": "...features_dict.FeaturesDict"}


IMAGE = {"image": {"dtype": "uint8", "encodingFormat": "png", "shape": {"dimensions": ["8", "8", "3"]}}}
TEXT = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}
FLAGS = {name: tensor("bool") for name in ("is_first", "is_last", "is_terminal")}
STEP = {
    "observation": features_of({"state": tensor("float32", 2), "pixels": IMAGE, "task": TEXT}),
    "action": features_of({"move": tensor("float32", 1), "button": tensor("int64"), "note": TEXT}),
    "reward": tensor("float64"),
    "count": tensor("int64"),
    "packed": tensor("float32", 3, encoding="zlib"),
} | FLAGS


def columns(one):
    """The lists of an episode's T + 1 steps; action and reward of the last are placeholders."""
    steps = len(one) + 1
    action, at_end = np.concatenate([one.actions[:, 0], [9]]), np.arange(steps) == steps - 1
    return {
        "steps/observation/state": (one.observations["state"].reshape(-1).tolist(), "float"),
        "steps/observation/pixels": ([png(frame)["bytes"] for frame in one.observations["pixels"]], "byte"),
        "steps/observation/task": ([b"go"] * steps, "byte"),
        "steps/action/move": (action.tolist(), "float"),
        "steps/action/button": ([-5 * t for t in range(steps)], "int"),
        "steps/reward": ([*one.rewards.tolist(), 9.0], "float"),
        "steps/count": ([2**40 * t for t in range(steps)], "int"),
        "steps/is_terminal": ((at_end & one.terminated).astype(int).tolist(), "int"),
        "episode_metadata/file": ([b"x"], "byte"),
    }


def write(folder, originals, step=STEP, shards=2):
    folder.mkdir()
    whole = features_of({"steps": {"sequence": {"feature": features_of(step), "length": "-1"}}})
    (folder / "features.json").write_text(json.dumps(whole))
    for shard in range(shards):
        writer = TFRecordWriter(str(folder / f"toy-train.tfrecord-{shard:05d}-of-{shards:05d}"))
        for one in originals[shard::shards]:
            writer.write(columns(one))
        writer.close()
    return folder


def in_order(originals, shards=2):
    return [one for shard in range(shards) for one in originals[shard::shards]]


def test_every_transition_comes_back(tmp_path):
    source = open_source(write(tmp_path / "toy", episodes()), action="move")
    assert (source.format, source.action_space["shape"]) == ("rlds", [1])
    found = [one for _, one in source.episodes()]
    assert_same(found, in_order(episodes()))
    assert all(map(is_exact, found))
    assert [name for name, _ in source.episodes()][2] == "toy-train.tfrecord-00001-of-00002, episode 0"
    assert source.provenance["left_out"] == {
        "observation/task": "Text, no numbers",
        "action/button": "--observations reads it",
        "action/note": "Text, no numbers",
        "count": "--observations reads it",
        "packed": "its values are encoded (zlib)",
    }


def test_parts_of_an_action_and_other_features(tmp_path):
    path = write(tmp_path / "toy", episodes())
    (_, one), *_ = open_source(path).episodes()
    np.testing.assert_array_equal(one.actions[:, 1], -5 * np.arange(len(one)))
    np.testing.assert_array_equal(one.actions[:, 0], episodes()[0].actions[:, 0])
    (_, one), *_ = open_source(path, observations="count,pixels", reward="count", image_size=16).episodes()
    assert list(one.observations) == ["count", "pixels"] and one.observations["pixels"].shape[1:] == (16, 16, 3)
    np.testing.assert_array_equal(one.observations["count"], 2**40 * np.arange(len(one) + 1))
    np.testing.assert_array_equal(one.rewards, 2**40 * np.arange(len(one)))
    for how, message in [
        ({"observations": "task"}, "observation/task cannot be read: Text, no numbers"),
        ({"observations": "stat"}, "there is no observation 'stat' to read; did you mean 'state'"),
        ({"reward": "rewards"}, "there is no reward 'rewards' in a step; did you mean 'reward'"),
        ({"skip": "pixels", "image_size": 16}, "holds no images among state"),
    ]:
        with pytest.raises(UserError, match=message):
            open_source(path, **how)


def test_an_action_and_an_observation_of_one_feature(tmp_path):
    step = {"observation": tensor("float32", 2), "action": tensor("int64")} | FLAGS
    (tmp_path / "toy").mkdir()
    whole = features_of({"steps": {"sequence": {"feature": features_of(step)}}})
    (tmp_path / "toy" / "features.json").write_text(json.dumps(whole))
    writer = TFRecordWriter(str(tmp_path / "toy" / "x-train.tfrecord-00000-of-00001"))
    ends = ([0, 0, 0], "int")
    writer.write(
        {"steps/observation": ([0.0] * 6, "float"), "steps/action": ([1, 4, 0], "int"), "steps/is_terminal": ends}
    )
    writer.close()
    source = open_source(tmp_path / "toy")
    assert source.action_space == {"type": "Discrete", "n": 5, "start": 0} and "observation" in source.observation_space
    ((_, one),) = source.episodes()
    assert one.actions.tolist() == [1, 4] and one.truncated and not one.rewards.any()


def test_whole_numbers_of_every_size(tmp_path):
    numbers = [0, 1, 127, 128, 300, 2**31, 2**62, 2**63 - 1, -1, -(2**63)]
    writer = TFRecordWriter(str(tmp_path / "x"))
    writer.write({"n": (numbers, "int"), "one": ([7], "int")})
    writer.close()
    (record,) = read_records(tmp_path / "x")
    assert parse_example(record, {"n", "one"}, "x")["n"].tolist() == numbers


@pytest.mark.parametrize("share", [0.001, 0.3, 0.99])
def test_a_cut_or_a_flipped_bit_is_named(tmp_path, share):
    path = write(tmp_path / "toy", episodes(), shards=1)
    (victim,) = path.glob("*.tfrecord-*")
    content = victim.read_bytes()
    place = int(share * len(content))
    for damaged in (content[:place], content[:place] + bytes([content[place] ^ 8]) + content[place + 1 :]):
        victim.write_bytes(damaged)
        with pytest.raises(UserError, match="toy-train.tfrecord-00000-of-00001, record [0-3]: "):
            list(open_source(path).episodes())


def test_what_is_missing_or_contradicts_itself_is_named(tmp_path):
    path = write(tmp_path / "toy", episodes())
    told = json.loads((path / "features.json").read_text())
    state = told["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]["observation"]
    state["featuresDict"]["features"]["state"]["tensor"]["shape"]["dimensions"] = ["5"]
    (path / "features.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"12 numbers of steps/observation/state, whose shape is \[5\]"):
        list(open_source(path).episodes())
    (path / "toy-train.tfrecord-00001-of-00002").unlink()
    with pytest.raises(UserError, match="the file toy-train.tfrecord-00001-of-00002 is missing"):
        open_source(path)
    (path / "features.json").write_text("{}")
    with pytest.raises(UserError, match="missing|describes no steps"):
        open_source(path)
