"""A model as programs in JSON, lists of tensor operations, which assets/engine.js evaluates in a browser.

They are those of worldmodel/graphs.py, and one more for a model with a distribution. Their operations are the core ATen
ones (https://docs.pytorch.org/docs/stable/torch.compiler_ir.html), with all sizes fixed.
"""

import base64
import math
import operator
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.errors import UserError
from worldmodel.futures import futures
from worldmodel.graphs import Observe, Predict
from worldmodel.model import Model

ENGINE = Path(__file__).parent / "assets" / "engine.js"
FUTURES = 32  # drawn beside each other, as `worldmodel rollout` does
# of an operation, what does not matter to a page
LEFT_OUT = ("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "generator")
KINDS = {torch.bool: "b", torch.int64: "i", torch.int32: "i"}  # every other is a float


class Look(Observe):
    """As `Observe`, with the z of all members side by side, as `Predict` gives it."""

    def forward(self, obs: Tensor, is_first: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        z, h = super().forward(obs, is_first, carry)
        return z.repeat(1, self.model.members), h


class Spread(nn.Module):
    """What a model's futures say of the next frame, z (N, Z), h (N, D), action (N, A), noise (N, O + 1) ->

    mean (O), deviation (O) over all of them, next_z, next_h.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, h: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        drawn = futures(self.model, z, h, action.unsqueeze(1), noise.unsqueeze(1))
        weight, mean, scale = (part[:, 0].flatten(0, 1) for part in drawn.given_past)  # (N K), (N K, O) twice
        share = weight.exp().unsqueeze(-1) / len(z)
        middle = (share * mean).sum(dim=0)
        square = scale.square() + (mean - middle).square()
        return middle, (share * square).sum(dim=0).sqrt(), drawn.z, drawn.h


class Members(nn.Module):
    """The next observation of each member (K, O), from its z (1, K Z), which `Predict` gives."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> tuple[Tensor]:
        return (self.model.decode_each(z)[0],)


def programs(model: Model) -> dict[str, Any]:
    """Name -> program, and under `weights` name -> shape and base64 of float32, of a model in evaluation mode.

    `observe` and `predict` as in graphs.NAMES, for one lane; `spread` with a distribution; `members` of several.

    Raises:
        UserError: if the model cannot be written as such programs, or has an operation that the page lacks.
    """
    obs = model.obs_norm.mean.new_zeros(1, len(model.obs_norm.mean))
    frame = obs, torch.zeros(1, dtype=torch.bool), model.initial_carry(obs)
    observe = Look(model)
    z, h = observe(*frame)
    action = obs.new_zeros(1, len(model.action_norm.mean))
    wanted: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
        "observe": (observe, frame),
        "predict": (Predict(model), (z, h, action)),
    }
    if model.noise is not None:
        count = -(-FUTURES // model.members) * model.members
        lanes = (x.expand(count, -1).contiguous() for x in (z, h, action))
        wanted["spread"] = Spread(model), (*lanes, obs.new_zeros(count, obs.shape[1] + 1))
    elif model.members > 1:
        wanted["members"] = Members(model), (Predict(model)(z, h, action)[3],)
    weights: dict[str, Tensor] = {}
    written = {name: _program(name, module, given, weights) for name, (module, given) in wanted.items()}
    return {**written, "weights": {name: _encoded(tensor) for name, tensor in weights.items()}}


def known_operations() -> set[str]:
    """Those that assets/engine.js defines."""
    return set(re.findall(r"^  define\(\"(\w+)\"", ENGINE.read_text(encoding="utf-8"), re.MULTILINE))


def _program(name: str, module: nn.Module, given: tuple[Tensor, ...], weights: dict[str, Tensor]) -> dict[str, Any]:
    try:
        # with gradients, since without them a rollout takes a path that writes into buffers
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(module, given).run_decompositions()
    except Exception as error:  # of what a rule of one's own, or torch, may raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"this model cannot be written as a program for a page: {reason}") from error
    graph, inputs, constants = exported.graph_module.graph, [], {}
    graph.eliminate_dead_code()
    held = {**exported.state_dict, **exported.constants}
    sizes = {node.name: list(node.meta["val"].shape) for node in graph.nodes if node.op == "placeholder"}
    for spec in exported.graph_signature.input_specs:
        if spec.target is None:
            inputs.append([f"%{spec.arg.name}", sizes[spec.arg.name]])
            continue
        key = spec.target if spec.target in exported.state_dict else f"{name}.{spec.target}"
        weights[key], constants[f"%{spec.arg.name}"] = held[spec.target].detach(), key
    nodes = [_node(node) for node in graph.nodes if node.op == "call_function" and "val" in node.meta]  # no assertions
    if lacking := sorted({node[1] for node in nodes} - known_operations()):
        raise UserError(f"this model has operations that the page lacks: {', '.join(lacking)}")
    outputs = [_argument(value) for value in graph.output_node().args[0]]  # type: ignore[union-attr]
    return {"inputs": inputs, "constants": constants, "nodes": nodes, "outputs": outputs}


def _node(node: Any) -> list[Any]:
    """[its name, operation, arguments in the order of its schema, shape or shapes of what it gives, kind]."""
    if node.target is operator.getitem:
        name, arguments = "getitem", list(node.args)
    else:
        name = node.target._opname
        given = dict(zip((slot.name for slot in node.target._schema.arguments), node.args, strict=False)) | node.kwargs
        slots = [slot for slot in node.target._schema.arguments if slot.name not in LEFT_OUT]
        arguments = [given.get(slot.name, slot.default_value if slot.has_default_value() else None) for slot in slots]
        name = "_".join([name, *(word for word in arguments if isinstance(word, str))])  # such as div_floor
    made = node.meta["val"]
    several = isinstance(made, (list, tuple))
    shape = [list(each.shape) for each in made] if several else list(made.shape)
    kind = "f" if several else KINDS.get(made.dtype, "f")
    return [f"%{node.name}", name, [_argument(value) for value in arguments], shape, kind]


def _argument(value: Any) -> Any:
    """As JSON: a node is its name, with % in front, and what is not finite a string."""
    if isinstance(value, (list, tuple)):
        return [_argument(each) for each in value]
    if isinstance(value, torch.fx.Node):
        return f"%{value.name}"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value if value is None or isinstance(value, (bool, int, float)) else None


def _encoded(tensor: Tensor) -> list[Any]:
    flat = tensor.float().contiguous().cpu().numpy().astype("<f4")
    return [list(tensor.shape), base64.b64encode(flat.tobytes()).decode()]
