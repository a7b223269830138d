"""The loggers of a run: metrics.csv always, Weights & Biases where it is asked for."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger

from worldmodel.callbacks.metrics import MetricsFile

WandbMode = Literal["offline", "online", "disabled"]
STEP = "trainer/global_step"
LONGEST_TAG = 64  # characters, in W&B
INIT_SECONDS = 20  # that the server may take to open a run
FINISH_SECONDS = 30  # and to take what is left at its end; the rest stays on disk, for `wandb sync`


def make_loggers(
    folder: Path,
    wandb: WandbMode,
    project: str,
    is_first_rank: bool,
    tags: Iterable[str] = (),
    logged: dict[str, Any] | None = None,
    **names: Any,
) -> list[Logger]:
    """MetricsFile first, since the Trainer's log_dir follows the first one.

    Args:
        folder: of the run.
        wandb: `online` falls back to `offline`, and says so, without an account or where the server cannot be reached.
        project: in W&B.
        is_first_rank: only this process starts W&B.
        tags: of the run in W&B: what one looks for.
        logged: what metrics.csv held at the checkpoint that the run goes on from. W&B gets the id that the run had.
        names: `name`, `group` and `job_type` of the run in W&B, and what its `config` holds beside that of the run.
    """
    loggers: list[Logger] = [MetricsFile(folder, logged)]
    if wandb != "disabled":
        settings = _settings(wandb)
        if is_first_rank and wandb == "online" and (reason := _unreachable()):
            settings = _offline(settings, reason)
        options: dict[str, Any] = {"save_dir": folder, "project": project, "settings": settings, **names}
        options["tags"] = [tag[:LONGEST_TAG] for tag in tags]
        if before := sorted((folder / "wandb").glob("*run-*-*"), key=lambda path: path.stat().st_mtime):
            options |= {"id": before[-1].name.rsplit("-", 1)[1], "resume": "allow"}
        loggers.append(_WandbLogger(**options))
    return loggers


class _WandbLogger(WandbLogger):
    """A server that does not open the run within INIT_SECONDS costs nothing but its presence: it is kept offline."""

    @property
    def experiment(self) -> Any:
        """The run in W&B; on ranks other than the first one that does nothing."""
        from wandb.errors import Error as WandbError

        try:
            return super().experiment
        except (WandbError, OSError) as error:
            settings = self._wandb_init["settings"]
            if settings.mode == "offline":
                raise
            self._wandb_init["settings"] = _offline(settings, _first_line(error))
            return super().experiment


def define_metrics(logger: Logger, names: Iterable[str], best: Literal["min", "max"]) -> None:
    """Keep the best and the last value of what is compared in the run's summary, beside its history.

    Lightning has set the training step as everybody's axis. Of several patterns that fit a name W&B takes any, so that
    these are defined by their full names.

    Args:
        logger: any; only W&B's is told.
        names: of metrics.
        best: of their values.
    """
    if isinstance(logger, WandbLogger):
        for name in names:
            logger.experiment.define_metric(name, step_metric=STEP, step_sync=True, summary=f"{best},last")


def _settings(mode: WandbMode) -> Any:
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))  # before Lightning passes it an option that it warns of
    # No machine, user, path, git or environment facts in a run that may be shared: the config says what was run.
    hidden: dict[str, Any] = {
        "disable_git": True,
        "save_code": False,
        "x_disable_meta": True,
        "host": "",
        "username": "",
    }
    patience = {"init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS}
    return wandb.Settings(mode=mode, silent=True, console="off", x_save_requirements=False, **patience, **hidden)


def _offline(settings: Any, reason: str) -> Any:
    print(f"W&B cannot be used online: {reason}. The run is kept offline; `wandb sync` sends it later.", flush=True)
    return settings.model_copy(update={"mode": "offline"})


def _unreachable() -> str | None:
    """Ask the server who we are; why it does not say so."""
    import wandb
    from wandb.errors import Error as WandbError

    try:
        _ = wandb.Api(timeout=10).viewer
        return None
    except (WandbError, OSError) as error:
        return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
