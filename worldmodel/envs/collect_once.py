"""A dataset that an experiment asks for: collected when it is not there yet, and held against what was asked."""

import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from worldmodel.data.manifest import MANIFEST, read_manifest
from worldmodel.durable import sync_folder
from worldmodel.envs.collect import DEFAULTS, CollectOptions, collect
from worldmodel.errors import UserError


def collect_once(options: CollectOptions, path: Path) -> None:
    """Collect into a folder beside `path` and move it there once it is complete, if nothing is at `path` yet.

    Raises:
        UserError: if what is there was collected with other options, or by hand and not to its end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # ranks that torchrun starts side by side must not collect twice
    with FileLock(path.parent / f".{path.name}.lock"):
        if not (path / MANIFEST).exists():
            if path.is_file() or (path.is_dir() and any(path.iterdir())):
                raise UserError(
                    f"{path} holds something else than a dataset of this program: choose another --data.path"
                )
            unfinished = path.parent / f".{path.name}.collecting"
            shutil.rmtree(unfinished, ignore_errors=True)  # of a process that died
            print(f"no dataset at {path} yet: collecting {options['steps']} steps of {options['env_id']}", flush=True)
            collect(options, unfinished, keep_interrupted=False)
            unfinished.replace(path)
            sync_folder(path.parent)
    have = read_manifest(path).get("collect", {})
    asked: dict[str, Any] = {**DEFAULTS, **options}
    differ = [f"{key} is {have.get(key)!r}, asked is {asked[key]!r}" for key in asked if have.get(key) != asked[key]]
    if differ:
        raise UserError(
            f"the dataset at {path} is not what data.collect asks for ({'; '.join(differ)}):"
            " choose another --data.path, remove the folder, or use it as it is with --data.collect null"
        )
