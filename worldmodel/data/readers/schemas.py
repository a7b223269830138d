"""How an HDF5 file lays out its episodes, as a few lines of plain data.

The keys of a schema (paths are of datasets, below the episode's group if there are such groups, else below the file):

    episodes           {groups: "data/demo_*"}, a group each; {ends: [terminals, timeouts]}, rows of all episodes one
                       after the other, cut behind each row that one of these flags; {lengths: ep_len, offsets:
                       ep_offset}, such rows cut by number; left out: each file is one episode
    observations       {key: path}, or one path
    next_observations  {key: path} of the observation after each row's action
    actions, rewards   path; rewards may be null: zeros
    terminated         path of the flag of a terminal state, or null
    truncated          path of the flag of a time limit, or null
    final_observation  included: the last row is the final observation, its own action a placeholder;
                       missing: the last row's action has no outcome in the file, and cannot be kept;
                       next_observations: it is the last row of these
    alignment          next: a row's action is taken after its observation; previous: it led to it
    outcomes           next: a row's reward and flags come from its action; previous: they came with its observation;
                       left out: as `alignment`
    rate               steps a second
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from worldmodel.data.readers.alignment import Side
from worldmodel.data.spaces import OBSERVATION, Json
from worldmodel.errors import UserError, choose, nearest

Final = Literal["included", "missing", "next_observations"]
EXAMPLE = (
    '{episodes: {groups: "data/demo_*"}, observations: {arm: obs/qpos, camera: obs/image}, actions: actions,'
    " rewards: rewards, terminated: dones, final_observation: missing, alignment: next, rate: 20}"
)


@dataclass(frozen=True)
class Schema:
    """A checked schema; see the module's text for the meaning of each key."""

    observations: dict[str, str]
    actions: str
    final_observation: Final
    alignment: Side = "next"
    outcomes: Side = "next"
    groups: str | None = None
    ends: tuple[str, ...] = ()
    lengths: str | None = None
    offsets: str | None = None
    next_observations: dict[str, str] = field(default_factory=dict)
    rewards: str | None = None
    terminated: str | None = None
    truncated: str | None = None
    rate: float = float("nan")

    @property
    def in_words(self) -> str:
        """The alignment of the file's rows, for a person."""
        side = {"next": "leaves", "previous": "enters"}
        return (
            f"action[t] is of the transition that {side[self.alignment]} row t, reward[t] and flags of the one that"
            f" {side[self.outcomes]} it; the final observation is {self.final_observation.replace('_', ' ')}"
        )


def parse_schema(raw: Any, where: str) -> Schema:
    """The schema in a dict as YAML gives it.

    Raises:
        UserError: naming `where`, the key that is unknown, missing or contradicts another, and what is allowed.
    """
    keys = ["episodes", "observations", "next_observations", "actions", "rewards", "terminated", "truncated"]
    keys += ["final_observation", "alignment", "outcomes", "rate"]
    raw = _mapping(raw, keys, where)
    for key in ("observations", "actions"):
        if raw.get(key) is None:
            raise UserError(f"{where} needs the key {key!r}; an example: {EXAMPLE}")
    paths = {key: _path(raw[key], f"{where}: {key}") for key in ("actions", "rewards", "terminated", "truncated")
             if raw.get(key) is not None}  # fmt: skip
    alignment = _one_of(Side, raw.get("alignment", "next"), f"{where}: alignment")
    next_observations = _paths(raw["next_observations"], f"{where}: next_observations") if raw.get(
        "next_observations") else {}  # fmt: skip
    schema = Schema(
        observations=_paths(raw["observations"], f"{where}: observations"),
        next_observations=next_observations,
        final_observation=_final(raw.get("final_observation"), bool(next_observations), alignment, where),
        alignment=alignment,
        outcomes=_one_of(Side, raw.get("outcomes", alignment), f"{where}: outcomes"),
        rate=_rate(raw.get("rate"), where),
        **paths,
        **_episodes(raw.get("episodes"), f"{where}: episodes"),
    )
    if next_observations and next_observations.keys() != schema.observations.keys():
        raise UserError(f"{where}: observations and next_observations must have the same keys")
    return schema


def _mapping(raw: Any, keys: list[str], where: str) -> Json:
    if not isinstance(raw, dict):
        raise UserError(f"{where} must be a mapping of {', '.join(keys)}, not {raw!r}; an example: {EXAMPLE}")
    for key in raw:
        if key not in keys:
            raise UserError(f"{where} has the unknown key {key!r}: {nearest(str(key), keys)}")
    return raw


def _episodes(raw: Any, where: str) -> Json:
    if raw is None:
        return {}
    raw = _mapping(raw, ["groups", "ends", "lengths", "offsets"], where)
    if len(raw.keys() - {"offsets"}) != 1 or ("offsets" in raw and "lengths" not in raw):
        raise UserError(f"{where} must be one of groups, ends, and lengths (with offsets), not {', '.join(raw)}")
    if "ends" in raw:
        ends = raw["ends"] if isinstance(raw["ends"], list) and raw["ends"] else [raw["ends"]]
        return {"ends": tuple(_path(end, f"{where}: ends") for end in ends)}
    return {key: _path(value, f"{where}: {key}") for key, value in raw.items()}


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
        raise UserError(f"{where}: rate must be a number of steps a second above 0, not {raw!r}")
    return float(raw)


def _one_of(choices: Any, raw: Any, where: str) -> Any:
    try:
        return choose("value", str(raw), get_args(choices))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _paths(raw: Any, where: str) -> dict[str, str]:
    if isinstance(raw, str):
        return {OBSERVATION: _path(raw, where)}
    if not isinstance(raw, dict) or not raw:
        raise UserError(f"{where} must be a path, or a mapping of keys to paths, not {raw!r}")
    return {str(key): _path(value, f"{where}: {key}") for key, value in raw.items()}


def _path(raw: Any, where: str) -> str:
    if not isinstance(raw, str) or not raw.strip("/"):
        raise UserError(f"{where} must be the path of a dataset in the file, not {raw!r}")
    return raw.strip("/")
