"""Update rules of `rules.RULES` whose state is a matrix of values by keys, or a window of frames.

Each has N heads: query and key are (..., N, K), value is (..., N, V), but for `attention`. `h` packs what is
remembered, and last what is read of it, (..., D), D <= N V, since a read depends on the input, and what predicts from a
state sees h alone. A read is added to `skip`, the input's own share, as in a residual block.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def mamba2(
    h: Tensor, query: Tensor, key: Tensor, value: Tensor, step: Tensor, output: Tensor, skip: Tensor, rate: Tensor
) -> Tensor:
    """State-space duality with a scalar decay (Dao & Gu 2024, arXiv 2405.21060), a matrix for each of N heads.

        S' = exp(-exp(rate) delta) S + delta value key^T,  delta = softplus(step)
        r  = skip + silu(output) (S' query)

    `h` packs [S, r], N V K + D wide; step is (..., N), output and skip are (..., D), rate (N,) is a parameter. The
    paper calls query, key and value C, B and x. Eigenvalues in (0, 1), one for a whole head: it forgets what is old,
    not what is named, and cannot track parity (Grazzi et al. 2024, arXiv 2411.12537).
    """
    delta = F.softplus(step)
    keep = torch.exp(-torch.exp(rate) * delta)
    memory = _scaled(keep, _memory(h, value, key)) + _outer(delta.unsqueeze(-1) * value, key)
    return torch.cat([memory.flatten(-3), skip + F.silu(output) * _recalled(memory, query, skip)], dim=-1)


def gated_delta(
    h: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    step: Tensor,
    strength: Tensor,
    output: Tensor,
    skip: Tensor,
    rate: Tensor,
) -> Tensor:
    """The gated delta rule (Yang et al. 2024, arXiv 2412.06464), a matrix for each of N heads.

        S' = alpha S (I - beta k k^T) + beta value k^T,  beta = 2 sigmoid(strength)
        alpha = exp(-exp(rate) softplus(step))
        r  = skip + silu(output) (S' q)

    k and q are key and query at unit length; shapes as in `mamba2`, strength (..., N). What is bound to k is replaced,
    all else stays or fades with alpha. Along k the eigenvalue is alpha (1 - beta), negative where beta is above 1: a
    reflection, so that one layer can track parity, which eigenvalues in [0, 1] cannot (Grazzi et al. 2024, arXiv
    2411.12537).
    """
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    keep, beta = torch.exp(-torch.exp(rate) * F.softplus(step)), 2 * torch.sigmoid(strength)
    memory = _scaled(keep, _memory(h, value, key))
    missing = value - (memory @ key.unsqueeze(-1)).squeeze(-1)
    memory = memory + _outer(beta.unsqueeze(-1) * missing, key)
    return torch.cat([memory.flatten(-3), skip + F.silu(output) * _recalled(memory, query, skip)], dim=-1)


def mlstm(
    h: Tensor, query: Tensor, key: Tensor, value: Tensor, write: Tensor, keep: Tensor, output: Tensor, skip: Tensor
) -> Tensor:
    """xLSTM's matrix memory with exponential input gates (Beck et al. 2024, arXiv 2405.04517), one for each of N heads.

        C' = f C + i value k^T,  n' = f n + i k,  i = exp(write),  f = sigmoid(keep),  k = key / sqrt(K)
        r  = skip + sigmoid(output) (C' query) / max(|n' . query|, 1)

    `h` packs [C, n, m, r], N V K + N K + N + D wide; shapes as in `mamba2`, write and keep (..., N). C and n are stored
    as exp(-m) C and exp(-m) n with m' = max(log f + m, write), so that no exponential overflows. m is a scale, which r
    does not depend on: with C = n = 0 any m is an episode's start, 0 too. Affine in (C, n), with eigenvalues in (0, 1).
    """
    heads, width = key.shape[-2:]
    sizes = [heads * value.shape[-1] * width, heads * width, heads, skip.shape[-1]]
    memory, norm, peak, _ = h.split(sizes, dim=-1)
    key, log_keep = key / math.sqrt(width), F.logsigmoid(keep) + peak
    peak = torch.maximum(log_keep, write)
    keep, write = torch.exp(log_keep - peak), torch.exp(write - peak)
    memory = _scaled(keep, memory.unflatten(-1, (*value.shape[-2:], width))) + _outer(write.unsqueeze(-1) * value, key)
    norm = keep.unsqueeze(-1) * norm.unflatten(-1, (heads, width)) + write.unsqueeze(-1) * key
    # 1 in units of exp(m); a state below exp(-80) reads as nothing anyway, and exp(89) overflows single precision
    least = torch.exp((-peak).clamp(max=80))
    sharpness = torch.maximum((norm * query).sum(dim=-1).abs(), least)
    read = skip + torch.sigmoid(output) * _recalled(_scaled(1 / sharpness, memory), query, skip)
    return torch.cat([memory.flatten(-3), norm.flatten(-2), peak, read], dim=-1)


def attention(h: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """Causal softmax attention over the last W frames, this one included (Vaswani et al. 2017), by each of N heads.

        r = skip + sum over ages j < W of softmax_j(query . key_(t-j) / sqrt(K) + bias_j) value_(t-j)

    `h` packs [keys and values of W frames, the oldest first, frames seen / W, r], W (K + V) + 1 + D wide; query is
    (..., N, K), key (..., K) and value (..., V), the same for all heads. Frames before the episode are not attended to.
    bias (N, W) is a parameter for each relative position (Raffel et al. 2020, arXiv 1910.10683). Recall is exact within
    the window; of what lies before it nothing is known.
    """
    window, sizes = bias.shape[-1], [key.shape[-1], value.shape[-1]]
    width = sum(sizes)
    _, cache, seen, _ = h.split([width, (window - 1) * width, 1, skip.shape[-1]], dim=-1)  # the oldest frame leaves
    cache = torch.cat([cache, key, value], dim=-1)
    seen = (seen + 1 / window).clamp(1 / window, 1)
    keys, values = cache.unflatten(-1, (window, width)).split(sizes, dim=-1)
    age = torch.arange(window - 1, -1, -1, device=h.device)
    match = query @ keys.mT / math.sqrt(sizes[0]) + bias[..., age]
    match = match.masked_fill((age >= seen * window).unsqueeze(-2), -math.inf)
    read = (torch.softmax(match, dim=-1) @ values).flatten(-2)
    return torch.cat([cache, seen, skip + read[..., : skip.shape[-1]]], dim=-1)


def _memory(h: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """The matrices at the front of h, (..., N, V, K)."""
    shape = *value.shape[-2:], key.shape[-1]
    size = math.prod(shape)
    return h.split([size, h.shape[-1] - size], dim=-1)[0].unflatten(-1, shape)  # a slice has a slower backward pass


def _scaled(factor: Tensor, memory: Tensor) -> Tensor:
    """Each head's matrix (..., N, V, K) times its own factor (..., N)."""
    return factor[..., None, None] * memory


def _outer(value: Tensor, key: Tensor) -> Tensor:
    return value.unsqueeze(-1) * key.unsqueeze(-2)


def _recalled(memory: Tensor, query: Tensor, like: Tensor) -> Tensor:
    """S query of all heads side by side, as many entries as `like` has."""
    return (memory @ query.unsqueeze(-1)).flatten(-3)[..., : like.shape[-1]]
