"""The data of a policy: its own rollouts while it is trained, whole episodes where it is judged."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from worldmodel.agents.actor import Actor
from worldmodel.data.spaces import Json
from worldmodel.envs.as_vectors import AsVectors
from worldmodel.envs.evaluate import Played, play
from worldmodel.envs.make import Simulator, make_simulator
from worldmodel.envs.vector import SimulationError, close
from worldmodel.errors import UserError
from worldmodel.modules.collector import Collector
from worldmodel.modules.policy import SEGMENT_LOSSES, Policy
from worldmodel.stale_state import StaleState

SEEDS = {"val": 1_000_000, "test": 2_000_000}  # added to the seed: episodes of their own
VALIDATIONS = 10  # of a fit, where nothing else is asked for
Chunks = dict[str, Tensor]


class RolloutDataModule(pl.LightningDataModule):
    """Collects a rollout with the module's current weights, trains on it for some passes, and collects the next one.

    Training is one endless stream of minibatches, cut into Lightning's epochs at every validation; it ends with the
    budget of environment steps. A fit that goes on from a checkpoint goes on with new episodes.

    Args:
        env_id: of Gymnasium's registry, or module:ID where a module registers it.
        env_kwargs: further arguments of gymnasium.make.
        max_episode_steps: null: the environment's own limit.
        observe: entries of a vector observation, or keys of a Dict, that the policy sees; null: all.
        num_envs: N, environments that step together.
        vectorization: in this process, or each in its own.
        total_steps: the budget, transitions of all environments together; the last rollout does not pass it.
        rollout_steps: T, of every environment between two rounds of training.
        passes: over each rollout.
        minibatches: optimizer steps of a pass.
        chunk_steps: C, the horizon of truncated BPTT.
        burn_in_steps: L, frames before a chunk that the stored state is run through, without gradient.
        refresh: make the stored states anew behind each pass.
        max_kl: no further pass over a rollout once the policy has moved this far from the one that acted; null: never.
        on_weight_change: what becomes of the states when others than the optimizer change the weights.
        on_weight_change_steps: frames that `burn_in` runs through then.
        episodes: of a validation and of a test.
        deterministic: the likeliest actions there; else drawn ones.
        val_every: environment steps between two validations; null: a tenth of the budget.
        reset_every: K; in validation and test the state starts from zeros at every K-th frame of an episode too.
        seed: null: that of seed_everything.
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
        passes: int = 4,
        minibatches: int = 4,
        chunk_steps: int = 32,
        burn_in_steps: int = 0,
        refresh: bool = False,
        max_kl: float | None = None,
        on_weight_change: StaleState = "burn_in",
        on_weight_change_steps: int = 32,
        episodes: int = 20,
        deterministic: bool = True,
        val_every: int | None = None,
        reset_every: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        given = dict(locals())
        counts = ("num_envs", "total_steps", "rollout_steps", "passes", "minibatches", "chunk_steps", "episodes")
        counts += ("on_weight_change_steps", "val_every", "reset_every", "max_episode_steps")
        for name, least in (*((name, 1) for name in counts), ("burn_in_steps", 0), ("seed", 0)):
            if given[name] is not None and given[name] < least:
                raise UserError(f"data.{name} is {given[name]}: it must be at least {least}")
        if max_kl is not None and not max_kl > 0:
            raise UserError(f"data.max_kl is {max_kl}: it must be above 0, or null")
        if num_envs * rollout_steps > total_steps:
            raise UserError(
                f"data.total_steps is {total_steps}, less than one rollout of data.num_envs {num_envs} x"
                f" data.rollout_steps {rollout_steps} steps"
            )
        self.env_id, self.observe, self.num_envs = env_id, observe, num_envs
        self._made_with = {"max_episode_steps": max_episode_steps, "env_kwargs": env_kwargs, "masks": True}
        self._made_with["vectorization"] = vectorization
        self.total_steps, self.rollout_steps = total_steps, rollout_steps
        self.passes, self.chunk_steps, self.burn_in_steps = passes, chunk_steps, burn_in_steps
        pieces = num_envs * -(-rollout_steps // chunk_steps)
        if minibatches > pieces:
            raise UserError(f"data.minibatches is {minibatches}, and a rollout has only {pieces} chunks to share out")
        self.minibatches = minibatches
        self.refresh, self.max_kl = refresh, max_kl
        self.on_weight_change: StaleState = on_weight_change
        self.on_weight_change_steps = on_weight_change_steps
        self.episodes, self.deterministic, self.reset_every = episodes, deterministic, reset_every
        self.val_every = val_every or max(1, total_steps // VALIDATIONS)
        self.seed = seed if seed is not None else torch.initial_seed() % 2**31
        self.steps = self.rollouts = 0  # transitions and rollouts so far
        self.metrics: dict[str, float] = {}  # of the last rollout, in the names they are logged under
        self.played: Played | None = None  # the last validation or test
        self.collector: Collector | None = None
        self.returns: Sequence[float] = ()  # of the last hundred training episodes
        self._train: Simulator | None = None
        self._stream: Iterator[Chunks] | None = None
        self._vectors: AsVectors | None = None

    # --- the environments ----------------------------------------------------------------------------------------

    def simulator(self, num_envs: int) -> Simulator:
        """So many of the environments; a UserError where they cannot be made."""
        return make_simulator(self.env_id, num_envs, **self._made_with)

    @property
    def train(self) -> Simulator:
        """The environments that rollouts come from."""
        if self._train is None:
            self._train = self.simulator(self.num_envs)
        return self._train

    @property
    def vectors(self) -> AsVectors:
        """What the policy sees."""
        if self._vectors is None:
            envs = self.train.envs
            self._vectors = AsVectors(envs.single_observation_space, envs.single_action_space, self.observe)
        return self._vectors

    @property
    def obs_dim(self) -> int:
        """Entries of an observation as a vector: vectors, then pixels."""
        return self.vectors.layout.obs_dim

    @property
    def images(self) -> list[tuple[int, int, int]]:
        """(H, W, C) of each image in an observation."""
        return list(self.vectors.layout.images.values())

    @property
    def action_space(self) -> Json:
        """As plain data."""
        return self.vectors.layout.action_space

    def teardown(self, stage: str) -> None:
        if self.collector is not None:
            self.collector.close()
        if self._train is not None:
            close(self._train.envs)
        self._train = self.collector = self._stream = None

    # --- training ------------------------------------------------------------------------------------------------

    @property
    def planned_batches(self) -> int:
        """Optimizer steps of the budget, if no rollout is left early."""
        return self.total_steps // (self.num_envs * self.rollout_steps) * self.passes * self.minibatches

    def train_dataloader(self) -> "_Endless":
        rollouts = max(1, self.val_every // (self.num_envs * self.rollout_steps))
        return _Endless(self, rollouts * self.passes * self.minibatches)

    def stream(self) -> Iterator[Chunks]:
        """The minibatches from here to the end of the budget; the same iterator for all who ask."""
        if self._stream is None:
            self._stream = self._minibatches()
        return self._stream

    def _minibatches(self) -> Iterator[Chunks]:
        policy = self._policy()
        first = self.seed + self.num_envs * self.rollouts  # a fit that goes on does not see its first episodes again
        self.collector = Collector(
            policy, self.train, self.vectors, first, self.burn_in_steps, self.on_weight_change,
            self.on_weight_change_steps,
        )  # fmt: skip
        self.returns = self.collector.returns
        while not self.rollouts or self.steps + self.num_envs * self.rollout_steps <= self.total_steps:
            yield from self._trained_on(self.collector, policy)
        assert self.trainer is not None
        self.trainer.should_stop = True

    def _trained_on(self, collector: Collector, policy: Policy) -> Iterator[Chunks]:
        """The minibatches of one rollout, as long as its policy's weights are trained on and not replaced."""
        begin, hp = time.perf_counter(), policy.hparams
        draws = torch.Generator(policy.device).manual_seed(self.seed * 1_000_003 + self.rollouts)
        order = torch.Generator().manual_seed(self.seed * 1_000_003 + self.rollouts)
        try:
            rollout = collector.collect(self.rollout_steps, draws)
        except SimulationError as error:
            raise UserError(f"{self.env_id}, {error}") from error
        if not bool(rollout.obs.isfinite().all() & rollout.reward.isfinite().all()):
            raise UserError(f"{self.env_id} gave an observation or reward that is NaN or infinite: mend it first")
        frames = rollout.obs[:, rollout.earlier : -1], rollout.valid, self._continuous(policy.device)
        if not int(policy.obs_norm.batches):  # its first actions hardly depend on what it sees
            policy.obs_norm.update(*frames)
            rollout.refresh(policy)
        ahead = hp["discount"], hp["trace"]
        assessed, segments = rollout.assess(policy, *ahead), rollout.segment_losses(policy, *ahead, self.chunk_steps)
        self._acknowledge(collector, rollout.valid, assessed.pop("value_error"))
        chunks = rollout.chunks(self.chunk_steps, assessed)
        for number in range(self.passes):
            pieces = torch.randperm(len(chunks["obs"]), generator=order).to(policy.device).chunk(self.minibatches)
            for chosen in pieces:
                yield {name: values[chosen] for name, values in chunks.items()} | {SEGMENT_LOSSES: segments}
                if collector.outdated:  # also what is normalised came with the weights
                    return
            divergence = policy.mean_kl()
            if self.max_kl is not None and divergence > self.max_kl:
                break
            if self.refresh and number + 1 < self.passes:
                rollout.refresh(policy)
                chunks["carry"] = rollout.chunks(self.chunk_steps, {})["carry"]
        policy.obs_norm.update(*frames)  # not before: the policy that acted must be the one that is compared with
        self.metrics["policy/steps_per_second"] = int(rollout.valid.sum()) / (time.perf_counter() - begin)

    def _acknowledge(self, collector: Collector, valid: Tensor, error: Tensor) -> None:
        self.steps += int(valid.sum())
        self.rollouts += 1
        speed = {name: value for name, value in self.metrics.items() if name == "policy/steps_per_second"}
        self.metrics = {"policy/steps": float(self.steps), "policy/value_error": float(error[valid].mean()), **speed}
        if collector.returns:
            self.metrics["policy/return_mean"] = float(np.mean(collector.returns))
            self.metrics["policy/episode_steps"] = float(np.mean(collector.lengths))

    def _continuous(self, device: torch.device) -> Tensor:
        """(O,) bool, which entries have a scale that normalisation should take away."""
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

    # --- whole episodes ------------------------------------------------------------------------------------------

    def val_dataloader(self) -> "_Episodes":
        return _Episodes(self, "val")

    def test_dataloader(self) -> "_Episodes":
        return _Episodes(self, "test")

    def play(self, stage: Literal["val", "test"]) -> Played:
        """Episodes of the module as it is now; the same starts whenever it is asked."""
        policy = self._policy()
        simulator = self.simulator(min(self.episodes, 20))
        draws = torch.Generator(policy.device).manual_seed(self.seed)
        num_envs = simulator.envs.num_envs
        actor = Actor(policy, self.vectors, num_envs, self.deterministic, draws, self.reset_every)
        try:
            self.played = play(simulator, actor, self.episodes, self.seed + SEEDS[stage])
        except SimulationError as error:
            raise UserError(f"{self.env_id}, {error}") from error
        finally:
            close(simulator.envs)
        return self.played


class _Endless:
    """The stream of minibatches, of which `length` are an epoch of Lightning's."""

    def __init__(self, data: RolloutDataModule, length: int) -> None:
        self.data, self.length = data, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Chunks]:
        return self.data.stream()


class _Episodes:
    """One batch: what whole episodes came to, (N,) each."""

    def __init__(self, data: RolloutDataModule, stage: Literal["val", "test"]) -> None:
        self.data = data
        self.stage: Literal["val", "test"] = stage

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Chunks]:
        played = self.data.play(self.stage)
        batch = {"return": torch.from_numpy(played.returns), "length": torch.from_numpy(played.lengths)}
        yield batch if played.success is None else {**batch, "success": torch.from_numpy(played.success)}
