"""What decides which frames batch n holds: recorded with a checkpoint, compared when a fit resumes."""

from pathlib import Path
from typing import Any

from worldmodel.errors import UserError

OPTIONS = ("steps", "lanes", "whole_episodes", "seed", "split_seed", "val_fraction", "test_fraction")
OPTIONS += ("folds", "fold", "non_finite", "observations", "action", "reward", "rename", "skip", "image_crop")
OPTIONS += ("image_size", "crop")


def same_files(then: dict[str, Any], now: dict[str, Any], path: Path, accept_changed: bool) -> bool:
    """Whether the dataset at `path` is the checkpoint's; a UserError if the stream is another than is accepted."""
    options = {name: value for name, value in then.items() if name != "files"}
    differ = [f"data.{name} is {now[name]}, was {value}" for name, value in options.items() if now[name] != value]
    if differ:
        raise UserError(
            f"the checkpoint was trained on another stream of data, and cannot be resumed ({'; '.join(differ)}):"
            " use the config.yaml of its run"
        )
    changed = then["files"] != now["files"]
    if changed and not accept_changed:
        raise UserError(
            f"the files of {path} are not those that the checkpoint was trained on ({now['files']}, were"
            f" {then['files']}): restore them, or accept other batches with --data.accept_changed true"
        )
    return not changed
