"""Memory grows neither with the episode's length nor with time."""

import numpy as np
import pytest
from faults.processes import start
from memory import box

from worldmodel.data.episode import Episode
from worldmodel.data.writer import EpisodeWriter

RUN = """
import resource, sys, warnings
from pathlib import Path
import lightning.pytorch as pl
import torch
from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.callbacks.evaluation import RolloutEvaluation
from worldmodel.callbacks.tbptt import TruncatedBPTT

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
warnings.filterwarnings("ignore")
torch.set_num_threads(1)
pl.seed_everything(0, verbose=False)
data = EpisodeDataModule(folder, steps=100, lanes=1, test_fraction=0.3, val_fraction=0.3)
model = WorldModel(data.obs_dim, data.action_dim, open_loop_steps=10)
trainer = pl.Trainer(
    accelerator="cpu", devices=1, max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    callbacks=[TruncatedBPTT(), RolloutEvaluation(multiples=[1, 2], max_episodes=1)], use_distributed_sampler=False,
    enable_model_summary=False, default_root_dir=folder, limit_val_batches=1000,
)
trainer.fit(model, data)
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(folder, length, total, steps) -> int:
    """Peak memory in kB of a process that trains on so many transitions in episodes of this length."""
    rng, manifest = np.random.default_rng(0), {"observation_space": {"observation": box(3)}, "action_space": box(1)}
    writer = EpisodeWriter(folder, manifest)
    for _ in range(total // length):
        obs, action = (rng.standard_normal(shape, dtype=np.float32) for shape in ((length + 1, 3), (length, 1)))
        writer.add(
            Episode({"observation": obs}, action, np.zeros(length, np.float32), terminated=False, truncated=True)
        )
    writer.finish()
    process = start([folder, steps], folder.parent, program=["-c", RUN]).end(500)
    assert process.returncode == 0, process.stderr[-2000:]
    return int(process.stdout.split("peak")[1])


@pytest.mark.full
def test_a_long_episode_takes_the_memory_of_one_of_1k_steps(tmp_path):
    """A segment has 100 steps; the validation goes through whole episodes."""
    longest, steps = 100_000, 1000
    short, long = (peak(tmp_path / str(length), length, 3 * longest, steps) for length in (1_000, longest))
    assert long <= 1.02 * short, f"{long / short:.3f}: {short} kB for 1k steps, {long} kB for the long one"


RSS = """
import sys
import lightning.pytorch as pl
from pathlib import Path
from worldmodel.cli import main
from worldmodel.experiments.world_model import TrainingCLI

class Rss(pl.Callback):
    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step % 500 == 0:
            print("kB", trainer.global_step, Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])

checked_trainer = TrainingCLI.checked_trainer
TrainingCLI.checked_trainer = lambda self, callbacks=(), **options: checked_trainer(
    self, callbacks=[*callbacks, Rss()], **options
)
main(sys.argv[1:])
"""


@pytest.mark.full
@pytest.mark.fault(18)
def test_memory_does_not_grow_with_time(config, tmp_path, seen):
    """A usual fit, with checkpoints, validations and rollouts; in the first fifth caches fill."""
    steps = 10_000
    options = ["--trainer.max_steps", steps, "--checkpoint_every", "100", "--trainer.check_val_every_n_epoch", "10"]
    process = start(["fit", "--config", config, *options], tmp_path, program=["-c", RSS]).end(500)
    assert process.returncode == 0, process.stderr
    rows = [tuple(map(int, line.split()[1:])) for line in process.stdout.splitlines() if line.startswith("kB")]
    late = [row for row in rows if row[0] > steps / 5]
    slope = float(np.polyfit(*zip(*late, strict=True), 1)[0]) * 1000 / 1024  # MB a 1000 steps
    assert slope < 1.0
    seen(f"{steps} steps: {slope:.2f} MB a 1000 steps, of {late[-1][1] / 1024:.0f} MB")
