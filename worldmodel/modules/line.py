"""What a world model is given in closed form: its line before training; as its weights change, how far it is right."""

from typing import Any

from worldmodel.evaluation.arx import fitted_base
from worldmodel.evaluation.calibration import fit_widths
from worldmodel.evaluation.shrinkage import fit_shrinkage


class LineFit:
    """Fits the base of a world model to the training split of the DataModule."""

    def __init__(self) -> None:
        self._measured_at: int | None = None  # the step of the weights that the shrinkage is of

    def fit(self, module: Any, data: Any) -> None:
        """The coefficients, on the first rank, for all of them."""
        found: Any = None
        if module.trainer.is_global_zero:
            options = module.hparams["base"] or "linear", module.hparams["base_lags"]
            base = fitted_base(data.splits["train"], *options, data.steps, module.obs_norm, module.action_norm)
            found = base.lags, base.state_dict()
        module.hparams["base_lags"], coefficients = module.trainer.strategy.broadcast(found)
        module.base.load_state_dict(coefficients)
        self._measured_at = None

    def measure(self, module: Any) -> None:
        """How far ahead the present weights can be believed; once a step, however often it is asked for."""
        trainer = module.trainer
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "splits") or self._measured_at == trainer.global_step:
            return
        training = module.training
        module.eval()
        if module.base is not None:
            fit_shrinkage(module, data.splits["train"], data.steps)
        if module.noise is not None:
            fit_widths(module, data.splits["val"], data.steps)
        module.train(training)
        self._measured_at = trainer.global_step
