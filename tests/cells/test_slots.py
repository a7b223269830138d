"""Slot memory: what is not written stays, everything learns, and the equations are those of the docstring."""

import math

import pytest
import torch
from torch import Tensor

from worldmodel import LatentPredictor
from worldmodel.cells.update import SLOTS, Slots
from worldmodel.rules import slots

B, T, Z, A, D = 3, 24, 4, 2, 6
ROUTE = slice(2 * D, 2 * D + SLOTS)  # the router's rows of the proposals
KEPT = slice(2, SLOTS)  # slots that the routers of these tests never pick


def cell_that_writes_two_slots() -> Slots:
    """It picks slot 0 or 1, as the input says, whatever else it sees."""
    torch.manual_seed(0)
    cell = Slots(Z + A, D, layers=1, gate_bias=-1.0)
    with torch.no_grad():
        cell.input.bias[ROUTE] = torch.tensor([0.0, 0.0] + [-1e4] * (SLOTS - 2))
    return cell


def final_slots(step, h: Tensor, steps: int) -> Tensor:
    """The slots (B, S, D) that `step(x, h) -> h_next` leaves of h after random inputs."""
    generator = torch.Generator().manual_seed(1)
    cell = cell_that_writes_two_slots()
    with torch.no_grad():
        for z in torch.randn(steps, B, Z, generator=generator):
            h = step(cell.project(z, torch.zeros(B, A)), h)
    return h[:, :-D].unflatten(-1, (SLOTS, D))


def check_unwritten_slots_stay(step, steps: int) -> None:
    h = torch.randn(B, (SLOTS + 1) * D, generator=torch.Generator().manual_seed(2))
    before, after = h[:, :-D].unflatten(-1, (SLOTS, D)), final_slots(step, h, steps)
    assert not (after[:, :2] == before[:, :2]).any(), "the others are written"
    assert torch.equal(after[:, KEPT], before[:, KEPT])


def test_an_unwritten_slot_is_the_same_bit_for_bit_after_1000_steps():
    check_unwritten_slots_stay(cell_that_writes_two_slots().step, 1000)


def test_writing_into_zeros_and_blending_is_caught():
    """beta old + (1 - beta) update, the update zero where nothing is written: such a slot is at 0.6^7 after 7 steps."""
    cell, beta = cell_that_writes_two_slots(), 0.6

    def broken(x: Tensor, h: Tensor) -> Tensor:
        _, candidate, route, _, _ = cell.propose(x, h)
        chosen = torch.nn.functional.one_hot(route.argmax(-1), SLOTS).unsqueeze(-1)
        update = (chosen * candidate.unsqueeze(-2)).flatten(-2)
        return torch.cat([beta * h[:, :-D] + (1 - beta) * update, h[:, -D:]], dim=-1)

    decayed = final_slots(broken, torch.ones(B, (SLOTS + 1) * D), 7)[:, KEPT]
    torch.testing.assert_close(decayed, torch.full_like(decayed, 0.6**7))
    assert round(0.6**7, 3) == 0.028
    with pytest.raises(AssertionError):
        check_unwritten_slots_stay(broken, 7)


def test_a_value_is_found_again_after_1000_steps_of_others():
    """Hand-set: input 0 marks what is to be kept (slot 1), input 1 asks for it, all the rest goes to slot 0."""
    torch.manual_seed(0)
    cell = Slots(Z, D, layers=1, gate_bias=100.0).double()  # a write replaces the whole slot
    route, address = ROUTE.start, cell.input.out_features - SLOTS
    with torch.no_grad():
        cell.recurrent.weight.zero_()
        cell.input.weight[route:] = 0.0
        cell.input.bias[route:] = 0.0
        cell.input.weight[route + 1, 0] = 100.0
        cell.input.bias[route] = 50.0
        cell.input.weight[address + 1, 1] = 1000.0
    kept, ask = torch.tensor([[1.0, 0, 0.3, -0.2]]).double(), torch.tensor([[0.0, 1.0, 0, 0]]).double()
    others = torch.randn(1000, 1, Z, generator=torch.Generator().manual_seed(3)).double()
    others[..., :2] = 0.0
    h = torch.zeros(1, cell.state_dim).double()
    for z in (kept, *others, ask):
        h = cell.step(cell.project(z, z[:, :0]), h)
    candidate = cell.project(kept, kept[:, :0])[:, D : 2 * D]
    torch.testing.assert_close(cell.read(h), torch.nn.functional.layer_norm(candidate, (D,)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2])
def test_every_row_of_every_parameter_learns(layers):
    """The router's rows for slots that were never picked, too."""
    torch.manual_seed(0)
    predictor = LatentPredictor(Z, A, D, rule="slots", layers=layers)
    is_first = torch.zeros(B, T, dtype=torch.bool)
    predictor.closed_loop(torch.randn(B, T, Z), torch.randn(B, T, A), is_first).pred.square().sum().backward()
    for name, parameter in predictor.cell.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert (parameter.grad.flatten(1) if parameter.dim() > 1 else parameter.grad[:, None]).abs().sum(1).all(), name


def proposals(scale: float = 1.0, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    widths = ((SLOTS + 1) * D, D, D, SLOTS, D, SLOTS)
    return tuple(scale * torch.randn(B, width, generator=generator, dtype=torch.float64) for width in widths)


def test_the_rule_is_its_equations():
    """Lane by lane, slot by slot."""
    h, gate, candidate, route, query, address = proposals()
    got = slots(h, gate, candidate, route, query, address)
    for b in range(B):
        memory = [h[b, s * D : (s + 1) * D] for s in range(SLOTS)]
        i = max(range(SLOTS), key=lambda s: route[b, s].item())
        p = math.exp(route[b, i]) / sum(math.exp(score) for score in route[b])
        alpha = 1 / (1 + torch.exp(-(gate[b] + math.log(p) + math.log(SLOTS))))
        u = (candidate[b] - candidate[b].mean()) / (candidate[b].var(correction=0) + 1e-5).sqrt()
        memory[i] = (1 - alpha) * memory[i] + alpha * u
        weights = [math.exp(query[b] @ s / math.sqrt(D) + address[b, j]) for j, s in enumerate(memory)]
        read = sum(w * s for w, s in zip(weights, memory, strict=True)) / sum(weights)
        torch.testing.assert_close(got[b], torch.cat([*memory, read]), rtol=0, atol=1e-12)


def test_gradients_are_those_of_finite_differences_where_the_choice_does_not_flip():
    route = proposals()[3].sort(dim=-1, descending=True).values
    assert (route[:, 0] - route[:, 1]).min() > 1e-3
    assert torch.autograd.gradcheck(slots, [p.requires_grad_() for p in proposals()])


@pytest.mark.parametrize("scale", [1.0, 1e6, 2.0**99])
def test_the_state_is_bounded_for_any_input(scale):
    h, largest = torch.zeros(B, (SLOTS + 1) * D), torch.tensor(0.0)
    for seed in range(50):
        h = slots(h, *(p.float() for p in proposals(scale, seed)[1:]))
        largest = torch.maximum(largest, h.abs().max())
    assert 1 < largest <= math.sqrt(D - 1) * (1 + 1e-6)


def test_a_reset_empties_all_slots():
    torch.manual_seed(0)
    predictor = LatentPredictor(Z, A, D, rule="slots")
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[:, 10] = True
    h = predictor.closed_loop(torch.randn(B, T, Z), torch.randn(B, T, A), is_first).h
    used = h[..., :-D].unflatten(-1, (SLOTS, D)).ne(0).any(-1).sum(-1)  # (B, T), slots that are not zero
    assert (used[:, 9] > 1).all() and (used[:, 10] == 1).all()


@pytest.mark.parametrize("layers", [1, 2])
def test_more_hidden_units_are_more_parameters(layers):
    """Else no size could be found that makes a comparison fair."""
    with torch.device("meta"):
        counts = [sum(p.numel() for p in Slots(9, dim, layers, -1.0).parameters()) for dim in (*range(1, 40), 511, 512)]
    assert all(less < more for less, more in zip(counts, counts[1:], strict=False))
