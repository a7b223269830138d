"""A planner in a world model: receding-horizon control by cem or mppi."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from worldmodel.agents.search import Objective, Plan, elite_weights, expected_return, search, softmax_weights
from worldmodel.errors import UserError, at_least, choose
from worldmodel.model import Model

METHODS = ("cem", "mppi")


class Planner:
    """Plans H steps ahead at every step, starting from the previous plan (receding horizon).

    A candidate's score is its expected return in the model, with rewards weighted by the probability that the episode
    continues; with a goal, the negative squared distance between its frames' places and the goal's.

    Args:
        model: in evaluation mode.
        fresh: makes an episode's first plan for a number of lanes, see trained.fresh_plan.
        method: cem or mppi.
        candidates: N, sequences of actions for each lane and iteration.
        iterations: number of times the plan is fitted to candidates, each step.
        elites: number of candidates that cem fits the plan to.
        temperature: of mppi, in standard deviations of the scores.
        persistence: correlation of a candidate's noise at neighbouring steps.
        discount: of rewards; None: that of the value head, or 1 without one.
        penalty: what it costs at each step that the model's members are apart by one deviation of the observations, in
            deviations of the reward (as in Yu et al. 2020, MOPO, arXiv 2005.13239); with a goal, in its distance.
        goal: a place to reach, see Model.place; None: maximise rewards.
        value: gives the return after the horizon, from latents (..., Z) and the states before them (..., D); None: the
            model's value head, or zero without one.
        seed: of the candidates.

    Raises:
        UserError: for an unknown method or an invalid number.
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
        penalty: float = 0.0,
        goal: Tensor | None = None,
        value: Callable[[Tensor, Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        choose("planner", method, METHODS)
        at_least(1, "--", candidates=candidates, iterations=iterations, elites=elites)
        if not temperature > 0:
            raise UserError(f"--temperature is {temperature}: it must be above 0")
        if not penalty >= 0:
            raise UserError(f"--penalty is {penalty}: it must be at least 0")
        if penalty and model.members == 1:
            raise UserError("--penalty takes a model of several members (fit --model.members 5), and this one has one")
        if discount is None:
            discount = 1.0 if model.value_discount is None else model.value_discount
        for name, share in (("persistence", persistence), ("discount", discount)):
            if not 0 <= share <= 1:
                raise UserError(f"--{name} is {share}: it must be from 0 to 1")
        self.model, self.fresh, self.discount, self.goal, self.value = model, fresh, discount, goal, value
        self.penalty = penalty
        weights = {"cem": partial(elite_weights, elites=elites)}
        weights["mppi"] = partial(softmax_weights, temperature=temperature)
        self.options = {"candidates": candidates, "iterations": iterations, "persistence": persistence}
        self.weights = weights[method]
        self.generator = torch.Generator(model.device).manual_seed(seed)
        self.plan: Plan | None = None

    def __call__(self, z: Tensor, h: Tensor, is_first: Tensor) -> Tensor:
        """Actions (B, A) in the units of the data, at latents z (B, Z) with the states before them h (B, D).

        A lane's plan starts from scratch where an episode starts, `is_first` (B,).
        """
        start = self.fresh(len(z)) if self.plan is None else self.plan.shifted(is_first)
        self.plan = search(self.objective(z, h), start, self.weights, self.generator, **self.options)
        return self.plan.action

    def objective(self, z: Tensor, h: Tensor) -> Objective:
        """A function from actions (B N, H, A) to their scores (B N,) from z (B, Z) and h (B, D)."""

        def score(actions: Tensor) -> Tensor:
            candidates = len(actions) // len(z)
            starts = z.repeat_interleave(candidates, dim=0), h.repeat_interleave(candidates, dim=0)
            made = self.model.outcome(*starts, actions)
            doubt = self.penalty * self.model.disagreement(made.z) if self.penalty else None
            if self.goal is None:
                z_last, h_last = made.z[:, -1], made.h[:, -1]
                value = self.model.value(h_last) if self.value is None else self.value(z_last, h_last)
                reward = made.reward if doubt is None else made.reward - self.model.reward_norm.scale * doubt
                return expected_return(reward, made.continues, self.discount, value)
            distance = (self.model.place(made.z) - self.goal).square().sum(dim=-1)
            distance = distance if doubt is None else distance + doubt
            return expected_return(-distance, torch.ones_like(distance), self.discount)

        return score
