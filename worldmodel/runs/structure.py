"""The structure of data that nothing vouches for: a checkpoint of the right checksum may hold anything."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

MOST = 2**53  # of a count; a larger one is none
DEEPEST = 20  # dicts and lists in each other


class Unfit(ValueError):
    """Data that is not what it must be."""


class Plain:
    """The kind of options: numbers, texts, None, and lists and dicts of them."""


class Counts:
    """The kind of the loops' progress: dicts of counts and flags."""


def check(value: Any, kind: Any, key: str = "") -> None:
    """Raise Unfit, with the key, if a value is not of this kind.

    Args:
        value: what was read.
        kind: a type; `int` is a count and `float` any number; Plain; Counts; None; a tuple of kinds, one of which it
            must be; [kind], a list; {str: kind}, a dict; {"name": kind}, a dict with these entries at least, of which
            one called "name?" may be missing.
        key: of the value, in the message.
    """
    match kind:
        case dict():
            _expect(isinstance(value, dict), value, "a dict", key)
            for name, inner in kind.items():
                if name is str:
                    for each, held in value.items():
                        _expect(isinstance(each, str), each, "a name", key)
                        check(held, inner, _below(key, each))
                elif name.removesuffix("?") in value:
                    check(value[name.removesuffix("?")], inner, _below(key, name.removesuffix("?")))
                elif not name.endswith("?"):
                    raise Unfit(f"it has no {_below(key, name)}")
        case [inner]:
            _expect(isinstance(value, list), value, "a list", key)
            for number, each in enumerate(value):
                check(each, inner, _below(key, number))
        case tuple():
            if not any(_fits(value, each) for each in kind):
                _expect(False, value, " or ".join(map(_called, kind)), key)
        case _:
            if not _is(value, kind) and isinstance(value, dict) and kind in (Plain, Counts):
                for name, inner in value.items():  # which one is it?
                    check(inner, kind, _below(key, name))
            _expect(_is(value, kind), value, _called(kind), key)


def check_tensors(tree: Any) -> None:
    """Raise Unfit if a tensor in nested dicts and lists is not dense, or claims more numbers than it has."""
    for tensor in tree_leaves(tree):
        if isinstance(tensor, Tensor):
            if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
                raise Unfit("a tensor in it is not dense")
            if tensor.untyped_storage().nbytes() < tensor.nbytes:  # a copy of it could fill the memory
                raise Unfit("a tensor claims more numbers than the file holds")


def _fits(value: Any, kind: Any) -> bool:
    try:
        check(value, kind)
    except Unfit:
        return False
    return True


def _is(value: Any, kind: Any, depth: int = 0) -> bool:
    if kind is Plain:
        match value:
            case dict() if depth < DEEPEST:
                return all(isinstance(key, str) and _is(each, Plain, depth + 1) for key, each in value.items())
            case list() | tuple() if depth < DEEPEST:
                return all(_is(each, Plain, depth + 1) for each in value)
        return value is None or isinstance(value, bool | float | str) or type(value) is int and abs(value) < 2**63
    if kind is Counts:
        if isinstance(value, dict) and depth < DEEPEST:
            return all(isinstance(key, str) and _is(each, Counts, depth + 1) for key, each in value.items())
        return isinstance(value, bool) or _is(value, int)
    if kind is int:
        return type(value) is int and 0 <= value <= MOST
    if kind is float:
        return type(value) in (int, float)
    return value is None if kind is None else isinstance(value, kind)


def _expect(fits: bool, value: Any, what: str, key: str) -> None:
    if not fits:
        short = isinstance(value, bool | int | float | str) or value is None
        raise Unfit(f"{key or 'it'} is {repr(value)[:40] if short else f'a {type(value).__name__}'}, not {what}")


def _called(kind: Any) -> str:
    names = {int: "a count", float: "a number", str: "a text", None: "None", Tensor: "a tensor", dict: "a dict"}
    names |= {Plain: "plain data", Counts: "counts", list: "a list", bool: "true or false"}
    return "a dict" if isinstance(kind, dict) else "a list" if isinstance(kind, list) else names.get(kind, str(kind))


def _below(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)
