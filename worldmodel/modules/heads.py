"""What the heads of a world model are trained for: rewards, ends of episodes, and returns."""

from torch import Tensor

from worldmodel import losses
from worldmodel.model import Model
from worldmodel.modules.segment import Segment

LAMBDA = 0.95  # of the value head's targets


def head_terms(model: Model, segment: Segment) -> dict[str, Tensor]:
    """The error of the reward, and the cross-entropy of whether the episode continues."""
    assert model.heads is not None
    outputs = model.headed(model.heads, segment.loop.h).squeeze(-2)
    target = model.reward_norm(segment.batch["reward"].unsqueeze(-1)).squeeze(-1)
    target_continues = 1 - segment.batch["terminated"].to(outputs.dtype)
    return {
        "reward": segment.mean(model.reward_form.loss(outputs[..., :-1], target)),
        "continue": segment.mean(losses.binary_cross_entropy(outputs[..., -1], target_continues)),
    }


def value_term(model: Model, segment: Segment) -> Tensor:
    """The error of the value after a step against its lambda-return, in rewards' deviations a step.

    The return after step t begins with step t + 1: where that is no transition, or in the next segment, there is none.
    """
    assert model.value_head is not None and model.value_discount is not None
    outputs = model.headed(model.value_head, segment.loop.h).squeeze(-2)
    batch, discount = segment.batch, model.value_discount
    reward, valid, continues = (x[:, 1:] for x in (batch["reward"], batch["valid"], ~batch["terminated"]))
    per_step = reward * ((1 - discount) / model.reward_norm.scale)
    value = model.value_form.expected(outputs.detach())
    target = losses.lambda_returns(per_step, value, continues, discount, LAMBDA, valid)
    error = model.value_form.loss(outputs[:, :-1], target)
    return losses.masked_mean(error, batch["valid"][:, :-1] & valid, batch["num_valid"])
