"""A trained world model in Python: loaded from a run, and rolled out on episodes of its data."""

from pathlib import Path
from typing import Any, Self, cast

import lightning.pytorch as pl

from worldmodel.errors import UserError
from worldmodel.evaluation.plot import Rollout
from worldmodel.model import Model
from worldmodel.modules.of_run import SplitName, data_of, open_loop, split_of
from worldmodel.parts import named_by
from worldmodel.runs.checkpoint import load_weights, read_checkpoint, taken_from
from worldmodel.runs.files import find_checkpoint


class Trained(Model, pl.LightningModule):
    """A world model that knows which checkpoint it was loaded from, if any."""

    checkpoint: Path | None = None
    trust = False  # whether code that the checkpoint's run names may be run

    @classmethod
    def load(cls, run: Path | str, trust: bool = False) -> Self:
        """The trained model of a run, in evaluation mode on the CPU.

        Args:
            run: its folder, one of its checkpoints, or @last.
            trust: run the code of a rule, encoder, decoder or reader that the run names.

        Raises:
            UserError: if there is none, it is damaged, or it names code and is not trusted.
        """
        path = find_checkpoint(Path(run))
        checkpoint = read_checkpoint(path)
        arguments = {name: value for name, value in checkpoint["hyper_parameters"].items() if name[:1] != "_"}
        with taken_from(path), named_by(path, trust, checkpoint.get("parts")):
            model = cls(**arguments)
            model.on_load_checkpoint(checkpoint)
            load_weights(model, checkpoint, path)
        model.checkpoint, model.trust = path, trust
        return model.eval()

    def rollout(
        self,
        data: Any = None,
        horizon: int | None = None,
        episodes: str | None = None,
        split: SplitName | None = None,
        start: int | None = None,
        burn_in: int | None = None,
        samples: int = 32,
    ) -> Rollout:
        """Predict chosen episodes from actions alone, as `worldmodel rollout` does; `worldmodel.plot` draws it.

        Args:
            data: an EpisodeDataModule; None: that of the run that the model was loaded from.
            horizon: steps to predict; None: 10 T, fewer in short episodes.
            episodes: numbers in the split, or names, with commas between; None: a few long ones.
            split: None: the test's, or the validation's without one.
            start: last frame that the model sees; None: `burn_in`.
            burn_in: frames seen before that; None: all, or T without `start`.
            samples: futures drawn of each rollout, of a model with a distribution.

        Raises:
            UserError: if there is no data, or an episode is too short.
        """
        if data is None and self.checkpoint is None:
            raise UserError("rollout needs data: give an EpisodeDataModule, or load the model of a run")
        data = data or data_of(cast(Path, self.checkpoint), self.trust)
        _, chosen = split_of(data, split)
        line = None if data.images else data.splits["train"]
        asked = {"chosen": episodes, "start": start, "burn_in": burn_in, "horizon": horizon}
        was_training = self.training
        curves, selection = open_loop(self.eval(), chosen, data.steps, line, samples, **asked)
        self.train(was_training)
        return Rollout(curves, data.steps, f"{data.env_id}, {self.hparams['rule']}: open loop", selection.notes)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, trust: bool = False, **kwargs: Any) -> Self:
        """As Lightning's; a rule, encoder or decoder of someone's own code that the checkpoint names needs `trust`."""
        with named_by(checkpoint_path, trust):
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
