"""The layouts of HDF5 files that known programs write, in the words of a schema."""

from fnmatch import fnmatchcase
from typing import Any

import h5py
import numpy as np

from worldmodel.data.spaces import Json
from worldmodel.errors import UserError

# columns of stable-worldmodel that are no observations
SWM_NOTES = {"reward", "terminated", "truncated", "ep_len", "ep_offset", "ep_idx", "episode_idx", "step_idx", "id"}
SWM_NOTES |= {"action", "seed", "render_time", "policy", "success", "is_success"}
SWM_NOTE_PREFIXES = ("action.", "goal", "variation.", "_")


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
