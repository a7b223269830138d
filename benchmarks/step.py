"""A whole training step of the world model against sheeprl's DreamerV3, at equal parameters.

    python -m venv .venv-peers && .venv-peers/bin/pip install torch==2.13.0 sheeprl==0.8.4 .
    .venv-peers/bin/python benchmarks/step.py [--rounds 12] [--json FILE]

Forward, backward, clipping and the optimizer's update on 16 lanes x 64 steps of 8 observations and 2 actions, float32
on one thread; the models take turns in one process. sheeprl's step is its own `world_model_learning`, without actor and
critic. Ours is not the same model: it is deterministic, with a latent vector and no distribution, sampling or KL term,
which explains much of the difference. Widths are chosen to give equal numbers of trained parameters.
"""

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from noise import segment
from timing import in_turns, options_parser, save

from worldmodel import WorldModel
from worldmodel.modules.optimizer import adamw

LANES, STEPS, OBS, ACTIONS = 16, 64, 8, 2
SIZES = {  # of sheeprl's world model: units of its layers, of the recurrent state, and the discrete latent
    "small": (96, 160, 8),
    "large": (256, 256, 32),
}
OURS = [("gated", 1), ("gated", 2), ("gated_norm", 1), ("gated_norm", 2), ("gru", 1)]  # rule, layers
GOAL = 3.0


def of_sheeprl(units: int, recurrent: int, discrete: int) -> tuple[Callable[[], None], int]:
    """A step of sheeprl's world model, and how many parameters it has."""
    import gymnasium as gym
    import hydra
    import numpy as np
    from lightning.fabric import Fabric
    from omegaconf import OmegaConf
    from sheeprl.algos.dreamer_v3.agent import build_agent
    from sheeprl.algos.dreamer_v3.dreamer_v3 import world_model_learning
    from sheeprl.utils.metric import MetricAggregator
    from sheeprl.utils.utils import dotdict

    MetricAggregator.disabled = True
    inner = "algo.world_model"
    overrides = [
        "exp=dreamer_v3", "algo=dreamer_v3_XS", "env=gym", "metric.log_level=0",
        "algo.cnn_keys.encoder=[]", "algo.cnn_keys.decoder=[]",
        "algo.mlp_keys.encoder=[state]", "algo.mlp_keys.decoder=[state]",
        f"algo.dense_units={units}", "algo.mlp_layers=1",
        f"{inner}.recurrent_model.recurrent_state_size={recurrent}", f"{inner}.transition_model.hidden_size={units}",
        f"{inner}.representation_model.hidden_size={units}", f"{inner}.discrete_size={discrete}",
        f"{inner}.stochastic_size={discrete}",
    ]  # fmt: skip
    with hydra.initialize_config_module("sheeprl.configs", version_base="1.3"):
        composed = hydra.compose("config", overrides, return_hydra_config=False)
    config = dotdict(OmegaConf.to_container(composed, resolve=True))
    fabric = Fabric(accelerator="cpu", devices=1)
    spaces = gym.spaces.Dict({"state": gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)})
    model = build_agent(fabric, (ACTIONS,), True, config, spaces)[0]
    optimizer = hydra.utils.instantiate(composed.algo.world_model.optimizer, params=model.parameters(), _convert_="all")
    optimizer = fabric.setup_optimizers(optimizer)
    generator = torch.Generator().manual_seed(0)
    data = {
        "state": torch.randn(STEPS, LANES, OBS, generator=generator),
        "actions": torch.rand(STEPS, LANES, ACTIONS, generator=generator),
        **{name: torch.zeros(STEPS, LANES, 1) for name in ("rewards", "terminated", "is_first")},
    }

    def step() -> None:
        world_model_learning(fabric, config, model, optimizer, data)

    return step, sum(p.numel() for p in model.parameters())


def of_ours(rule: str, layers: int, parameters: int) -> tuple[Callable[[], None], int]:
    """A step of a model of ours with nearly as many parameters; its width is that of its hidden state."""
    sizes = range(32, 2048, 4)
    counted = ((size, _count(rule, layers, size)) for size in sizes)
    below, above = next(pair for pair in pairwise(counted) if pair[1][1] >= parameters)
    size = min((below, above), key=lambda found: abs(found[1] - parameters))[0]
    model = _model(rule, layers, size)
    optimizer: Any = adamw(model.parameters(), 1e-3, 0.01, "constant", 0, float("inf"))["optimizer"]
    generator = torch.Generator().manual_seed(0)
    batch: Any = segment(LANES, STEPS, OBS, ACTIONS, generator, 0)

    def step() -> None:
        optimizer.zero_grad()
        terms, _, carry = model.losses(batch)
        model.total(terms).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        batch["carry"] = carry

    return step, sum(p.numel() for p in model.parameters())


def _model(rule: str, layers: int, size: int) -> WorldModel:
    return WorldModel(OBS, ACTIONS, rule=rule, layers=layers, hidden_dim=size, width=size, latent_dim=size // 2)


def _count(rule: str, layers: int, size: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in _model(rule, layers, size).parameters())


def main() -> None:
    """A table for each size."""
    parser = options_parser(__doc__, rounds=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    figures = {}
    for name, size in SIZES.items():
        peer, parameters = of_sheeprl(*size)
        ways, counts = {"sheeprl DreamerV3": peer}, {"sheeprl DreamerV3": parameters}
        for rule, layers in OURS:
            key = f"{rule}, {layers} layer{'s' * (layers > 1)}"
            ways[key], counts[key] = of_ours(rule, layers, parameters)
        timed = in_turns(ways, options.rounds)
        base = timed["sheeprl DreamerV3"]
        print(f"\n{name}: {'parameters':>24}{'frames/s':>12}{'of sheeprl':>12}{'spread':>14}   goal >= {GOAL:.0f}")
        figures[name] = {}
        for key, time in timed.items():
            ratio, low, high = (base.median / t for t in (time.median, time.high, time.low))
            rate = LANES * STEPS / time.median
            print(f"  {key:20}{counts[key]:>14,}{rate:12,.0f}{ratio:12.2f}{f'{low:.2f}-{high:.2f}':>14}")
            figures[name][key] = {"parameters": counts[key], "frames_per_second": rate, "ratio": ratio}
    save(options.json, {"threads": 1, "lanes": LANES, "steps": STEPS, "sizes": figures})


if __name__ == "__main__":
    main()
