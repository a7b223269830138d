"""Mutations of what the program reads: of bytes, of nested data with tensors in it, and of HDF5 files."""

import copy
from collections.abc import Callable
from random import Random
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

DEEP: Any = []
for _ in range(150):
    DEEP = [DEEP]
VALUES = [
    *(None, True, False, -1, 0, 1, 3, 2**31, -(2**63), 10**30, 0.5, -1e308, float("nan"), float("inf")),
    *("", " ", "x" * 300, "[/b]", "[red]", "nan", "../..", "/dev/zero", "a\0b", "é\u202e", "http://x/y", "1e9"),
    *([], {}, [[]], [None], {"": 1}, {"a": {"b": []}}, ["a", 1], DEEP),
]  # fmt: skip
LARGEST = 1 << 20  # numbers in a tensor that takes another's place


def mutated(tree: Any, dice: Random, edits: int = 1) -> Any:
    """A copy of nested dicts and lists in which something is replaced, removed, added, renamed or exchanged."""
    tree = {"": copy.deepcopy(tree)}
    for _ in range(edits):
        holder, key = dice.choice(list(_places(tree)))
        value = holder[key]
        if isinstance(value, Tensor) and value.layout == torch.strided and dice.random() < 0.8:
            holder[key] = dice.choice(TENSORS)(value, dice)
            continue
        match dice.randrange(8):
            case 0 | 1 | 2:
                holder[key] = copy.deepcopy(dice.choice(VALUES))
            case 3 if holder is not tree:
                del holder[key]
            case 4 if isinstance(value, dict):
                value[dice.choice(["extra", "path", "", "[/b]", 7])] = copy.deepcopy(dice.choice(VALUES))
            case 4 if isinstance(value, list):
                value += value or [0]
            case 5 if isinstance(holder, dict) and holder is not tree:
                holder[f"{key}_"] = holder.pop(key)
            case 6:
                other, there = dice.choice(list(_places(tree)))
                holder[key] = copy.deepcopy(other[there])
            case _ if isinstance(value, int | float):
                holder[key] = value * dice.choice([-1, 0, 2, 10**6, 1.5])
            case _:
                holder[key] = dice.choice([[value], {"0": value}, str(value)[:300]])
    return tree[""]


def _places(tree: Any) -> Any:
    """(dict or list, key) of every value in it."""
    for key in list(tree if isinstance(tree, dict) else range(len(tree))):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


def _longer(tensor: Tensor, dice: Random) -> Tensor:
    return torch.cat([tensor, tensor]) if tensor.dim() > 0 and tensor.numel() < LARGEST else torch.zeros(2, 3)


TENSORS: list[Callable[[Tensor, Random], Any]] = [
    _longer,
    lambda tensor, dice: tensor.flatten()[: max(0, tensor.numel() - 1)],
    lambda tensor, dice: tensor.unsqueeze(0),
    lambda tensor, dice: tensor.flatten()[:0],
    lambda tensor, dice: tensor.to(dice.choice([torch.int64, torch.bool, torch.complex64, torch.float64, torch.half])),
    lambda tensor, dice: torch.full_like(tensor, dice.choice([0, 1, 200])),
    lambda tensor, dice: tensor.float() * dice.choice([float("nan"), float("inf"), 1e30, -1.0]),
    lambda tensor, dice: tensor.to_sparse() if tensor.dim() else tensor.to("meta"),
    lambda tensor, dice: tensor.tolist(),
]


def damaged(content: bytes, dice: Random) -> bytes:
    """The bytes with a few changed, cut off, put in between, or all lost."""
    here, there = sorted(dice.randrange(len(content) + 1) for _ in range(2))
    there = min(there, here + 4096)
    match dice.randrange(8):
        case 0 | 1 if content:
            changed = bytearray(content)
            changed[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            return bytes(changed)
        case 2:
            return content[:here]
        case 3:
            return content[:here] + content[there:]
        case 4:
            return content[:here] + bytes(there - here) + content[there:]
        case 5:
            return content[:here] + dice.randbytes(there - here or 1) + content[there:]
        case 6:
            return content + content
        case _:
            return dice.choice([b"", b"\0" * 512, b"\xff\xfe\x80", dice.randbytes(1000)])


def mutate_hdf5(file: h5py.File, dice: Random) -> None:
    """Remove, replace or resize a dataset or an attribute."""
    names: list[str] = []
    file.visit(names.append)
    name = dice.choice(names or ["/"])
    item = file[name]
    if len(item.attrs) and dice.random() < 0.3:
        item.attrs[dice.choice(list(item.attrs))] = dice.choice([-1, 2**40, 0.5, "x", [1, 2], np.nan])
        return
    match dice.randrange(5):
        case 0:
            del file[name]
        case 1:
            file.move(name, f"{name}_")
        case 2:
            file[f"{name}_link"] = h5py.SoftLink(dice.choice(["/", "/nowhere", name]))
        case _:
            old = item[()] if isinstance(item, h5py.Dataset) and item.shape is not None else np.zeros((2, 3))
            del file[name]
            file[name] = dice.choice(ARRAYS)(np.asarray(old))


ARRAYS: list[Callable[[np.ndarray], Any]] = [
    lambda array: array[:-1] if array.ndim and len(array) else 7,
    lambda array: array[None],
    lambda array: np.concatenate([array, array]) if array.ndim else [1, 2],
    lambda array: array.ravel()[:0],
    lambda array: np.full(array.shape, b"x"),
    lambda array: np.full(array.shape, np.nan),
    lambda array: np.full(array.shape, -1),
    lambda array: np.full(array.shape, 2**62),
    lambda array: array.astype(bool) if array.dtype.kind in "iuf" else 0,
]
