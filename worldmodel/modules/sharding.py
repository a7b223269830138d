"""Weights, gradients and moments divided among ranks (FSDP2): `--trainer.strategy fsdp2`."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from worldmodel.errors import UserError
from worldmodel.model import Model

ENTRIES = ("closed_loop", "open_loop", "step", "exact_prediction", "gate")  # of the predictor, besides forward
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class FullySharded(ModelParallelStrategy):
    """Each rank holds its share of all weights, gradients and moments, and gathers a part of the model to use it.

    (Zhao et al. 2023, arXiv 2304.11277; FSDP2, with one DTensor per parameter.) For models that one device cannot hold;
    `ddp` communicates less. A checkpoint is one file, as with any other strategy: a fit may resume from it on another
    number of ranks, or with `ddp`.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # all ranks; Lightning's "auto": the nodes
        super().setup_environment()

    # Lightning's own versions number the moments by the module's parameters, not by the optimizer's groups as other
    # strategies do, and bypass the checkpoint plugin.

    def optimizer_state(self, optimizer: Optimizer | LightningOptimizer) -> dict[str, Any]:
        """The state of all ranks, on the first one, in the form that the optimizer of a whole model has."""
        optimizer = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        named: Any = get_optimizer_state_dict(self._module(), optimizer, options=WHOLE)
        if not named:
            return {}
        return _renamed(named, {name: number for number, name in enumerate(self._names(optimizer))})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=True)
        set_model_state_dict(self._module(), checkpoint["state_dict"], options=WHOLE)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            named = _renamed(state, dict(enumerate(self._names(optimizer))))
            set_optimizer_state_dict(self._module(), optimizer, named, options=WHOLE)
        return checkpoint

    def _module(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def _names(self, optimizer: Optimizer) -> list[str]:
        """The parameters' names in the order of the optimizer's groups."""
        names = {id(parameter): name for name, parameter in self._module().named_parameters()}
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _renamed(state: Any, names: Mapping[Any, Any]) -> Any:
    """An optimizer's state with its parameters under other names, or numbers."""
    groups = [group | {"params": [names[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[name]: moments for name, moments in state["state"].items()}, "param_groups": groups}


StrategyRegistry.register("fsdp2", FullySharded, description=str(FullySharded.__doc__).splitlines()[0])


def shard(model: Model, mesh: DeviceMesh) -> None:
    """Divide each child of the model among the mesh's ranks, in place.

    Raises:
        RuntimeError: if a parameter is left out: no rank would reduce it, and the ranks would silently diverge.
    """
    for part in model.children():
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    for entry in ENTRIES:
        register_fsdp_forward_method(model.predictor, entry)
    if whole := [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]:
        raise RuntimeError(f"these parameters are not divided among the ranks: {', '.join(whole)}")


def check_can_shard(gradient: str, compiled: bool) -> None:
    """Raise UserError for options that need all weights at any time: an exact gradient, a compiled recurrence."""
    if option := f"gradient {gradient}" if gradient in ("rtrl", "eligibility") else "compile or cuda_graph" * compiled:
        raise UserError(
            f"model.{option} needs all weights on every rank, and fsdp2 divides them: use --trainer.strategy ddp"
        )
