"""Files that are damaged, or made to harm: every one is noticed, and named with its episodes; nothing else is read."""

import json
import re
import struct
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from worldmodel.data import spaces
from worldmodel.data.episode import Episode
from worldmodel.data.hdf5 import open_hdf5
from worldmodel.data.manifest import damaged_episodes, read_manifest, write_manifest
from worldmodel.data.readers.worldmodel import open_dataset
from worldmodel.data.writer import EpisodeWriter
from worldmodel.durable import sha256
from worldmodel.errors import UserError

SPACES = {
    "observation_space": spaces.describe_observation(
        gym_spaces.Dict(
            {"camera": gym_spaces.Box(0, 255, (16, 16, 3), np.uint8), "state": gym_spaces.Box(-np.inf, np.inf, (5,))}
        )
    ),
    "action_space": spaces.describe(gym_spaces.Box(-1, 1, (2,))),
}


def write(folder, lengths=(30, 12, 50, 21)):
    rng = np.random.default_rng(0)
    writer = EpisodeWriter(folder, SPACES)
    for length in lengths:
        frames = rng.integers(0, 256, (length + 1, 16, 16, 3), dtype=np.uint8)
        observations = {"camera": frames, "state": rng.standard_normal((length + 1, 5)).astype(np.float32)}
        writer.add(Episode(observations, rng.random((length, 2)).astype(np.float32), rng.random(length), False, True))
    writer.finish()
    return folder


def error_of(folder) -> str:
    """Of reading everything; empty, if nothing was noticed."""
    try:
        for _ in open_dataset(folder).episodes():
            pass
    except UserError as error:
        return str(error)
    return ""


def harms(size, flips, cuts):
    """Single bits to flip, and lengths to cut to."""
    rng = np.random.default_rng(1)
    for bit in rng.choice(8 * size, flips, replace=flips > 8 * size):
        yield (
            f"bit {bit}",
            lambda raw, bit=bit: raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :],
        )
    for length in rng.integers(0, size, cuts):
        yield f"cut to {length}", lambda raw, length=length: raw[:length]


@pytest.mark.fault(7)
def test_a_flipped_bit_or_a_cut_in_the_manifest_is_noticed(tmp_path, seen, often):
    flips, cuts = often(300, 100), often(60, 20)
    folder = write(tmp_path / "d")
    path = folder / "manifest.json"
    good = path.read_bytes()
    for what, harm in harms(len(good), flips, cuts):
        path.write_bytes(harm(good))
        assert str(path) in error_of(folder), what
    path.write_bytes(good)
    assert error_of(folder) == ""
    seen(f"manifest: {flips} flips, {cuts} cuts, 0 silent")


def check_shard(folder, flips, cuts, name="episodes-00000.h5"):
    """Harm copies of a dataset; two at a time, since each diagnosis is a process of its own."""
    good = (folder / name).read_bytes()

    def check(case):
        number, (what, harm) = case
        copy = folder.parent / f"copy{number}"
        copy.mkdir()
        (copy / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
        (copy / name).write_bytes(harm(good))
        message = error_of(copy)
        assert str(copy / name) in message and re.search(r"episodes? \d", message), f"{what}: {message}"
        (copy / name).unlink()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, enumerate(harms(len(good), flips, cuts))))


def test_a_flipped_bit_or_a_cut_in_a_shard_is_noticed(tmp_path):
    check_shard(write(tmp_path / "d"), 4, 2)


@pytest.mark.full
@pytest.mark.fault(7)
def test_700_flipped_bits_and_140_cuts_in_a_shard_are_noticed(tmp_path, seen):
    """With the manifest's 300 and 60: 1000 flips and 200 cuts."""
    check_shard(write(tmp_path / "d"), 700, 140)
    seen("shard: 700 flips, 140 cuts, 0 silent, file and episode named")


def test_the_damaged_episode_is_the_one_that_is_named(tmp_path, monkeypatch):
    (tmp_path / "h5py.py").write_text("open('PWNED', 'w')")  # of the folder that one happens to be in
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "d")
    path = folder / "episodes-00000.h5"
    with h5py.File(path) as file:
        frames = file["observations/camera"]
        chunk = frames.id.get_chunk_info(6)  # frames 96 to 111: of episode 2 and 3
        assert frames.chunks[0] == 16 and file["lengths"][:].tolist() == [30, 12, 50, 21]
    raw = bytearray(path.read_bytes())
    raw[chunk.byte_offset + chunk.size // 2] ^= 4
    path.write_bytes(raw)
    assert damaged_episodes(path) in ([2, 3], [3], [2])
    assert re.search(r"episodes? 2, 3 of 4 cannot be trusted|episode [23] of 4", error_of(folder))
    assert not (tmp_path / "PWNED").exists()


# --- made to harm: with sums that are right ----------------------------------------------------------------------


def reseal(folder):
    manifest = read_manifest(folder)
    path = folder / manifest["files"][0]["name"]
    manifest["files"][0] |= {"sha256": sha256(path), "bytes": path.stat().st_size}
    write_manifest(folder, manifest)


def external_link(file, secret):
    del file["rewards"]
    file["rewards"] = h5py.ExternalLink(str(secret), "/rewards")


def soft_link(file, secret):
    del file["rewards"]
    file["rewards"] = h5py.SoftLink("/actions")


def external_storage(file, secret):
    count = len(file["rewards"])
    del file["rewards"]
    file.create_dataset("rewards", (count,), "f8", external=[(str(secret), 0, 8 * count)])


def virtual(file, secret):
    count = len(file["rewards"])
    del file["rewards"]
    layout = h5py.VirtualLayout((count,), "f8")
    layout[:] = h5py.VirtualSource(str(secret), "rewards", (count,))
    file.create_virtual_dataset("rewards", layout)


def one_terabyte(file, secret):
    del file["rewards"]
    file.create_dataset("rewards", (2**37,), "f8", chunks=(2**20,))


def never_written(file, secret):
    count = len(file["rewards"])
    del file["rewards"]
    file.create_dataset("rewards", (count,), "f8")


def objects(file, secret):
    del file["rewards"]
    file.create_dataset("rewards", (3,), h5py.ref_dtype, data=[file["actions"].ref] * 3)


def contains_itself(file, secret):
    file["observations/again"] = file["observations"]


HOSTILE = {
    external_link: r"'rewards' is a link \(external\)",
    soft_link: r"'rewards' is a link \(soft\)",
    external_storage: "'rewards' lies in another file",
    virtual: "'rewards' is virtual",
    one_terabyte: "'rewards' declares 1,099,511,627,776 bytes",
    never_written: "'rewards' declares 904 bytes and holds 0%",
    objects: "'rewards' holds objects",
    contains_itself: "lies in two groups, or in itself",
}


@pytest.mark.parametrize(("harm", "message"), HOSTILE.items(), ids=[harm.__name__ for harm in HOSTILE])
def test_a_hostile_shard_is_refused(tmp_path, harm, message):
    folder, secret = write(tmp_path / "d"), tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["rewards"] = np.full(113, 42.0)
    with h5py.File(folder / "episodes-00000.h5", "r+") as file:
        harm(file, secret)
    reseal(folder)
    assert re.search(message, error_of(folder)), error_of(folder)


def test_an_unknown_filter_is_refused(tmp_path):
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.zeros(100), chunks=(100,), compression="gzip")
    raw = path.read_bytes()
    # the filter's number in the pipeline message: 1 (deflate) becomes 305 (LPC-Rice)
    place = raw.index(struct.pack("<HH", 1, 8) + struct.pack("<HH", 1, 1) + b"deflate")
    path.write_bytes(raw[:place] + struct.pack("<H", 305) + raw[place + 2 :])
    with pytest.raises(UserError, match="names the unknown filter 305"), open_hdf5(path):
        pass


@pytest.mark.parametrize("name", ["../other/episodes-00000.h5", "/etc/passwd", "..", "sub/x.h5"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    folder = write(tmp_path / "d")
    write(tmp_path / "other")
    manifest = read_manifest(folder)
    manifest["files"][0]["name"] = name
    write_manifest(folder, manifest)
    assert f"names the file {name!r}, which does not lie in its folder" in error_of(folder)
    assert json.loads((folder / "manifest.json").read_text())["files"][0]["name"] == name
