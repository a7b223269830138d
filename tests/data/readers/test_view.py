"""Images cropped and scaled while they are read, in every format alike."""

import numpy as np
import pytest
from PIL import Image

from tests.data.readers.test_hdf5 import write_robomimic
from tests.data.readers.test_lerobot import FRONT, LENGTHS, code, write_dataset
from tests.data.readers.toy import assert_same, episodes
from worldmodel.data.readers import open_source
from worldmodel.data.readers.view import view_of
from worldmodel.errors import UserError


def frames_of(path, key, **how):
    source = open_source(path, **how)
    found = [episode.observations[key] for _, episode in source.episodes()]
    assert {frames.shape[1:] for frames in found} == {tuple(source.observation_space[key]["shape"])}
    return found


def test_a_crop_keeps_its_pixels_and_a_size_averages_them(tmp_path):
    path = write_robomimic(tmp_path / "a.hdf5", episodes((5, 12)))
    with pytest.raises(UserError, match=r"pixels is 8 x 8 pixels: image_crop \[0, 1, 8, 8\] goes beyond it"):
        open_source(path, image_crop="0,1,8,8")
    larger = frames_of(path, "pixels", image_size=16)
    for frames, one in zip(larger, episodes((5, 12)), strict=True):
        np.testing.assert_array_equal(frames[:, ::2, ::2], one.observations["pixels"])  # each of one colour
    for channels in (1, 2, 3, 4):
        frame = np.random.default_rng(0).integers(0, 256, (40, 60, channels), dtype=np.uint8)
        np.testing.assert_array_equal(view_of("3,5,20,30", None).of(frame), frame[3:23, 5:35])
        scaled = view_of("3,5,20,30", "10,15").of(frame)
        assert scaled.shape == (10, 15, channels)
        for i in range(channels):
            one = Image.fromarray(frame[3:23, 5:35, i]).resize((15, 10), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(scaled[..., i], np.asarray(one))


def test_videos_and_pictures_of_lerobot(tmp_path):
    path = write_dataset(tmp_path / "toy", videos=True)
    how = {"observations": "images.front", "image_crop": [0, 0, FRONT[0], FRONT[1]]}
    for i, (frames, whole) in enumerate(
        zip(frames_of(path, "images.front", **how, image_size="64,192"), frames_of(path, "images.front"), strict=True)
    ):
        assert frames.shape == (LENGTHS[i], 64, 192, 3)
        assert [code(frame) for frame in frames[:, ::2, ::2]] == [(i, t) for t in range(LENGTHS[i])]
        assert whole.shape[1:] == FRONT
    with pytest.raises(UserError, match="'observation.images.front' is 32 x 96 pixels: image_crop"):
        open_source(path, image_crop=[0, 0, 48, 48])
    with pytest.raises(UserError, match="holds no images among state to crop or resize"):
        open_source(path, skip="images", image_size=16)


def test_without_a_view_nothing_changes_and_with_one_it_is_other_data(tmp_path):
    path = write_robomimic(tmp_path / "a.hdf5", episodes((5, 12)))
    assert_same([one for _, one in open_source(path, image_size=8).episodes()], episodes((5, 12)))
    assert open_source(path, image_size=16).fingerprint != open_source(path).fingerprint


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"image_size": "big"}, "image_size must be SIDE or HEIGHT,WIDTH in pixels, not 'big'"),
        ({"image_size": 4}, r"image_size is \[4\]: it must be 8 to 4096 pixels"),
        ({"image_crop": "1,2,3"}, "image_crop must be TOP,LEFT,HEIGHT,WIDTH in pixels"),
        ({"image_crop": "-1,0,8,8"}, "top and left from 0, height and width at least 8"),
    ],
)
def test_what_is_no_view(tmp_path, how, message):
    with pytest.raises(UserError, match=message):
        open_source(write_robomimic(tmp_path / "a.hdf5", episodes((5,))), **how)
