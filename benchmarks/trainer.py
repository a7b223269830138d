"""What the Trainer adds to a training step: `worldmodel fit` as it is, against a bare PyTorch loop.

    python benchmarks/trainer.py [--hidden 128] [--rounds 7] [--json FILE]

Both train the same model on the same batches of a collected Pendulum, on one thread, and take turns in one process. The
loop makes a batch, takes a step with clipping, and keeps the carry; nothing else. The fit has what every fit has: the
guard, the hidden state watched, metrics to a file, a progress bar, checkpoints. Means of 180 steps behind the first 20;
start and end of a fit are not in it (startup.py).
"""

import argparse
import contextlib
import io
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from timing import save

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.commands.training import main as training
from worldmodel.envs.collect import CollectOptions, collect
from worldmodel.modules.optimizer import adamw

WARM, STEPS, LANES, SEGMENT = 20, 200, 16, 64
GOAL = 0.05


class Clock(pl.Callback):
    """The seconds of a step, from WARM to the end of a fit."""

    seconds = 0.0

    def on_train_batch_start(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == WARM:
            self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == STEPS:
            Clock.seconds = (time.perf_counter() - self.began) / (STEPS - WARM)


def fitted(conf: Path, folder: Path) -> float:
    """Seconds of a step in `worldmodel fit`."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        training(["fit", "--config", str(conf), "--run_dir", str(folder)])
    return Clock.seconds


def looped(options: dict[str, Any]) -> float:
    """Seconds of a step in the loop."""
    torch.manual_seed(0)
    data = EpisodeDataModule(**options["data"] | {"path": Path(options["data"]["path"])})
    model = WorldModel(data.obs_dim, data.action_dim, **options["model"])
    for norm, name in ((model.obs_norm, "obs"), (model.action_norm, "action"), (model.reward_norm, "reward")):
        norm.fit(*data.statistics[name])
    optimizer: Any = adamw(model.parameters(), 1e-3, 0.01, "constant", 0, float("inf"))["optimizer"]
    carry, began = None, 0.0
    for number, batch in zip(range(STEPS), data.train_dataloader(), strict=False):
        if number == WARM:
            began = time.perf_counter()
        batch = data.on_after_batch_transfer(batch, 0)
        if carry is not None:
            batch["carry"] = carry
        optimizer.zero_grad()
        terms, _, carry = model.losses(batch)
        model._total(terms).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return (time.perf_counter() - began) / (STEPS - WARM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        collect(CollectOptions(env_id="Pendulum-v1", steps=40_000, observe=[0, 1]), folder / "data")
        options = {
            "data": {"path": str(folder / "data"), "lanes": LANES, "steps": SEGMENT},
            "model": {"hidden_dim": arguments.hidden},
            "trainer": {
                "accelerator": "cpu", "devices": 1, "max_steps": STEPS, "max_epochs": -1, "limit_val_batches": 0,
                "callbacks": [{"class_path": f"{Clock.__module__}.Clock"}],
            },
            "wandb": "disabled",
            "rollout": {"multiples": [1], "max_episodes": 1, "starts": 1},
        }  # fmt: skip
        (folder / "fit.yaml").write_text(yaml.safe_dump(options))
        rounds = []
        for number in range(arguments.rounds):
            rounds.append((looped(options), fitted(folder / "fit.yaml", folder / f"run{number}")))
    loop, fit = (median(column) for column in zip(*rounds, strict=True))
    shares = sorted(fit / loop - 1 for loop, fit in rounds)
    low, share, high = shares[len(shares) // 4], median(shares), shares[-1 - len(shares) // 4]
    print(f"loop {1000 * loop:.1f} ms a step, fit {1000 * fit:.1f} ms: {share:+.1%} ({low:+.1%} to {high:+.1%})")
    print(f"goal: at most {GOAL:.0%} at a step of 25 ms or more")
    save(arguments.json, {"loop_ms": 1000 * loop, "fit_ms": 1000 * fit, "share": share, "quartiles": [low, high]})


if __name__ == "__main__":
    import trainer  # the configuration names it by its module

    trainer.main()
