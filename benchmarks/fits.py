"""Fits that a benchmark makes once, and keeps."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = Path(sys.executable).with_name("worldmodel")


def fit_once(folder: Path, words: list[str]) -> bool:
    """Train into a run's folder with the program's options, unless that is done already. Returns whether it trained.

    What an interrupted fit left is removed. What the program says goes to a file beside the folder.
    """
    done = folder / "done"
    if done.exists():
        return False
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.log").open("w") as log:
        command = [PROGRAM, "fit", "--run_dir", str(folder), *words]
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True)
    done.touch()
    return True
