"""Triad: gated channels, counters and latches in one state."""

import torch
from torch import Tensor, nn

from worldmodel import rules
from worldmodel.cells.update import Cell, proposals
from worldmodel.nets import linear

COUNTERS = 16
LATCHES = 8
NEAR = (-1.0, 0.0, 1.0)  # counts that heads can tell from all others, on tokens
STILL = 0.25  # share of the usual initial weights: inputs with a standard deviation of 1 then round to no increment


class Triad(Cell):
    """`hidden_dim` gated channels, 16 counters and 8 latches in one state; see `rules.triad` for the equations.

    Long rollouts need a state that does not expand, latches need several stable states, counting needs marginal
    integration. No single recurrence offers all three, so three kinds of channels share a state:
    - counters add -1, 0 or 1, and which depends on the current input alone: nothing recurrent can spoil a count. On
      tokens they start random, without bias: of 16, some count what a task asks for before any training. On
      observations they start still: random counts would be noise to all other channels;
    - latches take a value or keep it exactly; whether and what depends on the last two inputs, so that "the one after
      the key" can be written. The input before comes as its share of the latches' proposals, 16 numbers, which wait in
      the state for one step (zeros at an episode's start: no input was before);
    - gated channels are `gated_norm`, and do all the rest.
    Gated channels and heads read the gated channels, tanh(c) and the latches; with `tokens` heads also read
    exp(-2 (c - k)^2) for k = -1, 0, 1 ("the count is k") and tanh(pending), which gives the current input. Nobody reads
    c itself, so a count far beyond the trained ones looks like a large one. Everything that is read is at most
    max(1, sqrt(D - 1)) for any finite input, D = `hidden_dim`. All but the gated channels holds at any length; with
    `tokens` it is the `exact_dim` entries that a head tries first. The state is [gated, counters, latches, pending],
    `hidden_dim` + 40 wide.

    One layer: gate and candidate = W_x [z, a] + W_r [m, tanh(c), l] + b, m the gated channels.
    Two layers: W_o silu(LayerNorm(W_x [z, a] + W_r [m, tanh(c), l] + b)) + b_o. Counters and latches are linear in
    [z, a] in both. The biases of gates and of the latches' writes start at `gate_bias`: with -1 a new latch seldom
    writes.
    """

    def __init__(self, input_dim: int, hidden_dim: int, layers: int, gate_bias: float, tokens: bool = False) -> None:
        super().__init__()
        self.state_widths = [hidden_dim, COUNTERS, LATCHES, 2 * LATCHES]
        self.state_dim = sum(self.state_widths)
        features = COUNTERS + LATCHES
        self.exact_dim = features + len(NEAR) * COUNTERS + 2 * LATCHES if tokens else 0
        self.read_dim = hidden_dim + (self.exact_dim or features)
        driven = 2 * hidden_dim if layers == 1 else hidden_dim
        self.widths = [driven, COUNTERS, LATCHES, LATCHES, 2 * LATCHES]  # increment, write, value, later
        self.input = nn.Linear(input_dim, sum(self.widths))
        self.recurrent = nn.Linear(hidden_dim + features, driven, bias=False)
        self.norm = nn.LayerNorm(hidden_dim) if layers == 2 else None
        self.output = nn.Linear(hidden_dim, 2 * hidden_dim) if layers == 2 else None
        write = driven + COUNTERS
        nn.init.constant_((self.input if self.output is None else self.output).bias[:hidden_dim], gate_bias)
        nn.init.zeros_(self.input.bias[driven:write])
        if not tokens:
            self.input.weight.data[driven:write] *= STILL
        nn.init.constant_(self.input.bias[write : write + LATCHES], gate_bias)
        nn.init.zeros_(self.input.bias[write + 2 * LATCHES :])  # `later` joins a sum that has a bias

    def project(self, z: Tensor, a: Tensor) -> Tensor:
        widths = [self.widths[0], COUNTERS, 4 * LATCHES]
        driven, increment, latches = linear(torch.cat([z, a], dim=-1), self.input).split(widths, dim=-1)
        return torch.cat([driven, rules.ternary(increment), latches], dim=-1)  # rounded outside the time loop

    def propose(self, driven: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """Gate and candidate of the gated channels."""
        proposed = proposals(driven, self.features(h), self.recurrent, self.norm, self.output)
        return proposed.to(h.dtype).chunk(2, dim=-1)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        driven, *others = x.to(h.dtype).split(self.widths, dim=-1)
        return rules.triad(h, *self.propose(driven, h), *others)

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        """Of the gated channels, (..., D)."""
        return torch.sigmoid(self.propose(x[..., : self.widths[0]], h)[0])

    def features(self, h: Tensor) -> Tensor:
        """[gated, tanh(c), latches], which the gated channels read."""
        gated, counters, latches, _ = h.split(self.state_widths, dim=-1)
        return torch.cat([gated, torch.tanh(counters), latches], dim=-1)

    def read(self, h: Tensor) -> Tensor:
        """The same for heads; with tokens [..., exp(-2 (c + 1)^2), exp(-2 c^2), exp(-2 (c - 1)^2), tanh(pending)]."""
        if not self.exact_dim:
            return self.features(h)
        _, counters, _, pending = h.split(self.state_widths, dim=-1)
        near = [torch.exp(-2 * (counters - k).square()) for k in NEAR]
        return torch.cat([self.features(h), *near, torch.tanh(pending)], dim=-1)
