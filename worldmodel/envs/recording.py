"""A recording session: from the first observations to the finished dataset, or to what is kept of it."""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from worldmodel.data.episode import Episode
from worldmodel.data.manifest import MANIFEST
from worldmodel.data.writer import EpisodeWriter
from worldmodel.envs.observe import Observed
from worldmodel.envs.policies import CheckedPolicy
from worldmodel.envs.vector import SimulationError, Stepper, shares
from worldmodel.errors import UserError

log = logging.getLogger(__name__)


class Session:
    """Records what a policy does in environments.

    Args:
        stepper: the environments, at their first observations.
        rate: steps a second of simulated time.
        policy: acts.
        observed: picks what is recorded.
        writer: of the dataset.
        settings: of the collection, see envs.collect.
        on_steps: called with the number of new transitions after every step.
        on_acknowledged: called with the number of new episodes that are safe on the disk, when it changes.
    """

    def __init__(
        self,
        stepper: Stepper,
        rate: float,
        policy: CheckedPolicy,
        observed: Observed,
        writer: EpisodeWriter,
        settings: dict[str, Any],
        on_steps: Callable[[int], None],
        on_acknowledged: Callable[[int], None],
    ) -> None:
        self.stepper, self.rate, self.policy, self.observed = stepper, rate, policy, observed
        self.writer, self.settings, self.on_steps, self.on_acknowledged = writer, settings, on_steps, on_acknowledged
        self.num_envs, self.acknowledged = stepper.envs.num_envs, 0
        self.new, self.warned = not writer.manifest["files"], False

    def run(self, keep_interrupted: bool) -> dict[str, Any]:
        """Record and return the manifest. For the errors it raises see `collect`."""
        with interrupt_between_steps() as check:
            try:
                self._record(check)
                manifest = self.writer.finish()
                self._acknowledge()
                return manifest
            except KeyboardInterrupt:
                raise KeyboardInterrupt(self._keep(keep_interrupted)) from None
            except (SimulationError, UserError, OSError) as error:
                raise UserError(f"{self._problem(error)}; {self._keep(keep_interrupted)}") from error
            except BaseException:
                self._keep(keep_interrupted)
                raise

    def _record(self, check: Callable[[], None]) -> None:
        stepper, observed = self.stepper, self.observed
        left = shares(self.settings["steps"], self.num_envs)
        observations = observed(stepper.observations)
        recordings = [Recording(observations, i, self.rate) for i in range(self.num_envs)]
        while left.any():
            check()
            actions = self.policy(observed.own(stepper.observations), stepper.is_first, stepper.number)
            step = stepper.step(actions)
            observations, recorded = observed(stepper.observations), (left > 0) & step.valid
            left[recorded] -= 1
            for i in np.flatnonzero(recorded).tolist():
                recordings[i].add(actions, step.reward, observations)
                if step.over[i] or not left[i]:
                    terminated = bool(step.terminated[i])
                    truncated = not step.over[i] or bool(step.truncated[i])
                    self._finish(recordings[i].episode(terminated, truncated), i)
            for i in np.flatnonzero(stepper.is_first & (left > 0)).tolist():
                recordings[i] = Recording(observations, i, self.rate)
            self.writer.flush_if_due()
            self._acknowledge()
            self.on_steps(int(recorded.sum()))

    def _finish(self, episode: Episode, index: int) -> None:
        self.writer.add(episode)
        arrays = (*episode.observations.values(), episode.rewards)
        if not self.warned and not all(np.isfinite(a).all() for a in arrays if a.dtype.kind == "f"):
            self.warned = True
            name = self.settings["env_id"]
            log.warning("%s, environment %d: the simulator gave NaN or infinity; see `data check`", name, index)

    def _problem(self, error: Exception) -> str:
        if isinstance(error, OSError):
            return f"{self.writer.folder} cannot be written: {error.strerror or error}"
        return f"{self.settings['env_id']}, {error}" if isinstance(error, SimulationError) else str(error)

    def _acknowledge(self) -> None:
        if new := self.writer.episodes - self.acknowledged:
            self.acknowledged += new
            self.on_acknowledged(new)

    def _keep(self, keep: bool) -> str:
        """Close the dataset, and say in words what is kept of this session and how to continue."""
        writer, folder = self.writer, self.writer.folder
        with contextlib.suppress(OSError):  # the disk may be the problem; acknowledged episodes stay
            writer.close()
        self._acknowledge()
        if self.new and not (keep and writer.episodes):
            _remove(folder, writer.manifest["files"])
            return f"no episode was {'kept' if writer.episodes else 'finished'}: {folder} holds no dataset"
        if not writer.episodes:
            return f"no new episode was finished: {folder} is unchanged"
        return (
            f"the {writer.episodes} episodes ({writer.steps} steps) finished so far are kept in {folder}:"
            " the same command collects the rest"
        )


class Recording:
    """The transitions of an episode in progress, in arrays that double when they are full.

    Args:
        first: key -> (N, ...) the first observations of N environments.
        index: the environment that is recorded.
        rate: steps a second.
    """

    def __init__(self, first: dict[str, np.ndarray], index: int, rate: float) -> None:
        self.index, self.rate, self.length = index, rate, 0
        self.observations = {key: np.empty((64, *values.shape[1:]), values.dtype) for key, values in first.items()}
        self._add_observations(first)
        self.actions: np.ndarray | None = None
        self.rewards = np.empty(64)

    def add(self, actions: np.ndarray, rewards: np.ndarray, observations: dict[str, np.ndarray]) -> None:
        """Add this environment's transition, given those of all environments."""
        if self.actions is None:
            self.actions = np.empty((64, *actions.shape[1:]), actions.dtype)
        if self.length + 1 == len(self.rewards):
            self.observations = {key: _doubled(values) for key, values in self.observations.items()}
            self.actions, self.rewards = _doubled(self.actions), _doubled(self.rewards)
        self.actions[self.length], self.rewards[self.length] = actions[self.index], rewards[self.index]
        self.length += 1
        self._add_observations(observations)

    def episode(self, terminated: bool, truncated: bool) -> Episode:
        """The recorded transitions, at least one; nothing may be added afterwards."""
        assert self.actions is not None, "an episode has at least one transition"
        observations = {key: values[: self.length + 1] for key, values in self.observations.items()}
        steps = self.actions[: self.length], self.rewards[: self.length]
        return Episode(observations, *steps, terminated, truncated, self.rate)

    def _add_observations(self, observations: dict[str, np.ndarray]) -> None:
        for key, values in observations.items():
            self.observations[key][self.length] = values[self.index]


@contextlib.contextmanager
def interrupt_between_steps() -> Iterator[Callable[[], None]]:
    """Yields `check`, which raises KeyboardInterrupt if Ctrl-C was pressed; the end of the block raises it too.

    Nothing is interrupted between two checks, so no file is left half written. A second Ctrl-C raises at once.
    Outside the main thread, where Python delivers no signals, `check` never raises.
    """
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
    check()


def _doubled(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.empty_like(values)])


def _remove(folder: Path, files: list[dict[str, Any]]) -> None:
    """Remove a dataset that this session began: its manifest before its files."""
    for name in (MANIFEST, *(entry["name"] for entry in files)):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the folder existed before and holds something else
        folder.rmdir()
