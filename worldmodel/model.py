"""The model itself: encoder, latent predictor, decoder and heads, in the units of the data. It needs torch alone."""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from worldmodel.batch import Batch
from worldmodel.cells.recurrence import previous_states
from worldmodel.errors import UserError
from worldmodel.nets import MLP, Normalizer, observation_decoder, observation_encoder
from worldmodel.predictor import LatentPredictor


class Imagined(NamedTuple):
    """An open-loop rollout in the units of the data."""

    obs: Tensor  # (B, H, O)
    reward: Tensor  # (B, H)
    continues: Tensor  # (B, H): probability that the step does not end in a terminal state
    z: Tensor  # (B, H, Z)
    h: Tensor  # (B, H, D)


class Outcome(NamedTuple):
    """An open-loop rollout without its observations."""

    reward: Tensor  # (B, H), in the units of the data
    continues: Tensor  # (B, H): probability that the step does not end in a terminal state
    z: Tensor  # (B, H, Z)
    h: Tensor  # (B, H, D)


class Model(nn.Module):
    """A recurrent latent world model on vectors, images or tokens.

    Args:
        obs_dim: Number of entries of an observation: the vector, then the pixels of the images.
        action_dim: Number of entries of an action (one-hot where discrete).
        images: Shape [H, W, C] of each image in an observation; null: no images.
        latent_dim: Width of the latent z.
        hidden_dim: Width of the hidden state h.
        rule: Update rule of the hidden state, a name of RULES.
        layers: Number of layers of the update network, 1 or 2; gru and lstm are stacked.
        gate_bias: Initial bias of the gate, for the gated rules; at -1 a new cell keeps 73% of its state at each step.
        width: Width of the hidden layers of encoder, decoder and heads.
        depth: Number of hidden layers of encoder and decoder; 0: linear.
        channels: Channels of the first convolution, where there are images; each further one has twice as many.
        head_depth: Number of hidden layers between the hidden state and the predicted latent; 0: linear.
        objective: What the model is trained for, and what its latents are: reconstruction, latent or tokens.
        value_discount: Discount of a value head, which learns the return after a step under the policy that collected
            the data, so that a planner sees past its horizon; null: no value head.

    Raises:
        UserError: if a size is too small, or they do not go together.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        images: list[tuple[int, int, int]] | None = None,
        latent_dim: int = 32,
        hidden_dim: int = 128,
        rule: str = "gated_norm",
        layers: int = 2,
        gate_bias: float = -1.0,
        width: int = 128,
        depth: int = 1,
        channels: int = 16,
        head_depth: int = 1,
        objective: Literal["reconstruction", "latent", "tokens"] = "reconstruction",
        value_discount: float | None = None,
    ) -> None:
        super().__init__()
        at_least = {"latent_dim": (latent_dim, 1), "hidden_dim": (hidden_dim, 1), "width": (width, 1)}
        at_least |= {"depth": (depth, 0), "channels": (channels, 1), "head_depth": (head_depth, 0)}
        for name, (value, least) in at_least.items():
            if value < least:
                raise UserError(f"model.{name} is {value}: it must be at least {least}")
        self.is_tokens, self.latent_dim = objective == "tokens", latent_dim
        if self.is_tokens and images:
            raise UserError("model.objective tokens does not know images: choose reconstruction or latent")
        self.obs_norm, self.action_norm, self.reward_norm = map(Normalizer, (obs_dim, action_dim, 1))
        nets = obs_dim, images or [], latent_dim, width, 0 if self.is_tokens else depth, channels
        self.encoder = observation_encoder(*nets)
        if self.is_tokens:
            embedding = cast(nn.Linear, cast(nn.Sequential, self.encoder)[-1])
            nn.init.normal_(embedding.weight, std=3.0)  # tokens far from each other: gates and counters tell them apart
        self.predictor = LatentPredictor(
            latent_dim, action_dim, hidden_dim, rule, layers, gate_bias, head_depth, self.is_tokens
        )
        self.decoder = observation_decoder(*nets)
        self.heads = None if self.is_tokens else MLP(self.predictor.read_dim, 2, width, 1)  # reward, continue
        if value_discount is not None and (self.is_tokens or not 0 <= value_discount < 1):
            raise UserError(
                f"model.value_discount is {value_discount}: it must be at least 0 and below 1, and without tokens"
            )
        self.value_discount = value_discount
        self.value_head = None if value_discount is None else MLP(self.predictor.read_dim, 1, width, 1)

    @property
    def device(self) -> torch.device:
        """Where its inputs must be."""
        return self.obs_norm.mean.device

    def encode(self, obs: Tensor) -> Tensor:
        """Observations (..., O) -> latents (..., Z)."""
        return self.encoder(self.obs_norm(obs))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (..., Z) -> observations (..., O); with `tokens` the probabilities of each token."""
        if self.is_tokens:
            return self.decoder(z).softmax(dim=-1)
        return self.obs_norm.inverse(self.decoder(z))

    def closed_loop(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict each next observation from all before it: obs (B, T, O), action (B, T, A), is_first (B, T) bool.

        Returns the predicted observation of frame t + 1 (B, T, O), the states (B, T, D), the carry (B, D). h (B, D) is
        the state before the first frame; None: zeros.
        """
        loop = self.predictor.closed_loop(self.encode(obs), self.action_norm(action), is_first, h)
        return self.decode(loop.pred), loop.h, loop.carry

    def observe(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `closed_loop`, without decoding: the latents of the frames (B, T, Z), the states, the carry."""
        z = self.encode(obs)
        loop = self.predictor.closed_loop(z, self.action_norm(action), is_first, h)
        return z, loop.h, loop.carry

    def open_loop(self, z: Tensor, h: Tensor, action: Tensor) -> Imagined:
        """Roll out from a latent z (B, Z) and the state before it h (B, D) under actions (B, H, A)."""
        outcome = self.outcome(z, h, action)
        return Imagined(self.decode(outcome.z), *outcome)

    def outcome(self, z: Tensor, h: Tensor, action: Tensor) -> Outcome:
        """As `open_loop`, without decoding: what a plan is judged by."""
        loop = self.predictor.open_loop(z, h, self.action_norm(action))
        return Outcome(*self.expected(loop.h), loop.pred, loop.h)

    def gate(self, batch: Batch, h: Tensor) -> Tensor | None:
        """The share of each state entry that the steps of a batch overwrote (B, T, D), given its states h (B, T, D)."""
        z, a = self.encode(batch["obs"][:, :-1]), self.action_norm(batch["action"])
        return self.predictor.gate(z, a, previous_states(h, batch["is_first"], batch.get("carry")))

    def expected(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The reward (...) in the units of the data, and the continue probability (...), after states (..., D)."""
        reward, continues = self.head_outputs(h)
        return self.reward_norm.inverse(reward.unsqueeze(-1)).squeeze(-1), continues.sigmoid()

    def value(self, h: Tensor) -> Tensor | None:
        """The return after states (..., D) under the policy of the data, (...); None without a value head."""
        if self.value_head is None or self.value_discount is None:
            return None
        per_step = self.value_head(self.predictor.cell.read(h)).squeeze(-1)  # of the size of a reward's deviation
        return per_step * self.reward_norm.scale / (1 - self.value_discount)

    def head_outputs(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised reward (...) and the continue logit (...) after states (..., D); zeros with `tokens`."""
        if self.heads is None:
            return torch.zeros_like(h[..., 0]), torch.zeros_like(h[..., 0])
        reward, continues = self.heads(self.predictor.cell.read(h)).unbind(dim=-1)
        return reward, continues


ARGUMENTS = tuple(signature(Model).parameters)
DEFAULTS = {name: p.default for name, p in signature(Model).parameters.items() if p.default is not Parameter.empty}


def rebuilt(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Any) -> Model:
    """A model in evaluation mode, from the arguments and weights that a file holds; further ones are ignored.

    Its size is compared with the weights before it takes any memory, and the random generator is left as it was. If the
    weights are those of another model, UserError names the file by its `path`.
    """
    own = {name: arguments[name] for name in ARGUMENTS if name in arguments}
    deepest = max((own[name] for name in ("depth", "head_depth") if isinstance(own.get(name), int)), default=0)
    try:
        if deepest > len(tensors):
            raise ValueError(f"it names {deepest} layers and holds {len(tensors)} tensors")
        with torch.random.fork_rng(devices=[]):
            with torch.device("meta"):
                wanted = {name: tensor.shape for name, tensor in Model(**own).state_dict().items()}
            if missing := next((name for name in wanted if name not in tensors), None):
                raise ValueError(f"it holds no {missing}")
            if wrong := next((name for name, shape in wanted.items() if tensors[name].shape != shape), None):
                raise ValueError(f"{wrong} is {tuple(tensors[wrong].shape)}, not {tuple(wanted[wrong])}")
            model = Model(**own)
        model.load_state_dict({name: tensors[name] for name in wanted})
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, OverflowError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is of another version of this program, or damaged: {reason}") from error
    return model.eval()
