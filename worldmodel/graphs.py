"""A trained model as two graphs that need no code of this program: `observe` and `predict`, in ONNX or torch.export.

A control loop keeps the carry: zeros (B, C) at first. At each frame `observe` gives its latent z and the state h before
it; `predict`, from these and an action, the next observation, reward and z and h, as far ahead as it is repeated, and
for the action that is taken the next carry.
"""

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worldmodel.durable import whole_file
from worldmodel.errors import UserError
from worldmodel.export import ABOUT, DIGESTS, write_sums
from worldmodel.model import Model
from worldmodel.networks import LEVELS

Format = Literal["onnx", "torch"]
SUFFIX: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
NAMES = {  # inputs and outputs of each graph, in order; their first axis is the batch
    "observe": (("obs", "is_first", "carry"), ("z", "h")),
    "predict": (("z", "h", "action"), ("next_obs", "reward", "continues", "next_z", "next_h", "next_carry")),
}
STEPS, LANES = 200, 3  # with which a graph is held against the model
WORST = 1e-4  # relative to the largest entry


class Observe(nn.Module):
    """What a frame is seen as: obs (B, O), is_first (B) bool, the carry before (B, C) -> z (B, Z), h before (B, D)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, obs: Tensor, is_first: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        unknown = obs.new_zeros(obs.shape[0], 1, self.model.action_norm.mean.shape[-1])  # z does not depend on it
        seen = self.model.see(self.model.obs_norm(obs).unsqueeze(1), unknown, is_first.unsqueeze(1), carry)
        assert seen.h is not None, "it was given"
        return seen.z[:, 0], torch.where(is_first.unsqueeze(-1), 0.0, seen.h)


class Predict(nn.Module):
    """z (B, Z), h (B, D) and an action (B, A) -> what follows.

    next_obs (B, O), reward (B), continues (B): the probability that the episode goes on, next_z, next_h, and the carry
    (B, C) before the next frame.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, h: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        ahead = self.model.open_loop(z, h, action.unsqueeze(1))
        next_carry = self.model.advance(z, h, self.model.action_norm(action))
        return *(x[:, 0] for x in ahead), next_carry


def write_graphs(folder: Path, model: Model, format: Format, about: Mapping[str, Any]) -> float:
    """Write both graphs, what they take and their SHA-256 to a folder; returns how far they are from the model.

    That is the largest difference of any output over 200 steps on random frames, relative to its largest entry.

    Args:
        folder: new or empty, or that of the same export, interrupted or not.
        model: in evaluation mode on the CPU.
        format: onnx, or torch for programs of torch.export.
        about: further JSON for the reader.

    Raises:
        UserError: if a package is missing, the folder is taken or cannot be written to, the model cannot be expressed,
            or a graph's outputs are not the model's.
    """
    if format == "onnx":
        _check_extra()
    modules = {"observe": Observe(model), "predict": Predict(model)}
    frame = _frame(model, 2)
    z, h = modules["observe"](*frame)
    inputs = {"observe": frame, "predict": (z, h, frame[0].new_zeros(2, model.action_norm.mean.shape[-1]))}
    described = {
        name: {
            kind: {word: ["batch", *tensor.shape[1:]] for word, tensor in zip(words, tensors, strict=True)}
            for kind, words, tensors in zip(("inputs", "outputs"), NAMES[name], (given, module(*given)), strict=True)
        }
        for (name, module), given in zip(modules.items(), inputs.values(), strict=True)
    }
    text = json.dumps({"graphs": described, **_intervals(model), **about}, indent=2) + "\n"
    files = {name: name + SUFFIX[format] for name in modules}
    _check_folder(folder, {*files.values(), ABOUT, DIGESTS}, text)
    programs = {name: _exported(module, inputs[name], NAMES[name], format) for name, module in modules.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, program in programs.items():
        with whole_file(folder / files[name]) as temporary:
            if format == "onnx":
                program.save(temporary, external_data=False)
            else:
                with temporary.open("wb") as file:
                    torch.export.save(program, file)
    with whole_file(folder / ABOUT) as temporary:
        temporary.write_text(text)
    worst = difference(folder, model, format)
    if not worst <= WORST:
        raise UserError(f"{folder}: the graphs are {worst:.1e} from the model: report it, with the configuration")
    write_sums(folder, *files.values(), ABOUT)
    return worst


@torch.no_grad()
def difference(folder: Path, model: Model, format: Format, steps: int = STEPS) -> float:
    """How far the graphs in a folder are from the model, as `write_graphs` returns it, carried over so many steps."""
    graphs, modules = {name: _loaded(folder, name, format) for name in NAMES}, (Observe(model), Predict(model))
    generator = torch.Generator().manual_seed(0)
    carry = theirs = _frame(model, LANES)[2]
    worst = 0.0
    for _ in range(steps):
        obs, action = (
            torch.randn(LANES, norm.mean.shape[-1], generator=generator) for norm in (model.obs_norm, model.action_norm)
        )
        obs, action = model.obs_norm.inverse(obs), model.action_norm.inverse(action)
        if model.is_tokens:
            obs, action = (torch.nn.functional.one_hot(x.argmax(-1), x.shape[-1]).float() for x in (obs, action))
        is_first = torch.rand(LANES, generator=generator) < 0.05
        seen = modules[0](obs, is_first, carry)
        after = modules[1](*seen, action)
        other = graphs["observe"](obs, is_first, theirs)
        others = graphs["predict"](*other, action)
        for ours, there in zip((*seen, *after), (*other, *others), strict=True):
            worst = max(worst, float((ours - there).abs().max() / ours.abs().max().clamp(min=1e-6)))
        carry, theirs = after[-1], others[-1]
    return worst


def _check_extra() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("--format onnx needs onnxruntime and onnxscript: pip install 'worldmodel[onnx]'") from error


def _frame(model: Model, lanes: int) -> tuple[Tensor, Tensor, Tensor]:
    """An observation, is_first and the carry at an episode's start."""
    obs = model.obs_norm.mean.new_zeros(lanes, len(model.obs_norm.mean))
    return obs, torch.zeros(lanes, dtype=torch.bool), model.initial_carry(obs)


def _intervals(model: Model) -> dict[str, Any]:
    """Of a model with a distribution: half the widths of its intervals, for each of `ahead` steps and each entry."""
    if model.noise is None:
        return {}
    ahead = torch.arange(1, model.widths.shape[1] + 1)
    return {"intervals": {"levels": LEVELS, "ahead": ahead.tolist(), "widths": model.interval(ahead).tolist()}}


def _check_folder(folder: Path, ours: set[str], text: str) -> None:
    """Raise UserError unless the folder is new, empty, or holds this export, whole or begun."""
    there = {path.name for path in folder.iterdir() if path.suffix != ".partial"} if folder.exists() else set[str]()
    finished = DIGESTS in there
    if there - ours or (finished and (folder / ABOUT).read_text() != text):
        raise UserError(f"{folder} is not empty: choose a new --out, or empty it")


def _exported(module: nn.Module, given: tuple[Tensor, ...], names: tuple[tuple[str, ...], ...], format: Format) -> Any:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names packages that are not needed
    batch = tuple({0: torch.export.Dim("batch")} for _ in given)
    try:
        # with gradients, since without them a rollout takes a path that writes into buffers
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, given, dynamic_shapes=batch)
            if format == "torch":
                return program
            inputs, outputs = names
            return torch.onnx.export(program, input_names=inputs, output_names=outputs, dynamo=True, verbose=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"this model cannot be written as {format}: {reason}") from error


def _loaded(folder: Path, name: str, format: Format) -> Any:
    """A function of the graph's inputs, tensors, that gives its outputs."""
    path = folder / (name + SUFFIX[format])
    if format == "torch":
        return torch.export.load(path).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> list[Tensor]:
        words = dict(zip(NAMES[name][0], (tensor.numpy() for tensor in tensors), strict=True))
        return [torch.from_numpy(array) for array in session.run(None, words)]

    return run
