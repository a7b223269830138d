"""Where the fields of an unknown file lie: its arrays' names and lengths, put into the words of a schema.

HDF5, npz and zarr hold arrays under names. Programs name them alike: `actions`, beside `obs` or `observations`, once a
file or once in each of its groups `demo_0`, `traj_0`, ... What cuts the rows into episodes, and whether the final
observation is there, follows from what else is there and from the number of rows.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import NoReturn

import numpy as np
import yaml

from worldmodel.data.readers.alignment import Side
from worldmodel.data.readers.choice import Choice
from worldmodel.data.readers.fields import (
    ACTION,
    DONE,
    EPISODE,
    FOLLOWING,
    OBSERVED,
    REWARD,
    STOPS,
    TERMINATED,
    TRUNCATED,
    Arrays,
    Stored,
    is_note,
)
from worldmodel.data.readers.schema import EXAMPLE, NEXT
from worldmodel.data.readers.table_start import ACTION as COMMAND
from worldmodel.data.spaces import OBSERVATION, Json
from worldmodel.errors import UserError, nearest

GROUP = re.compile(r"((?:demo|traj|trajectory|episode|ep|trial|run|rollout|seq|sequence|recording)?[_-]?)\d+")


@dataclass(frozen=True)
class Layout:
    """A recognised layout."""

    form: str  # the program that writes such files, as far as it is known
    schema: Json
    left_out: list[str] = field(default_factory=list)  # arrays with as many rows, which are not read


def layout_of(arrays: Arrays, choice: Choice, alignment: Side | None, kind: str, where: str, several: bool) -> Layout:
    """The layout of a file.

    Args:
        arrays: the file, open.
        choice: what the user names.
        alignment: of a row's action, where the user says it; None: as the rows suggest.
        kind: what to call the format if no program is known that writes it.
        where: the file, for error messages.
        several: whether it is one of several files, each of which may be an episode.

    Raises:
        UserError: that shows what the file holds and what to say of it, if it is not clear.
    """
    if not choice.action and {"action", "ep_len", "ep_offset"} <= arrays.stored.keys():
        return _stable_worldmodel(arrays, choice, where)
    unit = _unit(arrays.stored, choice)
    if unit is None:
        _ask_for_action(arrays, choice, alignment, kind, where, several)
    observed, is_group = _family(unit, OBSERVED)
    usual = observed or _by_last([name for name in unit.beside if not is_note(name)])
    usual = usual or _by_last([name for name in unit.long if not is_note(name)])
    others = {name: name for name in unit.beside if name not in usual.values()}
    others |= {name: name for name in unit.long if name not in {*usual.values(), *others}}
    if not usual and not choice.observations:
        raise UserError(f"{where}: which array is the observation? Name it: --observations NAME; {_held(unit.columns)}")
    keys = choice.keys(usual, where, others)
    places = {key: (usual | others)[key] for key in keys}
    followed, _ = _family(unit, FOLLOWING)
    followed = followed or _following(unit, places)
    followed = {key: followed[key] for key in keys} if followed and followed.keys() >= {*keys} else {}
    flags = {what: unit.first(names) for what, names in
             (("terminated", TERMINATED), ("truncated", TRUNCATED), ("done", DONE))}  # fmt: skip
    reward = choice.reward or unit.first(REWARD)
    if reward and reward not in unit.columns:
        raise UserError(f"{where}: there is no reward {reward!r}; {nearest(reward, unit.columns)}")
    frames = unit.columns[next(iter(places.values()))].rows
    schema: Json = {
        "episodes": None,
        "observations": places,
        "next_observations": followed or None,
        "actions": unit.action[0] if len(unit.action) == 1 else unit.action,
        "rewards": reward,
        **flags,
        "final_observation": "missing",
    }
    if followed:
        schema["final_observation"] = "next_observations"
    elif frames == unit.rows + 1 or alignment == "previous" or any(name not in unit.columns for name in unit.action):
        schema["final_observation"] = "included"
    if alignment:
        schema |= {"alignment": alignment, "outcomes": alignment}
    form = _cut(unit, schema, kind, where, several=several, is_group=is_group, observed=bool(observed))
    if unit.pattern and flags["done"] and not flags["terminated"] and not flags["truncated"]:
        schema |= {"terminated": flags["done"], "done": None}
    used = {*places.values(), *followed.values(), *unit.action, *flags.values(), reward}
    return Layout(form, schema, sorted({*others} - used))


@dataclass(frozen=True)
class _Unit:
    """The arrays among which an episode lies: those of the file, or of its first group."""

    columns: dict[str, Stored]
    action: list[str]
    base: str  # the folder of the action: "" or "data/"
    rows: int  # of the action
    pattern: str | None  # of the groups, if there are some

    @property
    def long(self) -> list[str]:
        """The arrays with a row for each action or one more, the action apart."""
        return [n for n, s in self.columns.items() if s.rows in (self.rows, self.rows + 1) and n not in self.action]

    @property
    def beside(self) -> list[str]:
        """Those in the folder of the action."""
        return [n for n in self.long if n.startswith(self.base) and "/" not in n.removeprefix(self.base)]

    def first(self, names: Iterable[str]) -> str | None:
        """The first of these names that is one number a row."""
        rows = (self.rows, self.rows + 1)
        of_one = [n for n in self.beside if np.prod(self.columns[n].shape[1:]) == 1 and self.columns[n].rows in rows]
        return next((self.base + name for name in names if self.base + name in of_one), None)


def _unit(stored: dict[str, Stored], choice: Choice) -> _Unit | None:
    """Where the action lies: the shallowest array of such a name; None if there is none."""
    numbers = {name: array for name, array in stored.items() if array.rows >= 0}

    def hits(name: str) -> list[str]:
        return [full for full in numbers if full == name or full.endswith(f"/{name}")]

    wanted = [choice.action] if choice.action else [(name,) for name in ACTION]
    plain = [tuple(n if hits(n) else n.removesuffix(NEXT) for n in names) for names in wanted]
    first = [min(hits(names[0]), key=lambda name: name.count("/"), default=None) for names in plain]
    number = next((i for i, hit in enumerate(first) if hit is not None), None)
    if number is None:
        return None
    *folders, _ = str(first[number]).split("/")
    level = next((i for i in reversed(range(len(folders))) if GROUP.fullmatch(folders[i])), None)
    group, pattern = "", None
    if level is not None:
        group = "/".join(folders[: level + 1]) + "/"
        stem = GROUP.fullmatch(folders[level])
        pattern = "/".join([*folders[:level], f"{stem[1] if stem else ''}*"])
    columns = {name.removeprefix(group): array for name, array in numbers.items() if name.startswith(group)}
    relative = str(first[number]).removeprefix(group)
    base = relative.removesuffix(plain[number][0])
    if any(base + name not in columns for name in plain[number]):
        return None
    return _Unit(columns, [base + name for name in wanted[number]], base, columns[relative].rows, pattern)


def _ask_for_action(
    arrays: Arrays, choice: Choice, alignment: Side | None, kind: str, where: str, several: bool
) -> NoReturn:
    """Raise UserError with the option that names an action, and what the schema would be if it were that array."""
    numbers = [name for name, array in arrays.stored.items() if array.rows > 0]
    if choice.action:
        hint = nearest(choice.action[0], numbers)
        raise UserError(f"{where}: there is no array {', '.join(choice.action)} for the action; {hint}")
    guess = next((name.split("/")[-1] for name in numbers if re.fullmatch(COMMAND, name.split("/")[-1])), None)
    if guess is None:  # where poses were recorded and nothing else, the next one is the action
        vectors = [n for n in numbers if len(arrays.stored[n].shape) == 2 and arrays.stored[n].dtype.kind == "f"]
        guess = f"{vectors[0].split('/')[-1]}{NEXT}" if vectors else None
    example = EXAMPLE
    if guess:
        try:
            schema = layout_of(arrays, replace(choice, action=(guess,)), alignment, kind, where, several).schema
            example = _line(schema)
        except UserError:
            guess = None
    raise UserError(
        f"{where}: which array is the action? Name it (--action {guess or 'NAME'}; NAME{NEXT} is that array in the row"
        f" below, where the next state is the action), or describe the file by a schema such as {example}."
        f" {_held(arrays.stored)}"
    )


def _by_last(names: list[str]) -> dict[str, str]:
    """Key -> array: the last part of its name where no other has it, else all of it."""
    last = [name.split("/")[-1] for name in names]
    return {key if last.count(key) == 1 else name: name for key, name in zip(last, names, strict=True)}


def _family(unit: _Unit, words: Iterable[str]) -> tuple[dict[str, str], bool]:
    """Key -> place of what lies under one of these words, and whether that is a group."""
    for word in words:
        place = unit.base + word
        if place in unit.long:
            return {OBSERVATION: place}, False
        if inside := [name for name in unit.long if name.startswith(f"{place}/")]:
            return {name.removeprefix(f"{place}/"): name for name in inside}, True
    return {}, False


def _following(unit: _Unit, places: dict[str, str]) -> dict[str, str]:
    """Key -> place of `next_state` for `state`, as far as they are there."""
    after = {key: "/".join([*place.split("/")[:-1], f"next_{place.split('/')[-1]}"]) for key, place in places.items()}
    return {key: place for key, place in after.items() if place in unit.long}


def _cut(unit: _Unit, schema: Json, kind: str, where: str, several: bool, is_group: bool, observed: bool) -> str:
    """Say in the schema what cuts the rows into episodes. Returns the format."""
    flags = {what: schema[what] for what in ("terminated", "truncated", "done") if schema[what]}
    if unit.pattern:
        schema["episodes"] = {"groups": unit.pattern}
        forms = {"data/demo_*": "robomimic" if observed else "robosuite", "traj_*": "maniskill"}
        return forms.get(unit.pattern, kind)
    if stops := next((name for name in unit.columns if name.split("/")[-1] == STOPS), None):
        schema["episodes"] = {"stops": stops}
        return "diffusion_policy" if kind == "zarr" else kind
    if flags:
        schema["episodes"] = {"ends": list(flags.values())}
        if [*flags] != ["terminated"]:
            return "d4rl" if observed and not is_group and schema["rewards"] and "terminated" in flags else kind
        if schema["rewards"] is None:  # OGBench flags the last state of each trajectory, whose action is a placeholder
            schema |= {"terminated": None, "final_observation": "included"}
            return "ogbench"
        if schema["final_observation"] != "missing":
            return "d4rl" if observed and not is_group else kind
        marked = f"it does not mark where a time limit cut episodes: {flags['terminated']} is all it has"
        _ask(unit, schema | {"episodes": {"lengths": 1000}}, where, marked)
    if column := unit.first(EPISODE):
        schema["episodes"] = {"column": column}
        return kind
    if schema["final_observation"] == "included" or (
        is_group and (several or GROUP.fullmatch(PurePosixPath(where).stem))
    ):
        return "aloha" if is_group and kind == "hdf5" else kind
    return _ask(unit, schema, where, "nothing in it says where its episodes begin")


def _ask(unit: _Unit, schema: Json, where: str, why: str) -> NoReturn:
    """Raise UserError with a schema of this very file to start from."""
    raise UserError(
        f"{where}: {why}. Write this line to a file, correct it (`episodes`: {{lengths: N}}, {{ends: [flag]}},"
        f" {{column: name}}; left out if each file is one), and name the file with --schema: {_line(schema)}."
        f" {_held(unit.columns)}"
    )


def _line(schema: Json) -> str:
    """A schema as one line of YAML."""
    told = {key: value for key, value in schema.items() if value is not None}
    return yaml.safe_dump(told, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True).strip()


def _held(stored: dict[str, Stored], most: int = 12) -> str:
    listed = [f"{name} {list(array.shape)}" for name, array in stored.items()]
    return f"It holds {', '.join(listed[:most])}" + (f" and {len(listed) - most} more" * (len(listed) > most))


def _stable_worldmodel(arrays: Arrays, choice: Choice, where: str) -> Layout:
    """Rows (o_t, r_t, flags_t) with the action that led to them (the first is NaN), or with actions moved up by a row.

    Moved up, the first action stands at the end. Newer versions omit the reset's row, so that the action at the end
    led to nothing in the file (stable_worldmodel/world, collect and record_dataset). It is a placeholder either way.
    """
    action = arrays.stored["action"]
    as_it_came = action.rows > 0 and action.dtype.kind == "f" and bool(np.isnan(arrays.read("action", 0, 1)).all())
    rows = [name for name, array in arrays.stored.items() if "/" not in name and array.rows == action.rows]
    usual = [name for name in rows if not is_note(name)]
    keys = choice.keys({key: key for key in usual}, where, {key: key for key in rows})
    outcome = {key: key if key in arrays.stored else None for key in ("reward", "terminated", "truncated")}
    schema = {
        "episodes": {"lengths": "ep_len", "offsets": "ep_offset"},
        "observations": {key: key for key in keys},
        "actions": "action",
        "rewards": choice.reward or outcome["reward"],
        "terminated": outcome["terminated"],
        "truncated": outcome["truncated"],
        "final_observation": "included",
        "alignment": "previous" if as_it_came else "next",
        "outcomes": "previous",
    }
    return Layout("stable-worldmodel", schema, sorted({*rows} - {*keys, "action", *outcome.values()}))
