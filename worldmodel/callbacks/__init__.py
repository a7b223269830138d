"""Lightning callbacks, one purpose each. They read a step's outputs or call one public method of the module.

>>> from worldmodel.callbacks import HiddenNormMonitor, RolloutEvaluation, TruncatedBPTT

The names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmodel.callbacks.evaluation import RolloutEvaluation
    from worldmodel.callbacks.hidden_norm import HiddenNormMonitor
    from worldmodel.callbacks.tbptt import TruncatedBPTT

__all__ = ["HiddenNormMonitor", "RolloutEvaluation", "TruncatedBPTT"]

_HOMES = {"HiddenNormMonitor": "hidden_norm", "RolloutEvaluation": "evaluation", "TruncatedBPTT": "tbptt"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"worldmodel.callbacks.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'worldmodel.callbacks' has no attribute {name!r}")
