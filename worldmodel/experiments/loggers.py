"""The loggers of a run: metrics.csv always, Weights & Biases unless it is disabled."""

from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger

from worldmodel.callbacks.metrics import MetricsFile
from worldmodel.experiments.wandb_rows import STEP, Earlier, kept_rows

WandbMode = Literal["offline", "online", "disabled"]
LONGEST_TAG = 64  # characters, in W&B
INIT_SECONDS = 20  # for the server to open a run
FINISH_SECONDS = 30  # to send the rest at its end; what is not sent stays on disk, for `wandb sync`


def make_loggers(
    folder: Path,
    wandb: WandbMode,
    project: str,
    is_first_rank: bool,
    tags: Iterable[str] = (),
    logged: dict[str, Any] | None = None,
    **names: Any,
) -> list[Logger]:
    """All loggers; MetricsFile is first, since the first one sets the Trainer's log_dir.

    Args:
        folder: of the run.
        wandb: `online` falls back to `offline`, with a message, without an account or if the server is unreachable.
        project: name of the project in W&B.
        is_first_rank: only the first rank starts W&B.
        tags: of the run in W&B.
        logged: what metrics.csv held at the checkpoint that the run is resumed from. The run keeps its id in W&B.
        names: `name`, `group` and `job_type` of the run in W&B, and what its `config` holds beside the run's.
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
        kept = kept_rows(folder / "metrics.csv", logged)
        loggers.append(_WandbLogger(Earlier(before, kept) if is_first_rank else None, **options))
    return loggers


class _WandbLogger(WandbLogger):
    """WandbLogger that logs each row once, however often the run is resumed.

    It keeps the run offline if the server does not open it within INIT_SECONDS.

    Args:
        earlier: what the run's earlier sessions logged; None on ranks that log nothing.
        options: of WandbLogger.
    """

    def __init__(self, earlier: Earlier | None, **options: Any) -> None:
        super().__init__(**options)
        self._earlier, self._begun = earlier, False
        self._options: dict[str, Any] = {}  # the run's configuration, once it is logged

    @property
    def experiment(self) -> Any:
        """The run in W&B; on ranks other than the first, one that does nothing."""
        from wandb.errors import Error as WandbError

        try:
            return super().experiment
        except (WandbError, OSError) as error:
            settings = self._wandb_init["settings"]
            if settings.mode == "offline":
                raise
            self._wandb_init["settings"] = _offline(settings, _first_line(error))
            return super().experiment

    def log_hyperparams(self, params: Any, *further: Any, **kwargs: Any) -> None:
        """Log each option once: the model's arguments, which Lightning logs too, are those under `model`."""
        values = dict(vars(params)) if isinstance(params, Namespace) else dict(params)
        if "model" in values:
            self._options = values
        else:
            own = {name: value for name, value in values.items() if not name.startswith("_")}
            values = {"model": {**self._options.get("model", {}), **own}} if own else {}
        super().log_hyperparams(values)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row that no earlier session has; before the first, those of metrics.csv that they lack."""
        if self._earlier is None or step is None:
            return super().log_metrics(metrics, step)
        if not self._begun:
            self._begun = True
            self._earlier.arrived(self.experiment.summary)
            for missing, at in self._earlier.missing():
                super().log_metrics(missing, at)
        if not self._earlier.holds(metrics, step):
            super().log_metrics(metrics, step)


def define_metrics(logger: Logger, names: Iterable[str], best: Literal["min", "max"]) -> None:
    """Keep the best and the last value of these metrics in the run's summary in W&B, beside their history.

    Lightning has set the training step as the axis of all metrics. If several patterns fit a name W&B takes any, so
    full names are used.

    Args:
        logger: ignored unless it is W&B's.
        names: of metrics.
        best: whether the lowest or the highest value is best.
    """
    if isinstance(logger, WandbLogger):
        for name in names:
            logger.experiment.define_metric(name, step_metric=STEP, step_sync=True, summary=f"{best},last")


def _settings(mode: WandbMode) -> Any:
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))  # before Lightning passes an option that W&B warns about
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
    """Why the server cannot be used with this account; None if it can."""
    import wandb
    from wandb.errors import Error as WandbError

    try:
        _ = wandb.Api(timeout=10).viewer
        return None
    except (WandbError, OSError) as error:
        return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
