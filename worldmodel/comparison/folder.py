"""A comparison's folder: begun, continued, and loaded."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from worldmodel.arguments import same_command
from worldmodel.comparison.design import trial_command
from worldmodel.comparison.results import (
    CONFIG,
    Comparison,
    Failure,
    Result,
    read_references,
    read_result,
    run_folder,
)
from worldmodel.comparison.tuning import Tuned, Tuning, check_record, read_scores, trial_folder
from worldmodel.durable import intact, read_json, summed_file, write_json
from worldmodel.errors import Damaged, UserError
from worldmodel.experiments.config import config_differences

DESIGN, FAILURES = "comparison.json", "failures.json"
MOST_DIFFERENCES = 5  # named in a message
RESTORE = "restore it from a copy, or choose another --out"
PARTS = {"runs": list, "axes": dict, "seeds": list, "sizes": list, "versions": dict, "data": dict}  # of a design
PARTS_OF_RUN = {"variant": str, "slug": str, "axes": dict, "seed": int, "argv": list}


def read_design(out: Path) -> dict[str, Any] | None:
    """The design in a comparison's folder; None if the folder is new, or empty.

    Raises:
        UserError: if the folder holds other files, or the design is damaged.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose another --out")
    if (out / DESIGN).is_file():
        with intact(out / DESIGN, RESTORE):
            design = read_json(out / DESIGN)
            for part, kinds in (design, PARTS), *((run, PARTS_OF_RUN) for run in design["runs"]):
                if wrong := [name for name, kind in kinds.items() if not isinstance(part[name], kind)]:
                    raise TypeError(f"{wrong[0]} is {part[wrong[0]]!r}")
            for command in (design.get("command", []), *(run["argv"] for run in design["runs"])):
                "".join(command)  # words alone
            return design
    if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} holds files, but no comparison: choose another --out")
    return None


def read_config(out: Path) -> dict[str, Any]:
    """The configuration in a comparison's folder; empty if there is none yet."""
    path = out / CONFIG
    if not path.is_file():
        return {}
    with intact(path, RESTORE):
        return dict(yaml.safe_load(path.read_text()))


def write_design(out: Path, design: dict[str, Any], config: str, defaults: Mapping[str, Any]) -> list[str]:
    """Write design and configuration (YAML), if they continue what the folder holds.

    Returns versions that differ from those of the first runs, in words.
    """
    check_continues(out, design, yaml.safe_load(config), defaults)
    before = read_design(out)
    differences = keep_record(before, design) if before else []
    write_json(out / DESIGN, design, summed=True)
    with summed_file(out / CONFIG) as temporary:
        temporary.write_text(config)
    return differences


def check_continues(
    out: Path, design: Mapping[str, Any], config: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Compare the design with the one in the folder, which it may only extend by values of axes and by seeds.

    Raises:
        UserError: naming the differences.
    """
    old = read_design(out)
    if old is None:
        return
    differences = [*_narrowed(old, design), *_changed(old, design)]
    differences += config_differences(read_config(out), config, defaults)
    if differences:
        more = len(differences) - MOST_DIFFERENCES
        named = "; ".join(differences[:MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(f"the comparison in {out} differs: {named}. Choose another --out")


def keep_record(old: Mapping[str, Any], new: dict[str, Any]) -> list[str]:
    """Copy the date and the versions of the first runs from the old design into the new one.

    Returns the versions that have changed since; the new design lists them under `versions_later`.
    """
    now, was, later = new["versions"], old["versions"], old.get("versions_later", [])
    differences = [f"{name} is {now[name]}, was {was.get(name)}" for name in now if now[name] != was.get(name)]
    new |= {"created": old["created"], "versions": was}
    if later := later + ([now] if differences and now not in later else []):
        new["versions_later"] = later
    return differences


def _narrowed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    if list(old["axes"]) != list(new["axes"]):
        return [f"its axes are {', '.join(old['axes'])}, not {', '.join(new['axes'])}"]
    was = old["axes"] | {"seed": list(map(str, old["seeds"]))}
    now = new["axes"] | {"seed": list(map(str, new["seeds"]))}
    return [
        f"it has the {axis} {value}, which is missing now"
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
        if key != "env_id"  # a name, or the folder's where the data has none
    ]
    pairs += [
        (f"the code of {name}", was[:12], new["parts"][name][:12])
        for name, was in old.get("parts", {}).items()
        if name in new["parts"]
    ]
    was, now = _hidden_dims(old), _hidden_dims(new)
    pairs += [(f"hidden_dim of {name!r}", was[slug][1], dim) for slug, (name, dim) in now.items() if slug in was]
    was, now = old.get("tuning", {}), new.get("tuning", {})
    pairs += [(option, was.get(name), now.get(name)) for option, name in (("--tune", "asked"), ("--trials", "count"))]
    return [f"{name} is {now}, was {was}" for name, was, now in pairs if was != now]


def _hidden_dims(design: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Slug -> name, which changes as axes get more values, and hidden_dim."""
    dims = {row["variant"]: row["hidden_dim"] for row in design["sizes"]}
    return {run["slug"]: (run["variant"], dims[run["variant"]]) for run in design["runs"] if run["variant"] in dims}


def finished(out: Path, run: Mapping[str, Any]) -> Result | None:
    """The run's result, if its folder holds an undamaged one of the same command, wherever the folder lies."""
    try:
        result = read_result(run_folder(out, run["slug"], run["seed"]))
    except Damaged:  # which `damages` names
        return None
    if result is None or not same_command(result.command, run["argv"]):
        return None
    return replace(result, variant=run["variant"], axes=run["axes"])  # names change as axes get more values


def damages(out: Path, design: Mapping[str, Any]) -> Iterator[str]:
    """What is damaged of the design's trials and runs, and of the references, in words."""
    for slug in design.get("tuning", {"commands": ()})["commands"]:
        for number in range(len(design["tuning"]["trials"])):
            try:
                check_record(trial_folder(out, slug, number))
            except Damaged as damage:
                yield f"{slug}, trial {number}: {damage}"
    for run in design["runs"]:
        try:
            read_result(run_folder(out, run["slug"], run["seed"]))
        except Damaged as damage:
            yield f"{run['variant']}, seed {run['seed']}: {damage}"
    try:
        read_references(out)
    except (Damaged, FileNotFoundError) as damage:
        yield f"the references: {damage}"


def tuned(out: Path, design: Mapping[str, Any]) -> dict[str, Tuned]:
    """Slug -> what the variant's tuning has come to; empty without tuning."""
    if "tuning" not in design:
        return {}
    plan, found = Tuning.read(design["tuning"]), {}
    for slug, variant in {run["slug"]: run["variant"] for run in design["runs"]}.items():
        trials = [(trial_folder(out, slug, n), trial_command(out, design, slug, n)) for n in range(len(plan.trials))]
        scores = [read_scores(*trial) for trial in trials]
        found[slug] = Tuned(variant, scores, plan.course(scores).winner)
    return found


def write_failures(out: Path, failures: list[Failure]) -> None:
    """Write `failures.json`."""
    write_json(out / FAILURES, [vars(failure) for failure in failures], summed=True)


def load(out: Path) -> Comparison:
    """Everything that the folder of a comparison holds.

    Raises:
        UserError: if there is none, or its design or configuration is damaged.
    """
    design = read_design(out)
    if design is None:
        raise UserError(f"{out} holds no comparison: start one with `worldmodel compare --config CONF --out {out}`")
    read_config(out)  # the report shows it
    results = [result for run in design["runs"] if (result := finished(out, run)) is not None]
    have = {(result.variant, result.seed) for result in results}
    with intact(out / FAILURES, f"remove {out / FAILURES}*, and give the same command again"):
        rows = read_json(out / FAILURES) if (out / FAILURES).is_file() else []
        failures = [Failure(**row) for row in rows if (row["variant"], row["seed"]) not in have]
    references = []  # damaged ones are measured again
    with suppress(Damaged, FileNotFoundError):
        references = read_references(out)
    return Comparison(out, design, results, failures, references, list(tuned(out, design).values()))
