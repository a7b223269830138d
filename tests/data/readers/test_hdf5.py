"""HDF5 files in the layouts of D4RL, robomimic, stable-worldmodel and of one's own, and files that mean harm."""

import json
import shutil

import h5py
import numpy as np
import pytest

from tests.data.readers.toy import LENGTHS, assert_same, cut, episodes, is_exact, only
from worldmodel.data.readers.hdf5 import read_hdf5
from worldmodel.errors import UserError

LAB = {
    "episodes": {"groups": "trials/trial*"},
    "observations": {"state": "sensors/state", "pixels": "sensors/camera"},
    "actions": "command",
    "rewards": "reward",
    "terminated": "done",
    "final_observation": "included",
    "outcomes": "previous",
    "rate": 20,
}


def read(path, schema=None):
    return [episode for _, episode in read_hdf5(path, schema).episodes()]


def write_d4rl(path, originals, keys=("timeouts", "next_observations")):
    """N rows of all episodes: (o_t, a_t, r_t, terminal and timeout of that transition)."""

    def rows(of):
        return np.concatenate([of(one) for one in originals])

    def last(one):
        return np.arange(len(one)) == len(one) - 1

    columns = {
        "observations": rows(lambda one: one.observations["state"][:-1]),
        "next_observations": rows(lambda one: one.observations["state"][1:]),
        "actions": rows(lambda one: one.actions),
        "rewards": rows(lambda one: one.rewards),
        "terminals": rows(lambda one: last(one) & one.terminated),
        "timeouts": rows(lambda one: last(one) & one.truncated),
    }
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "rewards", "terminals", *keys):
            file[name] = columns[name]
        file["infos/qpos"] = np.zeros((len(columns["actions"]), 3))
        file["metadata/algorithm"] = "SAC"
    return path


def write_robomimic(path, originals, followed=True):
    """`data/demo_i`, each with N rows; more than ten of them show whether they are sorted as numbers."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}})
        for index, one in enumerate(originals):
            demo = data.create_group(f"demo_{index}")
            for key, values in one.observations.items():
                demo[f"obs/{key}"] = values[:-1]
                if followed:
                    demo[f"next_obs/{key}"] = values[1:]
            demo["actions"], demo["rewards"] = one.actions, one.rewards
            demo["dones"] = (np.arange(len(one)) == len(one) - 1) & one.terminated
            demo["states"] = np.zeros((len(one), 45))
        file["mask/train"] = np.array([b"demo_0"])
    return path


def write_swm(path, originals, style="rotated"):
    """stable-worldmodel's columns: infos of the reset and every step: o_t, the action and reward that came with it.

    `rotated`: actions moved up by a row, the first (NaN) to the end (World.record_dataset). `as it came`: not moved.
    `no reset`: rows of steps alone, the actions moved up all the same (World.collect).
    """
    columns = {}
    for index, one in enumerate(originals):
        steps = len(one)
        led = np.concatenate([np.full((1, 1), np.nan, np.float32), one.actions])
        part = {
            **one.observations,
            "reward": np.concatenate([[np.nan], one.rewards]),
            "terminated": (np.arange(steps + 1) == steps) & one.terminated,
            "truncated": (np.arange(steps + 1) == steps) & one.truncated,
            "step_idx": np.arange(steps + 1),
            "ep_idx": np.full(steps + 1, index),
            "goal": np.ones((steps + 1, 2)),
            "variation.color": np.ones((steps + 1, 3)),
        } | {"action": led}
        if style == "no reset":
            part = {name: values[1:] for name, values in part.items()}
        if style != "as it came":
            part["action"] = np.roll(part["action"], -1, axis=0)
        for name, values in part.items():
            columns.setdefault(name, []).append(values)
    lengths = np.array([len(values) for values in columns["action"]], np.int32)
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = np.concatenate(values)
        file["ep_len"], file["ep_offset"] = lengths, np.cumsum(lengths) - lengths
        file["prompt"] = np.array([b"push"] * int(lengths.sum()))
    return path


def write_lab(path, originals):
    with h5py.File(path, "w") as file:
        for index, one in enumerate(originals):
            trial = file.create_group(f"trials/trial{index}")
            trial["sensors/state"], trial["sensors/camera"] = one.observations["state"], one.observations["pixels"]
            trial["command"] = np.concatenate([one.actions, one.actions[:1]])
            trial["reward"] = np.concatenate([[0], one.rewards]).astype(np.float32)
            trial["done"] = (np.arange(len(one) + 1) == len(one)) & one.terminated
    return path


def test_d4rl_with_next_observations_comes_back(tmp_path):
    source = read_hdf5(write_d4rl(tmp_path / "a.hdf5", episodes()))
    found = [episode for _, episode in source.episodes()]
    assert_same(found, [only(one, observation="state") for one in episodes()])
    assert all(is_exact(one, "observation") for one in found)
    assert source.format == "d4rl" and "dropped_transitions" not in source.provenance
    assert [name for name, _ in source.episodes()][2] == "a.hdf5, episode 2"


def test_d4rl_without_next_observations_drops_the_last_transitions_and_says_so(tmp_path):
    source = read_hdf5(write_d4rl(tmp_path / "a.hdf5", episodes(), ["timeouts"]))
    expected = [cut(only(one, observation="state")) for one in episodes() if len(one) > 1]
    assert_same([episode for _, episode in source.episodes()], expected)
    assert source.provenance["dropped_transitions"] == len(LENGTHS)
    assert "the final observation is missing" in source.alignment


def test_d4rl_that_stops_in_mid_episode(tmp_path):
    path = write_d4rl(tmp_path / "a.hdf5", episodes())
    with h5py.File(path, "r+") as file:
        file["timeouts"][-1] = False
    assert_same(read(path), [only(one, observation="state") for one in episodes()])


def test_d4rl_whose_timeouts_are_not_marked_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not mark where a time limit cut episodes"):
        read(write_d4rl(tmp_path / "a.hdf5", episodes(), []))
    with pytest.raises(
        UserError, match="b.hdf5, episode 1: row 0 of next_observations is not the observation of row 1"
    ):
        read(write_d4rl(tmp_path / "b.hdf5", episodes(), ["next_observations"]))


@pytest.mark.parametrize("followed", [True, False])
def test_robomimic_comes_back(tmp_path, followed):
    originals = episodes((3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 2))
    source = read_hdf5(write_robomimic(tmp_path / "a.hdf5", originals, followed))
    found = [episode for _, episode in source.episodes()]
    assert_same(found, originals if followed else [cut(one) for one in originals])
    assert all(map(is_exact, found))
    assert (source.format, source.provenance["env_id"], found[0].rate) == ("robomimic", "Lift", 20)
    assert source.provenance.get("dropped_transitions", 0) == (0 if followed else 12)
    assert next(source.episodes())[0] == "a.hdf5, episode demo_0"


@pytest.mark.parametrize("style", ["rotated", "as it came", "no reset"])
def test_stable_worldmodel_comes_back(tmp_path, style):
    originals = episodes((5, 2, 12))
    source = read_hdf5(write_swm(tmp_path / "a.h5", originals, style))
    found = [episode for _, episode in source.episodes()]
    assert source.format == "stable-worldmodel"
    assert all(map(is_exact, found))
    if style != "no reset":
        assert_same(found, originals)
    else:  # the reset's observation was never written, and with it the first transition
        assert [len(one) for one in found] == [4, 1, 11]
        np.testing.assert_array_equal(found[2].observations["pixels"], originals[2].observations["pixels"][1:])
        assert [(one.terminated, one.truncated) for one in found] == [(True, False), (False, True), (True, False)]


def test_a_layout_of_ones_own(tmp_path):
    source = read_hdf5(write_lab(tmp_path / "a.h5", episodes()), LAB)
    assert_same([episode for _, episode in source.episodes()], episodes())
    assert [episode.rate for _, episode in source.episodes()] == [20] * len(LENGTHS)
    assert source.observation_space["pixels"]["shape"] == [8, 8, 3]
    assert source.format == "schema"


def test_a_file_for_each_episode(tmp_path):
    for index, one in enumerate(episodes()):
        with h5py.File(tmp_path / f"{index}.hdf5", "w") as file:
            file["qpos"], file["action"], file["r"] = one.observations["state"], one.actions, one.rewards
    schema = {"observations": "qpos", "actions": "action", "rewards": "r", "final_observation": "included"}
    found = read(tmp_path, schema)
    assert [len(one) for one in found] == list(LENGTHS)
    assert all(is_exact(one, "observation") for one in found)
    assert all(one.truncated and not one.terminated for one in found)


def test_whole_numbers_as_actions_are_discrete(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["o"], file["a"], file["done"] = np.zeros((6, 2)), [1, 0, 3, 2, 0, 0], [0, 0, 1, 0, 0, 1]
    schema = {"episodes": {"ends": "done"}, "observations": "o", "actions": "a", "final_observation": "missing"}
    source = read_hdf5(tmp_path / "a.h5", schema)
    assert source.action_space == {"type": "Discrete", "n": 4, "start": 0}
    assert [one.actions.tolist() for _, one in source.episodes()] == [[1, 0], [2, 0]]


def test_without_rewards_there_are_zeros(tmp_path):
    found = read(write_lab(tmp_path / "a.h5", episodes()), LAB | {"rewards": None})
    assert all(not one.rewards.any() and len(one.rewards) == len(one) for one in found)


@pytest.mark.parametrize(
    ("write", "schema"),
    [
        (write_lab, LAB | {"alignment": "previous", "outcomes": "previous"}),
        (write_lab, LAB | {"outcomes": "next", "terminated": None}),
        (
            write_swm,
            {"episodes": {"lengths": "ep_len"}, "observations": {"state": "state"}, "actions": "action",
             "rewards": "reward", "final_observation": "included", "outcomes": "next"},
        ),
    ],
)  # fmt: skip
def test_the_wrong_alignment_shows(tmp_path, write, schema):
    assert not any(map(is_exact, read(write(tmp_path / "a.h5", episodes((5, 12))), schema)))


def test_alignments_that_contradict_the_file_are_errors(tmp_path):
    with pytest.raises(UserError, match="outcomes should be 'previous'"):
        read(write_lab(tmp_path / "a.h5", episodes()), LAB | {"outcomes": "next"})
    path = write_swm(tmp_path / "b.h5", episodes((5, 12)), "as it came")
    schema = {"episodes": {"lengths": "ep_len"}, "observations": "state", "actions": "action"}
    with pytest.raises(UserError, match="b.h5, episode 0: its first action is NaN.*'previous'"):
        read(path, schema | {"final_observation": "included"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation": "x"}, "unknown key 'observation': did you mean 'observations'"),
        ({"episodes": {"group": "data/*"}}, "unknown key 'group': did you mean 'groups'"),
        ({"episodes": {"groups": "a", "ends": ["b"]}}, "must be one of groups, column, ends, stops, and lengths"),
        ({"episodes": {"offsets": "a"}}, "must be one of groups, column, ends, stops, and lengths"),
        ({"episodes": {"groups": "trial/trial*"}}, "no group matches 'trial/trial.'; did you mean 'trials/trial"),
        ({"actions": None}, "needs the key 'actions'"),
        ({"actions": "comand"}, "trials/trial0: there is no dataset 'comand' with rows; did you mean 'command'"),
        ({"observations": {"state": "sensors/stat"}}, "did you mean 'sensors/state'"),
        ({"observations": {}}, "must be a path, or a mapping"),
        ({"alignment": "after"}, "alignment: unknown value 'after'"),
        ({"final_observation": None}, "needs the key 'final_observation'"),
        ({"final_observation": "missing", "alignment": "previous"}, "with alignment: previous"),
        ({"final_observation": "next_observations"}, "contradicts no next_observations"),
        ({"next_observations": {"state": "sensors/state"}}, "contradicts next_observations"),
        ({"next_observations": {"state": "a"}, "final_observation": None}, "must have the same keys"),
        ({"rate": -1}, "rate must be a number"),
        ({"rewards": 3}, "rewards must be the path of a dataset"),
        ({"rewards": "sensors/state"}, "episode trial0: a step has 2 rewards"),
    ],
)
def test_a_mistake_in_the_schema_is_named(tmp_path, change, message):
    path = write_lab(tmp_path / "a.h5", episodes())
    with pytest.raises(UserError, match=message):
        read(path, LAB | change)


def test_an_unknown_layout_lists_what_there_is_and_an_example_of_it(tmp_path):
    path = write_lab(tmp_path / "a.h5", episodes())
    example = (
        r"a schema such as \{episodes: \{groups: trials/trial\*\}, observations: \{camera: sensors/camera, state: "
    )
    with pytest.raises(UserError, match=rf"--action command;.*{example}.*It holds trials/trial0/command \[6, 1\]"):
        read(path)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("ep_len", [6, 4, 13], "a.h5, episode 1: rows 6 to 10 are empty, overlap"),
        ("ep_len", [6, 0, 13], "a.h5, episode 1: rows 6 to 6 are empty"),
        ("ep_len", [6, 3, 14], "a.h5, episode 2: rows 9 to 23 .* beyond the 22 rows"),
        ("ep_offset", [-1, 6, 9], "a.h5, episode 0: rows -1"),
        ("ep_offset", [0, 6], "3 'ep_len', but 2 'ep_offset'"),
        ("ep_len", [6, 1, 13], "a.h5, episode 1: it has no transition"),
        ("state", np.zeros((21, 2), np.float32), "'state' has 21 rows, 'action' 22"),
        ("terminated", np.arange(22) == 3, "a.h5, episode 0: 'terminated' is set at row 3, yet the episode continues"),
    ],
)
def test_contradictory_numbers_are_named(tmp_path, name, values, message):
    path = write_swm(tmp_path / "a.h5", episodes((5, 2, 12)))
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = values
    schema = {"episodes": {"lengths": "ep_len", "offsets": "ep_offset"}, "observations": "state", "actions": "action"}
    schema |= {"final_observation": "included", "outcomes": "previous", "terminated": "terminated"}
    with pytest.raises(UserError, match=message):
        read(path, schema)


def external_link(file, folder):
    del file["observations"]
    file["observations"] = h5py.ExternalLink(str(folder / "secret.h5"), "/secret")


def soft_link(file, folder):
    file["more"] = h5py.SoftLink("/observations")


def external_storage(file, folder):
    (folder / "secret.bin").write_bytes(bytes(800))
    file.create_dataset("more", (100,), "f8", external=[(str(folder / "secret.bin"), 0, 800)])


def virtual_dataset(file, folder):
    layout = h5py.VirtualLayout((10,), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "secret", (10,))
    file.create_virtual_dataset("more", layout)


def declares_a_tebibyte(file, folder):
    del file["observations"]
    file.create_dataset("observations", (1 << 37, 2), "f4", chunks=(1 << 20, 2))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (external_link, "is a link .external. to elsewhere"),
        (soft_link, "is a link .soft. to elsewhere"),
        (external_storage, "external storage"),
        (virtual_dataset, "is virtual"),
        (declares_a_tebibyte, "declares 1,099,511,627,776 bytes"),
    ],
)
def test_files_that_mean_harm_are_refused(tmp_path, harm, message):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["secret"] = np.ones(10, np.float32)
    path = write_d4rl(tmp_path / "a.hdf5", episodes())
    with h5py.File(path, "r+") as file:
        harm(file, tmp_path)
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95])
def test_a_truncated_file_is_named(tmp_path, share):
    path = write_robomimic(tmp_path / "a.hdf5", episodes())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="a.hdf5 cannot be read as HDF5"):
        read(path)


def test_text_instead_of_numbers(tmp_path):
    path = write_lab(tmp_path / "a.h5", episodes())
    with h5py.File(path, "r+") as file:
        del file["trials/trial2/command"]
        file["trials/trial2/command"] = np.array([b"left"] * 13)
    with pytest.raises(UserError, match="episode trial2: command holds .S4, not numbers"):
        read(path, LAB)


def test_an_episode_of_another_shape_is_named(tmp_path):
    path = write_lab(tmp_path / "a.h5", episodes())
    with h5py.File(path, "r+") as file:
        del file["trials/trial1/sensors/state"]
        file["trials/trial1/sensors/state"] = np.zeros((2, 3), np.float32)
    with pytest.raises(UserError, match=r"episode trial1: each observation 'state' has the shape \[3\]; .* is \[2\]"):
        read(path, LAB)


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "a.h5")
    with pytest.raises(UserError, match="there is no .h5 or .hdf5 file"):
        read(tmp_path)


def test_the_fingerprint_follows_the_data_not_the_place(tmp_path):
    path = write_d4rl(tmp_path / "a.hdf5", episodes())
    before = read_hdf5(path).fingerprint
    (tmp_path / "b").mkdir()
    shutil.copy2(path, tmp_path / "b")
    assert read_hdf5(tmp_path / "b" / "a.hdf5").fingerprint == before
    write_d4rl(path, episodes(seed=1))
    assert read_hdf5(path).fingerprint != before
