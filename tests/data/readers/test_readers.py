"""Formats: recognised by what lies at a path, and each added by one file."""

import numpy as np
import pytest

from tests.data.readers.test_npz import write_files
from tests.data.readers.toy import assert_same, episodes, only
from worldmodel.data import episode as episode_room
from worldmodel.data import readers
from worldmodel.data.episode import fingerprint
from worldmodel.data.readers import open_source
from worldmodel.errors import UserError

MADE_UP = """
import numpy as np
from worldmodel.data.episode import ALIGNMENT, Episode, Reader, Source, fingerprint
from worldmodel.data.spaces import box_of


def read(path):
    states, actions = np.load(path / "states.npy"), np.load(path / "actions.npy")
    episode = Episode({"observation": states}, actions, np.load(path / "rewards.npy"), True, False)
    files = [path / f"{name}.npy" for name in ("states", "actions", "rewards")]
    return Source(
        path, "npy", {"observation": box_of(states)}, box_of(actions), ALIGNMENT, fingerprint(files, path),
        lambda: iter([("the episode", episode)]),
    )


READER = Reader("three .npy files", lambda path: (path / "states.npy").exists(), read)
"""


def test_a_format_is_one_file_and_its_name(tmp_path, monkeypatch):
    (tmp_path / "readers").mkdir()
    (tmp_path / "readers" / "made_up.py").write_text(MADE_UP)
    monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(tmp_path / "readers")])
    monkeypatch.setattr(readers, "FORMATS", (*readers.FORMATS, "made_up"))
    (one,) = episodes((5,))
    folder = tmp_path / "data"
    folder.mkdir()
    for name, values in (("states", one.observations["state"]), ("actions", one.actions), ("rewards", one.rewards)):
        np.save(folder / f"{name}.npy", values)
    for source in (open_source(folder), open_source(folder, "made_up")):
        assert_same([episode for _, episode in source.episodes()], [only(one, observation="state")])
        assert source.format == "npy"
    with pytest.raises(UserError, match="of the format made_up, which takes no alignment"):
        open_source(folder, alignment="next")
    (folder / "states.npy").unlink()
    with pytest.raises(UserError, match="no dataset of a known format: .*three .npy files"):
        open_source(folder)


def test_an_alignment_is_part_of_what_the_data_is(tmp_path):
    """A cache or a checkpoint of one reading must not serve another."""
    folder = write_files(tmp_path, episodes((5, 4, 12)), alignment="previous")
    one, other = (open_source(folder, alignment=side) for side in ("previous", "next"))
    assert one.fingerprint != other.fingerprint == open_source(folder, alignment="next").fingerprint


def test_of_a_large_file_samples_and_its_size_are_compared(tmp_path, monkeypatch):
    for name, value in (("WHOLE", 1000), ("SAMPLE", 10), ("SAMPLES", 50)):
        monkeypatch.setattr(episode_room, name, value)
    path, content = tmp_path / "large", bytearray(2000)
    path.write_bytes(content)
    before = fingerprint([path], tmp_path)
    for place in (0, 9, 1999):
        path.write_bytes(content[:place] + b"x" + content[place + 1 :])
        assert fingerprint([path], tmp_path) != before
    path.write_bytes(content + b"\0")
    assert fingerprint([path], tmp_path) != before
    path.write_bytes(content)
    assert fingerprint([path], tmp_path) == before
