"""Acts with a policy's current weights, and keeps one hidden state an environment."""

from collections import deque

import numpy as np
import torch
from torch import Tensor

from worldmodel.agents.actor import Actor
from worldmodel.agents.actor_critic import ActorCritic
from worldmodel.envs.as_vectors import AsVectors
from worldmodel.envs.make import Simulator
from worldmodel.envs.running import Running
from worldmodel.modules.rollout import Rollout, frames_of, joined
from worldmodel.stale_state import LoadCounter, StaleState, history_for, refreshed

RECENT = 100  # episodes whose returns are averaged
FRAMES = ("obs", "last_action", "is_first", "before")


class Collector:
    """Rollouts that continue one another. An episode goes on in the next one, and so does its state.

    A state belongs to the weights that made it. Weights that are loaded into the policy (not those that an optimizer
    changes) mend it before the next rollout, or when `mend` is called.

    Args:
        policy: whose weights act.
        simulator: its environments.
        vectors: what the policy sees of them.
        seed: environment i starts from `seed + i`.
        earlier: L, frames before a rollout that are kept with it.
        on_weight_change: `keep` the state; `zero` it; `burn_in`: run the new weights over the last frames from zeros;
            `replay`: over each episode from its start.
        burn_in_steps: of `burn_in`.
    """

    def __init__(
        self,
        policy: ActorCritic,
        simulator: Simulator,
        vectors: AsVectors,
        seed: int,
        earlier: int = 0,
        on_weight_change: StaleState = "burn_in",
        burn_in_steps: int = 32,
    ) -> None:
        self.policy, self.vectors, self.earlier = policy, vectors, earlier
        self.on_weight_change: StaleState = on_weight_change
        self.running = Running(simulator.envs, seed)
        self.num_envs = simulator.envs.num_envs
        self.actor = Actor(policy, vectors, self.num_envs)
        self.returns: deque[float] = deque(maxlen=RECENT)  # of the last episodes that ended
        self.lengths: deque[int] = deque(maxlen=RECENT)
        self._return, self._length = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)
        self._history = history_for(on_weight_change, burn_in_steps)
        self._last: Rollout | None = None
        self._watch = LoadCounter()
        self._watch.follow(policy)
        self._made_at = self._watch.loads

    def close(self) -> None:
        """Listen to the policy no more."""
        self._watch.leave()

    @property
    def outdated(self) -> bool:
        """Whether weights were loaded since the last rollout: another policy has acted in it."""
        return self._made_at != self._watch.loads

    def mend(self) -> bool:
        """Bring the states up to the weights there are, if others made them; whether it was so."""
        if not self.outdated:
            return False
        self._made_at = self._watch.loads
        self.actor.h = refreshed(self.actor.h, self.on_weight_change, self._history, self.policy.observe).clone()
        return True

    def collect(self, steps: int, generator: torch.Generator | None = None) -> Rollout:
        """T steps of every environment.

        Args:
            steps: T.
            generator: of the actions.

        Raises:
            SimulationError: if an environment raised an error.
        """
        self.mend()
        actor, running, self.actor.generator = self.actor, self.running, generator
        frames, made = self._buffers(steps)
        with torch.inference_mode():  # writes into what was made outside of it: training needs such tensors
            for t in range(steps + 1):
                obs, mask = actor.sense(running.observations)
                is_first = torch.from_numpy(running.is_first).to(actor.device)
                for name, value in zip(FRAMES, (obs, actor.last_action, is_first, actor.h), strict=True):
                    frames[name][t] = value
                if t == steps:
                    break
                action, taken = actor.act(obs, mask, is_first)
                stepped = running.step(taken)
                self._count(stepped.reward, stepped.over, stepped.valid)
                made["action"][t] = action
                made["reward"][t] = torch.from_numpy(stepped.reward)
                made["terminated"][t] = torch.from_numpy(stepped.terminated)
                made["valid"][t] = torch.from_numpy(stepped.valid)
                if mask is not None:
                    made["mask"][t] = mask
        return self._rollout(frames, made)

    def _buffers(self, steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """For frames (T + 1, N, ...) and for steps (T, N, ...)."""
        policy, device, lanes = self.policy, self.actor.device, self.num_envs
        number, flag = policy.obs_norm.mean.dtype, torch.bool
        drawn = policy.actions.dim if policy.actions.is_box else len(policy.actions.sizes)
        kind = number if policy.actions.is_box else torch.int64
        dims = (self.vectors.layout.obs_dim,), (policy.last_action_dim,), (), (policy.state_dim,)
        frames = {
            name: torch.zeros(steps + 1, lanes, *dim, dtype=flag if name == "is_first" else number, device=device)
            for name, dim in zip(FRAMES, dims, strict=True)
        }
        made = {"action": torch.zeros(steps, lanes, drawn, dtype=kind, device=device)}
        made["reward"] = torch.zeros(steps, lanes, dtype=number, device=device)
        made |= {name: torch.zeros(steps, lanes, dtype=flag, device=device) for name in ("terminated", "valid")}
        if self.vectors.masked:
            made["mask"] = torch.zeros(steps, lanes, policy.actions.num_outputs, dtype=flag, device=device)
        return frames, made

    def _rollout(self, frames: dict[str, Tensor], made: dict[str, Tensor]) -> Rollout:
        by_lane = {name: values.transpose(0, 1) for name, values in (frames | made).items()}
        for name in FRAMES:
            last = torch.zeros_like(by_lane[name][:, :1]) if self._last is None else getattr(self._last, name)
            missing = self.earlier + 1 - last.shape[1]
            if missing > 0:  # before all rollouts
                last = torch.cat([last.new_zeros(len(last), missing, *last.shape[2:]), last], dim=1)
            by_lane[name] = joined(last, by_lane[name], self.earlier)
        mask = by_lane.pop("mask", None)
        self._last = Rollout(mask=mask, **by_lane)
        if self._history is not None:
            self._history.add(frames_of(self._last))
        return self._last

    def _count(self, reward: np.ndarray, over: np.ndarray, valid: np.ndarray) -> None:
        self._return += np.where(valid, reward, 0.0)
        self._length += valid
        for i in np.flatnonzero(over & valid).tolist():
            self.returns.append(float(self._return[i]))
            self.lengths.append(int(self._length[i]))
            self._return[i], self._length[i] = 0.0, 0
