"""Check that the tests notice mistakes: make each one of mutants.txt in a copy of the tree, and run the tests named.

    python tests/mutants.py [--only TEXT] [--jobs 2]

A mistake is a line `path | old text | new text | pytest arguments`, in which `\\n` is a line break and `\\|` a bar. The
old text must occur once in the file. Exit status 1 if a mistake survives, 2 if the list is out of date.
"""

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tests" / "mutants.txt"
COPIED = ("worldmodel", "tests", "conf", "docs", "pyproject.toml")
IMPORTED = ("torch", "lightning.pytorch", "gymnasium", "h5py", "hypothesis", "matplotlib.figure")  # once for all
RESULTS = {0: "SURVIVED", 1: "killed"}  # by pytest's exit status


@dataclass(frozen=True)
class Mutant:
    """A line of the list."""

    number: int
    path: str
    old: str
    new: str
    tests: str

    def __str__(self) -> str:
        return f"{LIST.name}:{self.number}: {self.path}: {self.old!r} -> {self.new!r}"


def read(lines: list[str]) -> list[Mutant]:
    """The mutants of a list; empty lines and comments are left out.

    Raises:
        SystemExit: if a line has not four fields.
    """
    mutants = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.replace("\\n", "\n").replace("\\|", "|") for field in line.split(" | ")]
        if len(fields) != 4:
            raise SystemExit(f"{LIST.name}:{number}: {len(fields)} fields, not 4 (a bar within a text is written \\|)")
        mutants.append(Mutant(number, *fields))
    return mutants


def stale(mutants: list[Mutant]) -> list[str]:
    """Those whose old text does not occur once, and why."""
    found = []
    for mutant in mutants:
        path = ROOT / mutant.path
        count = path.read_text().count(mutant.old) if path.is_file() else None
        if count != 1:
            found.append(f"{mutant}: {'no such file' if count is None else f'the old text occurs {count} times'}")
    return found


def run(mutant: Mutant) -> str:
    """Make the mistake in a copy of the tree, and run its tests there; returns what became of it."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        tree = Path(folder)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, tree / name)
        path = tree / mutant.path
        path.write_text(path.read_text().replace(mutant.old, mutant.new))
        os.chdir(tree)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        sys.path.pop(0)  # the folder of this file
        status = pytest.main(["-x", "-p", "no:cacheprovider", "-p", "no:xdist", *shlex.split(mutant.tests)])
        output.seek(0)
        return RESULTS.get(status) or f"NOT RUN: {output.read()[-1000:]}"


def main() -> None:
    """Print what became of each mutant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the mutants whose line contains this text")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time; default: %(default)s")
    options = parser.parse_args()
    mutants = read(LIST.read_text().splitlines())
    if outdated := stale(mutants):
        print(*outdated, sep="\n")
        raise SystemExit(2)
    mutants = [mutant for mutant in mutants if options.only in f"{mutant} {mutant.tests}"]
    for name in IMPORTED:
        import_module(name)
    killed = 0
    with get_context("fork").Pool(options.jobs, maxtasksperchild=1) as pool:
        for mutant, result in zip(mutants, pool.imap(run, mutants, chunksize=1), strict=True):
            print(f"{result:8}  {mutant}", flush=True)
            killed += result == "killed"
    print(f"{killed} of {len(mutants)} killed")
    raise SystemExit(killed < len(mutants))


if __name__ == "__main__":
    main()
