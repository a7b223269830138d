"""Check that the tests notice mistakes: make each one of mutants.txt in a copy of the tree, and run the tests named.

    python tests/mutants.py [--only TEXT] [--jobs 2]

A mistake is a line `path | old text | new text | pytest arguments`, in which `\\n` is a line break and `\\|` a bar. The
old text must occur once in the file. Exit status 1 if a mistake survives, 2 if the list is out of date.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tests" / "mutants.txt"
COPIED = ("worldmodel", "tests", "conf", "pyproject.toml")
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


def run(mutant: Mutant, tree: Path) -> str:
    """Make the mistake in a tree, run its tests there, and restore the file; returns what became of it."""
    path = tree / mutant.path
    original = path.read_text()
    path.write_text(original.replace(mutant.old, mutant.new))
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *shlex.split(mutant.tests)]
    try:
        process = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    finally:
        path.write_text(original)
    return RESULTS.get(process.returncode) or f"NOT RUN: {(process.stdout + process.stderr).strip()[-1000:]}"


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
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.jobs):
            tree = Path(folder, str(number))
            for name in COPIED:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
                tree.mkdir(exist_ok=True)
                copy(ROOT / name, tree / name)
            trees.put(tree)

        def turn(mutant: Mutant) -> bool:
            tree = trees.get()
            result = run(mutant, tree)
            trees.put(tree)
            print(f"{result:8}  {mutant}", flush=True)
            return result == "killed"

        killed = list(pool.map(turn, mutants))
    print(f"{sum(killed)} of {len(killed)} killed")
    raise SystemExit(not all(killed))


if __name__ == "__main__":
    main()
