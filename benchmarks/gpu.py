"""What the options for a GPU gain: the time of a training step, and how far loss and gradient are from plain float32.

    python benchmarks/gpu.py [--ways float32,cuda_graph] [--size 512x64x64] [--json FILE]
    python benchmarks/gpu.py --device cpu --size 16x4x4     # only tries the script

Two questions at each size, hidden width x lanes x steps, on noise:
  step         forward, backward, clipping and AdamW's update of a WorldModel
  recurrence   forward and backward of the recurrence alone, beside torch.nn.GRU of the same width: cuDNN's kernels,
               which cannot reset within a segment
Each way takes turns with float32, and is printed and saved when it is done; the cheap ones come first. The first step
includes compilation and capture. CPU-8 is eight threads of the same machine.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from noise import segment
from timing import in_turns, options_parser, save
from torch import Tensor, nn

from worldmodel import LatentPredictor, WorldModel
from worldmodel.cells.recurrence import stepped
from worldmodel.modules.optimizer import adamw
from worldmodel.modules.step_graph import Step, StepGraph

OBS, ACTIONS, LATENT = 24, 6, 32
SIZES = "128x16x32,512x64x64,1024x128x64"
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Way:
    """How a step is run."""

    precision: str = "high"  # of float32 matmuls
    mixed: bool = False
    graph: bool = False
    compiled: bool = False  # a step of the recurrence
    loop: dict[str, Any] | None = None  # torch.compile's options for its whole loop, which the program does not compile
    threads: int = 0  # of the CPU; 0: on the GPU


WAYS = {
    "float32": Way("highest"),
    "TF32": Way(),
    "bf16-mixed": Way(mixed=True),
    "cuda_graph": Way(graph=True),
    "cuda_graph+bf16-mixed": Way(graph=True, mixed=True),
    "CPU-1": Way("highest", threads=1),
    "CPU-8": Way("highest", threads=8),
    "compile": Way(compiled=True),
    "compile+cuda_graph": Way(compiled=True, graph=True),
    "compile+cuda_graph+bf16-mixed": Way(compiled=True, graph=True, mixed=True),
    "loop-cudagraphs": Way(loop={"backend": "cudagraphs"}),
    "loop-compiled": Way(loop={}),
}
PEERS = ("nn.GRU", "nn.GRU+cuda_graph")


class Size:
    """A model's weights and a batch, which all ways share; and calls that train it."""

    def __init__(self, text: str, device: str) -> None:
        self.hidden, self.lanes, self.steps = map(int, text.split("x"))
        self.device = device
        torch.manual_seed(0)
        self.model, self.predictor = self._model().state_dict(), self._predictor().state_dict()
        self.gru = nn.GRU(LATENT + ACTIONS, self.hidden)
        self.batch = segment(self.lanes, self.steps, OBS, ACTIONS, torch.Generator().manual_seed(0), 0)
        self.batch["carry"] = torch.randn(self.lanes, self.hidden)
        self.z = torch.randn(self.lanes, self.steps, LATENT)

    def _model(self) -> WorldModel:
        return WorldModel(OBS, ACTIONS, hidden_dim=self.hidden, width=self.hidden)

    def _predictor(self) -> LatentPredictor:
        return LatentPredictor(LATENT, ACTIONS, self.hidden)

    def step(self, way: Way) -> tuple[Call, nn.Module]:
        """A training step, and the model that it trains."""
        device, model = self._device(way), self._model()
        model.load_state_dict(self.model)
        model.to(device)
        compile_as(way, model.predictor)
        optimizer: Any = adamw(model.parameters(), 1e-4, 0.01, "constant", 0, float("inf"))["optimizer"]
        run: Callable[[Any], Step] = StepGraph(model.step, model.parameters()) if way.graph else model.step
        batch = self._on(device)
        batch["carry"] = model.initial_carry(batch["obs"])

        def call() -> Tensor:
            optimizer.zero_grad()
            with set_up(way, device):
                loss = run(batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return loss.detach()

        return call, model

    def recurrence(self, way: Way) -> tuple[Call, nn.Module]:
        """Forward and backward of `LatentPredictor.states`, and the predictor."""
        device, predictor = self._device(way), self._predictor()
        predictor.load_state_dict(self.predictor)
        predictor.to(device)
        compile_as(way, predictor)
        batch = self._on(device)

        def forward(batch: Any) -> Step:
            h = predictor.states(batch["z"], batch["action"], batch["is_first"], batch["carry"])
            loss = h.square().mean()
            return Step(loss, {"loss": loss}, h, h[-1])

        run = StepGraph(forward, predictor.cell.parameters()) if way.graph else forward

        def call() -> Tensor:
            predictor.zero_grad()
            with set_up(way, device):
                loss = run(batch).loss
            loss.backward()
            return loss.detach()

        return call, predictor.cell

    def cudnn(self, graph: bool) -> tuple[Call, nn.Module]:
        """Forward and backward of torch.nn.GRU over the same segment, in TF32."""
        device = self._device(WAYS["TF32"])
        gru, batch = nn.GRU(LATENT + ACTIONS, self.hidden).to(device), self._on(device)
        batch["x"] = torch.cat([batch["z"], batch["action"]], dim=-1).transpose(0, 1).contiguous()

        def forward(batch: Any) -> Step:
            h = gru(batch["x"], batch["carry"].unsqueeze(0))[0]
            loss = h.square().mean()
            return Step(loss, {"loss": loss}, h, h[-1])

        run = StepGraph(forward, gru.parameters()) if graph else forward

        def call() -> Tensor:
            gru.zero_grad()
            with set_up(WAYS["TF32"], device):
                loss = run(batch).loss
            loss.backward()
            return loss.detach()

        return call, gru

    def _device(self, way: Way) -> str:
        return "cpu" if way.threads else self.device

    def _on(self, device: str) -> dict[str, Any]:
        batch = {**self.batch, "z": self.z}
        return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}


def compile_as(way: Way, predictor: LatentPredictor) -> None:
    torch._dynamo.reset()
    if way.compiled:
        predictor.compile_step()
    if way.loop is not None:
        predictor._compiled = torch.compile(stepped, dynamic=False, **way.loop)


@contextlib.contextmanager
def set_up(way: Way, device: str) -> Iterator[None]:
    """Precision and threads of a way."""
    torch.set_float32_matmul_precision(way.precision)
    torch.set_num_threads(way.threads or 1)
    torch.compiler.cudagraph_mark_step_begin()
    with torch.autocast(device, torch.bfloat16) if way.mixed else contextlib.nullcontext():
        yield


def waiting(call: Call, device: str) -> Call:
    """The same, until the GPU has finished."""

    def whole() -> Tensor:
        loss = call()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss

    return whole


def measure(size: Size, question: str, name: str, rounds: int) -> dict[str, float]:
    """A way beside float32: how far its first step is, and how long further ones take."""
    make = getattr(size, question)
    plain, reference = make(WAYS["float32"])
    peer = name.startswith("nn.GRU")
    call, model = size.cudnn("graph" in name) if peer else make(WAYS[name])
    plain, call = waiting(plain, size.device), waiting(call, size.device)
    expected, began = float(plain()), time.perf_counter()
    loss = float(call())
    figures = {"first_seconds": time.perf_counter() - began}
    if not peer:
        gradient, wanted = (
            torch.cat([p.grad.cpu().flatten() for p in m.parameters() if p.grad is not None])
            for m in (model, reference)
        )
        figures |= {
            "loss": abs(loss / expected - 1),
            "gradient": float((gradient - wanted).norm() / wanted.norm()),
        }
    warm_up = 1 if rounds < 5 else 3
    timed = in_turns({"plain": plain, "way": call}, rounds, warm_up, clock=time.perf_counter)
    took = timed["way"].median
    rate = size.lanes * size.steps / took
    return figures | {"ms": 1000 * took, "speed": timed["plain"].median / took, "frames_per_second": rate}


def main() -> None:
    """A table for each size and question."""
    parser = options_parser(__doc__, rounds=15)
    parser.add_argument("--size", default=SIZES, help="default: %(default)s")
    parser.add_argument("--ways", default=",".join(WAYS), help="default: %(default)s")
    parser.add_argument("--questions", default="step,recurrence")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    about = {"device": device, "cuda": torch.version.cuda, "lightning": lightning.__version__}
    known = options.json is not None and options.json.exists()
    sizes: dict[str, Any] = json.loads(options.json.read_text())["sizes"] if known else {}
    measured = {text: Size(text, options.device) for text in options.size.split(",")}
    for name in [*options.ways.split(","), *PEERS]:
        for text, size in measured.items():
            for question in options.questions.split(","):
                if (name in PEERS and question == "step") or (options.device == "cpu" and "graph" in name):
                    continue
                rounds = 3 if name.startswith("CPU") else options.rounds
                figures = measure(size, question, name, rounds)
                sizes.setdefault(text, {}).setdefault(question, {})[name] = figures
                line = "  ".join(f"{key} {value:.3g}" for key, value in figures.items())
                print(f"{text:12} {question:11} {name:32} {line}", flush=True)
                save(options.json, about | {"sizes": sizes})


if __name__ == "__main__":
    main()
