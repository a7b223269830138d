"""An actor and a critic that live in a world model: they read what it remembers, and imagine with it."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from worldmodel.agents.distributions import ActionSpace, Categorical, Gaussian
from worldmodel.errors import UserError
from worldmodel.model import Model, rebuilt
from worldmodel.nets import MLP

LEAST_LOG_STD = -3.0  # a Box's actions scatter by a twentieth of half its range, at least, and by all of it at most


class Imagination(NamedTuple):
    """Rollouts of H steps in the model, under the actor."""

    features: Tensor  # (S, H + 1, F), of the frames
    reward: Tensor  # (S, H), in the units of the data
    proceeds: Tensor  # (S, H): probability that the step does not end in a terminal state
    log_prob: Tensor  # (S, H), of the actions that were drawn
    entropy: Tensor  # (S, H)


class ImaginedPolicy(nn.Module):
    """Actor and critic on the features [z_t, read(h)] of a world model, h being the state before frame t.

    Args:
        world: the model; its weights are not to change.
        action_space: of the data, as plain data, see distributions.ActionSpace.
        width: of the hidden layers.
        depth: hidden layers.
        discount: of rewards, a step.
    """

    def __init__(self, world: Model, action_space: Mapping[str, Any], width: int, depth: int, discount: float) -> None:
        super().__init__()
        self.discount = discount
        self.world = world.requires_grad_(False).eval()
        self.actions = ActionSpace(action_space)
        inputs = world.latent_dim + world.predictor.read_dim
        self.actor = MLP(inputs, self.actions.num_outputs, width, depth)
        self.critic = MLP(inputs, 1, width, depth)
        with torch.no_grad():  # at first all actions are about as likely
            for head in (self.actor, self.critic):
                last = cast(nn.Linear, head[-1])
                last.weight.mul_(0.01)
                last.bias.zero_()

    def train(self, mode: bool = True) -> "ImaginedPolicy":
        """The world stays as it is."""
        super().train(mode)
        self.world.eval()
        return self

    def features(self, z: Tensor, h: Tensor) -> Tensor:
        """Of latents (..., Z) with the states before them (..., D): (..., F)."""
        return torch.cat([z, self.world.predictor.cell.read(h)], dim=-1)

    def distribution(self, features: Tensor) -> Categorical | Gaussian:
        """Of actions, at features (..., F)."""
        outputs = self.actor(features)
        if self.actions.is_box:
            mean, log_std = outputs.chunk(2, dim=-1)
            outputs = torch.cat([mean.tanh(), LEAST_LOG_STD * (1 - (log_std + 2).sigmoid())], dim=-1)
        return self.actions.distribution(outputs)

    def forward(self, z: Tensor, h: Tensor, is_first: Tensor) -> Tensor:
        """What an Agent does: the likeliest action, (B, A), at z (B, Z) and the state before it h (B, D)."""
        return self.actions.features(self.distribution(self.features(z, h)).mode)

    @property
    def unit(self) -> Tensor:
        """What the critic counts in, (1,): a reward's deviation, for as many steps as the discount looks ahead."""
        return self.world.reward_norm.scale / (1 - self.discount)

    def value(self, z: Tensor, h: Tensor) -> Tensor:
        """The return to come under the actor (...), at z (..., Z) and the state before it h (..., D)."""
        return self.critic(self.features(z, h)).squeeze(-1) * self.unit

    def imagine(self, z: Tensor, h: Tensor, horizon: int, generator: torch.Generator | None = None) -> Imagination:
        """Roll out from latents z (S, Z) with the states before them h (S, D), under actions drawn from the actor.

        Differentiable in the actor's parameters, through the actions where they are a Box's.
        """
        world, seen = self.world, [self.features(z, h)]
        made: list[tuple[Tensor, ...]] = []
        for _ in range(horizon):
            distribution = self.distribution(seen[-1])
            action = distribution.sample(generator)
            z, _, h = world.predictor(z, h, world.action_norm(self.actions.features(action)))
            made.append((*world.expected(h), distribution.log_prob(action.detach()), distribution.entropy()))
            seen.append(self.features(z, h))
        reward, proceeds, log_prob, entropy = (torch.stack(part, dim=1) for part in zip(*made, strict=True))
        return Imagination(torch.stack(seen, dim=1), reward, proceeds, log_prob, entropy)


def rebuilt_policy(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Any) -> ImaginedPolicy:
    """A policy with its world, in evaluation mode, from what a checkpoint of `imagine` holds.

    Raises:
        UserError: if it is not the policy that the weights are of.
    """
    own = {name.removeprefix("world."): tensor for name, tensor in tensors.items() if name.startswith("world.")}
    try:
        world = rebuilt(arguments["world_arguments"], own, path)
        shape = (arguments[name] for name in ("action_space", "width", "depth", "discount"))
        policy = ImaginedPolicy(world, *shape)
        policy.load_state_dict({name: tensors[name] for name in policy.state_dict()})
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is of another version of this program, or damaged: {reason}") from error
    return policy.eval()
