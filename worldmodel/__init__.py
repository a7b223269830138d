"""worldmodel: a trainer for recurrent latent world models.

>>> from worldmodel import RULES, LatentPredictor, WorldModel, load_exported, plot, read_metrics

The names are imported on first use, so that `worldmodel --help` and `worldmodel collect` do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from worldmodel.evaluation.plot import plot
    from worldmodel.export import load_exported
    from worldmodel.modules.data_module import EpisodeDataModule
    from worldmodel.modules.world_model import WorldModel
    from worldmodel.predictor import LatentPredictor
    from worldmodel.rules import RULES
    from worldmodel.runs.metrics import read_metrics

__all__ = ["RULES", "EpisodeDataModule", "LatentPredictor", "WorldModel", "load_exported", "plot", "read_metrics"]

_HOMES = {
    "RULES": "worldmodel.rules",
    "LatentPredictor": "worldmodel.predictor",
    "WorldModel": "worldmodel.modules.world_model",
    "EpisodeDataModule": "worldmodel.modules.data_module",
    "load_exported": "worldmodel.export",
    "plot": "worldmodel.evaluation.plot",
    "read_metrics": "worldmodel.runs.metrics",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        return _version()
    raise AttributeError(f"module 'worldmodel' has no attribute {name!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # a third of what `--help` takes

    try:
        return version("worldmodel")
    except PackageNotFoundError:  # a checkout on the path, not installed
        return "0.0.0"
