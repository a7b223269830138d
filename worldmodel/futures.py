"""Many futures of one present: open-loop rollouts that draw what each step leaves open, and go on from there."""

from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.base import Line, Rollout
from worldmodel.members import collected, own_share, shared_out
from worldmodel.mixture import Mixture
from worldmodel.model import Model


class Futures(NamedTuple):
    """N rollouts of H steps, in the units of the data, and where they can go on from."""

    obs: Tensor  # (N, H, O) drawn
    given_past: Mixture  # (N, H, K, O): what each was drawn from, given the same rollout's steps before
    z: Tensor  # (N, Z) of the last step; of members (N, K Z)
    h: Tensor  # (N, D) after it; of members (N, K D)


@torch.no_grad()
def futures(model: Model, z: Tensor, h: Tensor, action: Tensor, noise: Tensor) -> Futures:
    """Roll a model with a distribution out, drawing each next observation, which the following steps then see.

    Of K members each draws every K-th future, row n that of member n % K: N must be a multiple of K.

    Args:
        model: whose output is not a point.
        z: (N, Z) of the last frame that was seen, one row for each future.
        h: (N, D) the state before it.
        action: (N, H, A).
        noise: (N, H, O + 1) independent standard normal numbers; the same give the same futures.
    """
    head, base, members = model.noise, model.base, model.members
    assert head is not None, "a point has one future"
    z, h = own_share(z, model.of_members(z).shape[-1], members), own_share(h, model.predictor.state_dim, members)
    action, noise = (shared_out(x, members) for x in (model.action_norm(action), noise))
    run = None if base is None else Rollout(base, z[..., model.latent_dim :])
    drawn, given, latents = list[Tensor](), list[Mixture](), list[Tensor]()

    def feed(pred: Tensor, a_t: Tensor) -> Tensor:
        mixture = head(pred)
        correction = model.decoder(pred)
        sample = correction + mixture.draw(noise[:, len(drawn)])
        if run is None:
            line, encoded = Line(torch.zeros_like(sample), torch.ones_like(sample)), sample
        else:
            encoded = run.step(a_t, sample)
            line, sample = run.line, run.obs[-1]
        mean = line.pred.unsqueeze(-2) + line.scale.unsqueeze(-2) * (correction.unsqueeze(-2) + mixture.mean)
        given.append(mixture._replace(mean=mean, scale=line.scale.unsqueeze(-2) * mixture.scale))
        drawn.append(sample)
        latents.append(model.encoder(encoded))
        return latents[-1]

    loop = model.predictor.open_loop(model.latent(z), h, action, feed)
    after = latents[-1] if run is None else torch.cat([latents[-1], run.memories()[:, -1]], dim=-1)
    weight, mean, scale = (torch.stack(parts, dim=1) for parts in zip(*given, strict=True))
    norm = model.obs_norm
    given_past = Mixture(*(collected(part, members) for part in (weight, norm.inverse(mean), scale * norm.scale)))
    z, h = (collected(x, members).repeat(1, members) for x in (after, loop.h[:, -1]))  # in the place of each member
    return Futures(collected(norm.inverse(torch.stack(drawn, dim=1)), members), given_past, z, h)
