"""`fit --init_from`: the weights, statistics and line of another run, from which a fit starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldmodel.data.episodes import Layout
from worldmodel.data.spaces import in_words
from worldmodel.durable import sha256, write_json
from worldmodel.errors import UserError
from worldmodel.runs.checkpoint import NOT_OURS, load_weights, read_checkpoint
from worldmodel.runs.files import find_checkpoint


@dataclass(frozen=True)
class Start:
    """The checkpoint that a fit starts from."""

    path: Path
    digest: str
    step: int  # at which it was saved

    def record(self, folder: Path) -> None:
        """Write into a run's folder where its first weights come from."""
        write_json(folder / "init_from.json", {"checkpoint": str(self.path), "sha256": self.digest, "step": self.step})


def start_from(asked: Path, model: Any, data: Any, program: str) -> Start:
    """Load what a checkpoint knows, and nothing of its training, into a new model.

    Args:
        asked: a run's folder, or a checkpoint.
        model: the module; `identity` names those of its arguments that say what the weights mean.
        data: its DataModule.
        program: whose `fit` saves such checkpoints, for the error.

    Raises:
        UserError: if the checkpoint is of another model, or of data with other columns.
    """
    path = find_checkpoint(asked)
    digest, checkpoint = sha256(path), read_checkpoint(path)
    if sha256(path) != digest:
        raise UserError(f"{path} was replaced as it was read, by a run that is still training: try again")
    had, now = checkpoint["hyper_parameters"], model.hparams
    if not isinstance(had, dict) or any(name not in had for name in model.identity):
        raise UserError(f"--init_from {path} was not saved by `{program} fit`: name a run of it, or its checkpoint")
    try:
        _check_columns(path, checkpoint, data)
        start = Start(path, digest, int(checkpoint["global_step"]))
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} {NOT_OURS}") from error
    lags = {"base_lags"} & {name for name in now if now[name] is not None}
    differ = [name for name in (*model.identity, *lags) if had.get(name) != now[name]]
    if differ:
        values = "; ".join(f"model.{name} is {now[name]!r}, in the checkpoint {had.get(name)!r}" for name in differ)
        raise UserError(f"--init_from {path} is of another model: {values}. Give the arguments of its own run")
    model.on_load_checkpoint(checkpoint)
    load_weights(model, checkpoint, path)
    return start


def _check_columns(path: Path, checkpoint: dict[str, Any], data: Any) -> None:
    """Raise UserError if entries of the data mean something else than those that the checkpoint was trained on."""
    saved = checkpoint.get(type(data).__qualname__, {}).get("data")
    if not saved:
        return
    then, now = Layout(saved["observation_space"], saved["action_space"]), data.layout
    data.take_origins(then.observation_space)
    for what in ("observation", "action"):
        if _entries(then, what) != _entries(now, what):
            spaces = (in_words(getattr(layout, f"{what}_space")) for layout in (now, then))
            raise UserError(
                f"--init_from {path} was trained on other {what}s: those of the data are {next(spaces)}, in the"
                f" checkpoint {next(spaces)}. Give data with the same columns"
            )


def _entries(layout: Layout, what: str) -> Any:
    if what == "action":
        return layout.action_dim, layout.action_space["type"], layout.action_space.get("nvec")
    return [*layout.vectors.items()], [*layout.images.items()]
