"""Where else a run is logged, by one flag each: TensorBoard and MLflow."""

import logging
import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger

from worldmodel.durable import read_json, write_json
from worldmodel.errors import UserError

FLAGS = ("tensorboard", "mlflow")  # options of a run; packages, and extras of this one
LOCAL = "sqlite:///mlflow.db"  # where MLFLOW_TRACKING_URI is not set
RUN_ID = "mlflow.json"  # in a run's folder, by which it is resumed
AT = "_at_"  # instead of the @ in names of metrics, which MLflow does not take
log = logging.getLogger(__name__)


def check_packages(config: Mapping[str, Any]) -> None:
    """Raise UserError for a flag whose package is missing."""
    for flag in FLAGS:
        if config.get(flag) and find_spec(flag) is None:
            raise UserError(f"--{flag} needs the package {flag}, which is missing: pip install 'worldmodel[{flag}]'")


def more_loggers(
    config: Mapping[str, Any], folder: Path, experiment: str, name: str, tags: Iterable[str]
) -> list[Logger]:
    """Those that the flags ask for.

    Args:
        config: of the subcommand, with `tensorboard` and `mlflow`.
        folder: of the run; TensorBoard's events lie in `tensorboard/` there.
        experiment: in MLflow.
        name: of the run in MLflow.
        tags: of the run in MLflow.
    """
    loggers: list[Logger] = []
    if config.get("tensorboard"):
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False))
    if config.get("mlflow"):
        uri = os.environ.get("MLFLOW_TRACKING_URI") or LOCAL
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # else a server that is away holds for minutes
        loggers.append(_MLflow(folder, experiment_name=experiment, run_name=name, tracking_uri=uri, tags=_tags(tags)))
    return loggers


def _tags(tags: Iterable[str]) -> dict[str, str]:
    return {"tags": ", ".join(tags)}


class _MLflow(MLFlowLogger):
    """MLFlowLogger that goes on with the run when it is resumed, and does not end a training whose server is away.

    Args:
        folder: of the run.
        options: of MLFlowLogger.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        self._file, self._told = folder / RUN_ID, False
        self._resumed = self._file.is_file()
        try:
            super().__init__(run_id=read_json(self._file)["run_id"] if self._resumed else None, **options)
        except Exception as error:  # MLflow's own, of many types
            raise UserError(f"MLflow at {options['tracking_uri']} cannot be used: {_first_line(error)}") from error

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._try(lambda: super(_MLflow, self).log_metrics({k.replace("@", AT): v for k, v in metrics.items()}, step))

    def log_hyperparams(self, params: Any, *further: Any, **kwargs: Any) -> None:
        """Those of the first start alone: MLflow refuses to change a value."""
        if not self._resumed:
            self._try(lambda: super(_MLflow, self).log_hyperparams(params))

    def finalize(self, status: str = "success") -> None:
        self._try(lambda: super(_MLflow, self).finalize(status))

    def _try(self, act: Any) -> None:
        from mlflow.exceptions import MlflowException

        try:
            act()
            if self.run_id is not None and not self._file.is_file():
                write_json(self._file, {"run_id": self.run_id})
        except MlflowException as error:
            if not self._told:
                self._told = True
                log.warning("MLflow does not take what is logged (%s); the run goes on", _first_line(error))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
