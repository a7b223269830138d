"""LeRobot v3 folders as lerobot lays them out, of the toy environment: every transition and every frame is checked."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toy_env import integer_actions, next_observation, reward_of

from worldmodel.data.episode import Episode, Source
from worldmodel.data.readers.choice import Choice
from worldmodel.data.readers.lerobot import read_lerobot
from worldmodel.errors import UserError

FPS, BITS, BLOCK = 10, 6, 16  # a frame shows its episode and its step in 6 bits each, as blocks of 16 pixels
LENGTHS = [7, 13, 2, 9]
FRONT, WRIST = (2 * BLOCK, BITS * BLOCK, 3), (3 * BLOCK, (BITS + 1) * BLOCK, 3)


def rollout(episode: int, rows: int) -> dict[str, np.ndarray]:
    """The columns of an episode, as lerobot stores them: next.*[t] is of the transition t -> t + 1."""
    states = [np.array([3 + episode, 5], np.float32)]
    for t in range(rows):
        states.append(next_observation(states[-1], integer_actions(states[-1][None], np.array([t == 0]))[0]))
    observations = np.stack(states[:-1])
    actions = integer_actions(observations, np.arange(rows) == 0)
    rewards = reward_of(observations, actions, np.stack(states[1:]))
    return {"observation.state": observations, "action": actions, "next.reward": rewards}


def picture(episode: int, step: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Binary digits in black and white: the episode in the first row of blocks, the step in the second."""
    frame = np.full(shape, 128, np.uint8)
    for row, number in enumerate((episode, step)):
        for bit in range(BITS):
            block = frame[row * BLOCK : (row + 1) * BLOCK, bit * BLOCK : (bit + 1) * BLOCK]
            block[:] = 235 if number >> bit & 1 else 20
    return frame


def code(frame: np.ndarray) -> tuple[int, int]:
    """The (episode, step) that a frame shows, whatever compression made of it."""
    ink = frame[: 2 * BLOCK, : BITS * BLOCK].reshape(2, BLOCK, BITS, BLOCK, 3)[:, 4:12, :, 4:12].mean((1, 3, 4))
    assert (np.abs(ink - 128) > 60).all()
    episode, step = ((ink > 128) << np.arange(BITS)).sum(1)
    return int(episode), int(step)


def write_video(path: Path, episodes: list[list[np.ndarray]], codec: str = "libx264", gop: int = 2) -> list[float]:
    """One MP4 of several episodes, each encoded alone and then put together without encoding again, as lerobot does.

    With a long GOP they are encoded in one go, so that episodes begin between key frames. Returns the seconds of each.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if gop > 100:
        encode(path, [image for pictures in episodes for image in pictures], codec, gop)
        return [len(pictures) / FPS for pictures in episodes]
    parts = [path.with_suffix(f".{i}.mp4") for i in range(len(episodes))]
    seconds = [encode(part, pictures, codec, gop) for part, pictures in zip(parts, episodes, strict=True)]
    listed = path.with_suffix(".txt")
    listed.write_text("".join(f"file '{part}'\n" for part in parts))
    with av.open(str(listed), format="concat", options={"safe": "0"}) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0], opaque=True)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    for file in (*parts, listed):
        file.unlink()
    return seconds


def encode(path: Path, pictures: list[np.ndarray], codec: str, gop: int) -> float:
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, FPS, options={"g": str(gop), "crf": "30"})
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
        for image in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    with av.open(str(path)) as written:
        stream = written.streams.video[0]
        return float(stream.duration * stream.time_base)


def column(values: np.ndarray) -> pa.Array:
    """lerobot's storage: scalars where the shape is (1,), lists of fixed size else."""
    flat = pa.array(values.reshape(-1))
    return (
        flat if values.ndim == 1 or values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    )


def png(frame: np.ndarray, kind: str = "PNG") -> dict[str, bytes | str]:
    out = BytesIO()
    Image.fromarray(frame).save(out, kind)
    return {"bytes": out.getvalue(), "path": "/etc/passwd"}


def table(episode: int, rows: int, index: int, image: bool, extra: dict[str, np.ndarray]) -> pa.Table:
    columns = {key: column(values) for key, values in (rollout(episode, rows) | extra).items()}
    if image:
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        columns["observation.images.wrist"] = pa.array([png(picture(episode, t, WRIST)) for t in range(rows)], kind)
    columns["timestamp"] = pa.array(np.arange(rows, dtype=np.float32) / FPS)
    columns["frame_index"] = pa.array(np.arange(rows))
    columns["episode_index"] = pa.array(np.full(rows, episode))
    columns["index"] = pa.array(np.arange(index, index + rows))
    columns["task_index"] = pa.array(np.zeros(rows, np.int64))
    return pa.table(columns)


def feature(dtype: str, *shape: int, names: list[str] | None = None) -> dict:
    return {"dtype": dtype, "shape": list(shape), "names": names}


def write_info(root: Path, videos: bool, image: bool, extra: dict[str, np.ndarray]) -> None:
    whole = {name: feature("int64", 1) for name in ("frame_index", "episode_index", "index", "task_index")}
    features = {"observation.state": feature("float32", 2), "action": feature("float32", 1), **whole}
    features |= {"timestamp": feature("float32", 1), "next.reward": feature("float32", 1)}
    features |= {key: feature(str(values.dtype), 1) for key, values in extra.items()}
    features["observation.note"] = feature("string", 1)
    height, width, channels = FRONT
    if videos:
        features["observation.images.front"] = feature("video", height, width, channels, names=["height", "width", "c"])
    if videos or image:
        kind, (height, width, channels) = "image" if image else "video", WRIST
        features["observation.images.wrist"] = feature(kind, channels, height, width, names=["channels", "height", "w"])
    info = {
        "codebase_version": "v3.0", "robot_type": "toy", "fps": FPS, "features": features, "chunks_size": 1,
        "total_episodes": len(LENGTHS), "total_frames": sum(LENGTHS),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }  # fmt: skip
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))


def write_parquet(path: Path, rows: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, row_group_size=8)


def write_dataset(
    root: Path,
    *,
    videos: bool = False,
    image: bool = False,
    codec: str = "libx264",
    gop: int = 2,
    files: tuple[int, ...] = (0, 0, 0, 0),  # the file of each episode; one file a chunk
    flags: dict[str, list[np.ndarray]] | None = None,  # name -> values of each episode
) -> Path:
    """A dataset of len(LENGTHS) episodes, with two cameras if `videos`, whose shared files are cut otherwise."""
    flags = flags or {}
    write_info(root, videos, image, {name: values[0] for name, values in flags.items()})
    cameras = {"observation.images.front": FRONT} if videos else {}
    cameras |= {"observation.images.wrist": WRIST} if videos and not image else {}
    first = np.concatenate(([0], np.cumsum(LENGTHS)))
    meta, tables = [], {}
    for episode, rows in enumerate(LENGTHS):
        extra = {name: values[episode] for name, values in flags.items()}
        tables.setdefault(files[episode], []).append(table(episode, rows, int(first[episode]), image, extra))
        row = {"episode_index": episode, "tasks": ["go"], "length": rows, "data/chunk_index": files[episode]}
        row |= {"data/file_index": 0, "dataset_from_index": first[episode], "dataset_to_index": first[episode + 1]}
        meta.append(row)
    for file, parts in tables.items():
        write_parquet(root / f"data/chunk-{file:03d}/file-000.parquet", pa.concat_tables(parts))
    for camera, shape in cameras.items():
        for file, inside in enumerate(((0, 1, 2), (3,)) if shape == FRONT else ((0,), (1, 2, 3))):
            shown = [[picture(episode, t, shape) for t in range(LENGTHS[episode])] for episode in inside]
            seconds = write_video(root / f"videos/{camera}/chunk-{file:03d}/file-000.mp4", shown, codec, gop)
            ends = np.cumsum(seconds)
            for episode, start, end in zip(inside, ends - seconds, ends, strict=True):
                values = {"chunk_index": file, "file_index": 0, "from_timestamp": start, "to_timestamp": end}
                meta[episode] |= {f"videos/{camera}/{name}": value for name, value in values.items()}
    for file, part in enumerate((meta[:3], meta[3:])):
        write_parquet(root / f"meta/episodes/chunk-000/file-{file:03d}.parquet", pa.Table.from_pylist(part))
    return root


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A dataset with these options of write_dataset, written once: to be read only."""
    return cache(lambda **options: write_dataset(tmp_path_factory.mktemp("lerobot") / "toy", **options))


@pytest.fixture
def copied(written: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of such a dataset, to be changed."""
    return lambda **options: shutil.copytree(written(**options), tmp_path / "toy")


def episodes(source: Source) -> list[Episode]:
    return [episode for _, episode in source.episodes()]


def check_transitions(found: list[Episode]) -> None:
    assert [len(episode) for episode in found] == [rows - 1 for rows in LENGTHS]
    for episode in found:
        before, after = episode.observations["state"][:-1], episode.observations["state"][1:]
        np.testing.assert_array_equal(after, next_observation(before, episode.actions))
        np.testing.assert_array_equal(episode.rewards, reward_of(before, episode.actions, after))


def check_frames(found: list[Episode], key: str, shape: tuple[int, int, int]) -> None:
    for i, episode in enumerate(found):
        frames = episode.observations[key]
        assert frames.dtype == np.uint8 and frames.shape[1:] == shape
        assert [code(frame) for frame in frames] == [(i, t) for t in range(LENGTHS[i])]


@pytest.mark.parametrize("files", [(0, 0, 0, 0), (0, 0, 1, 2)])
def test_every_transition_is_the_environments(tmp_path: Path, files: tuple[int, ...]):
    source = read_lerobot(write_dataset(tmp_path / "toy", files=files))
    check_transitions(episodes(source))
    check_transitions(episodes(source))  # from the start again
    assert [name for name, _ in source.episodes()][3] == f"data/chunk-{files[3]:03d}/file-000.parquet, episode 3"
    assert source.format == "lerobot" and source.observation_space.keys() == {"state"}
    assert source.action_space["shape"] == [1] and source.observation_space["state"]["dtype"] == "float32"
    assert source.provenance["dropped_last_actions"] == 4 and source.provenance["left_out"] == {
        "observation.note": "string, no numbers"
    }
    assert all(e.truncated and not e.terminated and e.rate == FPS for e in episodes(source))


@pytest.mark.parametrize(
    ("codec", "gop"),
    [("libx264", 2), ("libx264", 250), ("libsvtav1", 2), pytest.param("mpeg4", 12, marks=pytest.mark.full)],
)
def test_every_frame_is_that_of_its_row(tmp_path: Path, codec: str, gop: int):
    files = (0, 0, 0, 1)
    source = read_lerobot(write_dataset(tmp_path / "toy", videos=True, codec=codec, gop=gop, files=files))
    found = episodes(source)
    check_transitions(found)
    check_frames(found, "images.front", FRONT)
    check_frames(found, "images.wrist", WRIST)
    assert source.observation_space["images.wrist"]["shape"] == list(WRIST)
    assert source.provenance["lossy_video"] == ["images.front", "images.wrist"]


def test_images_in_parquet_are_exact(written: Callable[..., Path]):
    source = read_lerobot(written(image=True))
    found = episodes(source)
    check_transitions(found)
    check_frames(found, "images.wrist", WRIST)
    np.testing.assert_array_equal(found[1].observations["images.wrist"][5], picture(1, 5, WRIST))
    assert source.provenance["lossy_video"] == []


def test_a_shifted_reader_would_fail(written: Callable[..., Path]):
    """The checks above see an off-by-one in actions, rewards and frames."""
    found = episodes(read_lerobot(written(videos=True)))
    for shift in (-1, 1):
        for name in ("actions", "rewards"):
            with pytest.raises(AssertionError):
                check_transitions([replace(e, **{name: np.roll(getattr(e, name), shift, axis=0)}) for e in found])
        frames = [{"images.front": np.roll(e.observations["images.front"], shift, axis=0)} for e in found]
        with pytest.raises(AssertionError):
            check_frames(
                [replace(e, observations=f) for e, f in zip(found, frames, strict=True)], "images.front", FRONT
            )


def test_only_the_picked_observations_are_read(copied: Callable[..., Path]):
    root = copied(videos=True)
    for file in root.glob("videos/*wrist/*/*.mp4"):
        file.write_bytes(b"not decoded")
    found = episodes(read_lerobot(root, Choice(("state", "images.front"))))
    assert [list(e.observations) for e in found] == [["state", "images.front"]] * 4
    check_frames(found, "images.front", FRONT)
    with pytest.raises(UserError, match="there is no observation 'images.frnt' to read; did you mean 'images.front'"):
        read_lerobot(root, Choice(("images.frnt",)))


def ends(*true: int) -> list[np.ndarray]:
    """A flag of each episode, true at these places, counted from its end."""
    return [np.isin(np.arange(rows) - rows, true) for rows in LENGTHS]


@pytest.mark.parametrize(
    ("flags", "terminated"),
    [
        ({}, False),
        ({"next.done": ends(-2, -1)}, False),  # it ended, and nobody says why
        ({"next.done": ends(-2, -1), "next.success": ends(-2, -1)}, True),
        ({"next.done": ends(-2, -1), "next.success": ends()}, False),
        ({"next.done": ends(-2, -1), "next.truncated": ends()}, True),
        ({"next.done": ends(-2, -1), "next.truncated": ends(-2, -1)}, False),
        ({"next.terminated": ends(-2, -1), "next.done": ends()}, True),
        ({"next.terminated": ends(-1), "next.done": ends(-1)}, False),  # of the outcome that was not recorded
        ({"next.terminated": ends(), "next.done": ends(-2, -1), "next.success": ends(-2)}, False),
    ],
)
def test_an_episode_is_terminal_only_if_its_last_outcome_is(tmp_path: Path, flags: dict, terminated: bool):
    found = episodes(read_lerobot(write_dataset(tmp_path / "toy", flags=flags)))
    assert [(e.terminated, e.truncated) for e in found] == [(terminated, not terminated)] * 4


def edit_info(root: Path, **changes: object) -> None:
    file = root / "meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_meta(root: Path, name: str, values: list[object]) -> None:
    file = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(file)
    pq.write_table(rows.set_column(rows.column_names.index(name), name, pa.array(values)), file)


def edit_data(root: Path, change) -> None:
    file = root / "data/chunk-000/file-000.parquet"
    pq.write_table(change(pq.read_table(file)), file)


def test_without_rewards_they_are_0_and_a_single_row_is_no_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[__name__], "LENGTHS", [7, 1, 2, 9])
    root = write_dataset(tmp_path / "toy")
    info = json.loads((root / "meta/info.json").read_text())
    del info["features"]["next.reward"]
    edit_info(root, features=info["features"])
    source = read_lerobot(root)
    assert [e.rewards.tolist() for e in episodes(source)] == [[0.0] * 6, [0.0], [0.0] * 8]
    assert source.provenance["episodes_without_transition"] == 1 and "read as 0" in source.provenance["rewards"]


DATA, FRONT_MP4 = "data/chunk-000/file-000.parquet", "videos/observation.images.front/chunk-000/file-000.mp4"


def cut(root: Path, name: str, keep: float) -> None:
    data = (root / name).read_bytes()
    (root / name).write_bytes(data[: int(len(data) * keep)])


def scramble(root: Path, name: str, start: float, stop: float) -> None:
    data = bytearray((root / name).read_bytes())
    place = slice(int(len(data) * start), int(len(data) * stop))
    data[place] = np.random.default_rng(0).bytes(len(data[place]))
    (root / name).write_bytes(data)


def dark_episode(root: Path) -> None:
    """Episode 1 of the front camera misses its last frame; the frame at its place is the next episode's first."""
    shown = [[picture(e, t, FRONT) for t in range(LENGTHS[e] - (e == 1))] for e in range(3)]
    ends = np.cumsum(write_video(root / FRONT_MP4, shown))
    edit_meta(root, "videos/observation.images.front/to_timestamp", ends.tolist())
    edit_meta(root, "videos/observation.images.front/from_timestamp", [0, *ends[:-1].tolist()])


def unknown_codec(root: Path) -> None:
    (root / FRONT_MP4).write_bytes((root / FRONT_MP4).read_bytes().replace(b"avc1", b"zzzz"))


def link_out(root: Path, name: str) -> None:
    (root / name).rename(root.parent / "outside")
    (root / name).symlink_to(root.parent / "outside")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: edit_info(r, codebase_version="v1.6"), "version v1.6; v2 and v3 .*convert_dataset_v1_to_v2"),
        (lambda r: edit_info(r, storage_format="lance"), "stored as 'lance'"),
        (lambda r: edit_info(r, fps=0), "fps .* a number above 0"),
        (lambda r: (r / "meta/info.json").write_text("{"), "info.json is damaged"),
        (lambda r: (r / "meta/info.json").unlink(), "holds no meta/info.json"),
        (lambda r: edit_info(r, total_episodes=5), "names 5 episodes, meta/episodes 4"),
        (lambda r: (r / "meta/episodes/chunk-000/file-001.parquet").unlink(), "names 4 episodes, meta/episodes 3"),
        (lambda r: (r / DATA).unlink(), "episode 0: the file data/chunk-000/file-000.parquet is missing"),
        (lambda r: (r / FRONT_MP4).unlink(), "episode 0: the file videos/.*front.*mp4 is missing"),
        (lambda r: edit_info(r, data_path="../data/{chunk_index}.parquet"), "leads outside of the dataset's folder"),
        (lambda r: edit_info(r, video_path="/etc/passwd"), "leads outside of the dataset's folder"),
        (lambda r: edit_info(r, data_path="{episode_chunk:03d}"), "'episode_chunk' is unknown"),
        (lambda r: edit_info(r, video_path=None), "video_path is None"),
        (lambda r: link_out(r, DATA), "leads outside .*cp -rL"),
        (lambda r: link_out(r, FRONT_MP4), "leads outside"),
        (lambda r: link_out(r, "meta/info.json"), "leads outside"),
        (lambda r: edit_meta(r, "length", [7, 12, 2]), "episode 1: its length, 12, .*contradicts"),
        (lambda r: edit_meta(r, "episode_index", [0, 0, 2]), "3 distinct"),
        (
            lambda r: edit_meta(r, "videos/observation.images.front/from_timestamp", [0.0, -1.0, 2.0]),
            "episode 1: .*-1.0",
        ),
        (lambda r: cut(r, "meta/episodes/chunk-000/file-000.parquet", 0.5), "file-000.parquet: it cannot be read"),
        (lambda r: edit_data(r, lambda rows: rows.slice(0, 30)), "episode 3: it holds 8 rows, meta/episodes says 9"),
        (lambda r: edit_data(r, lambda rows: rows.slice(7)), "episode 0: it holds no row, meta/episodes says 7"),
        (lambda r: edit_data(r, lambda rows: rows.take([*range(7), 8, 7, *range(9, 31)])), "episode 1: frame_index"),
        (lambda r: edit_data(r, lambda rows: rows.drop(["action"])), "there is no column 'action'"),
        (lambda r: cut(r, DATA, 0.7), "file-000.parquet: it cannot be read as Parquet: it is damaged"),
        (lambda r: scramble(r, DATA, 0.0, 0.05), "file-000.parquet(, episode 0)?: it cannot be read as Parquet"),
        (lambda r: cut(r, FRONT_MP4, 0.5), "front/chunk-000/file-000.mp4, episode 0: it cannot be decoded"),
        (
            lambda r: scramble(r, FRONT_MP4, 0.4, 0.6),
            "file-000.mp4, episode [012]: (it cannot be decoded|a frame is dam)",
        ),
        (unknown_codec, "front/chunk-000/file-000.mp4, episode 0: the installed PyAV has no decoder for it"),
        (dark_episode, "file-000.mp4, episode 1: 12 frames for 13 rows: there is none for row 12"),
    ],
)
def test_damage_is_reported_in_one_line_that_names_it(copied: Callable[..., Path], damage, message: str):
    root = copied(videos=True)
    damage(root)
    with pytest.raises(UserError, match=message) as error:
        episodes(read_lerobot(root))
    assert "\n" not in str(error.value)


def test_a_file_that_declares_more_than_it_can_hold_is_refused(copied: Callable[..., Path]):
    root = copied()
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(31 * 600_000, np.float32)), 600_000)
    edit_data(root, lambda rows: rows.set_column(rows.column_names.index("action"), "action", zeros))
    assert (root / DATA).stat().st_size < 50_000
    with pytest.raises(UserError, match="declares 74,4.* bytes, more than a file of"):
        episodes(read_lerobot(root))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"bytes": None, "path": "/etc/passwd"}, "is not in the Parquet file"),
        (png(picture(0, 0, WRIST), "GIF"), "is damaged, or neither PNG nor JPEG"),
        ({"bytes": png(picture(0, 0, WRIST))["bytes"][:-40]}, "is damaged"),
        (png(picture(0, 0, FRONT)), "is 32 x 96 pixels; it should be 48 x 112"),
        (None, "is not in the Parquet file"),
    ],
)
def test_a_bad_image_is_named_with_its_step(copied: Callable[..., Path], cell: dict | None, message: str):
    root, name = copied(image=True), "observation.images.wrist"
    cells = [png(picture(0, 0, WRIST))] * 3 + [cell] * 28

    def swap(rows: pa.Table) -> pa.Table:
        field = rows.schema.field(name)
        return rows.set_column(rows.column_names.index(name), field, pa.array(cells, field.type))

    edit_data(root, swap)
    with pytest.raises(UserError, match=f"episode 0, step 3: the image '{name}' {message}"):
        episodes(read_lerobot(root))


def test_a_column_that_contradicts_info_json_is_named(copied: Callable[..., Path]):
    root = copied()
    ragged = pa.array([[0.0, 1.0]] * 10 + [[0.0], [1.0, 2.0, 3.0]] + [[0.0, 1.0]] * 19, pa.list_(pa.float32()))
    for values, message in (
        (ragged, r"episode 1: the column 'observation.state' has rows of .* numbers; each must have the shape \[2\]"),
        (pa.array([[0.0]] * 31), r"has rows of the shape \[1\]; meta/info.json says \[2\]"),
        (pa.array([None] + [[0.0, 1.0]] * 30), "episode 0: the column 'observation.state' has rows of"),
        (pa.array([[None, 1.0]] * 31), "has rows without a value"),
        (pa.array([["a", "b"]] * 31), "holds object; meta/info.json says float32"),
    ):
        edit_data(root, lambda rows, values=values: rows.set_column(0, "observation.state", values))
        with pytest.raises(UserError, match=message):
            episodes(read_lerobot(root))


@pytest.mark.parametrize("module", ["pyarrow", "av"])
def test_a_missing_package_is_named_with_the_way_to_get_it(
    written: Callable[..., Path], module: str, monkeypatch: pytest.MonkeyPatch
):
    root = written(videos=True)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"pip install 'worldmodel\[lerobot\]'"):
        episodes(read_lerobot(root))


def test_the_fingerprint_changes_with_any_file_that_is_read(copied: Callable[..., Path]):
    root = copied(videos=True)
    before = read_lerobot(root).fingerprint
    assert read_lerobot(root).fingerprint == before
    cut(root, FRONT_MP4, 0.9)
    assert read_lerobot(root).fingerprint != before
