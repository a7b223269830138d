"""What the options for a GPU give: time of a step, and how far loss and gradient are from plain float32.

    python benchmarks/gpu.py [--hidden 512] [--lanes 64] [--steps 64] [--json FILE]
    python benchmarks/gpu.py --device cpu --hidden 16 --steps 4     # only to try the script

Forward and backward of `WorldModel.losses` on noise, in turns. The recurrence is compiled step by step into one
graph, which takes minutes with long segments.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
from noise import segment
from timing import in_turns, options_parser, save

from worldmodel import WorldModel

OBS, ACTIONS = 24, 6
WAYS: dict[str, tuple[str, bool, dict[str, Any] | None]] = {  # matmuls in float32, bf16-mixed, torch.compile's options
    "float32": ("highest", False, None),
    "TF32": ("high", False, None),
    "bf16-mixed": ("high", True, None),
    "compile": ("high", False, {}),
    "compile, bf16-mixed": ("high", True, {}),
    "cuda_graph": ("high", False, {"backend": "cudagraphs"}),
    "compile, cuda_graph": ("high", False, {"mode": "reduce-overhead"}),
    "all": ("high", True, {"mode": "reduce-overhead"}),
}


def step_of(model: WorldModel, batch: Any, precision: str, mixed: bool) -> Callable[[], torch.Tensor]:
    """Forward and backward; returns the loss."""
    device = model.device.type
    context = torch.autocast(device, torch.bfloat16) if mixed else contextlib.nullcontext()

    def step() -> torch.Tensor:
        torch.set_float32_matmul_precision(precision)
        torch.compiler.cudagraph_mark_step_begin()
        model.zero_grad()
        with context:
            loss = model.total(model.losses(batch)[0])
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.detach().clone()

    return step


def main() -> None:
    """A table: milliseconds, speed against float32, and what differs."""
    parser = options_parser(__doc__, rounds=20)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    torch.manual_seed(0)
    weights = WorldModel(OBS, ACTIONS, hidden_dim=options.hidden, width=options.hidden).state_dict()
    batch = segment(options.lanes, options.steps, OBS, ACTIONS, torch.Generator().manual_seed(0), 0)
    batch = {k: v.to(options.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    steps, models = {}, {}
    for name, (precision, mixed, compiled) in WAYS.items():
        if options.device == "cpu" and compiled and "backend" in compiled:
            continue  # there is no graph of a CPU
        model = WorldModel(OBS, ACTIONS, hidden_dim=options.hidden, width=options.hidden)
        model.load_state_dict(weights)
        models[name] = model.to(options.device)
        if compiled is not None:
            model.predictor.compile_unroll(**compiled)
        steps[name] = step_of(model, batch, precision, mixed)
    losses = {name: float(step()) for name, step in steps.items()}
    gradients = {name: torch.cat([p.grad.flatten() for p in m.parameters()]) for name, m in models.items()}
    timed = in_turns(steps, options.rounds, clock=time.perf_counter)
    plain, figures = "float32", {}
    for name, taken in timed.items():
        speed = timed[plain].median / taken.median
        apart = abs(losses[name] / losses[plain] - 1)
        bent = float((gradients[name] - gradients[plain]).norm() / gradients[plain].norm())
        text = f"{1000 * taken.median:10.2f} ms{speed:8.2f}x   loss {apart:.0e}, gradient {bent:.0e} apart"
        print(f"{name:22}{text}")
        figures[name] = {"ms": 1000 * taken.median, "speed": speed, "loss": apart, "gradient": bent}
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    save(
        options.json,
        {"device": device, "hidden": options.hidden, "lanes": options.lanes, "steps": options.steps, "ways": figures},
    )


if __name__ == "__main__":
    main()
