"""The model itself: encoder, latent predictor, decoder and heads, in the units of the data. It needs torch alone."""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from worldmodel.base import KNOTS, PER_OCTAVE, Line, LinearBase, Rollout
from worldmodel.batch import Batch
from worldmodel.cells.recurrence import previous_states
from worldmodel.errors import UserError, at_least
from worldmodel.members import apart, mean, packed
from worldmodel.mixture import MixtureHead
from worldmodel.nets import MLP, Normalizer, observation_decoder, observation_encoder, own_net
from worldmodel.parts import PartError, digests, named_by
from worldmodel.predictor import ClosedLoop, LatentPredictor, OpenLoop

LEVELS = (0.5, 0.9, 0.95)  # of a distribution's intervals


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


class Seen(NamedTuple):
    """What a model makes of a segment's frames before its state advances."""

    z: Tensor  # (B, T, Z)
    inputs: Tensor  # (B, T, X), of the encoder
    h: Tensor | None  # (B, D), before the segment; under exact gradients wider (rtrl.py)
    line: Line | None  # what the base predicts of the next frames
    after: Tensor | None  # (B, C), the base's part of the carry

    def carry(self, h: Tensor) -> Tensor:
        """The carry after the segment, from the state after it (B, D)."""
        return h if self.after is None else torch.cat([h, self.after.to(h.dtype)], dim=-1)


class Model(nn.Module):
    """A recurrent latent world model on vectors, images or tokens.

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

    @property
    def state_dim(self) -> int:
        """The width of the state; of members, side by side."""
        return self.members * self.predictor.state_dim

    def initial_carry(self, obs: Tensor) -> Tensor:
        """The carry at an episode's start, zeros (B, C), for the lanes of obs (B, ..., O)."""
        width = self.state_dim + (0 if self.base is None else self.base.carry_dim)
        return obs.new_zeros(len(obs), width, dtype=self.obs_norm.mean.dtype)

    def see(self, obs: Tensor, action: Tensor, is_first: Tensor, carry: Tensor | None) -> Seen:
        """Encode a segment's frames: obs (B, T, O) and action (B, T, A), both normalised, the carry before them.

        Members share the latents; their states are side by side.
        """
        if self.base is None:
            return Seen(self.encoder(obs), obs, carry, None, None)
        width = self.base.carry_dim
        h, known = (None, None) if carry is None else (carry[:, :-width], carry[:, -width:].to(obs.dtype))
        memory, line, after = self.base.observe(obs, action, is_first, known)
        inputs = self.base.features(memory)
        return Seen(torch.cat([self.encoder(inputs), memory], dim=-1), inputs, h, line, after)

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

    def closed_loop(
        self, obs: Tensor, action: Tensor, is_first: Tensor, carry: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict each next observation from all before it: obs (B, T, O), action (B, T, A), is_first (B, T) bool.

        Returns the predicted observation of frame t + 1 (B, T, O), the states (B, T, D), the carry (B, C), which is the
        state and what the base knows. `carry` is that before the first frame; None: an episode's start.
        """
        seen, loop = self.follow(obs, action, is_first, carry)
        if seen.line is None:
            return (
                mean(self.decode(loop.pred), self.members),
                packed(loop.h, self.members),
                packed(loop.carry, self.members),
            )
        pred = seen.line.pred + seen.line.scale * mean(self.decoder(loop.pred), self.members)
        return self.obs_norm.inverse(pred), packed(loop.h, self.members), seen.carry(packed(loop.carry, self.members))

    def observe(
        self, obs: Tensor, action: Tensor, is_first: Tensor, carry: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `closed_loop`, without decoding: the z of the frames (B, T, Z), the states, the carry."""
        seen, loop = self.follow(obs, action, is_first, carry)
        return seen.z, packed(loop.h, self.members), seen.carry(packed(loop.carry, self.members))

    def follow(self, obs: Tensor, action: Tensor, is_first: Tensor, carry: Tensor | None) -> tuple[Seen, ClosedLoop]:
        """As `closed_loop`, before anything is decoded: what was seen, and the predictor's loop, of members' lanes."""
        action = self.action_norm(action)
        seen = self.see(self.obs_norm(obs), action, is_first, carry)
        return seen, self.looped(self.latent(seen.z), action, is_first, seen.h)

    def looped(self, z: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None) -> ClosedLoop:
        """The predictor's loop, of members' lanes (K B, T, ...), on latents that they share (B, T, latent_dim).

        Args:
            z: the latents.
            action: (B, T, A) normalised.
            is_first: (B, T).
            h: (B, K D) the states before the segment; None: zeros.
        """
        if self.members > 1:
            z, action = (apart(x, x.shape[-1], self.members) for x in (z, action))
            is_first = is_first.repeat(self.members, 1)
            h = None if h is None else apart(h, self.predictor.state_dim, self.members)
        return self.predictor.closed_loop(z, action, is_first, h)

    def advance(self, z: Tensor, h: Tensor, action: Tensor) -> Tensor:
        """The carry (B, C) after a frame z (B, Z), the state before it h (B, D) and a normalised action (B, A)."""
        shared = self.of_members(z)[..., 0, :]
        z, h, a = self.lanes(shared, h, action)
        _, after = self.predictor.step(self.latent(z), h, a)
        after = packed(after, self.members)
        if self.base is None:
            return after
        return torch.cat([after, self.base.carried(shared[..., self.latent_dim :], action).to(after.dtype)], dim=-1)

    def lanes(self, z: Tensor, h: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z, h and actions (B, ..., A) as lanes of the members, (K B, ...) each."""
        if self.members == 1:
            return z, h, action
        widths = self.of_members(z).shape[-1], self.predictor.state_dim, action.shape[-1]
        z, h, action = (apart(x, width, self.members) for x, width in zip((z, h, action), widths, strict=True))
        return z, h, action

    def unroll(self, z: Tensor, h: Tensor, action: Tensor) -> OpenLoop:
        """Roll out from z (B, Z) and the state before it h (B, D) under normalised actions (B, H, A).

        Of several members these are lanes (K B, ...).
        """
        if self.base is None:
            return self.predictor.open_loop(z, h, action)
        if not self.base.feedback:
            return self._added(Rollout(self.base, z[..., self.latent_dim :]), z, h, action)
        run, latents, states = self.fed_back(z, h, action)
        return OpenLoop(torch.cat([latents, run.memories()], dim=-1), states)

    def fed_back(self, z: Tensor, h: Tensor, action: Tensor) -> tuple[Rollout, Tensor, Tensor]:
        """`unroll` on a base whose corrected predictions are fed back: its rollout, the latents (B, H, Z), the states.

        Without the memories that a rollout packs, which a loss does not ask for.
        """
        assert self.base is not None
        run, latents = Rollout(self.base, z[..., self.latent_dim :]), list[Tensor]()

        def feed(pred: Tensor, a_t: Tensor) -> Tensor:
            latents.append(self.encoder(run.step(a_t, self.decoder(pred))))
            return latents[-1]

        loop = self.predictor.open_loop(self.latent(z), h, action, feed)
        return run, torch.stack(latents, dim=1), loop.h

    def _added(self, run: Rollout, z: Tensor, h: Tensor, action: Tensor) -> OpenLoop:
        """The rollout whose corrections are added to what the base alone predicts."""
        latents = self.encoder(run.alone(action))
        never = torch.zeros(action.shape[:2], dtype=torch.bool, device=action.device)
        before = torch.cat([self.latent(z).unsqueeze(1), latents[:, :-1]], dim=1)
        loop, parts = self.predictor.closed_loop(before, action, never, h), run.base.unpacked(run.memories())
        memory = parts._replace(innovation=self.decoder(loop.pred))
        return OpenLoop(torch.cat([latents, *memory], dim=-1), loop.h)

    def open_loop(self, z: Tensor, h: Tensor, action: Tensor) -> Imagined:
        """Roll out from z (B, Z) and the state before it h (B, D) under actions (B, H, A)."""
        outcome = self.outcome(z, h, action)
        return Imagined(self.decode(outcome.z), *outcome)

    def outcome(self, z: Tensor, h: Tensor, action: Tensor) -> Outcome:
        """As `open_loop`, without decoding: what a plan is judged by."""
        loop = self.unroll(*self.lanes(z, h, self.action_norm(action)))
        pred, h = packed(loop.pred, self.members), packed(loop.h, self.members)
        return Outcome(*self.expected(h), pred, h)

    def gate(self, batch: Batch, h: Tensor) -> Tensor | None:
        """The share of each state entry that the steps of a batch overwrote (B, T, D), given its states h (B, T, D)."""
        action, is_first = self.action_norm(batch["action"]), batch["is_first"]
        seen = self.see(self.obs_norm(batch["obs"][:, :-1]), action, is_first, batch.get("carry"))
        before = previous_states(h, is_first, seen.h)
        z, before, action = self.lanes(seen.z, before, action)
        gate = self.predictor.gate(self.latent(z), action, before)
        return None if gate is None else packed(gate, self.members)

    def interval(self, ahead: Tensor) -> Tensor:
        """Half the width of the intervals of LEVELS (3, K, O), so many steps (K,) ahead, in deviations of futures."""
        return self.widths[:, (PER_OCTAVE * ahead.clamp(min=1).log2()).round().long().clamp(max=KNOTS - 1)]

    def expected(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The reward (...) in the units of the data, and the continue probability (...), after states (..., D)."""
        reward, continues = self.head_outputs(h)
        return self.reward_norm.inverse(reward.unsqueeze(-1)).squeeze(-1), continues.sigmoid()

    def value(self, h: Tensor) -> Tensor | None:
        """The return after states (..., D) under the policy of the data, (...); None without a value head."""
        if self.value_head is None or self.value_discount is None:
            return None
        per_step = self._headed(self.value_head, h).squeeze(-1)  # of the size of a reward's deviation
        return per_step * self.reward_norm.scale / (1 - self.value_discount)

    def head_outputs(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised reward (...) and the continue logit (...) after states (..., D); zeros with `tokens`."""
        if self.heads is None:
            return torch.zeros_like(h[..., 0]), torch.zeros_like(h[..., 0])
        reward, continues = self._headed(self.heads, h).unbind(dim=-1)
        return reward, continues

    def _headed(self, head: nn.Module, h: Tensor) -> Tensor:
        """What a head says after states (..., D); of members that are packed (..., K D), their mean."""
        if self.members == 1:
            return head(self.predictor.cell.read(h))
        return head(self.predictor.cell.read(h.unflatten(-1, (-1, self.predictor.state_dim)))).mean(dim=-2)


def normal_widths(obs_dim: int) -> Tensor:
    """Those of a normal distribution (3, KNOTS, O), until they are measured (evaluation/calibration.py)."""
    quantile = torch.special.ndtri((1 + torch.tensor(LEVELS)) / 2)
    return quantile[:, None, None].expand(-1, KNOTS, obs_dim).clone()


ARGUMENTS = tuple(signature(Model).parameters)
OWN = ("rule", "encoder", "decoder")  # arguments that may name code of the user's own
DEFAULTS = {name: p.default for name, p in signature(Model).parameters.items() if p.default is not Parameter.empty}


def own_parts(arguments: Mapping[str, Any]) -> dict[str, str]:
    """The parts of a user's own among a model's arguments: name -> SHA-256 of the file (parts.digests)."""
    return digests(arguments.get(name) for name in OWN)


def rebuilt(
    arguments: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    path: Any,
    trust: bool = False,
    recorded: Mapping[str, str] | None = None,
) -> Model:
    """A model in evaluation mode, from the arguments and weights that a file holds; further ones are ignored.

    A rule, encoder or decoder of the user's own that the file names is run if the user trusts it; if it is not as
    `recorded`, a warning says so.

    Its size is compared with the weights before it takes any memory, and the random generator is left as it was. If the
    weights are those of another model, UserError names the file by its `path`.
    """
    own = {name: arguments[name] for name in ARGUMENTS if name in arguments}
    deepest = max((own[name] for name in ("depth", "head_depth") if isinstance(own.get(name), int)), default=0)
    try:
        if deepest > len(tensors):
            raise ValueError(f"it names {deepest} layers and holds {len(tensors)} tensors")
        with named_by(path, trust, recorded), torch.random.fork_rng(devices=[]):
            with torch.device("meta"):
                wanted = {name: tensor.shape for name, tensor in Model(**own).state_dict().items()}
            if missing := next((name for name in wanted if name not in tensors), None):
                raise ValueError(f"it holds no {missing}")
            if wrong := next((name for name, shape in wanted.items() if tensors[name].shape != shape), None):
                raise ValueError(f"{wrong} is {tuple(tensors[wrong].shape)}, not {tuple(wanted[wrong])}")
            model = Model(**own)
        model.load_state_dict({name: tensors[name] for name in wanted})
    except PartError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, OverflowError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is of another version of this program, or damaged: {reason}") from error
    return model.eval()
