"""What measurements mean: faults in order of weight, each with what to change."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from worldmodel.evaluation.diagnosis.diagnosis import Diagnosis
from worldmodel.evaluation.diagnosis.gradients import CAUSES, ParameterGradient, State
from worldmodel.rules import BOUNDS

Kind = Literal[
    "not finite",
    "no gradient",
    "zero gradient",
    "detached encoder",
    "exploding state",
    "exploding gradient",
    "collapsed latent",
    "collapsed state",
    "saturated gate",
    "clock",
    "short horizon",
    "dead units",
    "vanishing gradient",
]

# What comes first is told first: a model that cannot learn before one that learns badly.
WEIGHTS: dict[Kind, int] = {
    "not finite": 100,
    "no gradient": 90,
    "zero gradient": 85,
    "detached encoder": 80,
    "exploding state": 75,
    "exploding gradient": 70,
    "collapsed latent": 65,
    "collapsed state": 60,
    "saturated gate": 55,
    "clock": 50,
    "short horizon": 45,
    "dead units": 40,
    "vanishing gradient": 30,
}

GROWN = 1.5  # times the norm at T, of the state and of what heads see of it: less is no problem, whatever its law
LARGE = 100.0  # root mean square of an entry of h, as HiddenNormMonitor has it
EXPANSION = 100.0  # of a gradient over T steps; clipping at a usual norm then sees nothing but this
ONE_DIRECTION = 1.2  # effective rank: all but one direction is noise
VARIED = 1.5  # effective rank of observations that have more to tell than one number
NARROW = 0.1  # of the directions that observations and latents allow
SATURATED = 0.9  # of all gate values
STUCK = 0.5  # of all units: healthy training leaves a few
DEAD = 0.25  # of all units: counters and latches may well be idle on a few batches
IS_CLOCK = 0.9  # R^2 of time
MORE_CLOCK = 0.3  # beyond what is seen; a state that tracks what is seen knows as much of time as that
FAR_EXPLAINS = 0.1  # R^2: by chance far less, on held-out lanes
FAR_SHARE = 0.01  # of the observations' variance: less is not worth a longer segment
FAR_MASS = 0.5  # of the gradient, where it does not fall to half within T: truncation then leaves most of it out
NAMED = 4  # parameters that are named in a finding


@dataclass(frozen=True)
class Finding:
    kind: Kind
    weight: int
    seen: str
    means: str
    change: str


def findings(diagnosis: Diagnosis) -> list[Finding]:
    """Faults, the weightiest first; empty for a healthy model."""
    checks = (_parameters, _growth, _jacobian, _collapse, _gates, _clock, _horizon, _dead)
    found = [finding for check in checks for finding in check(diagnosis)]
    return sorted(found, key=lambda finding: -finding.weight)


def _of(kind: Kind, seen: str, means: str, change: str) -> Finding:
    return Finding(kind, WEIGHTS[kind], seen, means, change)


def _parameters(diagnosis: Diagnosis) -> Iterator[Finding]:
    gradients = diagnosis.gradients
    if names := gradients.not_finite:
        yield _of(
            "not finite",
            f"{_listed(names)} {'holds' if len(names) == 1 else 'hold'} NaN or infinity",
            "everything that is computed from it is NaN; nothing else was measured",
            "go back to an earlier checkpoint; --trainer.gradient_clip_val 1 or less, a lower --model.learning_rate",
        )
        return
    kinds: tuple[tuple[State, Kind, str], ...] = (
        ("nan", "not finite", "a look at the data (worldmodel data check), a lower --model.learning_rate"),
        ("none", "no gradient", "weight the choice by a soft gate or pass its gradient straight through, or remove it"),
        ("zero", "zero gradient", "start it elsewhere, or remove it"),
        ("vanishing", "vanishing gradient", "--model.gate_bias nearer to 0, --model.layers 1, or other first weights"),
    )
    for state, kind, change in kinds:
        if some := gradients.of_state(state):
            yield _of(kind, f"{_shown(some)}: gradient {_called(state, some)}", f"likely, {CAUSES[state]}", change)
    if terms := gradients.past_encoder():
        yield _of(
            "detached encoder",
            f"{_listed(terms)} train{'s' if len(terms) == 1 else ''} the recurrence, and the encoder gets no gradient",
            "latents are not shaped by what is to be predicted: they are cut from the graph on their way (.detach())",
            "feed the recurrence with the encoder's own output",
        )


def _growth(diagnosis: Diagnosis) -> Iterator[Finding]:
    growth, steps = diagnosis.growth, diagnosis.horizon
    if growth is None or not growth.norm:
        return
    grown = growth.grown(steps)
    laws = growth.law, growth.read_law
    grows = "bounded" not in laws and len(growth.norm) > steps and min(grown, growth.read_grown(steps)) > GROWN
    if growth.finite and not grows and growth.unit < LARGE:
        return
    law = {"sqrt": "as sqrt(t)", "linear": "linearly", "exponential": "exponentially", "bounded": "and rests"}
    way = f"||h|| grows {law[growth.law]} (t^{growth.exponent:.2g})"
    if growth.law == "exponential":
        way = f"||h|| grows exponentially, by {100 * growth.rate:.3g}% a step"
    end = f"after {len(growth.norm)} steps it is {growth.norm[-1]:.3g}, {grown:.3g} times that at T = {steps}"
    change = "--model.rule gated_norm, whose state is bounded for any finite input"
    if diagnosis.rule in BOUNDS:
        change = "first weights of a smaller scale, a lower --model.learning_rate"
    yield _of(
        "exploding state",
        f"{way}: {end}" + ("" if growth.finite else ", then not finite"),
        "predictions far beyond the trained horizon start from states that no training has seen",
        f"{change}; train with --tbptt.start carry, so that old states are seen",
    )


def _jacobian(diagnosis: Diagnosis) -> Iterator[Finding]:
    spectrum, steps = diagnosis.spectrum, diagnosis.horizon
    if spectrum is not None and spectrum.lyapunov > 0 and spectrum.growth(steps) > EXPANSION:
        yield _of(
            "exploding gradient",
            f"the largest Lyapunov exponent is {spectrum.lyapunov:.3g} a step: a factor of {spectrum.growth(steps):.3g}"
            f" over T = {steps}",
            "a small change of the state is blown up, and so is its gradient: clipping then decides what is learned",
            "recurrent weights of a smaller scale, a shorter --data.steps, or --model.rule gated_norm or gru",
        )


def _collapse(diagnosis: Diagnosis) -> Iterator[Finding]:
    observation, latent, state = diagnosis.observation, diagnosis.latent, diagnosis.state
    varied = observation is None or observation.effective_rank > VARIED
    if latent is not None and latent.dim > 1:
        allowed = min(latent.dim, observation.effective_rank if observation else 1.0)
        narrow = max(ONE_DIRECTION, NARROW * allowed) if varied else 0.0
        if latent.effective_rank < max(narrow, 1e-9):
            yield _of(
                "collapsed latent",
                f"the effective rank of z is {latent.effective_rank:.3g} of {latent.dim}",
                "the encoder tells all observations apart by one number, or not at all",
                "--model.objective reconstruction, a higher --model.anti_collapse_weight, or other first weights",
            )
    if state is not None and state.dim > 1 and state.effective_rank < (ONE_DIRECTION if varied else 1e-9):
        yield _of(
            "collapsed state",
            f"the effective rank of h is {state.effective_rank:.3g} of {state.dim}",
            "the state holds one number, or nothing",
            "--model.gate_bias nearer to 0, a higher --model.learning_rate, a lower --model.weight_decay",
        )


def _gates(diagnosis: Diagnosis) -> Iterator[Finding]:
    gates = diagnosis.gates
    if gates is None or not (gates.stuck > STUCK or gates.saturated > SATURATED):
        return
    shut = gates.shut >= gates.open
    yield _of(
        "saturated gate",
        f"{gates.saturated:.0%} of the gate's values are below 0.01 or above 0.99,"
        f" {gates.stuck:.0%} of its units (almost) always",
        "a saturated gate learns nothing; shut, it never writes" if shut else "open, it keeps nothing",
        "--model.gate_bias nearer to 0 (default -1); with trained weights a higher --model.weight_decay",
    )


def _clock(diagnosis: Diagnosis) -> Iterator[Finding]:
    clock = diagnosis.clock
    if clock is not None and min(clock.state, clock.read) > IS_CLOCK and clock.excess > MORE_CLOCK:
        yield _of(
            "clock",
            f"h tells the step in its episode with R^2 = {clock.state:.2f}, the observation with"
            f" {max(clock.observation, 0):.2f}",
            "the state counts steps: what it learns of a step does not hold at others, nor beyond the longest episode",
            "episodes of mixed lengths (data.collect.min_episode_steps), --model.rule gated_norm",
        )


def _horizon(diagnosis: Diagnosis) -> Iterator[Finding]:
    if diagnosis.gradient != "tbptt":
        return
    dependency, reach, steps = diagnosis.dependency, diagnosis.reach, diagnosis.horizon
    far = dependency is not None and dependency.explains > FAR_EXPLAINS and dependency.share > FAR_SHARE
    stays = reach is not None and reach.tells and (reach.half_life is None or reach.half_life > steps)
    mass = stays and reach is not None and reach.beyond > FAR_MASS
    if not far and not mass:
        return
    seen = []
    if far and dependency is not None:
        seen.append(
            f"the frame {dependency.lag} steps back explains {dependency.explains:.0%} of the model's error,"
            f" beyond T = {steps}"
        )
    if mass and reach is not None:
        seen.append(f"{reach.beyond:.0%} of the gradient lies {steps} steps back and more, where truncation cuts it")
    longer = dependency.lag + 1 if far and dependency is not None else 2 * steps
    yield _of(
        "short horizon",
        "; ".join(seen),
        "what is to be predicted depends on frames that no gradient reaches"
        if far
        else "the state carries further than gradients reach: the truncated gradient is not that of the loss",
        f"--data.steps {longer} or more",
    )


def _dead(diagnosis: Diagnosis) -> Iterator[Finding]:
    for name, values in (("h", diagnosis.state), ("z", diagnosis.latent)):
        if values is not None and DEAD * values.dim < len(values.dead) < values.dim:
            yield _of(
                "dead units",
                f"{len(values.dead)} of {values.dim} units of {name} never move",
                "they cost time and hold nothing",
                f"a smaller --model.{'hidden_dim' if name == 'h' else 'latent_dim'}, or other first weights",
            )


def _called(state: State, some: Sequence[ParameterGradient]) -> str:
    if state == "vanishing":
        return f"vanishing ({max(p.gradient for p in some):.1e} at most)"
    return {"none": "none", "zero": "exactly zero", "nan": "NaN or infinite"}[state]


def _shown(some: Sequence[ParameterGradient]) -> str:
    return _listed([p.name for p in some])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
