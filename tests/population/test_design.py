"""What may be varied, how it is written, and where members start."""

import math
from random import Random

import pytest

from worldmodel.errors import UserError
from worldmodel.population.design import Mutation, parse, starts

ALLOWED = ["model.learning_rate", "model.weight_decay", "trainer.gradient_clip_val"]
RATE, DECAY, CLIP = ALLOWED


def test_a_range_its_logarithm_and_choices():
    texts = [f"{RATE}=1e-4..1e-2:log", f"{DECAY}=0..0.5", f"{CLIP}=1, 0.5,10"]
    assert parse(texts, ALLOWED) == [
        Mutation(RATE, 1e-4, 1e-2, log=True),
        Mutation(DECAY, 0, 0.5),
        Mutation(CLIP, 0.5, 10, choices=(1, 0.5, 10)),
    ]
    for text in (f"--{RATE}=0.001..0.1(log)", f"{RATE}=log:0.001..0.1"):
        assert parse([text], ALLOWED) == [Mutation(RATE, 0.001, 0.1, log=True)]
    assert parse([f"{RATE}=1..2"], ALLOWED) == [Mutation(RATE, 1, 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.lerning_rate=1..2", "model.lerning_rate: .* did you mean 'model.learning_rate'"),
        ("model.hidden_dim=8,16", "cannot change during training"),
        (f"{RATE}=2..1", "2 is not below 1"),
        (f"{RATE}=0..1:log", "0 must be above 0 on a log scale"),
        (f"{RATE}=-1..1", "-1 must be at least 0"),
        (f"{RATE}=0.1", "one value is not a choice"),
        (f"{RATE}=fast,slow", "'fast' is not a number"),
        (f"{RATE}=1e-3..inf", "'inf' is not a number"),
        (RATE, "'' is not a number: write KEY=LOW..HIGH"),
    ],
)
def test_a_mistake_is_told(text, message):
    with pytest.raises(UserError, match=message):
        parse([text], ALLOWED)


def test_nothing_and_twice_are_told():
    with pytest.raises(UserError, match="is empty"):
        parse([], ALLOWED)
    with pytest.raises(UserError, match="given twice"):
        parse([f"{RATE}=1..2", f"{RATE}=1..3"], ALLOWED)


def test_members_start_apart_and_the_first_as_configured():
    mutations = parse([f"{RATE}=1e-4..1e-2:log", f"{CLIP}=1,2"], ALLOWED)
    own = {RATE: 0.5, CLIP: 3.0}
    here = starts(mutations, own, 5, seed=3)
    assert here[0] == {RATE: 0.5, CLIP: 1}, "also outside of the range; but a choice is one"
    assert here == starts(mutations, own, 5, seed=3) != starts(mutations, own, 5, seed=4)
    assert here[:3] == starts(mutations, own, 3, seed=3), "whatever the population's size"
    assert len({member[RATE] for member in here}) == 5
    assert all(1e-4 <= member[RATE] <= 1e-2 and member[CLIP] in (1, 2) for member in here[1:])


def test_a_logarithmic_range_is_drawn_evenly_in_its_decades():
    mutation = Mutation(RATE, 1e-4, 1.0, log=True)
    decades = [math.floor(math.log10(mutation.draw(Random(seed)))) for seed in range(2000)]
    assert all(abs(decades.count(decade) / 2000 - 0.25) < 0.04 for decade in (-4, -3, -2, -1))


def test_a_perturbed_value_stays_inside_and_is_short():
    mutation = Mutation(RATE, 1e-4, 1e-2, log=True)
    assert [mutation.keep(x) for x in (1e-5, 0.0123, 0.00123456789)] == [1e-4, 1e-2, 0.001235]
    assert Mutation(CLIP, 0, 1, choices=(0.123456, 1)).keep(0.123456) == 0.123456
