"""config.yaml in a run's folder, from which `fit --config` starts another run."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import SaveConfigCallback

from worldmodel.durable import whole_file, write_json
from worldmodel.experiments.loggers import define_metrics
from worldmodel.parts import digests, names_in

PARTS = "parts.json"  # beside config.yaml: name of own code -> SHA-256 of its file
UNWRITABLE = "Unable to serialize instance"  # what a config has in place of an object


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml into the run's folder, and the same configuration to every logger that takes one.

    Args:
        args: of SaveConfigCallback.
        path: of config.yaml.
        metrics: by which runs are compared.
        best: whether the lowest or the highest value is best.
    """

    def __init__(self, *args: Any, path: Path, metrics: Iterable[str], best: Literal["min", "max"]) -> None:
        super().__init__(*args, save_to_log_dir=False)
        self.path = path
        self.metrics = list(metrics)
        self.best: Literal["min", "max"] = best

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if UNWRITABLE in (text := self.parser.dump(self.config, skip_none=False)):
            text = yaml.safe_dump(_writable(yaml.safe_load(text)), sort_keys=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path) as temporary:
            temporary.write_text(text)
        if own := digests(names_in(yaml.safe_load(text))):
            write_json(self.path.with_name(PARTS), own)
        config = yaml.safe_load(text)
        for logger in trainer.loggers:
            logger.log_hyperparams(config)
            define_metrics(logger, self.metrics, self.best)


def _writable(value: Any) -> Any:
    """A configuration without objects, which are defaults of the user's classes: those who read it have them again."""
    if isinstance(value, list):
        return [_writable(each) for each in value]
    if isinstance(value, dict):
        return {key: _writable(each) for key, each in value.items() if not str(each).startswith(UNWRITABLE)}
    return value
