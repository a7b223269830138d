"""python killed.py STEP SIGNAL[,SIGNAL] fit ...: the program, whose last rank gets signals behind a training step."""

import os
import signal
import sys

import lightning.pytorch as pl

import worldmodel.experiments.world_model as training
from worldmodel.cli import main

STEP, SIGNALS = int(sys.argv[1]), [signal.Signals[name] for name in sys.argv[2].split(",")]


class Kill(pl.Callback):
    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step == STEP and trainer.global_rank == trainer.world_size - 1:
            for number in SIGNALS:
                os.kill(os.getpid(), number)


class KilledCLI(training.TrainingCLI):
    def checked_trainer(self, callbacks=(), **options):
        return super().checked_trainer(callbacks=[*callbacks, Kill()], **options)


training.TrainingCLI = KilledCLI
main(sys.argv[3:])
