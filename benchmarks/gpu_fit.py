"""Frames a second of `worldmodel fit` on a GPU, beside its bare step.

    python benchmarks/gpu_fit.py [--steps 400] [--json FILE]
    python benchmarks/gpu_fit.py --accelerator cpu --steps 80     # only to try the script

Each way is a fit of conf/quickstart.yaml on a collected Pendulum: data, guard, metrics, the hidden state watched;
without start, validation and end. Behind it the same model takes bare steps on its last batch: forward, backward,
clipping, update.
"""

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from timing import options_parser, save

from worldmodel.commands.fit import main as training
from worldmodel.envs.collect import CollectOptions, collect
from worldmodel.modules.step_graph import StepGraph

WARM, BARE = 50, 100
GRAPH, MIXED = ["--model.cuda_graph", "true"], ["--trainer.precision", "bf16-mixed"]
WIDE = ["--data.lanes", "64", "--model.hidden_dim", "512", "--model.width", "512"]
WAYS = {
    "16 lanes, 128 wide": [],
    "16 lanes, 128 wide, cuda_graph": GRAPH,
    "64 lanes, 512 wide": WIDE,
    "64 lanes, 512 wide, cuda_graph": [*WIDE, *GRAPH],
    "64 lanes, 512 wide, cuda_graph, bf16-mixed": [*WIDE, *GRAPH, *MIXED],
}


class Pace(pl.Callback):
    """Seconds of a step of the fit, and of a bare one."""

    way = ""
    fit = bare = 0.0
    frames = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == WARM:
            self.began = now()
        self.batch = batch

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        Pace.fit = (now() - self.began) / (trainer.global_step - WARM)
        Pace.frames = self.batch["valid"].numel()
        graph = "cuda_graph" in Pace.way
        step = StepGraph(pl_module.step, pl_module.parameters()) if graph else pl_module.step
        for _ in range(2):  # the first is warming up
            began = now()
            for _ in range(BARE):
                bare_step(trainer, pl_module, step, self.batch)
            Pace.bare = (now() - began) / BARE


def bare_step(trainer: Any, model: Any, step: Callable[[Any], Any], batch: Any) -> None:
    optimizer = trainer.optimizers[0]
    optimizer.zero_grad()
    with trainer.precision_plugin.forward_context():
        loss = step(batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """A line for each way."""
    parser = options_parser(__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--accelerator", default="gpu")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = torch.cuda.get_device_name() if arguments.accelerator == "gpu" else "CPU"
    config, ways = Path(__file__).parents[1] / "conf" / "quickstart.yaml", {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        collected = CollectOptions(env_id="Pendulum-v1", steps=40_000, max_episode_steps=100, observe=[0, 1])
        collect(collected, folder / "data")
        shared = ["fit", "--config", str(config), "--data.path", str(folder / "data"), "--data.collect", "null"]
        shared += ["--trainer.accelerator", arguments.accelerator, "--trainer.max_steps", str(arguments.steps)]
        shared += ["--trainer.max_epochs", "-1", "--trainer.limit_val_batches", "0", "--wandb", "disabled"]
        shared += ["--rollout.multiples", "[1]", "--rollout.max_episodes", "1"]
        shared += ["--trainer.callbacks", f"{Pace.__module__}.Pace", "--trainer.enable_progress_bar", "false"]
        for number, (name, options) in enumerate(WAYS.items()):
            if arguments.accelerator == "cpu" and GRAPH[0] in options:
                continue
            Pace.way = name
            with contextlib.redirect_stdout(io.StringIO()):
                training([*shared, *options, "--run_dir", str(folder / f"run{number}")])
            rates = {"fit": Pace.frames / Pace.fit, "bare": Pace.frames / Pace.bare}
            ways[name] = {"fit_ms": 1000 * Pace.fit, "bare_ms": 1000 * Pace.bare} | {
                f"{key}_frames_per_second": rate for key, rate in rates.items()
            }
            told = "  ".join(f"{key} {value:.4g}" for key, value in ways[name].items())
            print(f"{name:44} {told}", flush=True)
            save(arguments.json, {"device": device, "ways": ways})


if __name__ == "__main__":
    import gpu_fit  # the configuration names the callback by its module

    gpu_fit.main()
