"""Small models on real and generated data, for the tests of their diagnosis."""

import numpy as np
import torch
from memory import episodes_of

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.data.lanes import LaneSchedule
from worldmodel.data.segments import Segments
from worldmodel.evaluation.diagnosis.diagnosis import Diagnosis, diagnose

STEPS = 8
SMALL = {"latent_dim": 8, "hidden_dim": 16, "width": 16}


def pendulum(path) -> EpisodeDataModule:
    return EpisodeDataModule(path, steps=STEPS, lanes=14)


def new_model(rule: str, data: EpisodeDataModule | None = None, **options) -> WorldModel:
    torch.manual_seed(0)
    model = WorldModel(2, 1, rule=rule, **{**SMALL, **options})
    if data is not None:
        for name in ("obs", "action", "reward"):
            getattr(model, f"{name}_norm").fit(*data.statistics[name])
    return model


def trained(model: WorldModel, batches, steps: int) -> WorldModel:
    """After so many training steps on batches, with carried state; in evaluation mode."""
    optimizer, carry = torch.optim.AdamW(model.parameters(), lr=5e-3), None
    for _, batch in zip(range(steps), batches, strict=False):
        if carry is not None:
            batch["carry"] = carry
        terms, _, carry = model.losses(batch)
        loss = torch.stack([weight * terms[name] for name, weight in model.weights.items()]).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def some_batches(data: EpisodeDataModule, number: int = 8):
    return [batch for batch, _ in zip(data.train_dataloader(), range(number), strict=False)]


def echoes(lag: int, lanes: int = 32, length: int = 200) -> Segments:
    """Noise whose entry 0 repeats entry 1 of `lag` steps before."""
    obs = np.random.default_rng(0).standard_normal((lanes, length + 1, 2)).astype(np.float32)
    obs[:, lag:, 0] = obs[:, :-lag, 1]
    episodes = episodes_of(obs.reshape(-1, 2), np.zeros((lanes * (length + 1), 1), np.float32), [length] * lanes)
    return Segments(episodes, LaneSchedule(episodes.num_frames, lanes, STEPS))


def of(model: WorldModel, batches) -> Diagnosis:
    return diagnose(model, batches, str(model.hparams["rule"]))


def kinds(diagnosis: Diagnosis) -> list[str]:
    return [finding.kind for finding in diagnosis.findings]
