"""How a file of one's own, HDF5 or a table, lays out its episodes: the words of a schema, as a few lines of plain data.

A name is that of a table's column, or the path of an HDF5 dataset below the episode's group (below the file where
there are no groups). A list of names is one vector. The keys:

    episodes           omitted: each file is one episode; or its rows are cut:
                       {column: trial}: where this number or text changes
                       {ends: [done, timeout]}: after each row that one of these flags
                       {lengths: 2000}: into pieces of so many rows; {lengths: [400, 100]}: into these;
                       {lengths: ep_len, offsets: ep_offset}: by the numbers stored under these names
                       {stops: meta/episode_ends}: before the rows whose numbers are stored under this name
                       {groups: "data/demo_*"}: a group of an HDF5 file each
    rows               [first, stop]: only these rows of each file (of each group), counted from 0 without the header,
                       `stop` excluded; stop null: to the end
    observations       {key: name or list}, or one name or list
    next_observations  the same, of the observation after each row's action
    actions            name or list. In a list or alone, `u_next` is `u` in the row below, if nothing bears that name:
                       [u, u_next] is the action of a plant whose u[t+1] acts on y[t+1] at once (direct feedthrough)
    discrete           true: an action is one whole number from 0, and becomes one-hot; false: it is a quantity;
                       omitted: an HDF5 dataset of whole numbers is discrete, a table's column is a quantity
    rewards            name; null: zeros
    terminated         name of the flag of a terminal state, or null
    truncated          name of the flag of a time limit, or null
    done               name of a flag that an episode ended, for whatever reason: terminal where `truncated` is given
                       and not set, else a cut; null: none
    final_observation  included: the last row is the final observation, its own action a placeholder;
                       missing: the last row's action has no outcome in the file, and cannot be kept;
                       next_observations: it is the last row of these
    alignment          next: a row's action is taken after its observation; previous: it led to it
    outcomes           next: a row's reward and flags come from its action; previous: they came with its observation;
                       omitted: as `alignment`
    non_finite         error: an empty cell, NaN or infinity is an error; keep: it becomes NaN, for `data check` to list
                       and `--data.non_finite skip` to leave out; omitted: error in tables, keep in HDF5
    rate               steps per second
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from worldmodel.data.readers.alignment import Side
from worldmodel.data.readers.choice import Choice
from worldmodel.data.spaces import OBSERVATION, Json
from worldmodel.errors import UserError, choose, nearest

Names = str | tuple[str, ...]  # of one column, or of those that make up a vector
Final = Literal["included", "missing", "next_observations"]
NonFinite = Literal["error", "keep"]
NEXT = "_next"
SIGNALS = ("rewards", "terminated", "truncated", "done")
KEYS = ("episodes", "rows", "observations", "next_observations", "actions", "discrete", *SIGNALS)
KEYS += ("final_observation", "alignment", "outcomes", "non_finite", "rate")
EXAMPLE = (
    '{episodes: {groups: "data/demo_*"}, observations: {arm: obs/qpos, camera: obs/image}, actions: actions,'
    " rewards: rewards, terminated: dones, final_observation: missing, alignment: next, rate: 20}"
)


@dataclass(frozen=True)
class Schema:
    """A checked schema; the module's docstring says what each key means."""

    observations: dict[str, Names]
    actions: Names
    final_observation: Final
    alignment: Side = "next"
    outcomes: Side = "next"
    groups: str | None = None
    column: str | None = None
    ends: tuple[str, ...] = ()
    lengths: str | int | tuple[int, ...] | None = None
    offsets: str | None = None
    stops: str | None = None
    rows: tuple[int, int | None] = (0, None)
    next_observations: dict[str, Names] = field(default_factory=dict)
    discrete: bool | None = None
    rewards: str | None = None
    terminated: str | None = None
    truncated: str | None = None
    done: str | None = None
    non_finite: NonFinite | None = None
    rate: float = float("nan")

    @property
    def in_words(self) -> str:
        """The alignment of the file's rows, in words."""
        side = {"next": "leaves", "previous": "enters"}
        return (
            f"action[t] is of the transition that {side[self.alignment]} row t, reward[t] and flags of the one that"
            f" {side[self.outcomes]} it; the final observation is {self.final_observation.replace('_', ' ')}"
        )

    @property
    def names(self) -> list[str]:
        """Every name of a column with a value in each row, in the order of the keys, once each."""
        several = [*self.observations.values(), *self.next_observations.values(), self.actions]
        single = [name for name in (*(getattr(self, what) for what in SIGNALS), *self.ends) if name]
        return list(dict.fromkeys([name for names in several for name in each(names)] + single))


def each(names: Names) -> tuple[str, ...]:
    """The names one by one."""
    return (names,) if isinstance(names, str) else names


def parse_schema(raw: Any, where: str, example: str = EXAMPLE) -> Schema:
    """The schema in a dict such as YAML gives.

    Raises:
        UserError: naming `where`, the wrong key, and what is valid; with `example` where the schema lacks something.
    """
    raw = _mapping(raw, KEYS, where, example)
    for key in ("observations", "actions"):
        if raw.get(key) is None:
            raise UserError(f"{where} needs the key {key!r}; an example: {example}")
    signals = {key: _name(raw[key], f"{where}: {key}") for key in SIGNALS if raw.get(key) is not None}
    alignment = _one_of(Side, raw.get("alignment", "next"), f"{where}: alignment")
    following = raw.get("next_observations")
    next_observations = _by_key(following, f"{where}: next_observations") if following else {}
    schema = Schema(
        observations=_by_key(raw["observations"], f"{where}: observations"),
        next_observations=next_observations,
        actions=_names(raw["actions"], f"{where}: actions"),
        discrete=_discrete(raw, where),
        final_observation=_final(raw.get("final_observation"), bool(next_observations), alignment, where),
        alignment=alignment,
        outcomes=_one_of(Side, raw.get("outcomes", alignment), f"{where}: outcomes"),
        rows=_rows(raw.get("rows"), f"{where}: rows"),
        rate=_rate(raw.get("rate"), where),
        **signals,
        **_episodes(raw.get("episodes"), f"{where}: episodes"),
    )
    if next_observations and next_observations.keys() != schema.observations.keys():
        raise UserError(f"{where}: observations and next_observations must have the same keys")
    if schema.offsets and raw.get("rows") is not None:
        raise UserError(f"{where}: offsets say which rows an episode has: leave out rows")
    if raw.get("non_finite") is None:
        return schema
    return replace(schema, non_finite=_one_of(NonFinite, raw["non_finite"], f"{where}: non_finite"))


def chosen(schema: Schema, choice: Choice, where: object, columns: Collection[str] = ()) -> Schema:
    """The schema with what the user names in the place of what it says.

    Raises:
        UserError: for a name that is neither one of its keys nor one of the `columns` of the file.
    """
    if not choice:
        return schema
    usual = {key: each(names)[0] for key, names in schema.observations.items()}
    keys = choice.keys(usual, where, {name: name for name in columns})
    following = {key: schema.next_observations[key] for key in keys if key in schema.next_observations}
    if following and len(following) < len(keys):
        raise UserError(f"{where}: the schema's next_observations lack {next(k for k in keys if k not in following)!r}")
    observed: dict[str, Names] = {key: schema.observations.get(key, key) for key in keys}
    rewards = choice.reward or schema.rewards
    schema = replace(schema, observations=observed, next_observations=following, rewards=rewards)
    if not choice.action:
        return schema
    return replace(schema, actions=choice.action[0] if len(choice.action) == 1 else choice.action)


def _mapping(raw: Any, keys: Sequence[str], where: str, example: str = EXAMPLE) -> Json:
    if not isinstance(raw, dict):
        raise UserError(f"{where} must be a mapping of {', '.join(keys)}, not {raw!r}; an example: {example}")
    for key in raw:
        if key not in keys:
            raise UserError(f"{where} has the unknown key {key!r}: {nearest(str(key), keys)}")
    return raw


def _episodes(raw: Any, where: str) -> Json:
    if raw is None:
        return {}
    raw = _mapping(raw, ["groups", "column", "ends", "lengths", "offsets", "stops"], where)
    if len(raw.keys() - {"offsets"}) != 1 or ("offsets" in raw and "lengths" not in raw):
        raise UserError(
            f"{where} must be one of groups, column, ends, stops, and lengths (with offsets), not {', '.join(raw)}"
        )
    if "ends" in raw:
        return {"ends": each(_names(raw["ends"], f"{where}: ends"))}
    if "lengths" in raw and not isinstance(raw["lengths"], str):
        if "offsets" in raw:
            raise UserError(f"{where}: offsets are for lengths that are stored in the file: leave them out")
        return {"lengths": _lengths(raw["lengths"], f"{where}: lengths")}
    return {key: _name(value, f"{where}: {key}") for key, value in raw.items()}


def _lengths(raw: Any, where: str) -> int | tuple[int, ...]:
    counts = raw if isinstance(raw, list) else [raw]
    if not counts or not all(_is_count(count) and count > 1 for count in counts):
        raise UserError(f"{where} must be a name, a number of rows or a list of such numbers, at least 2; not {raw!r}")
    return tuple(counts) if isinstance(raw, list) else raw


def _rows(raw: Any, where: str) -> tuple[int, int | None]:
    if raw is None:
        return 0, None
    match raw:
        case [first, stop] if _is_count(first) and (stop is None or (_is_count(stop) and stop > first + 1)):
            return first, stop
    raise UserError(
        f"{where} must be [first, stop], two rows at least, counted from 0 (stop null: the end); not {raw!r}"
    )


def _is_count(raw: Any) -> bool:
    return isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0


def _discrete(raw: Json, where: str) -> bool | None:
    discrete = raw.get("discrete")
    if discrete is not None and not isinstance(discrete, bool):
        raise UserError(f"{where}: discrete must be true or false, not {discrete!r}")
    if discrete and not isinstance(raw["actions"], str):
        raise UserError(f"{where}: a discrete action is one name, not {raw['actions']!r}")
    return discrete


def _final(raw: Any, followed: bool, alignment: Side, where: str) -> Final:
    if raw is None and (followed or alignment == "previous"):
        return "next_observations" if followed else "included"
    if raw is None:
        raise UserError(
            f"{where} needs the key 'final_observation': 'included' if an episode's last row is the final observation"
            " (and its action a placeholder), 'missing' if that was not recorded"
        )
    final = _one_of(Final, raw, f"{where}: final_observation")
    if followed != (final == "next_observations"):
        raise UserError(f"{where}: final_observation: {final} contradicts {'' if followed else 'no '}next_observations")
    if alignment == "previous" and final != "included":
        raise UserError(f"{where}: with alignment: previous the last row is the final observation: 'included'")
    return final


def _rate(raw: Any, where: str) -> float:
    if raw is None:
        return float("nan")
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 < raw < float("inf"):
        raise UserError(f"{where}: rate must be a number of steps per second above 0, not {raw!r}")
    return float(raw)


def _one_of(choices: Any, raw: Any, where: str) -> Any:
    try:
        return choose("value", str(raw), get_args(choices))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _by_key(raw: Any, where: str) -> dict[str, Names]:
    if isinstance(raw, str | list):
        return {OBSERVATION: _names(raw, where)}
    if not isinstance(raw, dict) or not raw:
        raise UserError(f"{where} must be a path, or a mapping of keys to paths (of a table: columns), not {raw!r}")
    return {str(key): _names(value, f"{where}: {key}") for key, value in raw.items()}


def _names(raw: Any, where: str) -> Names:
    if not isinstance(raw, list):
        return _name(raw, where)
    if not raw:
        raise UserError(f"{where} is an empty list: name a column")
    return tuple(_name(name, where) for name in raw)


def _name(raw: Any, where: str) -> str:
    if not isinstance(raw, str) or not raw.strip("/"):
        raise UserError(f"{where} must be the path of a dataset in the file, or a column of a table; not {raw!r}")
    return raw.strip("/")
