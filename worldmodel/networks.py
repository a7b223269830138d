"""The networks of a model, and what they make of a frame or a state: encoder, predictor, decoder and heads."""

from typing import Literal, cast

import torch
from torch import Tensor, nn

from worldmodel.base import KNOTS, LinearBase
from worldmodel.errors import UserError, at_least
from worldmodel.mixture import MixtureHead
from worldmodel.nets import MLP, Normalizer, observation_decoder, observation_encoder, own_net
from worldmodel.predictor import LatentPredictor
from worldmodel.two_hot import Point, TwoHot

LEVELS = (0.5, 0.9, 0.95)  # of a distribution's intervals


class Networks(nn.Module):
    """The parts of a recurrent latent world model on vectors, images or tokens, in the units of the data.

    Args:
        obs_dim: Number of entries of an observation: the vector, then the pixels of the images.
        action_dim: Number of entries of an action (one-hot where discrete).
        images: Shape [H, W, C] of each image in an observation; null: no images.
        latent_dim: Width of the latent z.
        hidden_dim: Width of the hidden state h.
        rule: Update rule of the hidden state, a name of RULES, or your own, file.py:name.
        layers: Number of layers of the update network, 1 or 2; gru, lstm and rules that see the input alone are
            stacked.
        gate_bias: Initial bias of the gate, for the gated rules; at -1 a new cell keeps 73% of its state at each step.
        width: Width of the hidden layers of encoder, decoder and heads.
        depth: Number of hidden layers of encoder and decoder; 0: linear.
        channels: Channels of the first convolution, where there are images; each further one has twice as many.
        head_depth: Number of hidden layers between the hidden state and the predicted latent; 0: linear.
        objective: What the model is trained for, and what its latents are: reconstruction, latent or tokens.
        base: What predictions correct: a linear autoregression (linear), the last observation (last), or nothing
            (none). Null: linear for vectors under the objective reconstruction, else nothing.
        base_lags: Number of frames that a linear base reads. Null: chosen by its error on held-out training episodes.
        feedback: Whether in open loop corrected predictions take the place of observations. Without it the base is
            rolled out alone and the corrections are added: for plants that follow their inputs, simulated for long.
        output: What is predicted of the next observation: its mean (point), or a distribution around it, for each entry
            a normal one (gaussian), or a mixture of several for all entries together (mixture).
        components: Number of a mixture's components.
        members: Number of predictors, each with its own start and its own state, that are trained side by side. The
            prediction is their mean; how far they are apart shows what the data have not settled.
        encoder: Your own encoder, file.py:name, called with its input's width and latent_dim; null: an MLP, and
            convolutions of images. With a base its input is the observation, how far the base was off, and the last
            movement, 3 obs_dim wide; without one the observation, normalised.
        decoder: Your own decoder, file.py:name, called with latent_dim and obs_dim; null: the mirror of the encoder.
        value_discount: Discount of a value head, which learns the return after a step under the policy that collected
            the data, so that a planner sees past its horizon; null: no value head.
        reward_head: What the reward head and the value head give: a number that learns by its squared error (point), or
            probabilities of bins that learn by cross-entropy (two_hot), for rewards of several scales.

    Raises:
        UserError: if a size is too small, or they do not go together.
    """

    widths: Tensor

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
        base: Literal["linear", "last", "none"] | None = None,
        base_lags: int | None = None,
        feedback: bool = True,
        output: Literal["point", "gaussian", "mixture"] = "point",
        components: int = 5,
        members: int = 1,
        encoder: str | None = None,
        decoder: str | None = None,
        value_discount: float | None = None,
        reward_head: Literal["point", "two_hot"] = "point",
    ) -> None:
        super().__init__()
        sizes = {"latent_dim": latent_dim, "hidden_dim": hidden_dim, "width": width, "base_lags": base_lags}
        at_least(1, "model.", components=components, members=members, **sizes)
        at_least(0, "model.", depth=depth, channels=channels, head_depth=head_depth)
        self.is_tokens, self.latent_dim, self.members = objective == "tokens", latent_dim, members
        if members > 1 and objective != "reconstruction":
            raise UserError(f"model.members {members} is for the objective reconstruction: leave it out")
        if self.is_tokens and images:
            raise UserError("model.objective tokens does not know images: choose reconstruction or latent")
        self.obs_norm, self.action_norm, self.reward_norm = map(Normalizer, (obs_dim, action_dim, 1))
        fits = objective == "reconstruction" and not images
        if not fits and base in ("linear", "last"):
            raise UserError(f"model.base {base} is for vectors under the objective reconstruction: leave it out")
        self.base = LinearBase(obs_dim, action_dim, base_lags or 1, feedback) if fits and base != "none" else None
        if self.base is None and not feedback:
            raise UserError("model.feedback false is for models with a base (--model.base linear): leave it out")
        nets = images or [], latent_dim, width, 0 if self.is_tokens else depth, channels
        inputs = obs_dim if self.base is None else self.base.features_dim
        offered = {"images": images or [], "width": width, "depth": depth, "channels": channels}
        if self.is_tokens and (encoder or decoder):
            raise UserError("model.encoder and model.decoder are not for tokens, which are embedded: leave them out")
        if encoder is None:
            self.encoder = observation_encoder(inputs, *nets)
        else:
            self.encoder = own_net(encoder, "encoder", inputs, latent_dim, **offered)
        if self.is_tokens:
            embedding = cast(nn.Linear, cast(nn.Sequential, self.encoder)[-1])
            nn.init.normal_(embedding.weight, std=3.0)  # tokens far from each other: gates and counters tell them apart
        self.predictor = LatentPredictor(
            latent_dim, action_dim, hidden_dim, rule, layers, gate_bias, head_depth, self.is_tokens, members
        )
        if decoder is None:
            self.decoder = observation_decoder(obs_dim, *nets)
        else:
            self.decoder = own_net(decoder, "decoder", latent_dim, obs_dim, **offered)
        if self.base is not None:  # a new model is nearly its base; at zero no gradient would reach the rule
            last = [layer for layer in self.decoder.modules() if isinstance(layer, nn.Linear)][-1:]
            with torch.no_grad():
                for parameter in (parameter for layer in last for parameter in layer.parameters()):
                    parameter.mul_(0.01)
        if output != "point" and (objective != "reconstruction" or images or not feedback):
            raise UserError(
                f"model.output {output} is for vectors under the objective reconstruction, with feedback: leave it out"
            )
        count = 1 if output == "gaussian" else components
        self.noise = None if output == "point" else MixtureHead(latent_dim, obs_dim, width, count)
        if self.noise is not None:
            self.register_buffer("widths", normal_widths(obs_dim))
        if self.is_tokens and reward_head != "point":
            raise UserError(f"model.reward_head {reward_head} is not for tokens, which have no rewards: leave it out")
        form = TwoHot if reward_head == "two_hot" else Point
        self.reward_form, self.value_form = form(), form()  # of normalised rewards; of returns in deviations a step
        self.heads = None if self.is_tokens else MLP(self.predictor.read_dim, form.size + 1, width, 1)  # and continue
        if value_discount is not None and (self.is_tokens or not 0 <= value_discount < 1):
            raise UserError(
                f"model.value_discount is {value_discount}: it must be at least 0 and below 1, and without tokens"
            )
        self.value_discount = value_discount
        self.value_head = None if value_discount is None else MLP(self.predictor.read_dim, form.size, width, 1)

    @property
    def device(self) -> torch.device:
        """Where its inputs must be."""
        return self.obs_norm.mean.device

    @property
    def state_dim(self) -> int:
        """The width of the state; of members, side by side."""
        return self.members * self.predictor.state_dim

    def initial_carry(self, obs: Tensor) -> Tensor:
        """The carry at an episode's start, zeros (B, C), for the lanes of obs (B, ..., O)."""
        width = self.state_dim + (0 if self.base is None else self.base.carry_dim)
        return obs.new_zeros(len(obs), width, dtype=self.obs_norm.mean.dtype)

    def of_members(self, z: Tensor) -> Tensor:
        """The latents of all members, or the one that they share, in z (..., Z) or (..., K Z): (..., 1 or K, Z)."""
        return z.unflatten(-1, (-1, self.latent_dim + (0 if self.base is None else self.base.memory_dim)))

    def encode(self, obs: Tensor) -> Tensor:
        """The z (..., Z) of observations (..., O); with a base, of those that begin an episode."""
        obs = self.obs_norm(obs)
        if self.base is None:
            return self.encoder(obs)
        memory = self.base.begun(obs)
        return torch.cat([self.encoder(self.base.features(memory)), memory], dim=-1)

    def place(self, z: Tensor) -> Tensor:
        """What distances between frames are measured in: with a base the normalised observation, else the latent."""
        each = self.of_members(z)
        return (each if self.base is None else self.base.corrected(each[..., self.latent_dim :])).mean(dim=-2)

    def latent(self, z: Tensor) -> Tensor:
        """What the state's update takes of one member's z (..., Z), without the base's memory (..., latent_dim)."""
        return z[..., : self.latent_dim]

    def decode(self, z: Tensor) -> Tensor:
        """z (..., Z) -> observations (..., O), of members their mean; with `tokens` the probabilities of each token."""
        if self.is_tokens:
            return self.decoder(z).softmax(dim=-1)
        return self.decode_each(z).mean(dim=-2)

    def decode_each(self, z: Tensor) -> Tensor:
        """The observations of each member (..., K, O); where they share z, of the one, (..., 1, O)."""
        each = self.of_members(z)
        if self.base is not None:
            return self.obs_norm.inverse(self.base.shown(each[..., self.latent_dim :]))
        return self.obs_norm.inverse(self.decoder(each))

    def disagreement(self, z: Tensor) -> Tensor:
        """How far the members are apart (...) at z (..., K Z): root mean square, in deviations of the observations."""
        each = self.of_members(z)
        obs = self.decoder(each) if self.base is None else self.base.corrected(each[..., self.latent_dim :])
        return obs.var(dim=-2).mean(dim=-1).sqrt()

    def expected(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The reward (...) in the units of the data, and the continue probability (...), after states (..., D)."""
        reward, continues = self.head_outputs(h)
        return self.reward_norm.inverse(reward.unsqueeze(-1)).squeeze(-1), continues.sigmoid()

    def value(self, h: Tensor) -> Tensor | None:
        """The return after states (..., D) under the policy of the data, (...); None without a value head."""
        if self.value_head is None or self.value_discount is None:
            return None
        per_step = self.value_form.expected(self.headed(self.value_head, h)).mean(dim=-1)
        return per_step * self.reward_norm.scale / (1 - self.value_discount)

    def head_outputs(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised reward (...) and the continue logit (...) after states (..., D); zeros with `tokens`."""
        if self.heads is None:
            return torch.zeros_like(h[..., 0]), torch.zeros_like(h[..., 0])
        outputs = self.headed(self.heads, h)
        return self.reward_form.expected(outputs[..., :-1]).mean(dim=-1), outputs[..., -1].mean(dim=-1)

    def headed(self, head: nn.Module, h: Tensor) -> Tensor:
        """What a head gives after states (..., D), or packed (..., K D): of each member, (..., K, X)."""
        if self.members == 1:
            return head(self.predictor.cell.read(h)).unsqueeze(-2)
        return head(self.predictor.cell.read(h.unflatten(-1, (-1, self.predictor.state_dim))))

    def fit_rewards(self, least: float, greatest: float, deviation: float) -> None:
        """Let the bins of two-hot heads reach as far as rewards and returns can, after `reward_norm` was fitted.

        Args:
            least: of the rewards, in the units of the data.
            greatest: likewise.
            deviation: mean absolute deviation of the rewards from their mean, the unit in which bins are spaced.
        """
        if not (isinstance(self.reward_form, TwoHot) and isinstance(self.value_form, TwoHot)):
            return
        mean, scale = float(self.reward_norm.mean), float(self.reward_norm.scale)
        unit = deviation / scale if deviation > 1e-6 * (1 + abs(mean)) else 1.0
        self.reward_form.fit((least - mean) / scale, (greatest - mean) / scale, unit)
        # a return per step is a mean of rewards, and of zeros after a terminal state
        self.value_form.fit(min(least, 0.0) / scale, max(greatest, 0.0) / scale, unit)


def normal_widths(obs_dim: int) -> Tensor:
    """Those of a normal distribution (3, KNOTS, O), until they are measured (evaluation/calibration.py)."""
    quantile = torch.special.ndtri((1 + torch.tensor(LEVELS)) / 2)
    return quantile[:, None, None].expand(-1, KNOTS, obs_dim).clone()
