"""Feed-forward networks: encoders, decoders and heads, and the normalisers before them.

An observation (..., O) is one vector: `vector_dim` entries, then the pixels of each image, channels last.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel import parts
from worldmodel.errors import reason_of

Shape = tuple[int, int, int]  # (H, W, C) of an image


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """layer(x); of K members, whose weights and x have their axis in front, (K, ..., X) -> (K, ..., Y), one each."""
    return affine(x, layer.weight, layer.bias)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same of a weight (Y, X) or (K, Y, X) and a bias (Y,) or (K, Y)."""
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    rows = x.flatten(1, -2) if x.ndim > 2 else x.unsqueeze(1)
    rows = rows @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
    return rows.view(*x.shape[:-1], rows.shape[-1])


def over_lanes(parameter: Tensor, axes: int = 1) -> Tensor:
    """A parameter of so many axes; of K members, which have their axis in front, with one for the lanes (K, 1, ...)."""
    return parameter if parameter.ndim == axes else parameter.unsqueeze(1)


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """norm(x); of K members, whose scales and shifts and x have their axis in front, one each."""
    if norm.weight.ndim == 1:
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    scale, shift = (p.view(len(p), *[1] * (x.ndim - 2), p.shape[-1]) for p in (norm.weight, norm.bias))
    return torch.addcmul(shift, F.layer_norm(x, norm.normalized_shape, None, None, norm.eps), scale)


class MLP(nn.Sequential):
    """`depth` blocks of Linear, LayerNorm, SiLU, then a Linear: (..., input_dim) -> (..., output_dim)."""

    def __init__(self, input_dim: int, output_dim: int, width: int, depth: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Linear(input_dim, width), nn.LayerNorm(width), nn.SiLU()]
            input_dim = width
        super().__init__(*layers, nn.Linear(input_dim, output_dim))

    def forward(self, input: Tensor) -> Tensor:
        """As Sequential does, without calling each layer: in a step of a rollout a call takes as long as a layer."""
        layers: list[Any] = list(self)
        inplace = not torch.is_grad_enabled()
        for layer, norm in zip(layers[:-1:3], layers[1::3], strict=True):
            input = F.silu(layer_norm(linear(input, layer), norm), inplace=inplace)
        return linear(input, layers[-1])


class StagewiseHead(nn.Module):
    """x (..., X) -> the sum of what its last `exact_dim` entries predict alone and of what all of it adds (..., Y).

    `exact` learns from its own error, `rest` from the sum's: in training the sum takes the first without gradient
    (forward stagewise, as in boosting; Friedman 2001). Where the exact entries suffice, the others have nothing left to
    learn, and cannot overrule them beyond the lengths that they were trained on.
    """

    def __init__(self, exact_dim: int, rest: nn.Module, output_dim: int) -> None:
        super().__init__()
        self.exact_dim = exact_dim
        self.exact = nn.Linear(exact_dim, output_dim)
        self.rest = rest

    def first(self, x: Tensor) -> Tensor:
        """What the exact entries predict alone (..., Y)."""
        return linear(x[..., -self.exact_dim :], self.exact)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return (first.detach() if self.training else first) + self.rest(x)


def stages(shape: Shape) -> list[tuple[int, int]]:
    """(H, W) after each convolution: halved, rounded up, until the shorter side is at most 4 pixels."""
    height, width, _ = shape
    sizes = []
    while min(height, width) > 4:
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


class ImageEncoder(nn.Sequential):
    """Images (N, C, H, W) -> (N, output_dim): convolutions of stride 2, each with twice the channels."""

    def __init__(self, shape: Shape, output_dim: int, channels: int) -> None:
        layers: list[nn.Module] = []
        inputs, sizes = shape[2], stages(shape)
        for i in range(len(sizes)):
            outputs = channels * 2**i
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(1, outputs), nn.SiLU()]
            inputs = outputs
        height, width = sizes[-1]
        super().__init__(*layers, nn.Flatten(), nn.Linear(inputs * height * width, output_dim))


class ImageDecoder(nn.Module):
    """(N, input_dim) -> images (N, C, H, W): the encoder backwards, cropped to the image's size."""

    def __init__(self, shape: Shape, input_dim: int, channels: int) -> None:
        super().__init__()
        self.shape, sizes = shape, stages(shape)
        top = channels * 2 ** (len(sizes) - 1)
        self.start = (top, *sizes[-1])
        self.spread = nn.Linear(input_dim, math.prod(self.start))
        self.sizes = [*reversed(sizes[:-1]), shape[:2]]
        widths = [channels * 2**i for i in reversed(range(len(sizes) - 1))]
        layers: list[nn.Module] = []
        for inputs, outputs in zip([top, *widths], widths, strict=False):
            up = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
            layers.append(nn.Sequential(up, nn.GroupNorm(1, outputs), nn.SiLU()))
        layers.append(nn.ConvTranspose2d(channels, shape[2], 4, stride=2, padding=1))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.spread(x)).unflatten(1, self.start)
        for layer, (height, width) in zip(self.layers, self.sizes, strict=True):
            x = layer(x)[..., :height, :width]
        return x


class ObservationEncoder(nn.Module):
    """Observations (..., O) -> latents (..., output_dim): each image to `width` features, then an MLP of everything."""

    def __init__(
        self, vector_dim: int, images: list[Shape], output_dim: int, width: int, depth: int, channels: int
    ) -> None:
        super().__init__()
        self.sizes = [vector_dim, *(math.prod(shape) for shape in images)]
        self.shapes = images
        self.images = nn.ModuleList(ImageEncoder(shape, width, channels) for shape in images)
        self.joint = MLP(vector_dim + len(images) * width, output_dim, width, depth)

    def forward(self, obs: Tensor) -> Tensor:
        vector, *pixels = obs.reshape(-1, obs.shape[-1]).split(self.sizes, dim=-1)
        features = [
            encode(flat.unflatten(-1, shape).permute(0, 3, 1, 2))  # channels last in memory, as convolutions like it
            for encode, flat, shape in zip(self.images, pixels, self.shapes, strict=True)
        ]
        return self.joint(torch.cat([vector, *features], dim=-1)).reshape(*obs.shape[:-1], -1)


class ObservationDecoder(nn.Module):
    """Latents (..., input_dim) -> observations (..., O)."""

    def __init__(
        self, vector_dim: int, images: list[Shape], input_dim: int, width: int, depth: int, channels: int
    ) -> None:
        super().__init__()
        self.sizes = [vector_dim, *[width] * len(images)]
        self.joint = MLP(input_dim, sum(self.sizes), width, depth)
        self.images = nn.ModuleList(ImageDecoder(shape, width, channels) for shape in images)

    def forward(self, z: Tensor) -> Tensor:
        vector, *features = self.joint(z.reshape(-1, z.shape[-1])).split(self.sizes, dim=-1)
        pixels = [
            decode(part).permute(0, 2, 3, 1).flatten(1) for decode, part in zip(self.images, features, strict=True)
        ]
        return torch.cat([vector, *pixels], dim=-1).reshape(*z.shape[:-1], -1)


def observation_encoder(
    obs_dim: int, images: list[Shape], output_dim: int, width: int, depth: int, channels: int
) -> nn.Module:
    """(..., O) -> (..., output_dim): an MLP where there are no images."""
    if not images:
        return MLP(obs_dim, output_dim, width, depth)
    return ObservationEncoder(obs_dim - sum(map(math.prod, images)), images, output_dim, width, depth, channels)


def observation_decoder(
    obs_dim: int, images: list[Shape], input_dim: int, width: int, depth: int, channels: int
) -> nn.Module:
    """(..., input_dim) -> (..., O): an MLP where there are no images."""
    if not images:
        return MLP(input_dim, obs_dim, width, depth)
    return ObservationDecoder(obs_dim - sum(map(math.prod, images)), images, input_dim, width, depth, channels)


def own_net(name: str, kind: str, input_dim: int, output_dim: int, **further: Any) -> nn.Module:
    """A user's own encoder or decoder, (..., input_dim) -> (..., output_dim).

    Args:
        name: file.py:name.
        kind: `encoder` or `decoder`.
        input_dim: the first argument that it is called with.
        output_dim: the second.
        further: by name, those that it has parameters for.

    Raises:
        PartError: if it gives no module, or one that does not take or give what it must.
    """

    def make() -> nn.Module:
        return parts.called(name, kind, input_dim, output_dim, **further)

    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        net = make()
        if not isinstance(net, nn.Module):
            raise parts.misfit(name, kind, f"it gives {type(net).__name__}")
        check_net(f"the {kind} {name}", net, input_dim, output_dim)
    return make()


def check_net(what: str, net: nn.Module, input_dim: int, output_dim: int) -> None:
    """Raise PartError unless a network takes (..., input_dim) and gives (..., output_dim), whatever comes before."""
    like = next(net.parameters(), torch.zeros(()))
    for lanes in (3,), (3, 2):
        try:
            with torch.no_grad():
                given = net(torch.zeros(*lanes, input_dim, dtype=like.dtype, device=like.device))
            shape, wanted = tuple(given.shape), (*lanes, output_dim)
            why = f"gives {shape} for {(*lanes, input_dim)}; it must give {wanted}" if shape != wanted else None
        except Exception as error:  # of the user's code: of any type
            why = f"raises {reason_of(error)} for {(*lanes, input_dim)}; it must give {(*lanes, output_dim)}"
        if why is not None:
            raise parts.PartError(f"{what} {why}")


class Normalizer(nn.Module):
    """(x - mean) / scale and back, entry by entry; the identity until `fit` is called. The statistics are buffers."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Take statistics (dim,) each. An entry that hardly varies keeps its scale, so that noise is not blown up."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std)))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.scale).to(self.mean.dtype)  # also for x in half or double precision

    def inverse(self, x: Tensor) -> Tensor:
        return x * self.scale + self.mean


class RunningNormalizer(Normalizer):
    """Statistics that grow with the data: of all batches so far, each counting alike, or the last ones more.

    Args:
        dim: number of entries.
        least: the smallest share that a new batch has in the statistics; 0: the n-th batch has 1 / n.
    """

    variance: Tensor
    batches: Tensor

    def __init__(self, dim: int, least: float = 0.0) -> None:
        super().__init__(dim)
        self.least = least
        self.register_buffer("variance", torch.ones(dim))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, x: Tensor, valid: Tensor, entries: Tensor | None = None) -> None:
        """Add x (..., dim) where `valid` (...); entries that are False in `entries` (dim,) stay as they are."""
        rows = x[valid].to(self.mean.dtype)
        if not len(rows):
            return
        self.batches += 1
        share = (1 / self.batches).clamp(min=self.least).to(self.mean.dtype)
        mean = rows.mean(dim=0)
        moved = mean - self.mean
        within, between = rows.var(dim=0, unbiased=False), share * (1 - share) * moved.square()
        variance = (1 - share) * self.variance + share * within + between
        mean = self.mean + share * moved
        if entries is not None:
            mean, variance = torch.where(entries, mean, 0.0), torch.where(entries, variance, 1.0)
        self.variance.copy_(variance)
        self.fit(mean, variance.sqrt())
