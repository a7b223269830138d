"""The configuration in a run's folder, read as data: the run may be a stranger's."""

from pathlib import Path
from typing import Any

from worldmodel.errors import UserError
from worldmodel.parts import check_trusted, names_in
from worldmodel.runs.checkpoint import config_of
from worldmodel.runs.files import read_yaml
from worldmodel.runs.structure import Unfit, check

RUNS = ("collect", "test_collect")  # of the data: environments and policies, whose Python code a collection runs

HELD = {"data": {"path": str}, "rollout?": {"threshold?": float}}  # what no parser of options checks


def read_config(checkpoint: Path, instead: str, trust: bool = False) -> dict[str, Any] | None:
    """The configuration of the run that a checkpoint belongs to, without what to collect; None if there is none.

    Nothing that it names may be imported: take single options of it, never `trainer`, which names classes.

    Args:
        checkpoint: a file.
        instead: what the user can do without it, for the error.
        trust: whether own code that it names may be run: a rule, an encoder, a reader.

    Raises:
        UserError: if the file is not the configuration of a run, or names own code without trust.
    """
    path = config_of(checkpoint)
    if path is None:
        return None
    config = read_yaml(path)
    try:
        check(config, HELD)
        # a key may go on behind the name: jsonargparse reads `collect.policy` too
        config["data"] = {key: value for key, value in config["data"].items() if not key.startswith(RUNS)}
    except (Unfit, AttributeError) as error:
        raise UserError(f"{path} is not the configuration of a run ({error}): {instead}") from error
    check_trusted([*names_in({name: config.get(name) for name in ("model", "data")})], path, trust)
    return config
