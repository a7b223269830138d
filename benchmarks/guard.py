"""What the numerical guard adds to a training step.

    python benchmarks/guard.py [--hidden 128] [--steps 2000] [--json FILE]

Trains on noise in memory, on one thread, with clipped gradients and the guard on every other step. Prints the median of
the differences between neighbouring steps in processor time, and its interval. A step takes about 25 ms on one core.
"""

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from noise import segment
from timing import options_parser, save

from worldmodel import WorldModel
from worldmodel.callbacks.guard import NumericalGuard
from worldmodel.callbacks.tbptt import TruncatedBPTT

LANES, SEGMENT, OBS, ACTIONS = 16, 32, 24, 6


class EveryOther(NumericalGuard):
    """Guards only every other step, and times all."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seconds: list[float] = []
        self.began = 0.0

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.began = time.thread_time()

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        if len(self.seconds) % 2:
            super().on_before_optimizer_step(*arguments)

    def on_train_batch_end(self, *arguments: Any) -> None:
        if len(self.seconds) % 2:
            super().on_train_batch_end(*arguments)
        self.seconds.append(time.thread_time() - self.began)


def _interval(values: torch.Tensor) -> tuple[float, float]:
    """The bootstrap's 95% interval of the median."""
    drawn = torch.randint(len(values), (2000, len(values)), generator=torch.Generator().manual_seed(0))
    medians = values[drawn].median(dim=1).values
    return float(medians.quantile(0.025)), float(medians.quantile(0.975))


def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    model, generator = WorldModel(OBS, ACTIONS, hidden_dim=options.hidden), torch.Generator().manual_seed(0)
    batches = [segment(LANES, SEGMENT, OBS, ACTIONS, generator, n) for n in range(options.steps)]
    with tempfile.TemporaryDirectory() as folder:
        guard = EveryOther(Path(folder))
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=options.steps, callbacks=[guard, TruncatedBPTT()], gradient_clip_val=1.0,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    seconds = torch.tensor(guard.seconds[options.steps // 10 // 2 * 2 :])
    without, with_guard = seconds[0::2], seconds[1::2]
    step = float(without.median())
    costs = (with_guard - without) / step
    share, (low, high) = float(costs.median()), _interval(costs)
    parameters = sum(p.numel() for p in model.parameters())
    spread = f"95% interval {low:.2%} to {high:.2%}"
    print(f"{1000 * step:.1f} ms a step, {parameters:,} parameters: the guard adds {share:.2%} ({spread})")
    figures = {"parameters": parameters, "step_ms": 1000 * step, "share": share, "interval": [low, high]}
    save(options.json, figures)


if __name__ == "__main__":
    main()
