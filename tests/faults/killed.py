"""python killed.py STEP SIGNAL[,SIGNAL] fit ...: the program, whose last rank gets signals after a training step."""

import os
import signal
import sys

import lightning.pytorch as pl

from worldmodel.cli import main
from worldmodel.experiments.world_model import TrainingCLI

STEP, SIGNALS = int(sys.argv[1]), [signal.Signals[name] for name in sys.argv[2].split(",")]


class Kill(pl.Callback):
    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step == STEP and trainer.global_rank == trainer.world_size - 1:
            for number in SIGNALS:
                os.kill(os.getpid(), number)


checked_trainer = TrainingCLI.checked_trainer
TrainingCLI.checked_trainer = lambda self, callbacks=(), **options: checked_trainer(
    self, callbacks=[*callbacks, Kill()], **options
)
main(sys.argv[3:])
