"""The model itself, a frame after another: in closed loop over what it sees, in open loop over what it predicts."""

from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.base import KNOTS, PER_OCTAVE, Line, Rollout
from worldmodel.batch import Batch
from worldmodel.cells.recurrence import previous_states
from worldmodel.members import apart, mean, packed
from worldmodel.networks import Networks
from worldmodel.predictor import ClosedLoop, OpenLoop


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


class Model(Networks):
    """A recurrent latent world model in the units of the data; `Networks` has its arguments. It needs torch alone."""

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
