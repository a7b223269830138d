"""One collection, from the first reset to the finished dataset, or to what is kept of it."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data.episode import Episode
from worldmodel.data.manifest import MANIFEST
from worldmodel.data.writer import EpisodeWriter
from worldmodel.envs.interrupt import interrupt_between_steps
from worldmodel.envs.make import Simulator
from worldmodel.envs.observe import Observed
from worldmodel.envs.policies import CheckedPolicy
from worldmodel.envs.recording import Recording
from worldmodel.envs.vector import SimulationError, step
from worldmodel.errors import UserError

log = logging.getLogger(__name__)


class Session:
    """From the first reset to the finished dataset, or to what is kept of it."""

    on_steps: Callable[[int], None]
    on_acknowledged: Callable[[int], None]

    def __init__(
        self,
        simulator: Simulator,
        policy: CheckedPolicy,
        observed: Observed,
        writer: EpisodeWriter,
        settings: dict[str, Any],
    ) -> None:
        self.envs, self.rate, self.policy, self.observed = simulator.envs, simulator.rate, policy, observed
        self.writer, self.settings, self.acknowledged = writer, settings, 0
        self.new, self.warned = not writer.manifest["files"], False

    def run(self, first: Any, keep_interrupted: bool) -> dict[str, Any]:
        """Record from the `first` observations on; returns the manifest. See `collect` for what it raises."""
        with interrupt_between_steps() as check:
            try:
                self._record(first, check)
                manifest = self.writer.finish()
                self._tell_acknowledged()
                return manifest
            except KeyboardInterrupt:
                raise KeyboardInterrupt(self._keep(keep_interrupted)) from None
            except (SimulationError, UserError, OSError) as error:
                raise UserError(f"{self._what(error)}; {self._keep(keep_interrupted)}") from error
            except BaseException:
                self._keep(keep_interrupted)
                raise

    def _record(self, observations: Any, check: Callable[[], None]) -> None:
        envs, seen = self.envs, self.observed(observations)
        quota, extra = divmod(self.settings["steps"], envs.num_envs)
        left = np.array([quota + (i < extra) for i in range(envs.num_envs)])
        is_first, ended = np.ones(envs.num_envs, dtype=bool), np.zeros(envs.num_envs, dtype=bool)
        recordings = [Recording(seen, i, self.rate) for i in range(envs.num_envs)]
        number = 0
        while left.any():
            check()
            actions = self.policy(self.observed.own(observations), is_first, number)
            observations, rewards, terminated, truncated = self._step(actions, number)
            seen, over = self.observed(observations), terminated | truncated
            taken = (left > 0) & ~ended  # the step after an end only resets: its action was not taken
            left[taken] -= 1
            for i in np.flatnonzero(taken).tolist():
                recordings[i].add(actions, rewards, seen)
                if over[i] or not left[i]:
                    self._finish(recordings[i].episode(bool(terminated[i]), bool(truncated[i] or not over[i])), i)
            for i in np.flatnonzero(ended & (left > 0)).tolist():
                recordings[i] = Recording(seen, i, self.rate)
            is_first, ended, number = ended, over, number + 1
            self.writer.flush_if_due()
            self._tell_acknowledged()
            self.on_steps(int(taken.sum()))

    def _finish(self, episode: Episode, index: int) -> None:
        self.writer.add(episode)
        arrays = (*episode.observations.values(), episode.rewards)
        if not self.warned and not all(np.isfinite(a).all() for a in arrays if a.dtype.kind == "f"):
            self.warned = True  # once
            name = self.settings["env_id"]
            log.warning("%s, environment %d: the simulator gave NaN or infinity; see `data check`", name, index)

    def _step(self, actions: np.ndarray, number: int) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
        try:
            return step(self.envs, actions)[:4]
        except SimulationError as error:
            raise SimulationError(f"step {number}, {error}") from error

    def _what(self, error: Exception) -> str:
        if isinstance(error, OSError):
            return f"{self.writer.folder} cannot be written: {error.strerror or error}"
        return f"{self.settings['env_id']}, {error}" if isinstance(error, SimulationError) else str(error)

    def _tell_acknowledged(self) -> None:
        if new := self.writer.episodes - self.acknowledged:
            self.acknowledged += new
            self.on_acknowledged(new)

    def _keep(self, keep: bool) -> str:
        """Close the dataset; what is kept of this session, and how to go on, in words."""
        writer, folder = self.writer, self.writer.folder
        with contextlib.suppress(OSError):  # the disk may be what failed; what was acknowledged stays
            writer.close()
        self._tell_acknowledged()
        if self.new and not (keep and writer.episodes):
            _remove(folder, writer.manifest["files"])
            return f"no episode was {'kept' if writer.episodes else 'finished'}: {folder} holds no dataset"
        if not writer.episodes:
            return f"no new episode was finished: {folder} is as it was before"
        free = self.settings["seed"] + self.envs.num_envs
        return (
            f"the {writer.episodes} episodes ({writer.steps} steps) finished until then are kept in {folder}:"
            f" go on with --append --seed {free}"
        )


def _remove(folder: Path, files: list[dict[str, Any]]) -> None:
    """A dataset that this session began: its manifest before its files."""
    for name in (MANIFEST, *(entry["name"] for entry in files)):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the folder was there before, and holds something else
        folder.rmdir()
