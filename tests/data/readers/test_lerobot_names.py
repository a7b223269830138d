"""LeRobot's older layout, v2, and features by other names than usual."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.data.readers.test_lerobot import (
    FRONT,
    LENGTHS,
    check_frames,
    check_transitions,
    encode,
    episodes,
    picture,
    table,
    write_dataset,
    write_info,
    write_parquet,
)
from worldmodel.data.readers import open_source
from worldmodel.data.readers.choice import Choice
from worldmodel.data.readers.lerobot import read_lerobot
from worldmodel.errors import UserError

CAMERA = "observation.images.front"


def write_v2(root, videos=False):
    """v2.1: files of each episode, in chunks of two; lerobot 0.1, datasets/utils.py."""
    write_info(root, videos, False, {})
    info = json.loads((root / "meta/info.json").read_text()) | {
        "codebase_version": "v2.1", "chunks_size": 2,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }  # fmt: skip
    info["features"].pop("observation.images.wrist", None)
    (root / "meta/info.json").write_text(json.dumps(info))
    lines = []
    for episode, rows in enumerate(LENGTHS):
        name = f"chunk-{episode // 2:03d}/{{}}episode_{episode:06d}"
        write_parquet(root / f"data/{name.format('')}.parquet", table(episode, rows, sum(LENGTHS[:episode]), False, {}))
        if videos:
            path = root / f"videos/{name.format(CAMERA + '/')}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            encode(path, [picture(episode, t, FRONT) for t in range(rows)], "libx264", 2)
        lines.append(json.dumps({"episode_index": episode, "tasks": ["go"], "length": rows}))
    (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    return root


def test_v2_is_read_directly(tmp_path):
    source = open_source(write_v2(tmp_path / "toy", videos=True))
    found = episodes(source)
    check_transitions(found)
    check_frames(found, "images.front", FRONT)
    assert source.provenance["codebase_version"] == "v2.1"
    (tmp_path / "toy/data/chunk-001/episode_000003.parquet").unlink()
    with pytest.raises(UserError, match="episode 3: the file data/chunk-001/episode_000003.parquet is missing"):
        open_source(tmp_path / "toy")


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "line 1: it is damaged"), ('{"episode_index": -1, "length": 3}', "line 1: it is damaged"), ("", "names 4")],
)
def test_a_damaged_index_of_v2_is_named(tmp_path, line, message):
    write_v2(tmp_path / "toy")
    (tmp_path / "toy/meta/episodes.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        open_source(tmp_path / "toy")


def test_a_missing_video_does_not_block_the_table(tmp_path):
    write_v2(tmp_path / "toy", videos=True)
    (tmp_path / f"toy/videos/chunk-000/{CAMERA}/episode_000001.mp4").unlink()
    with pytest.raises(UserError, match=f"{CAMERA}/episode_000001.mp4 is missing: .* --skip images.front"):
        open_source(tmp_path / "toy")
    for names in ("images.front", "images", "images.*", CAMERA, "observation.images.*"):
        check_transitions(episodes(open_source(tmp_path / "toy", skip=names)))


def other_names(root):
    """A v3 dataset whose features are `state`, `actions` and `image`, as of many that were converted by scripts."""
    new = {"observation.state": "state", "action": "actions", "observation.images.wrist": "image"}
    write_dataset(root, image=True)
    info = json.loads((root / "meta/info.json").read_text())
    del info["features"]["observation.note"]
    info["features"] = {new.get(name, name): told for name, told in info["features"].items()}
    (root / "meta/info.json").write_text(json.dumps(info))
    for file in root.glob("data/*/*.parquet"):
        rows = pq.read_table(file)
        write_parquet(file, rows.rename_columns([new.get(name, name) for name in rows.column_names]))
    return root


def test_state_actions_and_image(tmp_path):
    root = other_names(tmp_path / "toy")
    source = open_source(root)
    assert list(source.observation_space) == ["state", "image"]
    check_transitions(episodes(source))
    np.testing.assert_array_equal(episodes(source)[1].observations["image"][5], picture(1, 5, (48, 112, 3)))
    renamed = open_source(root, observations="image,state", rename="image=camera")
    assert list(renamed.observation_space) == ["camera", "state"] == list(episodes(renamed)[0].observations)
    both = open_source(root, observations="state", action="actions,state")
    assert both.action_space["shape"] == [3]
    np.testing.assert_array_equal(episodes(both)[0].actions[:, 1:], episodes(both)[0].observations["state"][:-1])
    with pytest.raises(UserError, match="there is no feature 'actoin' for the action; did you mean 'actions'"):
        open_source(root, action="actoin")
    with pytest.raises(UserError, match="no feature 'rewards'; did you mean 'next.reward'"):
        open_source(root, reward="rewards")


def test_what_cannot_be_read_is_listed_with_the_reason(tmp_path):
    root = write_dataset(tmp_path / "toy")
    info = json.loads((root / "meta/info.json").read_text())
    depth = {"dtype": "video", "shape": [8, 8, 1], "names": None, "info": {"video.is_depth_map": True}}
    info["features"] |= {"observation.depth": depth, "observation.odd": {"dtype": "image", "shape": [8, 8, 2]}}
    (root / "meta/info.json").write_text(json.dumps(info))
    assert open_source(root).provenance["left_out"] == {
        "observation.note": "string, no numbers",
        "observation.depth": "a depth map: it encodes depths, not colours",
        "observation.odd": "image of 2 channels; 1 and 3 can be read",
    }
    with pytest.raises(UserError, match="'observation.note' cannot be read: string, no numbers; .* --skip note"):
        read_lerobot(root, Choice(("note", "state")))
