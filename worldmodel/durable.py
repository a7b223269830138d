"""Files that are whole or absent, whatever dies while they are written, and their digests."""

import errno
import glob
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkstemp
from typing import Any

from worldmodel.errors import CannotWrite, Damaged, UserError

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; when the block ends without error, its file becomes `path`.

    The file is flushed to disk by then. An exception leaves `path` as it was and no temporary file; what processes that
    were killed left of the same file is removed.

    Raises:
        CannotWrite: if the disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    try:
        _remove_left(path)
        descriptor, name = mkstemp(prefix=f".{path.name}.{os.getpid()}-", suffix=".partial", dir=path.parent)
        os.close(descriptor)
    except OSError as error:
        raise CannotWrite(error, path, 0) from error
    temporary = Path(name)
    try:
        yield temporary
        publish(temporary, path)
    except OSError as error:
        own = error.errno in DISK if error.filename is None else Path(error.filename) == temporary
        if not own or isinstance(error, CannotWrite):
            raise
        raise CannotWrite(error, path, temporary.stat().st_size if temporary.exists() else 0) from error
    finally:
        temporary.unlink(missing_ok=True)


def _remove_left(path: Path) -> None:
    """Remove temporary files of `path` whose processes are gone."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        process = left.name.removeprefix(f".{path.name}.").split("-")[0]
        if not (process.isdecimal() and _runs(int(process))):
            left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished file to `path` in the same folder, and flush both to disk (fsync)."""
    temporary.chmod(0o644)  # mkstemp makes it readable by the user alone
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def summed_file(path: Path) -> Iterator[Path]:
    """As `whole_file`, with the file's digest beside it, by which `intact` notices damage."""
    with whole_file(path) as temporary:
        yield temporary
        digest = sha256(temporary)
        if path.exists():  # until it is replaced, the digest of either is right
            write_digests(path, [digest, *(digests(path) or [sha256(path)])])
    write_digests(path, [digest])


def write_json(path: Path, values: Any, summed: bool = False) -> None:
    """Write JSON, whole or not at all. Infinities and NaN, which JSON lacks, become {"float": "inf"}.

    `summed`: with its digest beside it.
    """
    with (summed_file if summed else whole_file)(path) as temporary:
        temporary.write_text(json.dumps(_without_infinities(values), indent=2, allow_nan=False) + "\n")


@contextmanager
def intact(path: Path, way_out: str) -> Iterator[None]:
    """Name the file that is read in this block, if what it holds makes the reader fail, or is not what was written.

    Raises:
        Damaged: whatever the reader raised; or the file's digest is not one of those beside it.
        UserError: if the file is there and cannot be read.
    """
    try:
        if (known := digests(path)) and path.is_file() and sha256(path) not in known:
            raise Damaged(f"{path} is damaged (its SHA-256 is not that of {_beside(path).name}): {way_out}")
        yield
    except (UserError, FileNotFoundError):
        raise
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:
        what = " ".join(str(error).split())[:100]
        raise Damaged(f"{path} is damaged ({type(error).__name__}: {what}): {way_out}") from error


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return _with_infinities(json.loads(path.read_text()))


def _without_infinities(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case dict():
            return {str(key): _without_infinities(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_without_infinities(inner) for inner in value]
    return value


def _with_infinities(value: Any) -> Any:
    match value:
        case {"float": str(text), **rest} if not rest:
            return float(text)
        case dict():
            return {key: _with_infinities(inner) for key, inner in value.items()}
        case list():
            return [_with_infinities(inner) for inner in value]
    return value


def sha256(path: Path) -> str:
    """The file's SHA-256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_digests(path: Path, of: list[str]) -> None:
    """Write PATH.sha256 in the format of sha256sum: the digests that the file at `path` may have."""
    with whole_file(_beside(path)) as temporary:
        temporary.write_text("".join(f"{digest}  {path.name}\n" for digest in of))


def digests(path: Path) -> list[str]:
    """The digests in PATH.sha256; none if there is no such file."""
    beside = _beside(path)
    lines = beside.read_text(errors="replace").splitlines() if beside.is_file() else []
    return [line.split()[0] for line in lines if line.strip()]


def keep_as(path: Path, other: Path) -> None:
    """Replace `other` by the file at `path`, with its digest; `path` stays."""
    of = digests(path)
    write_digests(other, [*of, *digests(other)])
    with whole_file(other) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(path, temporary)
    write_digests(other, of)


def remove(path: Path) -> None:
    """Remove a file and its digest, so far as they are there."""
    for each in (path, _beside(path)):
        each.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
