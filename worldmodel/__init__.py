"""worldmodel: a trainer for recurrent latent world models.

>>> from worldmodel import RULES, LatentPredictor, WorldModel, load_exported, plot, read_metrics

The names are imported on first use, so that `worldmodel --help` and `worldmodel collect` do not wait for torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmodel.evaluation.plot import plot
    from worldmodel.export import load_exported
    from worldmodel.modules.data_module import EpisodeDataModule
    from worldmodel.modules.world_model import WorldModel
    from worldmodel.predictor import LatentPredictor
    from worldmodel.rules import RULES
    from worldmodel.runs.metrics import read_metrics

__all__ = ["RULES", "EpisodeDataModule", "LatentPredictor", "WorldModel", "load_exported", "plot", "read_metrics"]

try:
    __version__ = version("worldmodel")
except PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0.0.0"

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
    raise AttributeError(f"module 'worldmodel' has no attribute {name!r}")
