"""What the files that --config names hold: a mapping of options, and of which command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from worldmodel.arguments import given
from worldmodel.errors import UserError
from worldmodel.presets import OPTIONS, located
from worldmodel.runs.files import check_ends, read_yaml

Kind = Literal["world_model", "policy", "imagine"]  # of what is trained
SECTIONS = ("data", "early_stopping", "hidden", "model", "recall", "rollout", "tbptt", "trainer")  # of options
COMMANDS = {"world_model": "fit", "policy": "policy fit", "imagine": "imagine fit", "population": "pbt"}


def check_configs(argv: list[str], kind: Kind | None = None) -> None:
    """Check the files of a command line before it is parsed: the parser's messages name neither file nor line.

    No word may name a pipe: the parser reads whatever file an option names.

    Args:
        argv: the words of `fit`, `policy fit`, and so on.
        kind: what the command trains; None: of several kinds.

    Raises:
        UserError: for a file that is not YAML, not a mapping, or a configuration of another command, and for a section
            that holds no options.
    """
    for word in argv:
        check_ends(word.split("=", 1)[-1])
    for path in map(Path, given(located(argv), *OPTIONS)):
        if not path.is_file():
            continue
        config = {} if (held := read_yaml(path)) is None else held
        if not isinstance(config, Mapping):
            raise UserError(f"{path} is not a configuration: it must be a mapping of options, such as `data: ...`")
        for name in SECTIONS:
            if name in config and not isinstance(config[name], Mapping):
                holds = "nothing" if config[name] is None else repr(config[name])
                raise UserError(f"{path}: {name} holds {holds}: indent its options below it, or leave it out")
        of = _kind(config)
        if kind is not None and of not in (None, kind) and (kind, of) != ("imagine", "world_model"):  # without a world
            raise UserError(f"{path} is a configuration of another command: worldmodel {COMMANDS[of]} --config {path}")


def _kind(config: Mapping[str, Any]) -> str | None:
    """What a configuration is for, where its keys tell."""
    model, data = (part if isinstance(part := config.get(name), Mapping) else {} for name in ("model", "data"))
    if {"population", "mutate", "interval"} & config.keys():
        return "population"
    if "world" in model:
        return "imagine"
    return "policy" if "env_id" in data else "world_model" if "path" in data else None
