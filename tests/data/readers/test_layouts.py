"""Layouts that people hold, recognised by the names and lengths of their arrays, in each of the three containers."""

import json

import h5py
import numpy as np
import pytest
import zarr
from PIL import Image

from tests.data.readers.test_lerobot import png
from tests.data.readers.toy import LENGTHS, assert_same, cut, episodes, is_exact, only
from worldmodel.data.readers import open_source
from worldmodel.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:zarr")


def write_hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def write_npz(path, arrays):
    np.savez(path.with_suffix(".npz"), **arrays)
    return path.with_suffix(".npz")


def write_zarr(path, arrays, version=2):
    root = zarr.open_group(str(path), mode="w", zarr_format=version)
    for name, values in arrays.items():
        group, _, last = name.rpartition("/")
        parent = root.require_group(group) if group else root
        parent.create_array(last, data=values, chunks=(7, *values.shape[1:]), config={"write_empty_chunks": True})
    return path


CONTAINERS = [write_hdf5, write_npz, write_zarr]


def read(path, **how):
    return [episode for _, episode in open_source(path, **how).episodes()]


def flat(originals, final=False, **names):
    """Rows (o_t, a_t, r_t, end of that transition) of all episodes; with `final`, a row more for each of them."""
    more = int(final)
    columns = {"observation": [], "actions": [], "rewards": [], "end": []}
    for one in originals:
        steps = len(one)
        columns["observation"].append(one.observations["state"][: steps + more])
        columns["actions"].append(np.concatenate([one.actions, np.full((more, 1), 9, np.float32)]))
        columns["rewards"].append(np.concatenate([one.rewards, np.zeros(more)]))
        columns["end"].append(np.arange(steps + more) == steps - 1 + more)
    return {names.get(name, name): np.concatenate(parts) for name, parts in columns.items()}


def named(originals):
    return [only(one, observation="state") for one in originals]


@pytest.mark.parametrize("write", CONTAINERS)
@pytest.mark.parametrize("end", ["done", "dones"])
def test_rows_with_an_end_flag(tmp_path, write, end):
    """A replay buffer: the flag says that an episode ended, and not why, so that it is read as a cut."""
    path = write(tmp_path / "a.h5", flat(episodes(), observation="obs", actions="action", rewards="reward", end=end))
    source = open_source(path)
    expected = [cut(one) for one in named(episodes()) if len(one) > 1]
    assert_same([one for _, one in source.episodes()], expected)
    assert source.provenance["dropped_transitions"] == len(LENGTHS) and end in source.provenance["ends"]


@pytest.mark.parametrize("write", CONTAINERS)
@pytest.mark.parametrize("name", ["observations", "state"])
def test_an_end_is_terminal_where_no_time_limit_cut_it(tmp_path, write, name):
    """As in replay buffers of Stable-Baselines3: `dones` at every end, `timeouts` at those of the time limit."""
    originals, rows = named(episodes()), flat(episodes(), observation=name, end="dones")
    starts = np.cumsum([0, *map(len, originals)])
    states = [one.observations["observation"] for one in originals]
    rows["timeouts"] = rows["dones"].copy()
    rows["timeouts"][starts[1::2] - 1] = False  # every second episode is terminated, the first of them
    rows[f"next_{name}"] = np.concatenate([state[1:] for state in states])
    key = "observation" if name == "observations" else name
    assert_same(read(write(tmp_path / "a.h5", rows), rename=f"{key}=observation"), originals)


@pytest.mark.parametrize("write", CONTAINERS)
def test_ogbench(tmp_path, write):
    """`terminals` mark the last state of each trajectory, whose action is a placeholder; there are no rewards."""
    rows = flat(episodes(), final=True, observation="observations", end="terminals")
    del rows["rewards"]
    rows["terminals"] = rows["terminals"].astype(np.float32)
    rows["qpos"] = rows["observations"] + 1
    path = write(tmp_path / "a.h5", rows)
    source = open_source(path)
    assert source.format == "ogbench" and list(source.provenance["left_out"]) == ["qpos"]
    assert "dropped_transitions" not in source.provenance
    for found, one in zip(read(path), named(episodes()), strict=True):
        np.testing.assert_array_equal(found.observations["observation"], one.observations["observation"])
        np.testing.assert_array_equal(found.actions, one.actions)
        assert found.truncated and not found.terminated and not found.rewards.any()
    (first, *_) = read(path, observations="qpos,observations", rename="qpos=q")
    assert list(first.observations) == ["q", "observation"]
    np.testing.assert_array_equal(first.observations["q"], first.observations["observation"] + 1)


def test_a_folder_of_npz_files_and_previous_actions(tmp_path):
    for number, one in enumerate(episodes()):
        rows = flat([one], final=True, observation="obs", end="done")
        rows |= {name: np.roll(rows[name], 1, axis=0) for name in ("actions", "rewards")}
        write_npz(tmp_path / f"{number}", rows)
    found = read(tmp_path, alignment="previous")
    assert [len(one) for one in found] == list(LENGTHS) and all(is_exact(one, "observation") for one in found)
    assert not any(is_exact(one, "observation") for one in read(tmp_path, alignment="next") if len(one) > 1)


@pytest.mark.parametrize("write", CONTAINERS)
def test_rows_that_a_number_cuts(tmp_path, write):
    rows = flat(episodes(), observation="observation")
    del rows["end"]
    rows["episode_index"] = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    found = read(write(tmp_path / "a.h5", rows))
    assert_same(found, [cut(one) for one in named(episodes()) if len(one) > 1 for one in [one]])


def grouped(originals, pattern="traj_{}", frames=1, obs="obs/{}", extra=None):
    """A group an episode; `frames` more observations than actions."""
    arrays = {}
    for number, one in enumerate(originals):
        group, steps = pattern.format(number), len(one)
        for key, values in one.observations.items():
            arrays[f"{group}/{obs.format(key)}"] = values[: steps + frames]
        arrays |= {f"{group}/actions": one.actions, f"{group}/rewards": one.rewards}
        arrays |= {f"{group}/{name}": values[: steps + 1] for name, values in (extra or {}).items()}
    return arrays


def test_maniskill_with_nested_observations(tmp_path):
    originals = episodes((3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5))
    arrays = grouped(originals, obs="obs/agent/{}", extra={"obs/sensor_data/cam/depth": np.ones((12, 8, 8, 1), "i2")})
    for number, one in enumerate(originals):
        at_end = np.arange(len(one)) == len(one) - 1
        flags = {"terminated": at_end & one.terminated, "truncated": at_end & one.truncated, "success": at_end}
        arrays |= {f"traj_{number}/{name}": values for name, values in flags.items()}
        arrays[f"traj_{number}/env_states/actors/cube"] = np.zeros((len(one) + 1, 13))
    path = write_hdf5(tmp_path / "a.h5", arrays)
    path.with_suffix(".json").write_text(json.dumps({"env_info": {"env_id": "PickCube-v1"}, "episodes": []}))
    source = open_source(path, skip="sensor_data", rename="agent/state=state,agent/pixels=pixels")
    assert (source.format, source.provenance["env_id"]) == ("maniskill", "PickCube-v1")
    assert_same([one for _, one in source.episodes()], originals)
    assert list(open_source(path).observation_space) == ["agent/pixels", "agent/state", "sensor_data/cam/depth"]


def test_isaac_lab_keeps_its_last_actions_among_the_observations(tmp_path):
    arrays = grouped(episodes((5, 12)), "data/demo_{}", frames=0)
    arrays |= {f"data/demo_{i}/obs/actions": np.full((n, 1), i, np.float32) for i, n in enumerate((5, 12))}
    path = write_hdf5(tmp_path / "a.hdf5", arrays)
    for found, one in zip(read(path), episodes((5, 12)), strict=True):
        np.testing.assert_array_equal(found.actions, one.actions[:-1])
        assert list(found.observations) == ["actions", "pixels", "state"]
    assert_same(read(path, skip="actions"), [cut(one) for one in episodes((5, 12))])


def test_robosuite_has_states_alone(tmp_path):
    arrays = {}
    for number, one in enumerate(episodes((5, 12))):
        arrays |= {
            f"data/demo_{number}/states": one.observations["state"][:-1],
            f"data/demo_{number}/actions": one.actions,
        }
    path = write_hdf5(tmp_path / "demo.hdf5", arrays)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env"] = "Lift"
    source = open_source(path)
    assert (source.format, source.provenance["env_id"], list(source.observation_space)) == (
        "robosuite",
        "Lift",
        ["states"],
    )
    assert [len(one) for _, one in source.episodes()] == [4, 11]


@pytest.mark.parametrize("kind", ["raw", "padded", "varying"])
def test_aloha_is_a_file_an_episode_with_pictures(tmp_path, kind):
    """Compressed, a picture is a row of bytes, padded to the longest, or as long as it is."""
    originals = episodes((5, 12))
    for number, one in enumerate(originals):
        frames = np.repeat(np.repeat(one.observations["pixels"][:-1], 4, 1), 4, 2)
        with h5py.File(tmp_path / f"episode_{number}.hdf5", "w") as file:
            file["observations/qpos"], file["action"] = one.observations["state"][:-1], one.actions
            encoded = [np.frombuffer(png(frame)["bytes"], np.uint8) for frame in frames]
            if kind == "raw":
                file["observations/images/top"] = frames
            elif kind == "padded":
                rows = np.zeros((len(frames), max(map(len, encoded)) + 3), np.uint8)
                for row, data in zip(rows, encoded, strict=True):
                    row[: len(data)] = data
                file["observations/images/top"] = rows
            else:
                kept = file.create_dataset("observations/images/top", (len(frames),), h5py.vlen_dtype(np.uint8))
                for row, data in enumerate(encoded):
                    kept[row] = data
    source = open_source(tmp_path)
    assert source.format == "aloha" and source.observation_space["images/top"]["shape"] == [32, 32, 3]
    for (_, found), one in zip(source.episodes(), originals, strict=True):
        assert len(found) == len(one) - 1
        np.testing.assert_array_equal(found.observations["images/top"][:, ::4, ::4], one.observations["pixels"][:-1])
        np.testing.assert_array_equal(found.observations["qpos"], one.observations["state"][:-1])
        np.testing.assert_array_equal(found.actions, one.actions[:-1])


def test_a_damaged_picture_is_named(tmp_path):
    rows = np.zeros((4, 400), np.uint8)
    picture = np.frombuffer(png(np.zeros((16, 16, 3), np.uint8))["bytes"], np.uint8)
    rows[:, : len(picture)] = picture
    rows[2, 20:] = 7
    arrays = {"observations/qpos": np.zeros((4, 2)), "observations/images/top": rows, "action": np.zeros((4, 1))}
    path = write_hdf5(tmp_path / "episode_0.hdf5", arrays)
    with pytest.raises(UserError, match="episode_0.hdf5, observations/images/top, row 2: the picture is damaged"):
        read(path)
    assert list(read(path, skip="images")[0].observations) == ["qpos"]
    assert Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_diffusion_policy(tmp_path, version, packed):
    """Rows (o_t, a_t) of all episodes, and where each stops; push-T keeps its pictures as floats."""
    originals = episodes((5, 2, 12))
    rows = {
        "data/action": np.concatenate([one.actions for one in originals]),
        "data/state": np.concatenate([one.observations["state"][:-1] for one in originals]),
        "data/img": np.concatenate([one.observations["pixels"][:-1] for one in originals]).astype(np.float32),
        "meta/episode_ends": np.cumsum([len(one) for one in originals]),
    }
    path = write_zarr(tmp_path / "pusht.zarr", rows, version)
    if packed:
        with zarr.storage.ZipStore(tmp_path / "b.zarr.zip", mode="w") as store:
            root = zarr.open_group(store, mode="w", zarr_format=version)
            for name, values in rows.items():
                root.require_group(name.split("/")[0]).create_array(name.split("/")[1], data=values)
        path = tmp_path / "b.zarr.zip"
    source = open_source(path)
    assert source.format == "diffusion_policy" and source.observation_space["img"]["dtype"] == "uint8"
    for (_, found), one in zip(source.episodes(), originals, strict=True):
        np.testing.assert_array_equal(found.observations["img"], one.observations["pixels"][:-1])
        np.testing.assert_array_equal(found.observations["state"], one.observations["state"][:-1])
        np.testing.assert_array_equal(found.actions, one.actions[:-1])
    chosen = read(path, skip="img", action="state_next,action")  # as in UMI, where the next pose is the action
    np.testing.assert_array_equal(chosen[0].actions[:, :2], originals[0].observations["state"][1:-1])
    np.testing.assert_array_equal(chosen[0].actions[:, 2:], originals[0].actions[:-1])


def test_umi_has_poses_and_no_action(tmp_path):
    """The error names the option, and with it the files are read."""
    originals = episodes((5, 2, 12))
    rows = {
        "data/camera0_rgb": np.concatenate([one.observations["pixels"] for one in originals]),
        "data/robot0_eef_pos": np.concatenate([one.observations["state"] for one in originals]),
        "meta/episode_ends": np.cumsum([len(one) + 1 for one in originals]),
    }
    path = write_zarr(tmp_path / "umi.zarr", rows)
    with pytest.raises(
        UserError, match="which array is the action.*--action robot0_eef_pos_next; .*stops: meta/episode"
    ):
        read(path)
    for found, one in zip(read(path, action="robot0_eef_pos_next"), originals, strict=True):
        np.testing.assert_array_equal(found.actions, one.observations["state"][1:])
        np.testing.assert_array_equal(found.observations["robot0_eef_pos"], one.observations["state"])
        np.testing.assert_array_equal(found.observations["camera0_rgb"], one.observations["pixels"])


def test_what_a_zarr_store_may_not_do(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", flat(episodes(), observation="obs", end="done"))
    meta = path / "obs" / ".zarray"
    original = meta.read_text()
    told = json.loads(original)
    for change, message in [
        ({"filters": [{"id": "pickle"}]}, "compressed with pickle, which is not read: leave it out with --skip"),
        ({"shape": [10**12, 2]}, "declares 8,000,000,000,000 bytes"),
        ({"chunks": None}, "its metadata cannot be read"),
    ]:
        meta.write_text(json.dumps(told | change))
        with pytest.raises(UserError, match=message):
            read(path)
    meta.write_text(original)
    (path / "obs" / "0.0").write_bytes(b"damaged")
    with pytest.raises(UserError, match="obs cannot be read: it is damaged"):
        read(path)
    (path / "obs" / "0.0").unlink()
    assert open_source(path).provenance["missing"] == {"obs": "1 chunks are not there, and read as zeros"}


@pytest.mark.parametrize("write", CONTAINERS)
def test_the_schema_that_an_error_shows_is_of_the_very_file(tmp_path, write):
    """Of rows that nothing cuts, and of D4RL without its time limits; corrected, it reads the file."""
    import yaml

    lengths = [5, 3, 12]
    for name, end in (("a", None), ("b", "terminals")):
        rows = flat(episodes(tuple(lengths)), observation="observations", end=end or "unknown")
        if end is None:
            rows["velocity"] = rows.pop("unknown")
        path = write(tmp_path / f"{name}.h5", rows)
        with pytest.raises(UserError, match="--schema: {") as caught:
            open_source(path)
        line = str(caught.value).partition("--schema: ")[2].partition("}. It holds")[0] + "}"
        schema = yaml.safe_load(line)
        assert schema["observations"] == {"observation": "observations"} and schema["rewards"] == "rewards"
        cuts = {"episodes": {"lengths": lengths}, "terminated": None}
        found = read(path, schema=schema | cuts)
        np.testing.assert_array_equal(found[2].actions, episodes(tuple(lengths))[2].actions[:-1])


@pytest.mark.parametrize("write", CONTAINERS)
def test_names_that_are_not_there(tmp_path, write):
    path = write(tmp_path / "a.h5", flat(episodes(), observation="obs", actions="command", end="done"))
    with pytest.raises(
        UserError, match="which array is the action\\? Name it .--action command; .* It holds .*command"
    ):
        read(path)
    assert len(read(path, action="command")) == 3
    for how, message in [
        ({"action": "comand"}, "there is no array comand"),
        ({"reward": "rewads"}, "there is no reward 'rewads'; did you mean 'rewards'"),
        ({"observations": "ob"}, "there is no observation 'ob' to read"),
        ({"skip": "observation"}, "no observation is left once observation is skipped"),
        ({"skip": "obs"}, "no observation is left once obs is skipped"),
        ({"skip": "observ"}, "there is no observation 'observ' to skip; did you mean 'observation'"),
        ({"rename": "obs=x"}, "'obs', to be renamed, is no key; choose one of: observation"),
        ({"rename": "obs"}, "rename must be OLD=NEW"),
        ({"observations": "a,,b"}, "observations must be names with commas between them"),
    ]:
        with pytest.raises(UserError, match=message):
            read(path, **({"action": "command"} | how))


def test_another_choice_is_other_data(tmp_path):
    """A cache, a checkpoint or a conversion of one reading must not serve another."""
    path = write_hdf5(tmp_path / "a.h5", flat(episodes(), observation="obs", end="done") | {"q": np.zeros((21, 2))})
    ways = [{}, {"observations": "q"}, {"observations": "q,obs", "skip": "q"}, {"action": "q"}, {"reward": "done"}]
    prints = {open_source(path, **how).fingerprint for how in [*ways, {"rename": "observation=x"}]}
    assert len(prints) == len(ways) + 1
