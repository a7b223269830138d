"""Checkpoints that a user names, held against the model that was asked for."""

from pathlib import Path
from typing import Any

from worldmodel.errors import UserError


def config_of(checkpoint: Path) -> Path | None:
    """The config.yaml of the run that a checkpoint lies in; None, where there is none."""
    beside = (folder / "config.yaml" for folder in (checkpoint.parent.parent, checkpoint.parent))
    return next((path for path in beside if path.is_file()), None)


def load_weights(model: Any, checkpoint: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into a model; a UserError, naming its path, if they are not of such a model."""
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise UserError(f"{path} is of another version of this program: {str(error).splitlines()[0]}") from error


def check_arguments(checkpoint: dict[str, Any], model: Any) -> None:
    """Raise UserError, naming every difference, if the checkpoint is of a model with other arguments."""
    had = checkpoint["hyper_parameters"]
    differ = [
        f"model.{name} is {value!r}, in the checkpoint {had.get(name)!r}"
        for name, value in model.hparams.items()
        if not name.startswith("_") and had.get(name) != value
    ]
    if differ:
        raise UserError(
            f"the checkpoint is of another model: {'; '.join(differ)}."
            " Give the arguments of its own run, or that run's config.yaml"
        )


def finished(checkpoint: dict[str, Any], trainer: dict[str, Any]) -> str | None:
    """What says that the checkpoint's run has nothing left to train under the Trainer's options, if anything does."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
    done = {"max_epochs": epochs, "max_steps": checkpoint["global_step"]}
    for name, reached in done.items():
        if trainer[name] is not None and 0 <= trainer[name] <= reached:
            return f"the checkpoint's run is finished: trainer.{name} {trainer[name]} is reached; raise it to go on"
    return None
