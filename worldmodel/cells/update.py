"""What every cell offers, and the cells around rules whose proposals come from one matmul."""

from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel import rules
from worldmodel.nets import layer_norm, linear

RESIDUAL_START = 0.01  # share of the usual initial weights
SLOTS = 8


class Cell(nn.Module):
    """Parameters around an update rule, in three parts, so that only what depends on h is inside the time loop.

        project(z, a) -> x      the inputs of a whole segment in one matmul, in any leading shape
        step(x_t, h) -> h_next  one step
        read(h)                 what heads see of the state

    `state_dim` is the width of h, `read_dim` that of read(h). The last `exact_dim` entries of read(h) hold at any
    length, and ask for a head that tries them first (nets.StagewiseHead). The state at an episode's start is zeros.
    K members side by side have an axis K in front of all parameters (members.side_by_side), of z, a, x and h.
    """

    state_dim: int
    read_dim: int
    exact_dim = 0

    def project(self, z: Tensor, a: Tensor) -> Tensor:
        raise NotImplementedError

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        raise NotImplementedError

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        """The share of each entry that a step from h overwrites; None for a rule without a gate."""
        return None

    def read(self, h: Tensor) -> Tensor:
        return h


class UpdateCell(Cell):
    """A rule with its proposals from one matmul.

    One layer: proposals = W_x [z, a] + W_h h + b.
    Two layers: proposals = W_o silu(LayerNorm(W_x [z, a] + W_h h + b)) + b_o.
    The gate's bias starts at `gate_bias`; with -1 a new cell keeps 73% of its state at each step. `residual` has no
    gate, and its candidates start near zero (as in Zhang et al. 2019, Fixup): otherwise the state of a new cell,
    carried through a long episode, would drown its inputs or overflow, and nothing would be learned.
    `widths` are those of the proposals; None: `hidden_dim` each.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        rule: str | rules.Rule,
        layers: int,
        gate_bias: float,
        widths: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.rule = rules.RULES[rule] if isinstance(rule, str) else rule
        self.state_dim = self.read_dim = hidden_dim
        names = proposed_by(self.rule)
        self.gated = names[0] == "gate"
        self.widths = widths or [hidden_dim] * len(names)
        self.input = nn.Linear(input_dim, sum(self.widths) if layers == 1 else hidden_dim)
        self.recurrent = nn.Linear(hidden_dim, self.input.out_features, bias=False)
        self.norm = nn.LayerNorm(hidden_dim) if layers == 2 else None
        self.output = nn.Linear(hidden_dim, sum(self.widths)) if layers == 2 else None
        last = self.input if self.output is None else self.output
        if self.gated:
            nn.init.constant_(last.bias[:hidden_dim], gate_bias)
        if self.rule is rules.residual:
            with torch.no_grad():
                last.weight.mul_(RESIDUAL_START)
                last.bias.mul_(RESIDUAL_START)
                if self.output is None:
                    self.recurrent.weight.zero_()

    def project(self, z: Tensor, a: Tensor) -> Tensor:
        return linear(torch.cat([z, a], dim=-1), self.input)

    def propose(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """The rule's arguments after h."""
        proposed = proposals(x, self.read(h), self.recurrent, self.norm, self.output)
        return proposed.to(h.dtype).split(self.widths, dim=-1)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return self.rule(h, *self.propose(x, h))

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        return torch.sigmoid(self.propose(x, h)[0]) if self.gated else None


class Slots(UpdateCell):
    """Eight slots, each as wide as `hidden_dim`, of which a step writes one; see `rules.slots` for the equations.

    A router looks at the input and at the last read, and picks the slot; the others keep their value exactly, however
    long they are not picked. So memory does not wear out, and holds eight times what one state vector does. What is
    read depends on the input, but read(h) gets h alone: therefore the last read is part of the state, [slots, read],
    nine times `hidden_dim` wide. Heads see the read, D wide, as do the next step's proposals. A slot is found by its
    content (`query`, as in attention) and by its number (`address`), as in the neural Turing machine (Graves et al.
    2014, arXiv 1410.5401). |h_i| <= sqrt(D - 1), D = `hidden_dim`, for any finite input.
    """

    def __init__(self, input_dim: int, hidden_dim: int, layers: int, gate_bias: float) -> None:
        widths = [hidden_dim, hidden_dim, SLOTS, hidden_dim, SLOTS]  # gate, candidate, route, query, address
        super().__init__(input_dim, hidden_dim, "slots", layers, gate_bias, widths)
        self.state_dim = (SLOTS + 1) * hidden_dim

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        """Of the slot that is written, (..., D): the others are not touched."""
        gate, _, route, _, _ = self.propose(x, h)
        return torch.sigmoid(rules.write_gate(gate, route))

    def read(self, h: Tensor) -> Tensor:
        return h[..., -self.read_dim :]


class SLSTM(UpdateCell):
    """xLSTM's cell of scalar memories (Beck et al. 2024, arXiv 2405.04517); see `rules.slstm` for the equations.

    Its proposals see the input and the hidden vector, with one head: every unit sees all others. The state packs
    [hidden, c, n, m], four times `hidden_dim`; heads see the hidden vector. `gate` is i / n', the exact share of c / n
    that a step replaces, 1 at an episode's first frame. A new cell forgets at rates 1 - sigmoid(3) to 1 - sigmoid(6),
    within 20 to 400 steps, while no larger input gate takes over.
    """

    def __init__(self, input_dim: int, hidden_dim: int, layers: int) -> None:
        super().__init__(input_dim, hidden_dim, "slstm", layers, gate_bias=0.0)
        self.state_dim = 4 * hidden_dim
        last = self.input if self.output is None else self.output
        with torch.no_grad():
            last.bias[hidden_dim : 2 * hidden_dim] = torch.linspace(3, 6, hidden_dim)

    def gate(self, x: Tensor, h: Tensor) -> Tensor | None:
        write, keep, _, _ = self.propose(x, h)
        _, _, norm, peak = h.chunk(4, dim=-1)
        written, kept, _ = rules.slstm_gates(write, keep, norm, peak)
        return written / (kept * norm + written)

    def read(self, h: Tensor) -> Tensor:
        return h[..., : self.read_dim]


class Memoryless(Cell):
    """h_next = silu(W [z, a] + b), whatever h was: the baseline of recurrent policies, as wide as their state."""

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.state_dim = self.read_dim = hidden_dim
        self.input = nn.Linear(input_dim, hidden_dim)

    def project(self, z: Tensor, a: Tensor) -> Tensor:
        return F.silu(self.input(torch.cat([z, a], dim=-1)))

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return x.to(h.dtype)


def proposed_by(rule: rules.Rule) -> list[str]:
    """The names of the arguments after h that a rule needs: those without a default."""
    return [name for name, each in [*signature(rule).parameters.items()][1:] if each.default is each.empty]


def proposals(
    x: Tensor, read: Tensor, recurrent: nn.Linear, norm: nn.LayerNorm | None, output: nn.Linear | None
) -> Tensor:
    """x + W_h read in one layer; W_o silu(LayerNorm(x + W_h read)) + b_o in two.

    x (..., X) is the input's share, W_x [z, a] + b; read (..., R) is what the cell sees of its state.
    """
    # one operation instead of two where it is a step: rollouts are made of short ones
    total = torch.addmm(x, read, recurrent.weight.T) if x.ndim == 2 else x + linear(read, recurrent)
    return total if norm is None or output is None else linear(F.silu(layer_norm(total, norm)), output)
