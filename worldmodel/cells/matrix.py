"""Cells of the rules in matrix_rules.py: matrices of values by keys, and a window of frames."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel import rules
from worldmodel.cells.update import Cell
from worldmodel.nets import linear, over_lanes

HEADS = 4
FEWEST_KEYS = 4  # of a head: a single one would leave nothing to choose
FRAMES = 4  # of the short convolution
WINDOW = 32  # frames that attention sees
SLOWEST_STEP, FASTEST_STEP = 1e-3, 0.1  # delta of a new cell
SLOWEST_RATE, FASTEST_RATE = 1.0, 16.0


class Heads(Cell):
    """`hidden_dim` values in four heads, or one each where there are fewer.

    Queries, keys and values, the proposals of the rule and `skip` are linear in [z, a]: nothing sees the state. What
    the rule reads is the last part of its own state, since read(h) gets h alone; heads of a model see it,
    `hidden_dim` wide. Output projection and norm of the papers' blocks are left to them: magnitudes count here.
    """

    input: nn.Linear

    def __init__(self, input_dim: int, hidden_dim: int, rule: str) -> None:
        super().__init__()
        self.rule = rules.RULES[rule]
        self.read_dim = hidden_dim
        self.heads = min(HEADS, hidden_dim)
        self.values = -(-hidden_dim // self.heads)

    def project(self, z: Tensor, a: Tensor) -> Tensor:
        return linear(torch.cat([z, a], dim=-1), self.input)


class MatrixCell(Heads):
    """`mamba2`, `gated_delta` or `mlstm`; see matrix_rules.py for the equations.

    A head has half as many keys as values, as in Gated DeltaNet, and at least four. Before a step queries, keys and
    values pass through silu of a causal convolution over four frames, one filter for each channel, as in the papers'
    blocks (xLSTM's leaves values out): so a value can be bound to what was seen just before it. Its last three frames
    are part of the state: [state of the rule, three frames of queries, keys, values]. Gates see the current frame
    alone. `gate` is beta / 2 for `gated_delta`; the others add and do not overwrite.

    A new cell has the decays of Mamba-2: rate e^(log A) with A uniform in [1, 16] and delta log-uniform in
    [0.001, 0.1]; heads of `mlstm` forget at rates 1 - sigmoid(3) to 1 - sigmoid(6), within 20 to 400 steps.
    """

    def __init__(self, input_dim: int, hidden_dim: int, rule: str) -> None:
        super().__init__(input_dim, hidden_dim, rule)
        heads = self.heads
        self.keys = max(FEWEST_KEYS, -(-self.values // 2))
        self.qkv = [heads * self.keys, heads * self.keys, hidden_dim]
        gates = {"mamba2": [heads], "gated_delta": [heads, heads], "mlstm": [heads, heads]}[rule]
        self.widths = [sum(self.qkv), *gates, hidden_dim, hidden_dim]  # the last two: output and skip
        self.input = nn.Linear(input_dim, sum(self.widths))
        convolved = self.widths[0]
        self.rule_dim = heads * self.values * self.keys + hidden_dim
        self.state_dim = self.rule_dim + (FRAMES - 1) * convolved
        bound = 1 / math.sqrt(FRAMES)  # as torch.nn.Conv1d
        self.filters = nn.Parameter(torch.empty(FRAMES, convolved).uniform_(-bound, bound))
        self.filter_bias = nn.Parameter(torch.empty(convolved).uniform_(-bound, bound))
        self.rate: nn.Parameter | None = None
        with torch.no_grad():
            if rule == "mlstm":
                self.rule_dim += heads * (self.keys + 1)
                self.state_dim += heads * (self.keys + 1)
                self.input.bias[convolved + heads : convolved + 2 * heads] = torch.linspace(3, 6, heads)
            else:
                self.rate = nn.Parameter(torch.empty(heads).uniform_(SLOWEST_RATE, FASTEST_RATE).log())
                step = torch.empty(heads).uniform_(math.log(SLOWEST_STEP), math.log(FASTEST_STEP)).exp()
                self.input.bias[convolved : convolved + heads] = step.expm1().log()  # softplus of it is the step

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        frame, *others = x.to(h.dtype).split(self.widths, dim=-1)
        before, past = h.split([self.rule_dim, self.state_dim - self.rule_dim], dim=-1)
        window = torch.cat([past, frame], dim=-1)
        frames = window.unflatten(-1, (FRAMES, -1))
        mixed = (frames * over_lanes(self.filters, 2)).sum(dim=-2) + over_lanes(self.filter_bias)
        query, key, value = F.silu(mixed).split(self.qkv, dim=-1)
        value = F.pad(value, (0, self.heads * self.values - self.read_dim))  # for the last head, which may lack some
        by_head = (part.unflatten(-1, (self.heads, -1)) for part in (query, key, value))
        own = () if self.rate is None else (over_lanes(self.rate),)
        after = self.rule(before, *by_head, *others, *own)
        return torch.cat([after, window[..., frame.shape[-1] :]], dim=-1)

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        if self.rule is not rules.gated_delta:
            return None
        strength = x.split(self.widths, dim=-1)[2]
        return torch.sigmoid(strength).repeat_interleave(self.values, dim=-1)[..., : self.read_dim]

    def read(self, h: Tensor) -> Tensor:
        return h[..., self.rule_dim - self.read_dim : self.rule_dim]


class Attention(Heads):
    """Attention over the last 32 frames, whose keys and values are the state; see `matrix_rules.attention`.

    Its heads share keys and values, a fourth of `hidden_dim` wide, so that the state is small (multi-query attention,
    Shazeer 2019, arXiv 1911.02150). An episode's start clears it. One layer compares what frames hold; two can follow
    an order, such as "what came after this the last time" (Olsson et al. 2022, arXiv 2209.11895).
    """

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__(input_dim, hidden_dim, "attention")
        self.state_dim = WINDOW * 2 * self.values + 1 + hidden_dim
        self.widths = [self.heads * self.values, self.values, self.values, hidden_dim]
        self.input = nn.Linear(input_dim, sum(self.widths))
        self.bias = nn.Parameter(torch.zeros(self.heads, WINDOW))

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        query, key, value, skip = x.to(h.dtype).split(self.widths, dim=-1)
        return self.rule(h, query.unflatten(-1, (self.heads, -1)), key, value, over_lanes(self.bias, 2), skip)

    def read(self, h: Tensor) -> Tensor:
        return h[..., -self.read_dim :]
