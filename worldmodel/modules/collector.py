"""Collects experience with a policy's current weights, and keeps a hidden state for each environment."""

from collections import deque

import numpy as np
import torch
from torch import Tensor

from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.agents.agent import PolicyAgent
from worldmodel.envs.make import Simulator
from worldmodel.envs.observe import ObservationVectors
from worldmodel.envs.vector import Stepper
from worldmodel.modules.experience import Experience
from worldmodel.stale_state import LoadCounter, StaleState, history_for, refreshed

RECENT = 100  # episodes whose returns are averaged
FRAMES = ("obs", "last_action", "is_first", "before")


class Collector:
    """Collects experience piece by piece: episodes and their states continue from one piece to the next.

    A state is stale if weights were loaded into the policy since (an optimizer's changes do not count). It is refreshed
    before the next piece, or by `refresh_state`.

    Args:
        policy: its weights act.
        simulator: the environments.
        vectors: of their observations.
        seed: environment i starts from `seed + i`.
        earlier: L, frames to keep before each piece.
        stale_state: `keep` a stale state, `zero` it, or recompute it with the new weights: `burn_in` over the last
            frames from zeros, `replay` over each episode from its start.
        burn_in_steps: of `burn_in`.
    """

    def __init__(
        self,
        policy: ActorCritic,
        simulator: Simulator,
        vectors: ObservationVectors,
        seed: int,
        earlier: int = 0,
        stale_state: StaleState = "burn_in",
        burn_in_steps: int = 32,
    ) -> None:
        self.policy, self.vectors, self.earlier = policy, vectors, earlier
        self.stale_state: StaleState = stale_state
        self.stepper = Stepper(simulator.envs, seed)
        self.num_envs = simulator.envs.num_envs
        self.agent = PolicyAgent(policy, vectors, self.num_envs)
        self.returns: deque[float] = deque(maxlen=RECENT)  # of the last finished episodes
        self.lengths: deque[int] = deque(maxlen=RECENT)
        self._return, self._length = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)
        self._history = history_for(stale_state, burn_in_steps)
        self._last: Experience | None = None
        self._watch = LoadCounter()
        self._watch.follow(policy)
        self._loads = self._watch.loads  # when the state was last fresh

    def close(self) -> None:
        """Stop watching the policy's weights."""
        self._watch.leave()

    @property
    def is_stale(self) -> bool:
        """Whether weights were loaded since the last piece of experience."""
        return self._loads != self._watch.loads

    def refresh_state(self) -> bool:
        """Refresh the states if they are stale; returns whether they were."""
        if not self.is_stale:
            return False
        self._loads = self._watch.loads
        self.agent.h = refreshed(self.agent.h, self.stale_state, self._history, self.policy.observe).clone()
        return True

    def collect(self, steps: int, generator: torch.Generator | None = None) -> Experience:
        """Collect T steps of every environment.

        Args:
            steps: T.
            generator: of the actions.

        Raises:
            SimulationError: if an environment raised an error.
        """
        self.refresh_state()
        agent, stepper, self.agent.generator = self.agent, self.stepper, generator
        frames, by_step = self._buffers(steps)
        with torch.inference_mode():  # the buffers are made outside of it, since training needs normal tensors
            for t in range(steps + 1):
                obs, mask = agent.sense(stepper.observations)
                is_first = torch.from_numpy(stepper.is_first).to(agent.device)
                for name, value in zip(FRAMES, (obs, agent.last_action, is_first, agent.h), strict=True):
                    frames[name][t] = value
                if t == steps:
                    break
                by_step["action"][t], actions = agent.act(obs, mask, is_first)
                step = stepper.step(actions)
                self._count(step.reward, step.over, step.valid)
                for name in ("reward", "terminated", "valid"):
                    by_step[name][t] = torch.from_numpy(getattr(step, name))
                if mask is not None:
                    by_step["mask"][t] = mask
        return self._experience(frames, by_step)

    def _buffers(self, steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Zeros for frames (T + 1, N, ...) and for steps (T, N, ...)."""
        policy, actions, lanes = self.policy, self.policy.actions, self.num_envs
        number, flag = policy.obs_norm.mean.dtype, torch.bool

        def zeros(steps: int, *dim: int, dtype: torch.dtype = number) -> Tensor:
            return torch.zeros(steps, lanes, *dim, dtype=dtype, device=self.agent.device)

        frames = {
            "obs": zeros(steps + 1, self.vectors.layout.obs_dim),
            "last_action": zeros(steps + 1, policy.last_action_dim),
            "is_first": zeros(steps + 1, dtype=flag),
            "before": zeros(steps + 1, policy.state_dim),
        }
        drawn = (actions.dim, number) if actions.is_box else (len(actions.sizes), torch.int64)
        by_step = {"action": zeros(steps, drawn[0], dtype=drawn[1]), "reward": zeros(steps)}
        by_step |= {name: zeros(steps, dtype=flag) for name in ("terminated", "valid")}
        if self.vectors.masked:
            by_step["mask"] = zeros(steps, actions.num_outputs, dtype=flag)
        return frames, by_step

    def _experience(self, frames: dict[str, Tensor], by_step: dict[str, Tensor]) -> Experience:
        by_lane = {name: values.transpose(0, 1) for name, values in (frames | by_step).items()}
        earlier = self.earlier
        for name in FRAMES if earlier else ():
            values, last = by_lane[name], self._last
            nothing = values.new_zeros(len(values), earlier, *values.shape[2:])
            before = nothing if last is None else getattr(last, name)[:, -1 - earlier : -1]
            by_lane[name] = torch.cat([before, values], dim=1)
        mask = by_lane.pop("mask", None)
        self._last = experience = Experience(mask=mask, **by_lane)
        if self._history is not None:
            now = slice(earlier, -1)
            inputs = {"obs": experience.obs, "action": experience.last_action, "is_first": experience.is_first}
            self._history.add({name: values[:, now] for name, values in inputs.items()})
        return experience

    def _count(self, reward: np.ndarray, over: np.ndarray, valid: np.ndarray) -> None:
        self._return += np.where(valid, reward, 0.0)
        self._length += valid
        for i in np.flatnonzero(over & valid).tolist():
            self.returns.append(float(self._return[i]))
            self.lengths.append(int(self._length[i]))
            self._return[i], self._length[i] = 0.0, 0
