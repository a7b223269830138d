"""A user's own parts by name: `file.py:name` or `package.module:name`, in every place where a name is taken.

To load a part is to run its Python code. A command, a configuration that it names and a script may say so; what a
checkpoint, a run or an export names is loaded in `named_by` alone, where the user has said that it is trusted.
"""

import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import sha256 as sha256_of
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from worldmodel.durable import sha256
from worldmodel.errors import UserError, nearest, reason_of
from worldmodel.presets import packaged

INTERFACES = {  # kind -> what a part of it is
    "rule": (
        "a function (h, *proposals) -> h_next on tensors (..., hidden_dim), or a class of worldmodel.cells.Cell, made"
        " with (input_dim, hidden_dim)"
    ),
    "encoder": "called with (input_dim, output_dim), and gives a torch module (..., input_dim) -> (..., output_dim)",
    "decoder": "called with (input_dim, output_dim), and gives a torch module (..., input_dim) -> (..., output_dim)",
    "environment": "a class of gymnasium.Env, a function that makes one, or an id that the file registers",
    "policy": "a function (observations, is_first) -> actions of all environments",
    "reader": "a function from a path to an iterator of worldmodel.data.episode.Episode, or a Reader of that module",
    "callback": "a class of lightning.pytorch.Callback",
}
KEYS = ("rule", "encoder", "decoder", "format", "env_id", "policy", "callbacks", "class_path")  # that name parts
PREFIX = "worldmodel_own_"  # of the modules that files are loaded as
log = logging.getLogger(__name__)


class PartError(UserError):
    """A part that cannot be loaded, or that is not what it must be."""


@dataclass(frozen=True)
class Source:
    """A file that names parts."""

    path: Any
    trust: bool


_source: ContextVar[Source | None] = ContextVar("source", default=None)
_imported: dict[str, str] = {}  # dotted path -> name
_digests: dict[str, str] = {}  # module -> SHA-256 of its file, when it was loaded


def is_own(name: Any) -> bool:
    """Whether a name is of the user's own code."""
    return isinstance(name, str) and ":" in name


@contextmanager
def named_by(path: Any, trust: bool, recorded: Mapping[str, str] | None = None) -> Iterator[None]:
    """Within it, parts are those that a file names: errors without trust, and a warning says which have changed.

    Args:
        path: of the file, for messages.
        trust: the user's word.
        recorded: what `digests` gave when the file was written.
    """
    if trust:
        tell_changes(recorded or {}, path)
    token = _source.set(Source(path, trust))
    try:
        yield
    finally:
        _source.reset(token)


def check_trusted(names: Iterable[Any], path: Any, trust: bool) -> None:
    """Raise PartError if one of the names that the file at `path` holds is of own code, and the user does not trust."""
    for name in names:
        if is_own(name) and not trust:
            raise PartError(
                f"{path} names {name}, whose Python code would run: where you trust it, add --trust (in Python"
                " trust=True)"
            )


def tell_changes(recorded: Mapping[str, str], path: Any) -> None:
    """Warn of parts whose files are not as they were when the file at `path` was written (see `digests`)."""
    for name, digest in recorded.items():
        if _now(name.rpartition(":")[0]) not in (digest, ""):
            log.warning("%s has changed since %s was written: what it computes may have too", name, path)


def load(name: str, kind: str) -> Any:
    """The object that a name means.

    Args:
        name: file.py:name, or package.module:name; folders of a file are as the shell sees them.
        kind: of INTERFACES, for messages.

    Raises:
        PartError: if it is a checkpoint's word alone, or cannot be loaded.
    """
    attribute = name.rpartition(":")[2]
    module = module_of(name, kind)
    if hasattr(module, attribute):
        return getattr(module, attribute)
    where, names = name.rpartition(":")[0], [key for key in vars(module) if not key.startswith("_")]
    own = [key for key in names if getattr(getattr(module, key), "__module__", None) == module.__name__]
    hint = nearest(attribute, own).rstrip("?")
    raise PartError(f"{where} has no {kind} {attribute!r}: {hint}. {_described(kind)}")


def module_of(name: str, kind: str) -> ModuleType:
    """The module of a name, loaded; see `load`."""
    source, where = _source.get(), name.rpartition(":")[0]
    if source is not None:
        check_trusted([name], source.path, source.trust)
    try:
        module = _of_file(where) if where.endswith(".py") else _of_package(where)
    except UserError as error:
        raise PartError(f"the {kind} {name!r} cannot be loaded: {error}") from error
    except ImportError as error:
        raise PartError(f"the {kind} {name!r} cannot be loaded: {error}") from error
    except Exception as error:  # of the user's code: of any type
        raise PartError(f"the {kind} {name!r} cannot be loaded: {reason_of(error)}") from error
    return module


def called(name: str, kind: str, *values: Any, **further: Any) -> Any:
    """What the part gives for these values, and those of `further` that it has parameters for.

    Raises:
        PartError: if it cannot be called so, or raises an error.
    """
    part = load(name, kind)
    if not callable(part):
        raise misfit(name, kind, f"it is {type(part).__name__}")
    try:
        parameters = signature(part).parameters
        return part(*values, **{key: value for key, value in further.items() if key in parameters})
    except Exception as error:  # of the user's code: of any type
        raise misfit(name, kind, reason_of(error)) from error


def misfit(name: str, kind: str, why: str) -> PartError:
    """The error for a part that is not of its kind."""
    return PartError(f"{name} is no {kind}: {why}. {_described(kind)}")


def digests(names: Iterable[Any]) -> dict[str, str]:
    """Name -> SHA-256 of the file, for a record, of those names that are of own code: as loaded, else as it is now."""
    found = {name: _digest(name.rpartition(":")[0]) for name in names if is_own(name)}
    return {name: digest for name, digest in found.items() if digest}


def names_in(config: Any) -> Iterator[str]:
    """The names of own parts in a configuration: of model, data, and callbacks."""
    if isinstance(config, list):
        for each in config:
            yield from names_in(each)
    elif isinstance(config, Mapping):
        for key, value in config.items():
            for each in value if key == "callbacks" and isinstance(value, list) else [value]:
                if key in KEYS and is_own(each):
                    yield each
                else:
                    yield from names_in(each)


def import_path(name: str, kind: str = "callback") -> str:
    """The dotted path under which the part, once it is loaded, can be imported."""
    load(name, kind)
    path = f"{module_of(name, kind).__name__}.{name.rpartition(':')[2]}"
    _imported[path] = name
    return path


def by_import_path(text: str, names: Iterable[str]) -> str:
    """A text with the parts' dotted paths in the place of their names."""
    for name in names:
        text = re.sub(rf"(?<![\w./-]){re.escape(name)}(?!\w)", import_path(name), text)
    return text


def by_name(text: str) -> str:
    """The reverse, for all whose path was asked for."""
    for path, name in _imported.items():
        text = re.sub(rf"(?<![\w.]){re.escape(path)}(?!\w)", lambda _, name=name: name, text)
    return text


def _described(kind: str) -> str:
    return f"{'An' if kind[0] in 'aeiou' else 'A'} {kind} is {INTERFACES[kind]}"


def _of_file(where: str) -> ModuleType:
    file = packaged(where).resolve()
    if not file.is_file():
        raise UserError(f"there is no file {where}")
    digest, name = sha256(file), _name_of(file)
    if name in sys.modules and _digests.get(name) == digest:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _search(str(file.parent))
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _digests[name] = digest
    return module


def _of_package(where: str) -> ModuleType:
    _search("")  # modules in the current folder too, as `python -m` finds them
    module = importlib.import_module(where)
    file = getattr(module, "__file__", None)
    _digests.setdefault(module.__name__, sha256(Path(file)) if file else "")
    return module


def _search(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)  # last: nothing that is installed is hidden


def _name_of(file: Path) -> str:
    """A module's name for a file, which no other file has."""
    return f"{PREFIX}{re.sub(r'[^A-Za-z0-9]', '_', file.stem)}_{sha256_of(str(file).encode()).hexdigest()[:8]}"


def _digest(where: str) -> str:
    """Of a file or module, as it was loaded, else as it is."""
    return _digests.get(_name_of(packaged(where).resolve()) if where.endswith(".py") else where) or _now(where)


def _now(where: str) -> str:
    file = packaged(where) if where.endswith(".py") else None
    return sha256(file) if file is not None and file.is_file() else _digests.get(where, "")
