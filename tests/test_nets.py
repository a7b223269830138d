"""Image networks: every size and number of channels, and the order of the pixels."""

import pytest
import torch

from worldmodel.losses import observation_error, part_weights
from worldmodel.nets import MLP, StagewiseHead, observation_decoder, observation_encoder

SHAPES = [(64, 64, 3), (84, 84, 1), (96, 96, 3), (8, 8, 3), (9, 10, 4), (16, 40, 3), (210, 160, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("vector_dim", [0, 5])
def test_images_of_every_size_come_and_go(shape, vector_dim):
    size = vector_dim + shape[0] * shape[1] * shape[2]
    encoder = observation_encoder(size, [shape], 7, width=12, depth=1, channels=2)
    decoder = observation_decoder(size, [shape], 7, width=12, depth=1, channels=2)
    obs = torch.randn(2, 3, size)
    z = encoder(obs)
    assert z.shape == (2, 3, 7) and decoder(z).shape == (2, 3, size)
    decoder(z).square().sum().backward()
    without = [name for net in (encoder, decoder) for name, p in net.named_parameters() if p.grad is None]
    assert not without, without


def test_several_images_and_a_vector_learn_to_come_back():
    """What is decoded stands where it was encoded from: channels last, images behind the vector, in their order."""
    torch.manual_seed(0)
    shapes = [(8, 12, 3), (10, 9, 1)]
    size = 2 + 8 * 12 * 3 + 10 * 9
    encoder = observation_encoder(size, shapes, 8, width=32, depth=1, channels=8)
    decoder = observation_decoder(size, shapes, 8, width=32, depth=1, channels=8)
    obs = torch.zeros(4, size)
    obs[:, 0] = torch.tensor([1.0, -1, 0, 0])
    for i in range(4):
        first = obs[i, 2 : 2 + 288].view(8, 12, 3)
        first[i : i + 3, 2 * i : 2 * i + 4, i % 3] = 2
        obs[i, 290:].view(10, 9, 1)[:, 2 * i : 2 * i + 2] = -2
    weights = part_weights(size, shapes)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    for _ in range(300):
        loss = observation_error(decoder(encoder(obs)), obs, weights).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02 * (obs.square() * weights).sum(-1).mean()


def test_parts_count_alike():
    weights = part_weights(3 + 4 * 4 * 3 + 8, [(4, 4, 3), (2, 4, 1)])
    assert weights.sum() == pytest.approx(1) and len(weights) == 59
    assert [part.sum().item() for part in weights.split([3, 48, 8])] == pytest.approx([1 / 3] * 3)
    only_image = part_weights(12, [(2, 2, 3)])
    assert torch.equal(only_image, torch.full((12,), 1 / 12))
    pred, target = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    torch.testing.assert_close(observation_error(pred, target, part_weights(4, [])), (pred - target).square().mean(-1))


def test_a_stagewise_head_trains_what_exact_entries_say_alone_and_the_rest_on_what_is_left():
    torch.manual_seed(0)
    head = StagewiseHead(2, MLP(5, 3, 4, 0), 3)
    x, target = torch.randn(7, 5), torch.randn(7, 3)
    (head(x) - target).square().sum().backward()
    assert head.exact.weight.grad is None, "the sum's error is not the exact entries' affair"
    with torch.no_grad():
        left = target - head.first(x)
    expected = 2 * (head.rest(x) - left).T @ x
    torch.testing.assert_close(head.rest[0].weight.grad, expected)
    changed = torch.cat([x[:, :3] + 1, x[:, 3:]], dim=1)
    assert torch.equal(head.first(changed), head.first(x)) and not torch.equal(head(changed), head(x))
    trained, x = head(x), x.requires_grad_()
    torch.testing.assert_close(head.eval()(x), trained)
    (gradient,) = torch.autograd.grad(head(x)[:, 0].sum(), x)
    whole = head.rest[0].weight[0] + torch.cat([torch.zeros(3), head.exact.weight[0]])
    torch.testing.assert_close(gradient, whole.expand(7, 5), msg="evaluated, it is a plain sum")
