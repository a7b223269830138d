"""Folders of .npz files, in the layouts of DreamerV3, dreamerv3-torch and pydreamer."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from tests.data.readers.toy import assert_same, episodes, is_exact
from worldmodel.data.readers.choice import Choice
from worldmodel.data.readers.npz import read_npz
from worldmodel.errors import UserError

WRONG = {"next": "previous", "previous": "next"}


def columns(episode, alignment, first="is_first", terminal="is_terminal", last="is_last"):
    """The rows of one episode, placeholders being what the programs write."""
    steps = len(episode)
    placeholder = np.zeros_like(episode.actions[:1])
    actions = (episode.actions, placeholder) if alignment == "next" else (placeholder, episode.actions)
    at_end = np.arange(steps + 1) == steps
    return episode.observations | {
        "action": np.concatenate(actions),
        "reward": np.concatenate([[0], episode.rewards]).astype(np.float32),
        first: np.arange(steps + 1) == 0,
        terminal: at_end & episode.terminated,
        **({last: at_end} if last else {}),
        "log_speed": np.zeros(steps + 1, np.float32),
    }


def write_chunks(folder, originals, length=7, alignment="next"):
    """As embodied/core/chunk.py: all rows in chunks of `length`, named TIME-UUID-SUCCESSOR-LENGTH."""
    parts = [columns(one, alignment) for one in originals]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    total = len(rows["action"])
    starts = range(0, total, length)
    # the names of chunks are random, and times may be equal: only the successor tells the order
    names = [f"{(7 * index + 3) % 100:022d}" for index in range(len(starts))] + ["0" * 22]
    for index, begin in enumerate(starts):
        chunk = {name: values[begin : begin + length] for name, values in rows.items()}
        size = len(chunk["action"])
        np.savez_compressed(folder / f"20260101T000000F000-{names[index]}-{names[index + 1]}-{size}.npz", **chunk)
    return folder


def write_files(folder, originals, **options):
    """An episode a file, as dreamerv3-torch names them."""
    for index, one in enumerate(originals):
        np.savez_compressed(
            folder / f"20260101T00000{index}-{index:032x}-{len(one) + 1}.npz", **columns(one, **options)
        )
    return folder


def read(folder, alignment, **options):
    return [episode for _, episode in read_npz(folder, alignment, **options).episodes()]


@pytest.mark.parametrize("length", [1, 2, 7, 1024])
def test_chunks_of_dreamerv3_come_back(tmp_path, length):
    originals = episodes()
    found = read(write_chunks(tmp_path, originals, length), "next")
    assert_same(found, originals)
    assert all(map(is_exact, found))


@pytest.mark.parametrize(
    "style",
    [{}, {"first": "reset", "terminal": "terminal", "last": ""}],
    ids=["dreamerv3-torch", "pydreamer"],
)
def test_an_episode_a_file_comes_back(tmp_path, style):
    originals = episodes()
    assert_same(read(write_files(tmp_path, originals, alignment="previous", **style), "previous"), originals)


@pytest.mark.parametrize("alignment", ["next", "previous"])
def test_the_wrong_alignment_shows(tmp_path, alignment):
    write_files(tmp_path, episodes((5, 12)), alignment=alignment)
    assert all(map(is_exact, read(tmp_path, alignment)))
    assert not any(map(is_exact, read(tmp_path, WRONG[alignment])))


def test_no_alignment_is_an_error_that_explains_both(tmp_path):
    write_files(tmp_path, episodes(), alignment="next")
    with pytest.raises(UserError, match="--alignment next .*leads to row t.1.*previous .*led to row t"):
        read_npz(tmp_path, None)


def test_names_spaces_and_what_was_left_out(tmp_path):
    source = read_npz(write_files(tmp_path, episodes(), alignment="previous"), "previous")
    assert source.observation_space["state"]["shape"] == [2]
    assert source.observation_space["pixels"] == {
        "type": "Box", "shape": [8, 8, 3], "dtype": "uint8", "low": 0.0, "high": 255.0,
    }  # fmt: skip
    assert source.action_space["shape"] == [1]
    assert list(source.provenance["left_out"]) == ["is_first", "is_last", "is_terminal", "log_speed"]
    name, _ = next(source.episodes())
    assert name == f"20260101T000000-{0:032x}-6.npz, episode 0"
    assert list(read_npz(tmp_path, "previous", choice=Choice(("state",))).observation_space) == ["state"]
    with pytest.raises(UserError, match="did you mean 'state'"):
        read_npz(tmp_path, "previous", choice=Choice(("stat",)))


def test_actions_that_are_whole_numbers_are_discrete(tmp_path):
    for index, actions in enumerate(([0, 1, 1], [0, 4, 2])):
        np.savez(tmp_path / f"{index}.npz", state=np.zeros((3, 2)), action=np.array(actions), reward=np.zeros(3))
    assert read_npz(tmp_path, "previous").action_space == {"type": "Discrete", "n": 5, "start": 0}


def test_terminal_by_discount(tmp_path):
    part = columns(episodes((4,))[0], "previous", last="")
    part["discount"] = 1.0 - part.pop("is_terminal")
    np.savez(tmp_path / "a.npz", **part)
    ((_, found),) = read_npz(tmp_path, "previous", choice=Choice(("state",))).episodes()
    assert (found.terminated, found.truncated) == (True, False)


def test_pieces_of_episodes_whose_chunks_are_gone_are_kept(tmp_path):
    one = episodes((12,))[0]
    write_chunks(tmp_path, [one], length=5)  # 13 rows: 5, 5, 3
    sorted(tmp_path.glob(f"*-{3:022d}-*"))[0].unlink()
    (found,) = read(tmp_path, "next")
    assert len(found) == 7 and is_exact(found)
    np.testing.assert_array_equal(found.observations["state"], one.observations["state"][5:])
    assert found.terminated


def test_chunks_in_a_circle_and_with_two_predecessors(tmp_path):
    write_chunks(tmp_path, episodes(), length=7)
    (last,) = tmp_path.glob("*-" + "0" * 22 + "-*")
    first = next(tmp_path.glob(f"*F000-{3:022d}-*"))
    target = last.rename(tmp_path / last.name.replace("0" * 22, f"{3:022d}"))
    with pytest.raises(UserError, match="lead back to it"):
        read(tmp_path, "next")
    target.rename(tmp_path / target.name.replace(f"-{3:022d}-", f"-{10:022d}-"))
    with pytest.raises(UserError, match="two chunks name it|lead back"):
        read(tmp_path, "next")
    assert first.exists()


def test_an_episode_without_transition_is_named(tmp_path):
    part = {name: values[:1] for name, values in columns(episodes((3,))[0], "previous").items()}
    np.savez(tmp_path / "short.npz", **part)
    with pytest.raises(UserError, match="short.npz, episode 0: it has no transition"):
        read(tmp_path, "previous")


def test_an_end_in_mid_episode_is_an_error(tmp_path):
    part = columns(episodes((9,))[0], "previous")
    part["is_terminal"][4] = True
    np.savez(tmp_path / "a.npz", **part)
    with pytest.raises(UserError, match="a.npz, episode 0: 'terminated' is set at row 4"):
        read(tmp_path, "previous")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["action", "state", "unrelated"])
def test_a_pickle_is_refused_and_does_not_run(tmp_path, name):
    proof = tmp_path / "ran"
    part = columns(episodes((3,))[0], "previous") | {name: np.array([Bomb(proof)] * 4, dtype=object)}
    np.savez(tmp_path / "a.npz", **part)
    with pytest.raises(UserError, match=f"'{name}' holds Python objects"):
        read(tmp_path, "previous")
    assert not proof.exists()
    pickle.loads(pickle.dumps(Bomb(proof)))
    assert proof.exists()  # the bomb is a live one


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("action.npy", "w") as out,
    ):
        for _ in range(300):
            out.write(bytes(1 << 20))
    assert (tmp_path / "a.npz").stat().st_size < 1 << 20
    with pytest.raises(UserError, match="would unpack to 314,572,800 bytes"):
        read(tmp_path, "next")


def test_a_header_that_lies_about_the_size_is_refused(tmp_path):
    lie = npy(np.zeros((3, 1))).replace(b"(3, 1)", b"(9, 9)")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("action.npy", lie)
    with pytest.raises(UserError, match="'action' declares .9, 9. of float64, which is not what it holds"):
        read(tmp_path, "next")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.99])
def test_a_truncated_file_is_named(tmp_path, share):
    write_files(tmp_path, episodes(), alignment="next")
    victim = sorted(tmp_path.iterdir())[1]
    content = victim.read_bytes()
    victim.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=f"{victim.name} cannot be read as .npz"):
        read(tmp_path, "next")


@pytest.mark.parametrize("position", [0.2, 0.5, 0.8])
def test_a_flipped_bit_is_found(tmp_path, position):
    write_files(tmp_path, episodes(), alignment="next")
    victim = sorted(tmp_path.iterdir())[2]
    with zipfile.ZipFile(victim) as archive:  # in the data of a member, not in the zip's own tables
        info = archive.getinfo("pixels.npy")
    content = bytearray(victim.read_bytes())
    content[info.header_offset + 60 + int(position * (info.compress_size - 40))] ^= 4
    victim.write_bytes(content)
    with pytest.raises(UserError, match=victim.name):
        read(tmp_path, "next")


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="there are no .npz files"):
        read_npz(tmp_path, "next")
