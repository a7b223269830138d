"""What the Trainer adds to a training step: `worldmodel fit` as it is, against a bare PyTorch loop.

    python benchmarks/trainer.py [--hidden 128] [--steps 600] [--json FILE]

Both train the same model on the same batches of a collected Pendulum, on one thread, and take turns step by step. The
loop makes a batch, takes a step with clipping, and keeps the carry; nothing else. The fit has what every fit has: the
guard, the hidden state watched, metrics to a file, a progress bar. Processor time of neighbours, the median of their
differences; start and end of a fit are not in it (startup.py).
"""

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from timing import options_parser, save

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.commands.fit import main as training
from worldmodel.envs.collect import CollectOptions, collect
from worldmodel.modules.optimizer import adamw

WARM, LANES, SEGMENT, GOAL = 20, 16, 64, 0.05


class Clock(pl.Callback):
    """The seconds of each step of a fit, and of the loop's step behind it."""

    pairs: list[tuple[float, float]] = []
    loop: Iterator[None]

    def on_train_batch_end(self, *arguments: Any) -> None:
        ended = time.thread_time()
        next(Clock.loop)
        began = self.began if Clock.pairs else ended
        Clock.pairs.append((ended - began, time.thread_time() - ended))
        self.began = time.thread_time()


def looped(options: dict[str, Any]) -> Iterator[None]:
    """A bare loop, step by step."""
    data = EpisodeDataModule(**options["data"] | {"path": Path(options["data"]["path"])})
    model = WorldModel(data.obs_dim, data.action_dim, **options["model"])
    for norm, name in ((model.obs_norm, "obs"), (model.action_norm, "action"), (model.reward_norm, "reward")):
        norm.fit(*data.statistics[name])
    optimizer: Any = adamw(model.parameters(), 1e-3, 0.01, "constant", 0, float("inf"))["optimizer"]
    carry = None
    while True:
        for batch in data.train_dataloader():
            batch = data.on_after_batch_transfer(batch, 0)
            if carry is not None:
                batch["carry"] = carry
            optimizer.zero_grad()
            terms, _, carry = model.losses(batch)
            model.total(terms).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            yield


def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--steps", type=int, default=600)
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
                "accelerator": "cpu", "devices": 1, "max_steps": arguments.steps, "max_epochs": -1,
                "limit_val_batches": 0, "callbacks": [{"class_path": f"{Clock.__module__}.Clock"}],
            },
            "wandb": "disabled",
            "rollout": {"multiples": [1], "max_episodes": 1, "starts": 1},
        }  # fmt: skip
        (folder / "fit.yaml").write_text(yaml.safe_dump(options))
        Clock.loop = looped(options)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            training(["fit", "--config", str(folder / "fit.yaml"), "--run_dir", str(folder / "run")])
    fit, loop = (median(column) for column in zip(*Clock.pairs[WARM:], strict=True))
    low, share, high = quantiles(((fit - of_loop) / loop for fit, of_loop in Clock.pairs[WARM:]), n=4)
    print(f"loop {1000 * loop:.1f} ms a step, fit {1000 * fit:.1f} ms: {share:+.1%} ({low:+.1%} to {high:+.1%})")
    print(f"goal: at most {GOAL:.0%} at a step of 25 ms or more")
    save(arguments.json, {"loop_ms": 1000 * loop, "fit_ms": 1000 * fit, "share": share, "quartiles": [low, high]})


if __name__ == "__main__":
    import trainer  # the configuration names it by its module

    trainer.main()
