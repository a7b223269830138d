"""The options of a run that names its folder alone: `worldmodel test --ckpt RUN`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from worldmodel.errors import UserError
from worldmodel.presets import OPTIONS
from worldmodel.runs.config import read_config
from worldmodel.runs.files import UNTRAINED, find_checkpoint

# of a run's options: they name no code
TAKEN = ("data", "model", "tbptt", "hidden", "rollout", "recall", "seed_everything", "threads", "matmul_precision")
NAMED = ("experiment", "wandb", "project")  # where the results go
TRUSTED = "--trust"  # the user's word for the code of a rule, encoder, decoder or reader that a run names
INSTEAD = "say which model and data with --config"


@contextmanager
def with_run(argv: list[str]) -> Iterator[list[str]]:
    """Yield the words of a subcommand that evaluates, where --ckpt RUN, or --ckpt_path, may be all that is given.

    Without --config, data, model and evaluation are those of the run; a dataset that is missing is not collected, and
    own code that it names is run with --trust alone.

    Raises:
        UserError: if there is no checkpoint, or no configuration beside it.
    """
    words, named = _checkpoint([word for word in argv if word != TRUSTED])
    if any(word in (*OPTIONS, "-h", "--help", "--help-all") or word.startswith("--config=") for word in words):
        yield words
        return
    if named is None:
        raise UserError(UNTRAINED.format(words[0]))
    with TemporaryDirectory() as folder:
        yield [
            words[0],
            "--config",
            options_of(find_checkpoint(Path(named)), Path(folder), True, TRUSTED in argv),
            *words[1:],
        ]


def options_of(checkpoint: Path, folder: Path, evaluated: bool = False, trust: bool = False) -> str:
    """Write those options of a checkpoint's run that name no code to a file in `folder`; returns its path.

    Args:
        checkpoint: a file.
        folder: where the file is made.
        evaluated: whether a Trainer evaluates the run: where its results go, and any device, are taken too.
        trust: whether own code that they name may be run.

    Raises:
        UserError: if there is no configuration beside the checkpoint.
    """
    if (config := read_config(checkpoint, INSTEAD, trust)) is None:
        raise UserError(f"{checkpoint} has no config.yaml of its run beside it: {INSTEAD}")
    taken: dict[str, Any] = {name: config[name] for name in TAKEN if name in config}
    accelerator = "cpu"
    if evaluated:
        taken |= {name: config[name] for name in NAMED if isinstance(config.get(name), str)}
        trainer = config.get("trainer")
        if isinstance(trainer, dict) and trainer.get("accelerator") != "cpu":
            accelerator = "auto"  # the run's GPU may be missing here
    temporary = folder / "config.yaml"
    temporary.write_text(yaml.safe_dump(taken | {"trainer": {"accelerator": accelerator, "devices": 1}}))
    return str(temporary)


def _checkpoint(argv: list[str]) -> tuple[list[str], str | None]:
    """The words with --ckpt called --ckpt_path, as Lightning does, and what it names."""
    words = [f"--ckpt_path{word[6:]}" if word == "--ckpt" or word.startswith("--ckpt=") else word for word in argv]
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word.startswith("--ckpt_path"):
            return words, word.split("=", 1)[1] if "=" in word else following
    return words, None
