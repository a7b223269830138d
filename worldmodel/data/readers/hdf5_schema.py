"""How an HDF5 file lays out its episodes, as a few lines of plain data; and the layouts of known programs.

The keys of a schema (paths of datasets lie below the episode's group if there are such groups, else below the file):

    episodes           {groups: "data/demo_*"}: a group each; {ends: [terminals, timeouts]}: the rows of all episodes
                       one after the other, cut after each row that one of these flags; {lengths: ep_len, offsets:
                       ep_offset}: such rows cut by number; omitted: each file is one episode
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
                       omitted: as `alignment`
    rate               steps per second
"""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import h5py
import numpy as np

from worldmodel.data.readers.alignment import Side
from worldmodel.data.spaces import OBSERVATION, Json
from worldmodel.errors import UserError, choose, nearest

Final = Literal["included", "missing", "next_observations"]
EXAMPLE = (
    '{episodes: {groups: "data/demo_*"}, observations: {arm: obs/qpos, camera: obs/image}, actions: actions,'
    " rewards: rewards, terminated: dones, final_observation: missing, alignment: next, rate: 20}"
)

# columns of stable-worldmodel that are no observations
SWM_NOTES = {"reward", "terminated", "truncated", "ep_len", "ep_offset", "ep_idx", "episode_idx", "step_idx", "id"}
SWM_NOTES |= {"action", "seed", "render_time", "policy", "success", "is_success"}
SWM_NOTE_PREFIXES = ("action.", "goal", "variation.", "_")


@dataclass(frozen=True)
class Schema:
    """A checked schema; the module's docstring says what each key means."""

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
        """The alignment of the file's rows, in words."""
        side = {"next": "leaves", "previous": "enters"}
        return (
            f"action[t] is of the transition that {side[self.alignment]} row t, reward[t] and flags of the one that"
            f" {side[self.outcomes]} it; the final observation is {self.final_observation.replace('_', ' ')}"
        )


def parse_schema(raw: Any, where: str) -> Schema:
    """The schema in a dict such as YAML gives; a UserError names `where`, the wrong key, and what is valid."""
    keys = ["episodes", "observations", "next_observations", "actions", "rewards", "terminated", "truncated"]
    keys += ["final_observation", "alignment", "outcomes", "rate"]
    raw = _mapping(raw, keys, where)
    for key in ("observations", "actions"):
        if raw.get(key) is None:
            raise UserError(f"{where} needs the key {key!r}; an example: {EXAMPLE}")
    columns = ("actions", "rewards", "terminated", "truncated")
    paths = {key: _path(raw[key], f"{where}: {key}") for key in columns if raw.get(key) is not None}
    alignment = _one_of(Side, raw.get("alignment", "next"), f"{where}: alignment")
    following = raw.get("next_observations")
    next_observations = _paths(following, f"{where}: next_observations") if following else {}
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
        raise UserError(f"{where}: rate must be a number of steps per second above 0, not {raw!r}")
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


def known_layout(file: h5py.File) -> tuple[str, Json] | None:
    """(format, schema) of a file that D4RL, robomimic or stable-worldmodel wrote; None for any other."""
    if isinstance(file.get("observations"), h5py.Dataset) and {"actions", "rewards", "terminals"} <= file.keys():
        return "d4rl", _d4rl(file)
    if isinstance(file.get("action"), h5py.Dataset) and {"ep_len", "ep_offset"} <= file.keys():
        return "stable-worldmodel", _stable_worldmodel(file)
    data = file.get("data")
    demos = [demo for name, demo in data.items() if fnmatchcase(name, "demo_*")] if isinstance(data, h5py.Group) else []
    if demos and isinstance(demos[0], h5py.Group) and {"obs", "actions"} <= demos[0].keys():
        return "robomimic", _robomimic(demos[0])
    return None


def _d4rl(file: h5py.File) -> Json:
    followed = "next_observations" in file
    if not followed and "timeouts" not in file:
        raise UserError(
            f"{file.filename}: a D4RL file with neither timeouts nor next_observations does not mark where a time limit"
            " cut episodes; if there are none, say so in a schema (episodes: {ends: [terminals]})"
        )
    return {
        "episodes": {"ends": ["terminals", "timeouts"] if "timeouts" in file else ["terminals"]},
        "observations": "observations",
        "next_observations": "next_observations" if followed else None,
        "actions": "actions",
        "rewards": "rewards",
        "terminated": "terminals",
        "truncated": "timeouts" if "timeouts" in file else None,
        "final_observation": "next_observations" if followed else "missing",
    }


def _robomimic(demo: h5py.Group) -> Json:
    observations: Any = demo["obs"]
    keys = list(observations)
    followed = "next_obs" in demo
    return {
        "episodes": {"groups": "data/demo_*"},
        "observations": {key: f"obs/{key}" for key in keys},
        "next_observations": {key: f"next_obs/{key}" for key in keys} if followed else None,
        "actions": "actions",
        "rewards": "rewards" if "rewards" in demo else None,
        "terminated": "dones" if "dones" in demo else None,
        "final_observation": "next_observations" if followed else "missing",
    }


def _stable_worldmodel(file: h5py.File) -> Json:
    """Rows (o_t, r_t, flags_t) with the action that led to them (the first is NaN), or with actions moved up by a row.

    Moved up, the first action stands at the end. Newer versions omit the reset's row, so that the action at the end
    led to nothing in the file (stable_worldmodel/world, collect and record_dataset). It is a placeholder either way.
    """
    action: Any = file["action"]
    rows = len(action)
    as_it_came = rows > 0 and action.dtype.kind == "f" and bool(np.isnan(action[0]).all())
    keys = [
        name
        for name, item in file.items()
        if isinstance(item, h5py.Dataset)
        and item.dtype.kind in "biuf"
        and item.shape[:1] == (rows,)
        and name not in SWM_NOTES
        and not name.startswith(SWM_NOTE_PREFIXES)
    ]
    return {
        "episodes": {"lengths": "ep_len", "offsets": "ep_offset"},
        "observations": {key: key for key in keys},
        "actions": "action",
        "rewards": "reward" if "reward" in file else None,
        "terminated": "terminated" if "terminated" in file else None,
        "truncated": "truncated" if "truncated" in file else None,
        "final_observation": "included",
        "alignment": "previous" if as_it_came else "next",
        "outcomes": "previous",
    }
