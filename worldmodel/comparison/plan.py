"""What a comparison runs: variants from axes, one command a run, and how a folder that was begun goes on."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from worldmodel.comparison.results import (
    Comparison,
    Failure,
    Result,
    read_json,
    read_references,
    read_result,
    run_folder,
    write_json,
)
from worldmodel.errors import UserError

OPTIONS = {"rule": "model.rule", "start": "tbptt.start"}  # axes with a name of their own
PLAN, CONFIG, FAILURES = "comparison.json", "config.yaml", "failures.json"
HARMLESS = {  # keys of a configuration that change no number: the data's fingerprint is compared instead of its place
    *("experiment", "run_dir", "wandb", "project", "checkpoint_every", "trainer.enable_progress_bar"),
    *("data.path", "data.test_path", "data.num_workers", "data.memory_gb", "data.cache_dir"),
    *("recall.multiples", "recall.sequences", "recall.limit", "recall.seed"),
}
MOST_DIFFERENCES = 5  # named in a message


@dataclass(frozen=True)
class Variant:
    """One combination of the axes' values."""

    axes: dict[str, str]  # "rule", "start", then what --vary names

    @property
    def name(self) -> str:
        """As tables show it: "gated_norm, carry, model.layers 2"."""
        rule, start, *rest = self.axes.items()
        return ", ".join([rule[1], start[1], *(f"{key} {value}" for key, value in rest)])

    @property
    def slug(self) -> str:
        """As its folder is called: a function of the variant alone, so that it stays when others are added."""
        slug = re.sub(r"[^\w.+-]+", "-", self.name).strip("-.")
        simple = all(re.fullmatch(r"[\w.+-]+", value) for value in self.axes.values()) and len(slug) <= 100
        return slug if simple else f"{slug[:100]}-{sha256(self.name.encode()).hexdigest()[:8]}"


def variants(axes: Mapping[str, list[str]]) -> list[Variant]:
    """Every combination of the axes' values; `rule` and `start` are the first two axes."""
    return [Variant(dict(zip(axes, values, strict=True))) for values in product(*axes.values())]


def plan_runs(
    out: Path, variants: list[Variant], hidden_dims: list[int], seeds: list[int], experiment: str
) -> list[dict[str, Any]]:
    """The runs, seed by seed, so that what is finished of them can be compared. `experiment` groups them in W&B."""
    return [
        {
            "variant": variant.name,
            "slug": variant.slug,
            "axes": variant.axes,
            "seed": seed,
            "argv": _argv(out, variant, hidden_dim, seed, experiment),
        }
        for seed in seeds
        for variant, hidden_dim in zip(variants, hidden_dims, strict=True)
    ]


def _argv(out: Path, variant: Variant, hidden_dim: int, seed: int, experiment: str) -> list[str]:
    """What trains this run, by hand too."""
    values = {OPTIONS.get(axis, axis): value for axis, value in variant.axes.items()}
    values = {"model.rule": values.pop("model.rule"), "model.hidden_dim": str(hidden_dim)} | values
    words = ["worldmodel", "fit", "--config", str(out / CONFIG)]
    for key, value in values.items():
        words += [f"--{key}={value}"] if value.startswith("-") else [f"--{key}", value]
    words += ["--seed_everything", str(seed), "--run_dir", str(run_folder(out, variant.slug, seed))]
    return [*words, "--experiment", experiment]


# --- a folder that was begun -----------------------------------------------------------------------------------------


def read_plan(out: Path) -> dict[str, Any] | None:
    """The plan in a comparison's folder; None if the folder is new, or empty.

    Raises:
        UserError: if the folder holds something else.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose another --out")
    if (out / PLAN).is_file():
        return read_json(out / PLAN)
    if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} holds something else than a comparison: choose another --out")
    return None


def read_config(out: Path) -> dict[str, Any]:
    """The configuration in a comparison's folder; empty if there is none yet."""
    path = out / CONFIG
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def check_continues(out: Path, plan: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Hold the plan against the one in the folder, which it may only extend by values of axes and by seeds.

    Raises:
        UserError: naming the differences.
    """
    old = read_plan(out)
    if old is None:
        return
    differences = [*_narrowed(old, plan), *_changed(old, plan), *config_differences(read_config(out), config)]
    if differences:
        more = len(differences) - MOST_DIFFERENCES
        named = "; ".join(differences[:MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(f"the comparison in {out} is another one: {named}. Choose another --out")


def keep_record(old: Mapping[str, Any], new: dict[str, Any]) -> list[str]:
    """Carry over to the new plan what the old one says of its beginning: the date and the versions.

    Returns what has another version now; the new plan lists all such under `versions_later`.
    """
    now, was, later = new["versions"], old["versions"], old.get("versions_later", [])
    differences = [f"{name} is {now[name]}, was {was.get(name)}" for name in now if now[name] != was.get(name)]
    new |= {"created": old["created"], "versions": was}
    if later := later + ([now] if differences and now not in later else []):
        new["versions_later"] = later
    return differences


def _narrowed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    if list(old["axes"]) != list(new["axes"]):
        return [f"its axes are {', '.join(old['axes'])}, asked are {', '.join(new['axes'])}"]
    was = old["axes"] | {"seed": list(map(str, old["seeds"]))}
    now = new["axes"] | {"seed": list(map(str, new["seeds"]))}
    return [
        f"it has the {axis} {value}, which is left out now"
        for axis, values in was.items()
        for value in values
        if value not in now[axis]
    ]


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    pairs = [("--match", old["match"], new["match"])]
    pairs += [
        (f"the version of {name}", old["versions"][name], new["versions"][name]) for name in ("worldmodel", "torch")
    ]
    pairs += [
        (f"the data's {key}", old["data"].get(key), value)
        for key, value in new["data"].items()
        if key != "env_id"  # a name, and that of the folder where the data has none
    ]
    hidden = {row["variant"]: row["hidden_dim"] for row in old["sizes"]}
    pairs += [
        (f"hidden_dim of {row['variant']!r}", hidden[row["variant"]], row["hidden_dim"])
        for row in new["sizes"]
        if row["variant"] in hidden
    ]
    return [f"{name} is {now}, was {was}" for name, was, now in pairs if was != now]


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Keys in which two configurations differ and results may, in words; none, where there is no old one."""
    was, now = _flat(old), _flat(new)
    keys = [key for key in {**now, **was} if key not in HARMLESS] if old else []
    return [f"{key} is {now.get(key)!r}, was {was.get(key)!r}" for key in keys if now.get(key) != was.get(key)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


# --- what the folder has come to -------------------------------------------------------------------------------------


def finished(out: Path, run: Mapping[str, Any]) -> Result | None:
    """The run's result, if its folder holds one of the same command, wherever the folder lies."""
    result = read_result(run_folder(out, run["slug"], run["seed"]))
    return result if result is not None and same_command(result.command, run["argv"]) else None


def same_command(one: list[str], other: list[str]) -> bool:
    """Whether two runs are the same, wherever their folders lie."""
    return _what(one) == _what(other)


def _what(argv: list[str]) -> list[str]:
    """A run's command without what follows from the folder's place."""
    places = {i + 1 for i, word in enumerate(argv) if word in ("--config", "--run_dir", "--experiment")}
    return [word for i, word in enumerate(argv) if i not in places]


def write_failures(out: Path, failures: list[Failure]) -> None:
    """Write `failures.json`."""
    write_json(out / FAILURES, [vars(failure) for failure in failures])


def load(out: Path) -> Comparison:
    """Everything that the folder of a comparison holds.

    Raises:
        UserError: if there is none.
    """
    plan = read_plan(out)
    if plan is None:
        raise UserError(f"{out} holds no comparison: make one with `worldmodel compare --config CONF --out {out}`")
    results = [result for run in plan["runs"] if (result := finished(out, run)) is not None]
    have = {(result.variant, result.seed) for result in results}
    rows = read_json(out / FAILURES) if (out / FAILURES).is_file() else []
    failures = [Failure(**row) for row in rows if (row["variant"], row["seed"]) not in have]
    return Comparison(out, plan, results, failures, read_references(out))
