"""A model from what a file holds: its arguments and its weights."""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from worldmodel.errors import UserError
from worldmodel.model import Model
from worldmodel.parts import PartError, digests, named_by

ARGUMENTS = tuple(signature(Model).parameters)
OWN = ("rule", "encoder", "decoder")  # arguments that may name code of the user's own
DEFAULTS = {name: p.default for name, p in signature(Model).parameters.items() if p.default is not Parameter.empty}


def own_parts(arguments: Mapping[str, Any]) -> dict[str, str]:
    """The parts of a user's own among a model's arguments: name -> SHA-256 of the file (parts.digests)."""
    return digests(arguments.get(name) for name in OWN)


def rebuilt(
    arguments: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    path: Any,
    trust: bool = False,
    recorded: Mapping[str, str] | None = None,
) -> Model:
    """A model in evaluation mode, from the arguments and weights that a file holds; further ones are ignored.

    A rule, encoder or decoder of the user's own that the file names is run if the user trusts it; if it is not as
    `recorded`, a warning says so.

    Its size is compared with the weights before it takes any memory, and the random generator is left as it was. If the
    weights are those of another model, UserError names the file by its `path`.
    """
    own = {name: arguments[name] for name in ARGUMENTS if name in arguments}
    deepest = max((own[name] for name in ("depth", "head_depth") if isinstance(own.get(name), int)), default=0)
    try:
        if deepest > len(tensors):
            raise ValueError(f"it names {deepest} layers and holds {len(tensors)} tensors")
        with named_by(path, trust, recorded), torch.random.fork_rng(devices=[]):
            with torch.device("meta"):
                wanted = {name: tensor.shape for name, tensor in Model(**own).state_dict().items()}
            if missing := next((name for name in wanted if name not in tensors), None):
                raise ValueError(f"it holds no {missing}")
            if wrong := next((name for name, shape in wanted.items() if tensors[name].shape != shape), None):
                raise ValueError(f"{wrong} is {tuple(tensors[wrong].shape)}, not {tuple(wanted[wrong])}")
            model = Model(**own)
        model.load_state_dict({name: tensors[name] for name in wanted})
    except PartError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, OverflowError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is of another version of this program, or damaged: {reason}") from error
    return model.eval()
