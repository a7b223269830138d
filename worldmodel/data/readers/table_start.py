"""A schema to start from, guessed from the names of a table's columns."""

import re
from typing import Any

import yaml

ACTION = r"u|a|act|actions?|inputs?|cmd|commands?|controls?|ctrl|force|torque|throttle|steering"
EPISODE = r"ep|episode|episode_?(id|index|number)|trial|trial_?id|run|run_?id|traj|trajectory|trajectory_?id|demo"
REWARD, TERMINATED, TRUNCATED = r"rewards?", r"terminated|terminals?|dones?", r"truncated|timeouts?"
NOTES = r"t|ts|time|timestamps?|dates?|seconds|index|step|steps|frame|row|unnamed: \d+"


def first_schema(sample: dict[str, bool]) -> str:
    """One line of YAML, a schema that fits a table.

    Args:
        sample: the names of its columns, and whether each holds numbers.
    """
    rest = list(sample)
    episode, *_ = _take(rest, EPISODE) or [None]
    rest = [name for name in rest if sample[name]]
    reward, terminated, truncated = (_take(rest, kind)[:1] for kind in (REWARD, TERMINATED, TRUNCATED))
    _take(rest, NOTES)
    actions = _take(rest, rf"(?:{ACTION})(?![a-z]).*") or rest[1:][-1:]
    observations = [name for name in rest if name not in actions]
    schema: dict[str, Any] = {"observations": observations or ["y"], "actions": actions or ["u"]}
    if episode or terminated or truncated:
        schema = {"episodes": {"column": episode} if episode else {"ends": terminated + truncated}} | schema
    for key, found in (("rewards", reward), ("terminated", terminated), ("truncated", truncated)):
        schema |= {key: found[0]} if found else {}
    schema["final_observation"] = "missing" if reward or terminated or truncated else "included"
    return yaml.safe_dump(schema, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True).strip()


def _take(names: list[str], pattern: str) -> list[str]:
    """Remove from `names` those that match, upper case as a new word; return them."""
    found = [name for name in names if re.fullmatch(pattern, name) or re.fullmatch(pattern, name.lower())]
    names[:] = [name for name in names if name not in found]
    return found
