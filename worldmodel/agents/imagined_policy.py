"""An actor and a critic on the states of a world model, and their rollouts in it."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from worldmodel.agents.distributions import ActionSpace, Categorical, Gaussian
from worldmodel.errors import UserError
from worldmodel.model import Model
from worldmodel.nets import MLP
from worldmodel.restore import rebuilt

MIN_LOG_STD = -3.0  # of a Box's actions, relative to half its range; the maximum is 0


class Imagination(NamedTuple):
    """S rollouts of H steps in the model, under the actor."""

    features: Tensor  # (S, H + 1, F), of the frames
    reward: Tensor  # (S, H), in the units of the data
    continues: Tensor  # (S, H): probability that the step does not end in a terminal state
    log_prob: Tensor  # (S, H), of the actions
    entropy: Tensor  # (S, H)


class ImaginedPolicy(nn.Module):
    """Actor and critic on the features [z_t, read(h)] of a world model, h being the state before frame t.

    Args:
        world: the model; its weights do not change.
        action_space: of the data, as plain data, see distributions.ActionSpace.
        width: of the hidden layers.
        depth: number of hidden layers.
        discount: of rewards.
    """

    def __init__(self, world: Model, action_space: Mapping[str, Any], width: int, depth: int, discount: float) -> None:
        super().__init__()
        if world.members > 1:
            raise UserError(
                "a policy is trained in the imagination of one predictor, and this model has several members"
            )
        self.discount = discount
        self.world = world.requires_grad_(False).eval()
        self.actions = ActionSpace(action_space)
        inputs = world.latent_dim + world.predictor.read_dim
        self.actor = MLP(inputs, self.actions.num_outputs, width, depth)
        self.critic = MLP(inputs, 1, width, depth)
        with torch.no_grad():  # initially all actions are about equally likely
            for head in (self.actor, self.critic):
                last = cast(nn.Linear, head[-1])
                last.weight.mul_(0.01)
                last.bias.zero_()

    def train(self, mode: bool = True) -> "ImaginedPolicy":
        """Change the mode of actor and critic; the world stays in evaluation mode."""
        super().train(mode)
        self.world.eval()
        return self

    def features(self, z: Tensor, h: Tensor) -> Tensor:
        """The inputs of actor and critic (..., F), from latents (..., Z) and the states before them (..., D)."""
        return torch.cat([self.world.latent(z), self.world.predictor.cell.read(h)], dim=-1)

    def distribution(self, features: Tensor) -> Categorical | Gaussian:
        """Of actions, at features (..., F)."""
        outputs = self.actor(features)
        if self.actions.is_box:
            mean, log_std = outputs.chunk(2, dim=-1)
            outputs = torch.cat([mean.tanh(), MIN_LOG_STD * (1 - (log_std + 2).sigmoid())], dim=-1)
        return self.actions.distribution(outputs)

    def forward(self, z: Tensor, h: Tensor, is_first: Tensor) -> Tensor:
        """The most likely action (B, A), at z (B, Z) and the state before it h (B, D): a Chooser of agents.agent."""
        return self.actions.features(self.distribution(self.features(z, h)).mode)

    @property
    def unit(self) -> Tensor:
        """The critic's unit, (1,): a reward's standard deviation times the discount's horizon."""
        return self.world.reward_norm.scale / (1 - self.discount)

    def value(self, z: Tensor, h: Tensor) -> Tensor:
        """The expected return under the actor (...), at z (..., Z) and the state before it h (..., D)."""
        return self.critic(self.features(z, h)).squeeze(-1) * self.unit

    def imagine(self, z: Tensor, h: Tensor, horizon: int, generator: torch.Generator | None = None) -> Imagination:
        """Roll out from latents z (S, Z) with the states before them h (S, D), under actions drawn from the actor.

        Differentiable in the actor's parameters through a Box's actions.
        """
        world, features = self.world, [self.features(z, h)]
        steps: list[tuple[Tensor, ...]] = []
        for _ in range(horizon):
            distribution = self.distribution(features[-1])
            action = distribution.sample(generator)
            step = world.unroll(z, h, world.action_norm(self.actions.features(action)).unsqueeze(1))
            z, h = step.pred[:, 0], step.h[:, 0]
            steps.append((*world.expected(h), distribution.log_prob(action.detach()), distribution.entropy()))
            features.append(self.features(z, h))
        columns = (torch.stack(column, dim=1) for column in zip(*steps, strict=True))
        return Imagination(torch.stack(features, dim=1), *columns)


def rebuilt_policy(
    arguments: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    path: Any,
    trust: bool = False,
    recorded: Mapping[str, str] | None = None,
) -> ImaginedPolicy:
    """A policy with its world, in evaluation mode, from a checkpoint of `imagine`; see `restore.rebuilt`.

    Raises:
        UserError: if the weights do not fit the arguments.
    """
    own = {name.removeprefix("world."): tensor for name, tensor in tensors.items() if name.startswith("world.")}
    try:
        world = rebuilt(arguments["world_arguments"], own, path, trust, recorded)
        shape = (arguments[name] for name in ("action_space", "width", "depth", "discount"))
        policy = ImaginedPolicy(world, *shape)
        policy.load_state_dict({name: tensors[name] for name in policy.state_dict()})
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is of another version of this program, or damaged: {reason}") from error
    return policy.eval()
