"""The data of a policy: its own experience for training, whole episodes for validation and test."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from worldmodel.agents.agent import PolicyAgent
from worldmodel.data.spaces import Json
from worldmodel.envs.make import Simulator, make_simulator
from worldmodel.envs.observe import ObservationVectors
from worldmodel.envs.play import EpisodeReturns, play
from worldmodel.envs.vector import SimulationError, close
from worldmodel.errors import UserError, at_least
from worldmodel.modules.collector import Collector
from worldmodel.modules.policy import SEGMENT_LOSSES, Policy
from worldmodel.stale_state import StaleState

SEEDS = {"val": 1_000_000, "test": 2_000_000}  # added to the seed, so that their episodes differ from training's
VALIDATIONS = 10  # in a fit, by default
Chunks = dict[str, Tensor]


class ExperienceDataModule(pl.LightningDataModule):
    """Collects experience with the policy's current weights, trains on it for some epochs, and repeats.

    Training is one endless stream of minibatches, cut into Lightning's epochs at every validation; it ends with the
    budget of environment steps. A fit resumed from a checkpoint continues with new episodes.

    Args:
        env_id: Name in Gymnasium's registry, or module:ID where a module registers it.
        env_kwargs: Further arguments of gymnasium.make.
        max_episode_steps: Time limit of an episode; null: the environment's own.
        observe: Entries of a vector observation, or keys of a Dict, that the policy sees; null: all.
        num_envs: Environments that step together.
        vectorization: Step the environments in this process, or each in its own.
        total_steps: Budget of training, in transitions of all environments together.
        rollout_steps: Steps of every environment between two rounds of training.
        update_epochs: Passes over the experience in each round of training.
        minibatches: Optimizer steps in each pass.
        chunk_steps: Steps of a chunk: the horizon of truncated BPTT.
        burn_in_steps: Frames before a chunk that the stored state is run through, without gradient.
        refresh: Recompute the stored states after each pass.
        target_kl: Start no further pass once the approximate KL divergence exceeds this; null: always.
        stale_state: What to do with the state when weights are loaded: keep it, zero it, or recompute it over the
            last frames (burn_in) or each episode (replay).
        stale_state_steps: Frames of that burn_in.
        episodes: Episodes of a validation and of a test.
        deterministic: Take the most likely actions in validation and test, instead of drawing them.
        val_every: Environment steps between two validations; null: a tenth of total_steps.
        reset_every: In validation and test also reset the state at every K-th frame of an episode; null: never.
        seed: Seed of the environments and actions; null: that of seed_everything.
    """

    def __init__(
        self,
        env_id: str,
        env_kwargs: dict[str, Any] | None = None,
        max_episode_steps: int | None = None,
        observe: list[int] | list[str] | None = None,
        num_envs: int = 8,
        vectorization: Literal["sync", "async"] = "sync",
        total_steps: int = 100_000,
        rollout_steps: int = 128,
        update_epochs: int = 4,
        minibatches: int = 4,
        chunk_steps: int = 32,
        burn_in_steps: int = 0,
        refresh: bool = False,
        target_kl: float | None = None,
        stale_state: StaleState = "burn_in",
        stale_state_steps: int = 32,
        episodes: int = 20,
        deterministic: bool = True,
        val_every: int | None = None,
        reset_every: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        at_least(1, "data.", num_envs=num_envs, total_steps=total_steps, rollout_steps=rollout_steps)
        at_least(1, "data.", update_epochs=update_epochs, minibatches=minibatches, chunk_steps=chunk_steps)
        at_least(1, "data.", stale_state_steps=stale_state_steps, episodes=episodes, val_every=val_every)
        at_least(1, "data.", reset_every=reset_every, max_episode_steps=max_episode_steps)
        at_least(0, "data.", burn_in_steps=burn_in_steps, seed=seed)
        if target_kl is not None and not target_kl > 0:
            raise UserError(f"data.target_kl is {target_kl}: it must be above 0, or null")
        if num_envs * rollout_steps > total_steps:
            raise UserError(
                f"data.total_steps is {total_steps}, less than one rollout of data.num_envs {num_envs} x"
                f" data.rollout_steps {rollout_steps} steps"
            )
        pieces = num_envs * -(-rollout_steps // chunk_steps)
        if minibatches > pieces:
            raise UserError(f"data.minibatches is {minibatches}, and a rollout has only {pieces} chunks to share out")
        self.env_id, self.observe, self.num_envs = env_id, observe, num_envs
        self._make_options: dict[str, Any] = {"max_episode_steps": max_episode_steps, "env_kwargs": env_kwargs}
        self._make_options |= {"vectorization": vectorization, "masks": True}
        self.total_steps, self.rollout_steps = total_steps, rollout_steps
        self.update_epochs, self.minibatches = update_epochs, minibatches
        self.refresh, self.target_kl = refresh, target_kl
        self.chunk_steps, self.burn_in_steps = chunk_steps, burn_in_steps
        self.stale_state: StaleState = stale_state
        self.stale_state_steps = stale_state_steps
        self.episodes, self.deterministic, self.reset_every = episodes, deterministic, reset_every
        self.val_every = val_every or max(1, total_steps // VALIDATIONS)
        self.seed = seed if seed is not None else torch.initial_seed() % 2**31
        self.steps = self.rollouts = 0  # transitions and rollouts so far
        self.metrics: dict[str, float] = {}  # of the last rollout, by the names they are logged under
        self.episode_returns: EpisodeReturns | None = None  # of the last validation or test
        self.returns: Sequence[float] = ()  # of the last hundred training episodes
        self._simulator: Simulator | None = None
        self._collector: Collector | None = None
        self._stream: Iterator[Chunks] | None = None
        self._vectors: ObservationVectors | None = None

    @property
    def simulator(self) -> Simulator:
        """The training environments, made when first asked for."""
        if self._simulator is None:
            self._simulator = make_simulator(self.env_id, self.num_envs, **self._make_options)
        return self._simulator

    @property
    def vectors(self) -> ObservationVectors:
        """The observations that the policy sees."""
        if self._vectors is None:
            envs = self.simulator.envs
            self._vectors = ObservationVectors(envs.single_observation_space, envs.single_action_space, self.observe)
        return self._vectors

    @property
    def obs_dim(self) -> int:
        """Entries of an observation: vectors, then pixels."""
        return self.vectors.layout.obs_dim

    @property
    def images(self) -> list[tuple[int, int, int]]:
        """(H, W, C) of each image in an observation."""
        return list(self.vectors.layout.images.values())

    @property
    def action_space(self) -> Json:
        """The action space as plain data."""
        return self.vectors.layout.action_space

    def teardown(self, stage: str) -> None:
        if self._collector is not None:
            self._collector.close()
        if self._simulator is not None:
            close(self._simulator.envs)
        self._simulator = self._collector = self._stream = None

    @property
    def planned_batches(self) -> int:
        """Optimizer steps of the whole budget, if target_kl ends no round early."""
        return self.total_steps // (self.num_envs * self.rollout_steps) * self.update_epochs * self.minibatches

    def train_dataloader(self) -> "_Batches":
        rollouts = max(1, self.val_every // (self.num_envs * self.rollout_steps))
        return _Batches(self.stream, rollouts * self.update_epochs * self.minibatches)

    def stream(self) -> Iterator[Chunks]:
        """The minibatches up to the end of the budget, always from the same iterator."""
        if self._stream is None:
            self._stream = self._minibatches()
        return self._stream

    def _minibatches(self) -> Iterator[Chunks]:
        policy = self._policy()
        first = self.seed + self.num_envs * self.rollouts  # a resumed fit does not repeat its first episodes
        self._collector = Collector(
            policy, self.simulator, self.vectors, first, self.burn_in_steps, self.stale_state,
            self.stale_state_steps,
        )  # fmt: skip
        self.returns = self._collector.returns
        while not self.rollouts or self.steps + self.num_envs * self.rollout_steps <= self.total_steps:
            yield from self._round(self._collector, policy)
        assert self.trainer is not None
        self.trainer.should_stop = True

    def _round(self, collector: Collector, policy: Policy) -> Iterator[Chunks]:
        """The minibatches of one rollout; loading other weights into the policy ends them."""
        begin, hp = time.perf_counter(), policy.hparams
        draws = torch.Generator(policy.device).manual_seed(self.seed * 1_000_003 + self.rollouts)
        order = torch.Generator().manual_seed(self.seed * 1_000_003 + self.rollouts)
        try:
            experience = collector.collect(self.rollout_steps, draws)
        except SimulationError as error:
            raise UserError(f"{self.env_id}, {error}") from error
        if not bool(experience.obs.isfinite().all() & experience.reward.isfinite().all()):
            raise UserError(f"{self.env_id} gave an observation or reward that is NaN or infinite: repair it first")
        frames = experience.obs[:, experience.earlier : -1], experience.valid, self._continuous(policy.device)
        if not int(policy.obs_norm.batches):  # the first actions hardly depend on the observations
            policy.obs_norm.update(*frames)
            experience.refresh(policy)
        decay = hp["discount"], hp["gae_lambda"]
        assessed = experience.assess(policy, *decay)
        segments = experience.segment_losses(policy, *decay, self.chunk_steps)
        self._measure(collector, experience.valid, assessed.pop("value_error"))
        chunks = experience.chunks(self.chunk_steps, assessed)
        for epoch in range(self.update_epochs):
            pieces = torch.randperm(len(chunks["obs"]), generator=order).to(policy.device).chunk(self.minibatches)
            for chosen in pieces:
                yield {name: values[chosen] for name, values in chunks.items()} | {SEGMENT_LOSSES: segments}
                if collector.is_stale:  # the normalisation came with the new weights too
                    return
            divergence = policy.mean_kl()
            if self.target_kl is not None and divergence > self.target_kl:
                break
            if self.refresh and epoch + 1 < self.update_epochs:
                experience.refresh(policy)
                chunks["carry"] = experience.chunks(self.chunk_steps, {})["carry"]
        policy.obs_norm.update(*frames)  # only now: training compares the policy with the one that acted
        self.metrics["policy/steps_per_second"] = int(experience.valid.sum()) / (time.perf_counter() - begin)

    def _measure(self, collector: Collector, valid: Tensor, error: Tensor) -> None:
        self.steps += int(valid.sum())
        self.rollouts += 1
        speed = {name: value for name, value in self.metrics.items() if name == "policy/steps_per_second"}
        self.metrics = {"policy/steps": float(self.steps), "policy/value_error": float(error[valid].mean()), **speed}
        if collector.returns:
            self.metrics["policy/return_mean"] = float(np.mean(collector.returns))
            self.metrics["policy/episode_steps"] = float(np.mean(collector.lengths))

    def _continuous(self, device: torch.device) -> Tensor:
        """(O,) bool, the entries that are normalised."""
        entries, _ = self.vectors.layout.continuous()
        return torch.from_numpy(np.append(entries, np.ones(self.vectors.layout.pixels, bool))).to(device)

    def _policy(self) -> Policy:
        assert self.trainer is not None and isinstance(self.trainer.lightning_module, Policy)
        return self.trainer.lightning_module

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "rollouts": self.rollouts, "env_id": self.env_id}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self.steps, self.rollouts = state_dict["steps"], state_dict["rollouts"]

    def val_dataloader(self) -> "_Batches":
        return _Batches(lambda: self._play("val"), 1)

    def test_dataloader(self) -> "_Batches":
        return _Batches(lambda: self._play("test"), 1)

    def _play(self, stage: Literal["val", "test"]) -> Iterator[Chunks]:
        """One batch: `return`, `length` and `success` (N,) of episodes that start the same way each time."""
        policy, num_envs = self._policy(), min(self.episodes, 20)
        simulator = make_simulator(self.env_id, num_envs, **self._make_options)
        draws = torch.Generator(policy.device).manual_seed(self.seed)
        agent = PolicyAgent(policy, self.vectors, num_envs, self.deterministic, draws, self.reset_every)
        self.episode_returns = played = play(simulator, agent, self.episodes, self.seed + SEEDS[stage])
        batch = {"return": played.returns, "length": played.lengths, "success": played.success}
        yield {name: torch.from_numpy(values) for name, values in batch.items() if values is not None}


class _Batches:
    """An epoch of Lightning's: `length` batches of an iterator."""

    def __init__(self, batches: Callable[[], Iterator[Chunks]], length: int) -> None:
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Chunks]:
        return self.batches()
