"""What a step of an open-loop rollout costs, against its matmuls alone.

    python benchmarks/rollout.py [--hidden 256] [--json FILE]

`LatentPredictor.open_loop` over 64 steps without gradients, on one thread, takes turns with its matmuls alone: those of
the cell and of the head, once a step.
"""

import torch
from timing import in_turns, options_parser, save
from torch import nn

from worldmodel.predictor import LatentPredictor

STEPS, ACTIONS, GOAL = 64, 4, 1.8
VARIANTS = [("gated", 1), ("gated", 2), ("gated_norm", 2), ("gru", 1)]


def main() -> None:
    """A table for 1, 16 and 64 rollouts at once."""
    parser = options_parser(__doc__, rounds=40)
    parser.add_argument("--hidden", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures = {}
    for lanes in (1, 16, 64):
        ways = {}
        for rule, layers in VARIANTS:
            name = f"{rule} {layers}"
            predictor = LatentPredictor(options.hidden, ACTIONS, options.hidden, rule, layers).eval()
            ways[name] = _rollout(predictor, lanes, options.hidden)
            ways[f"{name} floor"] = _matmuls(predictor, lanes)
        with torch.inference_mode():
            timed = in_turns(ways, options.rounds)
        print(f"\nB {lanes}, H {options.hidden}:    us a step   of the floor")
        for rule, layers in VARIANTS:
            name = f"{rule} {layers}"
            median, floor = timed[name].median / STEPS, timed[f"{name} floor"].median / STEPS
            goal = f"   goal <= {GOAL}" if lanes == 16 and rule.startswith("gated") else ""
            print(f"  {name:16}{1e6 * median:12.0f}{median / floor:15.2f}{goal}")
            figures[f"{lanes} {name}"] = {"us": 1e6 * median, "of_floor": median / floor}
    save(options.json, {"threads": 1, "hidden": options.hidden, "rollouts": figures})


def _rollout(predictor: LatentPredictor, lanes: int, hidden: int):
    z, h = torch.randn(lanes, hidden), torch.zeros(lanes, predictor.state_dim)
    a = torch.randn(lanes, STEPS, ACTIONS)
    return lambda: predictor.open_loop(z, h, a)


def _matmuls(predictor: nn.Module, lanes: int):
    weights = [p.detach() for p in predictor.parameters() if p.ndim == 2]
    pairs = [(torch.randn(lanes, w.shape[1]), w.T) for w in weights]

    def steps() -> None:
        for _ in range(STEPS):
            for x, w in pairs:
                x @ w

    return steps


if __name__ == "__main__":
    main()
