"""Returns and advantages of segments, as pure functions; see batch.py for what a step and a frame are.

Step t goes from frame t to frame t + 1, so there are T rewards and T + 1 values. An episode that was cut off ends with
a step that proceeds: what would have come is the value of its last frame. One that ended in a terminal state does not.
The step behind an episode's end is not valid: nothing passes over it.
"""

import torch
from torch import Tensor


def lambda_returns(
    reward: Tensor, value: Tensor, proceeds: Tensor, discount: float, trace: float, valid: Tensor | None = None
) -> Tensor:
    """The lambda-return of every step, between the one-step target (trace 0) and all rewards to come (trace 1).

        G_t = r_t + discount p_t ((1 - trace) v_{t+1} + trace G_{t+1}),   G_t = v_t where t is T or not valid

    (Sutton & Barto 2018, equation 12.20 with the value of the state; Hafner et al. 2020, arXiv 1912.01603, equation 6,
    with p_t the probability of going on.)

    Args:
        reward: (B, T).
        value: (B, T + 1), of the frames; the last one is where the segment's returns begin.
        proceeds: (B, T), the probability that the step does not end in a terminal state; bool: it does not.
        discount: in [0, 1].
        trace: lambda, in [0, 1].
        valid: (B, T) bool, which steps are transitions; None: all.

    Returns:
        (B, T); at steps that are not valid the value of their frame.
    """
    going_on = discount * proceeds.to(value.dtype)
    returns, after = [], value[:, -1]
    for t in reversed(range(reward.shape[1])):
        target = (1 - trace) * value[:, t + 1] + trace * after
        after = reward[:, t] + going_on[:, t] * target
        if valid is not None:
            after = torch.where(valid[:, t], after, value[:, t])
        returns.append(after)
    return torch.stack(returns[::-1], dim=1)


def gae(
    reward: Tensor, value: Tensor, proceeds: Tensor, valid: Tensor, discount: float = 0.99, trace: float = 0.95
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv 1506.02438, equation 16), (B, T).

        A_t = d_t + discount trace p_t A_{t+1},   d_t = r_t + discount p_t v_{t+1} - v_t,   A_t = 0 where not valid

    which is the lambda-return less the value: A_t + v_t is the critic's target. Arguments as in `lambda_returns`.
    """
    return lambda_returns(reward, value, proceeds, discount, trace, valid) - value[:, :-1]
