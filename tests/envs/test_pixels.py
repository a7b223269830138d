"""Rendered frames as observations. The MuJoCo tests need EGL (libegl1, libgl1-mesa-dri); without it they fail."""

import gymnasium as gym
import numpy as np
import pytest

from worldmodel.data.readers.worldmodel import open_dataset
from worldmodel.envs.collect import CollectOptions, collect
from worldmodel.envs.render import Pixels, area_average, prepare_mujoco
from worldmodel.errors import UserError

SCREEN = CollectOptions(env_id="envs.odd_envs:Screen-v0", steps=60, num_envs=2, pixels=[10, 40])


def episodes_of(folder):
    return [episode for _, episode in open_dataset(folder).episodes()]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_each_frame_shows_the_state_of_its_moment(tmp_path, vectorization):
    """The last one of an episode too: not the frame of the reset that follows."""
    manifest = collect({**SCREEN, "keep_state": True}, tmp_path / "d", vectorization)
    assert manifest["render"]["size"] == [10, 40] and manifest["render"]["rendered_at"] == [20, 40]
    for episode in episodes_of(tmp_path / "d"):
        image, row = episode.observations["image"], episode.observations["observation"][:, 0].astype(int) % 20
        assert image.shape[1:] == (10, 40, 3) and image.dtype == np.uint8
        for frame, where in zip(image, row, strict=True):  # two rows in one: half as bright
            assert (frame[where // 2, :20] == 100).all() and frame.sum() == 100 * 20 * 3
        assert episode.rate == 25


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({}, {"image"}),
        ({"keep_state": True}, {"image", "observation"}),
        ({"observe": [1]}, {"image", "observation"}),
        ({"observe": ["observation"]}, {"image", "observation"}),
    ],
)
def test_what_is_recorded_beside_the_frame(tmp_path, change, keys):
    manifest = collect({**SCREEN, **change}, tmp_path / "d")
    assert manifest["observation_space"].keys() == keys
    assert all(episode.observations.keys() == keys for episode in episodes_of(tmp_path / "d"))
    if change.get("observe") == [1]:
        assert manifest["observation_space"]["observation"]["shape"] == [1]


def test_frames_change_neither_actions_nor_states(tmp_path):
    collect({**SCREEN, "keep_state": True}, tmp_path / "with")
    collect({**SCREEN, "pixels": None}, tmp_path / "without")
    for ours, plain in zip(episodes_of(tmp_path / "with"), episodes_of(tmp_path / "without"), strict=True):
        np.testing.assert_array_equal(ours.observations["observation"], plain.observations["observation"])
        np.testing.assert_array_equal(ours.actions, plain.actions)


@pytest.mark.parametrize(
    ("shows", "message"),
    [
        ("black", "the renderer gives black frames: the first 16"),
        ("white", "the renderer gives empty frames: the first 16"),
        ("error", "cannot be rendered .RuntimeError: no context"),
        ("text", "gave str; it must give uint8"),
    ],
)
def test_a_renderer_that_does_not_work_is_named(tmp_path, shows, message):
    with pytest.raises(UserError, match=message):
        collect({**SCREEN, "env_kwargs": {"shows": shows}}, tmp_path / "d")


def test_an_environment_without_frames_is_named(tmp_path):
    with pytest.raises(UserError, match="render_mode"):
        collect({**SCREEN, "env_id": "toy_env:Toy-v0"}, tmp_path / "d")


def test_an_image_observation_is_resized_and_not_rendered_again(tmp_path):
    options = CollectOptions(env_id="CarRacing-v3", steps=10, num_envs=1, pixels=48, keep_state=True)
    manifest = collect(options, tmp_path / "d")
    assert manifest["render"]["by"] == "the environment's own observation"
    (episode,) = episodes_of(tmp_path / "d")
    own = episode.observations["observation"].astype(float)
    means = own.reshape(11, 48, 2, 48, 2, 3).mean((2, 4))
    assert np.abs(means - episode.observations["image"]).max() <= 1  # Pillow rounds rows, then columns


@pytest.mark.parametrize("shape", [(20, 30, 3), (20, 30, 1), (20, 30, 4), (21, 33, 3)])
def test_area_average_is_the_mean_of_what_a_pixel_covers(shape):
    frame = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    small = area_average(frame, 10, 15)
    assert small.shape == (10, 15, shape[2]) and small.dtype == np.uint8
    assert abs(small.mean() - frame.mean()) < 1
    if shape[:2] == (20, 30):
        assert np.abs(small - frame.reshape(10, 2, 15, 2, -1).mean((1, 3))).max() <= 1


def test_mujoco_frames_are_the_same_for_the_same_options(tmp_path):
    """In one process and in several, beside other environments: each draws its own body."""
    options = CollectOptions(env_id="Reacher-v5", steps=60, num_envs=2, pixels=64, policy="smooth", keep_state=True)
    manifest, again, processes = (
        collect(options, tmp_path / name, kind) for name, kind in (("a", "sync"), ("b", "sync"), ("c", "async"))
    )
    assert manifest["files"] == again["files"] == processes["files"]
    drawn = manifest["render"]
    assert drawn["by"] == "mujoco" and drawn["backend"] in ("egl", "osmesa", "glfw")
    assert [drawn[name] for name in ("shadowsize", "offsamples", "mat_reflectance")] == [0, 0, 0]
    assert "mujoco" in manifest["versions"]
    images = np.concatenate([episode.observations["image"] for episode in episodes_of(tmp_path / "a")])
    assert images.shape == (62, 64, 64, 3) and images.std(0).max() > 10


def test_renderers_side_by_side_do_not_draw_on_each_other():
    """MuJoCo draws with the context that is current, whichever model it is asked for."""
    prepare_mujoco()

    def frames(names):
        envs = [Pixels(gym.make(name, render_mode="rgb_array"), (64, 64)) for name in names]
        drawn = [[env.reset(seed=0)[0]["frame"] for env in envs]]
        drawn += [[env.step(env.action_space.low)[0]["frame"] for env in envs] for _ in range(5)]
        for env in envs:
            env.close()
        return np.array(drawn)

    both = frames(["Swimmer-v5", "Pusher-v5"])
    np.testing.assert_array_equal(both[:, :1], frames(["Swimmer-v5"]))
    np.testing.assert_array_equal(both[:, 1:], frames(["Pusher-v5"]))


def test_a_camera_can_be_given_as_json(tmp_path):
    above = {"default_camera_config": {"lookat": [0, 0, 0], "distance": 0.75, "elevation": -90, "azimuth": 90}}
    options = CollectOptions(env_id="Reacher-v5", steps=20, num_envs=1, pixels=64)
    collect(options, tmp_path / "far")
    collect({**options, "env_kwargs": above}, tmp_path / "near")
    far, near = (episodes_of(tmp_path / name)[0].observations["image"] for name in ("far", "near"))
    changed = [(np.ptp(images, axis=0).max(-1) > 20).mean() for images in (far, near)]
    assert changed[1] > 3 * changed[0], "the arm fills no more of the picture"


def test_width_and_height_render_large_and_average_down(tmp_path):
    options = CollectOptions(env_id="Reacher-v5", steps=5, num_envs=1, pixels=32)
    manifest = collect({**options, "env_kwargs": {"width": 128, "height": 128}}, tmp_path / "d")
    assert manifest["render"]["rendered_at"] == [128, 128]
    assert episodes_of(tmp_path / "d")[0].observations["image"].shape == (6, 32, 32, 3)


@pytest.mark.parametrize("chosen", [None, "egl"])
def test_without_a_backend_that_works_the_error_says_what_to_install(worldmodel, monkeypatch, chosen):
    """Real failures: MuJoCo's backends refuse PyOpenGL's platform."""
    monkeypatch.setenv("PYOPENGL_PLATFORM", "glx")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv("MUJOCO_GL", chosen)
    process = worldmodel("collect", "Reacher-v5", "--out", "d", "--pixels", "64")
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("worldmodel: error")]
    assert process.returncode == 2 and "apt-get install libegl1 libgl1-mesa-dri, or set MUJOCO_GL=osmesa" in line
    assert chosen or ("egl: " in line and "osmesa: " in line)


def test_gymnasium_is_as_it_was():
    assert gym.logger.min_level == 30
