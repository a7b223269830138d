"""A check is one class in the list of checks."""

import numpy as np

from tests.data.check.recordings import closed_loop
from worldmodel.data import check
from worldmodel.data.check.finding import Finding


class StandsStill:
    """Made up: the first frame of an episode returns later on."""

    def __init__(self, source):
        self.path, self.still = source.path, []

    def add(self, block):
        firsts = block.frames[block.starts][block.frame_episodes]
        again = block.frames == firsts
        again[block.starts] = False
        self.still += [block.names[i] for i in np.unique(block.frame_episodes[again])]

    def findings(self, recording):
        where = recording.names[-1]
        assert len(recording.fragments) and len(recording.splits["train"]) == len(recording.names)
        return [Finding("error", "stands still", where, f"{self.path}", "move", len(self.still))] * bool(self.still)


def test_a_check_is_one_class_and_a_line(monkeypatch):
    monkeypatch.setattr(check, "CHECKS", [*check.CHECKS, StandsStill])
    source = closed_loop(lambda o, rng: rng.uniform(-1, 1), episodes=4)
    assert check.check_episodes(source, lambda episodes: {"train": np.arange(episodes)}) == []
    for _, episode in source.episodes():
        episode.observations["observation"][7] = episode.observations["observation"][0]
    found = check.check_episodes(source, lambda episodes: {"train": np.arange(episodes)})
    (finding,) = [finding for finding in found if finding.check == "stands still"]
    assert (finding.check, finding.where, finding.count) == ("stands still", "data.h5, episode 3", 4)
