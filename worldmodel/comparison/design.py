"""The design of a comparison: variants from axes, hidden sizes that make them fair, and a command for each run."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any, Literal

from worldmodel.cells import check_rule
from worldmodel.comparison.measure import Size, size_of
from worldmodel.comparison.results import CONFIG, run_folder
from worldmodel.comparison.tuning import SEED as TUNING_SEED
from worldmodel.comparison.tuning import Tuned, trial_folder
from worldmodel.errors import MOST_SEED, UserError, choose

STARTS = ("carry", "zero")
KEYS = {"rule": "model.rule", "start": "tbptt.start"}  # of axes that have a name of their own
OWN_OPTIONS = {"model.rule": "--rules", "tbptt.start": "--start", "seed_everything": "--seeds"}
VARIED = ("model.", "tbptt.", "trainer.")

Match = Literal["params", "hidden", "flops"]
MATCHES: tuple[Match, ...] = ("params", "hidden", "flops")
TOLERANCE = 0.02


def axes_of(rules: str, start: str | None, vary: list[str], config_start: str) -> dict[str, list[str]]:
    """The axes and their values: `rule`, `start`, then those of --vary.

    Raises:
        UserError: for an unknown rule or start, a value given twice, or an axis that cannot be varied.
    """
    axes = {"rule": _values("--rules", rules), "start": _values("--start", start or config_start)}
    for rule in axes["rule"]:
        check_rule(rule)
    for value in axes["start"]:
        choose("start", value, STARTS)
    for text in vary:
        key, _, values = text.removeprefix("--").partition("=")
        if not values:
            raise UserError(f"--vary {text}: write KEY=A,B, such as model.layers=1,2")
        if key in OWN_OPTIONS:
            raise UserError(f"--vary {key}: use {OWN_OPTIONS[key]}")
        if not key.startswith(VARIED):
            raise UserError(
                f"--vary {key}: only keys of {', '.join(name[:-1] for name in VARIED)} can vary; data and evaluation"
                " are the same for all runs: make two comparisons"
            )
        if key in axes:
            raise UserError(f"--vary {key} is given twice: list all its values at once")
        axes[key] = _values(f"--vary {key}", values)
    return axes


def seeds_of(text: str) -> list[int]:
    """The seeds; a UserError for anything but whole numbers."""
    values = _values("--seeds", text)
    for value in values:
        if not (value.isascii() and value.isdigit() and int(value) <= MOST_SEED):
            raise UserError(f"--seeds {text}: {value!r} is no whole number from 0 to {MOST_SEED}")
    return [int(value) for value in values]


def _values(option: str, text: str) -> list[str]:
    """Split at commas outside brackets."""
    values = [value.strip() for value in re.split(r",(?![^\[{(]*[\]})])", text)]
    if not all(values):
        raise UserError(f"{option} {text}: a value is missing between its commas")
    if twice := [value for value in values if values.count(value) > 1]:
        raise UserError(f"{option} {text}: {twice[0]} is given twice")
    return values


@dataclass(frozen=True)
class Variant:
    """One combination of the axes' values."""

    axes: dict[str, str]  # "rule", "start", then those of --vary
    shared: tuple[str, ...] = ()  # axes that have one value in the whole comparison: names don't repeat it

    @property
    def name(self) -> str:
        """As tables show it: "gated_norm, carry, model.layers 2"."""
        return self._name(self.shared)

    @property
    def slug(self) -> str:
        """Its folder's name: it depends on the variant alone, and stays when others are added."""
        whole = self._name()
        slug = re.sub(r"[^\w.+-]+", "-", whole).strip("-.")
        simple = all(re.fullmatch(r"[\w.+-]+", value) for value in self.axes.values()) and len(slug) <= 100
        return slug if simple else f"{slug[:100]}-{sha256(whole.encode()).hexdigest()[:8]}"

    def _name(self, without: Collection[str] = ()) -> str:
        """The rule and the start by their values alone."""
        named = {axis: value for axis, value in self.axes.items() if axis not in without}
        return ", ".join(value if axis in KEYS else f"{axis} {value}" for axis, value in named.items())


def variants_of(axes: Mapping[str, list[str]]) -> list[Variant]:
    """Every combination of the axes' values; `rule` and `start` are the first two axes."""
    shared = tuple(axis for axis in ("start",) if len(axes[axis]) == 1)
    return [Variant(dict(zip(axes, values, strict=True)), shared) for values in product(*axes.values())]


def runs_of(
    out: Path, variants: list[Variant], hidden_dims: list[int], seeds: list[int], experiment: str
) -> list[dict[str, Any]]:
    """The runs, seed by seed, so that all variants can soon be compared. `experiment` groups them in W&B."""
    return [
        {
            "variant": variant.name,
            "slug": variant.slug,
            "axes": variant.axes,
            "seed": seed,
            "argv": [
                *command_of(out, variant, hidden_dim),
                *_place(seed, run_folder(out, variant.slug, seed), experiment),
            ],
        }
        for seed in seeds
        for variant, hidden_dim in zip(variants, hidden_dims, strict=True)
    ]


def command_of(out: Path, variant: Variant, hidden_dim: int) -> list[str]:
    """The command that trains this variant, by hand too, up to the seed."""
    values = {KEYS.get(axis, axis): value for axis, value in variant.axes.items()}
    values = {"model.rule": values.pop("model.rule"), "model.hidden_dim": str(hidden_dim)} | values
    return ["worldmodel", "fit", "--config", str(out / CONFIG), *_options(values)]


def trial_command(out: Path, design: Mapping[str, Any], slug: str, number: int) -> list[str]:
    """The command of a tuning's trial, whose runs are a group of their own in W&B."""
    tuning, experiment = design["tuning"], design["runs"][0]["argv"][-1]
    place = _place(TUNING_SEED, trial_folder(out, slug, number), f"{experiment}-tune")
    return [*tuning["commands"][slug], *_options(tuning["trials"][number]), *place]


def with_winners(design: dict[str, Any], tuned: Mapping[str, Tuned]) -> dict[str, Any]:
    """The design in which the runs of each variant whose tuning has ended have its winner's values."""
    runs = []
    for run in design["runs"]:
        argv = run["argv"]
        if run["slug"] in tuned and (winner := tuned[run["slug"]].winner) is not None:
            values = _options(design["tuning"]["trials"][winner])
            argv = [*design["tuning"]["commands"][run["slug"]], *values, *argv[argv.index("--seed_everything") :]]
        runs.append({**run, "argv": argv})
    return {**design, "runs": runs}


def _options(values: Mapping[str, str]) -> list[str]:
    words = []
    for key, value in values.items():
        words += [f"--{key}={value}"] if value.startswith("-") else [f"--{key}", value]
    return words


def _place(seed: int, folder: Path, experiment: str) -> list[str]:
    return ["--seed_everything", str(seed), "--run_dir", str(folder), "--experiment", experiment]


def sizes_of(
    variants: list[Variant], arguments: dict[tuple[str, ...], dict[str, Any]], configured: dict[str, Any], match: Match
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each variant, and one for the configuration as it stands, which they are matched to.

    Args:
        variants: all of them.
        arguments: of WorldModel, for each combination of the values of --vary.
        configured: arguments of WorldModel in the configuration.
        match: what is to be equal.
    """
    reference = size_of(configured)
    rows = []
    for variant in variants:
        rule, _, *values = variant.axes.values()
        size = matched(variant.name, arguments[tuple(values)] | {"rule": rule}, reference, match)
        percent = 100 * difference(size, reference, match)
        rows.append({"variant": variant.name, **asdict(size), "difference_percent": percent})
    return rows, {"rule": configured["rule"], **asdict(reference)}


def matched(name: str, arguments: Mapping[str, Any], reference: Size, match: Match) -> Size:
    """The hidden size that comes closest to the reference, whatever hidden size the arguments name.

    Args:
        name: of the variant, for the message.
        arguments: of its WorldModel.
        reference: the size to match.
        match: trained `params`, `flops` of a step, or `hidden`: the arguments as they are.

    Raises:
        UserError: naming the closest sizes, if none is within 2%.
    """
    if match == "hidden":
        return size_of(arguments)
    wanted = amount(reference, match)

    def at(hidden_dim: int) -> Size:
        return size_of({**arguments, "hidden_dim": hidden_dim})

    above = _first_reaching(lambda hidden_dim: amount(at(hidden_dim), match) >= wanted)
    near = [at(hidden_dim) for hidden_dim in (above - 1, above) if hidden_dim >= 1]
    best = min(near, key=lambda size: abs(amount(size, match) - wanted))
    if abs(difference(best, reference, match)) > TOLERANCE:
        unit = "parameters" if match == "params" else "flops per step"
        reached = " and ".join(f"hidden_dim {size.hidden_dim} has {amount(size, match):,}" for size in near)
        raise UserError(
            f"{name} cannot be matched within {TOLERANCE:.0%} to the {wanted:,} {unit} of the configuration:"
            f" {reached}; raise --model.hidden_dim, or compare equal hidden sizes with --match hidden"
        )
    return best


def amount(size: Size, match: Match) -> int:
    """The number that is compared: flops, or else parameters."""
    return size.flops if match == "flops" else size.parameters


def difference(size: Size, reference: Size, match: Match) -> float:
    """(size - reference) / reference."""
    return amount(size, match) / amount(reference, match) - 1


def _first_reaching(reaches: Callable[[int], bool]) -> int:
    """The smallest number from 1 on that meets a monotonic condition."""
    high = 1
    while not reaches(high):
        high *= 2
    low = high // 2  # does not reach, or is 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high
