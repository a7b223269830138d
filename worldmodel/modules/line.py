"""What a world model is given in closed form: its line before training; as its weights change, how far it is right."""

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from worldmodel.callbacks import RolloutEvaluation
from worldmodel.evaluation.arx import fitted_base
from worldmodel.evaluation.calibration import scored, widths
from worldmodel.evaluation.scores import Scores
from worldmodel.evaluation.selection import RolloutOptions
from worldmodel.evaluation.shrinkage import fit_shrinkage


class LineFit:
    """Fits the base of a world model to the training split, and measures how far predictions can be believed."""

    def __init__(self) -> None:
        self._measured: tuple[Any, dict[str, Tensor]] | None = None  # of which weights, and what
        self.scores: Scores | None = None  # of the validation episodes' futures, with these weights

    def begin(self) -> None:
        """A fit begins, whose weights were not measured yet."""
        self._measured = self.scores = None

    def fit(self, module: Any, data: Any) -> None:
        """The coefficients, on the first rank, for all of them."""
        found: Any = None
        if module.trainer.is_global_zero:
            options = module.hparams["base"] or "linear", module.hparams["base_lags"]
            base = fitted_base(data.splits["train"], *options, data.steps, module.obs_norm, module.action_norm)
            found = base.lags, base.state_dict()
        module.hparams["base_lags"], coefficients = module.trainer.strategy.broadcast(found)
        module.base.load_state_dict(coefficients)

    def measure(self, module: Any) -> dict[str, Tensor]:
        """How far ahead the present weights can be believed: buffers of the module, by name.

        Once for the same weights, however often it is asked for: at one step a model may have two, its own and their
        average.
        """
        data: Any = getattr(module.trainer, "datamodule", None)
        names = [name for name in ("base.shrinkage", "widths") if name in module.state_dict()]
        if not hasattr(data, "splits") or not names:
            return {}
        weight = next(module.predictor.parameters()).detach()
        own = weight.to_local() if isinstance(weight, DTensor) else weight
        weights = module.trainer.global_step, float(own.double().sum())
        if self._measured is None or self._measured[0] != weights:
            training = module.training
            module.eval()
            if module.base is not None:
                fit_shrinkage(module, data.splits["train"], data.steps)
            if module.noise is not None:
                callbacks = module.trainer.callbacks
                found = (callback.options for callback in callbacks if isinstance(callback, RolloutEvaluation))
                options = next(found, RolloutOptions())
                self.scores = scored(module, data.splits["val"], data.steps, options)
                module.widths.copy_(widths(self.scores))
            module.train(training)
            self._measured = weights, {name: module.get_buffer(name).clone() for name in names}
        for name, tensor in self._measured[1].items():
            module.get_buffer(name).copy_(tensor)
        return self._measured[1]

    def save(self, module: Any, checkpoint: dict[str, Any]) -> None:
        """Measure the weights that a checkpoint holds, which may be an average, and keep what was found in it."""
        tensors = checkpoint["state_dict"]
        averaged = "current_model_state" in checkpoint  # Lightning's WeightAveraging: these are not the module's own
        own = {name: tensor.clone() for name, tensor in module.state_dict().items()} if averaged else {}
        if averaged:
            module.load_state_dict(tensors)
        tensors |= {name: tensor.clone() for name, tensor in self.measure(module).items()}
        if averaged:
            module.load_state_dict(own)
