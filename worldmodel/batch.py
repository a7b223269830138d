"""What a training batch holds, and the shape legend that the whole code uses.

    B  number of lanes (a lane is a batch row that persists in time: one continuous stream of episodes)
    T  steps of a segment, the horizon of truncated BPTT
    H  steps of an open-loop rollout
    O  entries of an observation      A  entries of an action (one-hot where discrete)
    Z  width of the latent            D  width of the hidden state (LSTM and stacked cells pack theirs into one vector)

A segment has T + 1 consecutive frames of a lane. Step t goes from frame t to frame t + 1 under `action[t]`. It is a
real transition only where `valid[t]`: not from an episode's last frame to the next episode's first, and not in the
padding after a lane's end.
"""

from typing import NotRequired, TypedDict

from torch import Tensor


class Batch(TypedDict):
    """One segment of every lane. Observations, actions and rewards are in the units of the data."""

    obs: Tensor  # (B, T+1, O) float: the vector, then the pixels of images, channels last, from 0 to 255
    pixels: NotRequired[Tensor]  # (B, T+1, P) uint8: from the loader, until they are joined to obs
    action: Tensor  # (B, T, A) float; zeros where not valid
    reward: Tensor  # (B, T) float
    terminated: Tensor  # (B, T) bool: the step led to a terminal state
    is_first: Tensor  # (B, T) bool: frame t starts an episode (or is padding); the state is reset before it
    valid: Tensor  # (B, T) bool: the step is a transition of the data
    episode: Tensor  # (B, T) int64: the episode's index in its split, -1 in padding
    step: Tensor  # (B, T) int64: the frame's index in its episode
    num_valid: Tensor  # () float: number of valid steps of all lanes of all ranks, divided by the number of ranks
    position: int  # the batch's absolute number in the lane schedule
    carry: NotRequired[Tensor]  # (B, D): the state before frame 0, from the last segment; absent: zeros
