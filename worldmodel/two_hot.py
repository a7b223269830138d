"""A number from a head: its one output (point), or the mean of probabilities over bins (two-hot)."""

import torch
from torch import Tensor, nn

from worldmodel.losses import cross_entropy

BINS = 101
REACH = 100.0  # of the bins, in the number's units, until `TwoHot.fit` is called


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|), entry by entry: linear near zero, logarithmic far from it."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp(|x|) - 1), the inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


class Point(nn.Module):
    """A head's one output is the number, trained by its squared error."""

    size = 1

    def expected(self, output: Tensor) -> Tensor:
        """The number (...) of outputs (..., 1)."""
        return output.squeeze(-1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The squared error (...) of outputs (..., 1) against targets (...)."""
        return (output.squeeze(-1) - target).square()


class TwoHot(nn.Module):
    """A head's outputs are the logits of bins, whose mean is the number, trained by cross-entropy.

    A target is shared out between the two bins beside it, so that their mean is the target: where the cross-entropy is
    least, the head's mean is the targets' mean. Its gradient is at most 1 in each logit, however large the error is: a
    rare large number does not drown many small ones. The bins are evenly spaced in symlog, in a unit of the data, and
    reach as far as the data. (Bellemare et al. 2017, arXiv 1707.06887; Hafner et al. 2023, DreamerV3, arXiv 2301.04104;
    Hansen et al. 2024, TD-MPC2, arXiv 2310.16828.)
    """

    size = BINS
    bins: Tensor  # (K,), rising

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bins", torch.empty(BINS))
        self.fit(-REACH, REACH, 1.0)

    def fit(self, least: float, greatest: float, unit: float) -> None:
        """Let the bins reach from `least` to `greatest`, and at least one `unit` to both sides of zero.

        Within a unit of zero they are about evenly spaced, beyond it ever further apart.
        """
        low, high = symlog(torch.tensor([min(least / unit, -1.0), max(greatest / unit, 1.0)], dtype=torch.float64))
        self.bins.copy_(unit * symexp(low + (high - low) * torch.linspace(0, 1, BINS, dtype=torch.float64)))

    def expected(self, output: Tensor) -> Tensor:
        """The number (...) of logits (..., K)."""
        logits = output.to(torch.promote_types(output.dtype, self.bins.dtype))
        return (logits.softmax(dim=-1) * self.bins).sum(dim=-1)

    def encode(self, x: Tensor) -> Tensor:
        """Numbers (...) as probabilities of the bins (..., K): at most two are above zero; beyond the ends, one."""
        low = self.bins[:-1]
        passed = ((x.unsqueeze(-1) - low) / (self.bins[1:] - low)).clamp(0, 1)  # (..., K - 1), the share of each gap
        return nn.functional.pad(passed, (1, 0), value=1.0) - nn.functional.pad(passed, (0, 1))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy (...) in nats of logits (..., K) against targets (...), which get no gradient."""
        logits = output.to(torch.promote_types(output.dtype, self.bins.dtype))
        return cross_entropy(logits, self.encode(target.detach()))
