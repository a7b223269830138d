"""Lightning callbacks, one purpose each. They read a step's outputs or call one public method of the module.

>>> from worldmodel.callbacks import HiddenNormMonitor, RecallEvaluation, RolloutEvaluation, TruncatedBPTT

The names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmodel.callbacks.evaluation import RecallEvaluation, RolloutEvaluation
    from worldmodel.callbacks.hidden_norm import HiddenNormMonitor
    from worldmodel.callbacks.tbptt import TruncatedBPTT

__all__ = ["HiddenNormMonitor", "RecallEvaluation", "RolloutEvaluation", "TruncatedBPTT", "missing"]

_HOMES = {
    "HiddenNormMonitor": "hidden_norm",
    "RecallEvaluation": "evaluation",
    "RolloutEvaluation": "evaluation",
    "TruncatedBPTT": "tbptt",
}


def missing(trainer: Any, *kinds: type[Any]) -> list[Any]:
    """One callback of each kind that a Trainer has none of, for a module's `configure_callbacks`."""
    return [kind() for kind in kinds if not any(isinstance(own, kind) for own in trainer.callbacks)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"worldmodel.callbacks.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'worldmodel.callbacks' has no attribute {name!r}")
