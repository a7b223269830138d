"""A planner in a world model: what it does at each step, and what it keeps until the next."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from worldmodel.agents.search import Objective, Plan, cem, expected_return, mppi
from worldmodel.errors import UserError, choose
from worldmodel.model import Model

Method = Literal["cem", "mppi"]
METHODS = ("cem", "mppi")


class Planner:
    """Chooses actions by planning H steps ahead at every step, from where the last plan ended (receding horizon).

    A candidate's score is the return that the model expects of it, rewards weighted by the probability that the episode
    still goes on; with a goal, how near its latents come to the goal's.

    Args:
        model: in evaluation mode.
        fresh: the plan to start an episode with, for a number of lanes; see planning.Plan.
        method: cem or mppi.
        candidates: N, sequences of actions a lane and iteration.
        iterations: of drawing and fitting, a step.
        elites: of cem.
        temperature: of mppi, in standard deviations of the scores.
        persistence: correlation of what is drawn at neighbouring steps.
        discount: of rewards, a step; None: the value head's, or 1 without one.
        goal: (Z,), the latent of an observation that is to be reached; None: rewards count.
        value: what follows behind the horizon, at latents (..., Z) and the states before them (..., D); None: what the
            model's value head says, or nothing without one.
        seed: of all that is drawn.

    Raises:
        UserError: for an unknown method, naming the nearest, or a number that does not do.
    """

    def __init__(
        self,
        model: Model,
        fresh: Callable[[int], Plan],
        method: str = "cem",
        candidates: int = 200,
        iterations: int = 4,
        elites: int = 20,
        temperature: float = 0.3,
        persistence: float = 0.5,
        discount: float | None = None,
        goal: Tensor | None = None,
        value: Callable[[Tensor, Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        choose("planner", method, METHODS)
        for name, number in (("candidates", candidates), ("iterations", iterations), ("elites", elites)):
            if number < 1:
                raise UserError(f"--{name} {number}: it must be at least 1")
        if not temperature > 0:
            raise UserError(f"--temperature {temperature}: it must be above 0")
        if discount is None:
            discount = 1.0 if model.value_discount is None else model.value_discount
        for name, share in (("persistence", persistence), ("discount", discount)):
            if not 0 <= share <= 1:
                raise UserError(f"--{name} {share}: it must lie between 0 and 1")
        self.model, self.fresh, self.discount, self.goal, self.value = model, fresh, discount, goal, value
        own = {"elites": elites} if method == "cem" else {"temperature": temperature}
        shared = {"candidates": candidates, "iterations": iterations, "persistence": persistence}
        self.search = partial(cem if method == "cem" else mppi, **own, **shared)
        self.candidates = candidates
        self.generator = torch.Generator(model.device).manual_seed(seed)
        self.plan: Plan | None = None

    def __call__(self, z: Tensor, h: Tensor, is_first: Tensor) -> Tensor:
        """Actions (B, A) in the units of the data, at latents z (B, Z) with the states before them h (B, D).

        Where an episode starts, `is_first` (B,), no earlier plan is gone on with.
        """
        start = self.fresh(len(z)) if self.plan is None else self.plan.shifted(is_first)
        self.plan = self.search(self.objective(z, h), start, self.generator)
        return self.plan.action

    def objective(self, z: Tensor, h: Tensor) -> Objective:
        """How good actions (B N, H, A) are from z (B, Z) and h (B, D), as scores (B N,)."""

        def score(actions: Tensor) -> Tensor:
            many = len(actions) // len(z)
            starts = z.repeat_interleave(many, dim=0), h.repeat_interleave(many, dim=0)
            made = self.model.outcome(*starts, actions)
            if self.goal is None:
                behind = (
                    self.model.value(made.h[:, -1]) if self.value is None else self.value(made.z[:, -1], made.h[:, -1])
                )
                return expected_return(made.reward, made.continues, self.discount, behind)
            distance = (made.z - self.goal).square().sum(dim=-1)
            return expected_return(-distance, torch.ones_like(distance), self.discount)

        return score
