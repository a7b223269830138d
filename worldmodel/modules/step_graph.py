"""A training step's forward and backward pass as one CUDA graph."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldmodel.errors import UserError

WARM_UP = 3  # runs before a capture, in which libraries initialise themselves (PyTorch's notes on CUDA graphs)


class Step(NamedTuple):
    """The results of a training step."""

    loss: Tensor  # () float
    terms: dict[str, Tensor]  # () each, of the loss
    h: Tensor  # (B, T, D)
    carry: Tensor  # (B, D)


class StepGraph:
    """A step with the gradients of its loss, captured at the first batch and launched as one from then on.

    A recurrence is thousands of short kernels, and Python takes longer to launch one than the GPU to run it. A graph
    launches all of them at once. It reads and writes fixed memory: each batch is copied to that of the first, and the
    results of a step, except loss and terms, are overwritten by the next. A batch of other shapes is captured again.

    Backward through the loss returns the gradients that were computed with it, multiplied by the loss's own.

    Args:
        step: a batch -> its `Step`; it must not wait for the GPU, nor read anything but the batch's tensors and tensors
            that stay where they are.
        parameters: those that require a gradient get one.
    """

    def __init__(self, step: Callable[[Any], Step], parameters: Iterable[Tensor]) -> None:
        self._step, self._parameters = step, [p for p in parameters if p.requires_grad]
        self._batch: dict[str, Any] = {}
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Mapping[str, Any]) -> Step:
        """The step of a batch; h and carry are without gradient."""
        tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        if self._graph is None or _layout(tensors) != _layout(self._batch):
            self._capture(tensors)
        for name, value in tensors.items():
            self._batch[name].copy_(value)
        loss = _Launch.apply(self, *self._parameters)
        terms = dict(zip(self._result.terms, self._terms.clone().unbind(), strict=True))
        return Step(loss, terms, self._result.h, self._result.carry)

    def launch(self) -> tuple[Tensor, list[Tensor | None]]:
        """The loss, and the memory of the gradients until the next launch; None for parameters without any."""
        assert self._graph is not None
        self._graph.replay()
        return self._result.loss.clone(), self._gradients

    def _capture(self, batch: dict[str, Tensor]) -> None:
        self._graph = None  # frees an older one's memory first
        self._batch = {name: value.clone() for name, value in batch.items()}
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._run()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._result, self._terms, self._gradients = self._run()
        self._graph = graph

    def _run(self) -> tuple[Step, Tensor, list[Tensor | None]]:
        torch.clear_autocast_cache()  # weights are cast within the graph: the next step has others
        result = self._step(self._batch)
        torch.clear_autocast_cache()
        with torch.autocast("cuda", enabled=False):
            gradients = torch.autograd.grad(result.loss, self._parameters, allow_unused=True)
        terms = {name: term.detach() for name, term in result.terms.items()}
        step = Step(result.loss.detach(), terms, result.h.detach(), result.carry.detach())
        return step, torch.stack(list(terms.values())), list(gradients)


class _Launch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: StepGraph, *parameters: Tensor) -> Tensor:
        loss, ctx.gradients = graph.launch()
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # products are copies too: the next launch overwrites the gradients
        return None, *(None if own is None else own * gradients[0] for own in ctx.gradients)


def check_can_capture(hparams: Mapping[str, Any], precision: str, ranks: int, device: torch.device) -> None:
    """Raise UserError for what a graph of a WorldModel's step would get wrong, or what is untested."""
    if device.type != "cuda":
        raise UserError("model.cuda_graph is for a GPU, and this run is on the CPU: leave it out")
    latent = hparams["objective"] == "latent"
    misfits = {
        f"model.gradient {hparams['gradient']}": hparams["gradient"] in ("rtrl", "eligibility"),
        "model.anti_collapse sigreg, whose directions come from the CPU": latent
        and hparams["anti_collapse"] == "sigreg",
        "model.objective latent on several ranks, which communicate within the step": latent and ranks > 1,
        "trainer.precision 16-mixed, whose loss scale comes too late": precision == "16-mixed",
    }
    if misfit := next((name for name, is_so in misfits.items() if is_so), None):
        raise UserError(f"model.cuda_graph does not work with {misfit}: leave it out")


def _layout(batch: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in batch.items()}
