"""What a recurrence costs: every rule against torch.nn.GRU and LSTM, its own naive loop, and its matmuls alone.

    python benchmarks/recurrence.py [--sizes 16x64x256,...] [--rounds 30] [--json FILE]

Forward and backward of B lanes x T steps of H hidden units, with inputs as wide as the state, on one thread. The
variants take turns in one process; ratios are of medians. `loop` projects each step's input on its own; `floor` is T
times the matmuls of a step (forward, and backward for state and weights), and nothing else.
"""

from collections.abc import Callable

import torch
from timing import in_turns, options_parser, save
from torch import Tensor, nn

from worldmodel.predictor import LatentPredictor

SIZES = "16x64x128,16x64x256,16x64x512,64x64x256"
VARIANTS = [  # rule, layers
    *((rule, layers) for rule in ("gated", "gated_norm", "residual", "direct", "unit_norm") for layers in (1, 2)),
    ("gru", 1),
    ("lstm", 1),
    ("diagonal", 1),
]
GOALS = {("gated", 1): 0.70, ("gated", 2): 1.25, ("residual", 2): 0.65, ("direct", 2): 0.65}


def of_torch(kind: type[nn.GRU] | type[nn.LSTM], lanes: int, steps: int, hidden: int) -> Callable[[], None]:
    """torch's own module, forward and backward."""
    module = kind(hidden, hidden)
    x = torch.randn(steps, lanes, hidden, requires_grad=True)
    return lambda: module(x)[0].sum().backward()


def of_rule(rule: str, layers: int, lanes: int, steps: int, hidden: int, naive: bool = False) -> Callable[[], None]:
    """The predictor's unroll without its head, forward and backward; `naive`: step by step."""
    predictor = LatentPredictor(hidden, 0, hidden, rule, layers)
    predictor.head = nn.Identity()
    z, a = torch.randn(lanes, steps, hidden, requires_grad=True), torch.zeros(lanes, steps, 0)
    is_first = torch.zeros(lanes, steps, dtype=torch.bool)

    def unrolled() -> None:
        predictor.closed_loop(z, a, is_first).h.sum().backward()

    def stepwise() -> None:
        h, states = predictor.initial_state(z), []
        for t in range(steps):
            _, _, h = predictor(z[:, t], h, a[:, t])
            states.append(h)
        torch.stack(states, dim=1).sum().backward()

    return stepwise if naive else unrolled


def floor(rule: str, layers: int, lanes: int, steps: int, hidden: int) -> Callable[[], None]:
    """The matmuls with the recurrent weights at each step, and with the input weights once."""
    cell = LatentPredictor(hidden, 0, hidden, rule, layers).cell
    recurrent = [p.detach() for name, p in cell.named_parameters() if p.ndim == 2 and not _is_input(name)]
    inputs = [p.detach() for name, p in cell.named_parameters() if p.ndim == 2 and _is_input(name)]
    pairs = [(torch.randn(lanes, w.shape[1]), torch.randn(lanes, w.shape[0]), w) for w in recurrent]
    whole = [(torch.randn(lanes * steps, w.shape[1]), torch.randn(lanes * steps, w.shape[0]), w) for w in inputs]

    def matmuls() -> None:
        for x, g, w in whole:
            _three(x, g, w)
        for _ in range(steps):
            for x, g, w in pairs:
                _three(x, g, w)

    return matmuls


def _is_input(name: str) -> bool:
    return name.startswith("input") or "weight_ih" in name


def _three(x: Tensor, g: Tensor, w: Tensor) -> None:
    x @ w.T
    g @ w
    g.T @ x


def main() -> None:
    """A table for each size, against nn.GRU."""
    parser = options_parser(__doc__, rounds=30)
    parser.add_argument("--sizes", default=SIZES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures = {}
    for text in options.sizes.split(","):
        lanes, steps, hidden = size = tuple(map(int, text.split("x")))
        ways = {"nn.GRU": of_torch(nn.GRU, *size), "nn.LSTM": of_torch(nn.LSTM, *size)}
        for rule, layers in VARIANTS:
            name = f"{rule} {layers}"
            ways[name] = of_rule(rule, layers, *size)
            ways[f"{name} loop"] = of_rule(rule, layers, *size, naive=True)
            ways[f"{name} floor"] = floor(rule, layers, *size)
        timed = in_turns(ways, options.rounds)
        gru = timed["nn.GRU"].median
        ratios = {name: t.median / gru for name, t in timed.items()}
        print(f"\nB {lanes}, T {steps}, H {hidden}: nn.GRU {1000 * gru:.1f} ms, nn.LSTM {ratios['nn.LSTM']:.2f} of it")
        print(f"{'rule, layers':16}{'of nn.GRU':>10}{'spread':>14}{'loop':>8}{'floor':>8}   goal")
        for rule, layers in VARIANTS:
            name = f"{rule} {layers}"
            spread = f"{timed[name].low / gru:.2f}-{timed[name].high / gru:.2f}"
            of = f"{ratios[name]:10.2f}{spread:>14}{ratios[f'{name} loop']:8.2f}{ratios[f'{name} floor']:8.2f}"
            goal = GOALS.get((rule, layers))
            print(f"{name:16}{of}   {'' if goal is None else f'<= {goal:.2f}'}")
        figures[text] = {"gru_ms": 1000 * gru, "ratios": ratios}
    save(options.json, {"threads": 1, "sizes": figures})


if __name__ == "__main__":
    main()
