"""One folder a run: runs/<experiment>/<run>, never one that is taken."""

import os
from pathlib import Path

from worldmodel.errors import UserError

CHOSEN = "WORLDMODEL_RUN_DIR"  # processes that Lightning starts for further ranks read it


def is_first_rank() -> bool:
    """Whether this process is rank 0, or the only one, before anything distributed has started."""
    ranks = [os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ]
    return not ranks or ranks[0] == "0"


def file_name(env_id: str) -> str:
    """An environment's name as a part of a folder's."""
    return env_id.replace("/", "-").replace(":", "-")


def check_free(folder: Path, option: str) -> None:
    """Raise UserError if the folder that the user chose holds files."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"the run's folder {folder} is not empty: choose another {option}, so that no run is overwritten"
        )


def run_folder(experiment: str, name: str, asked: Path | None, option: str = "--run_dir") -> Path:
    """Make the run's folder on rank 0; other ranks get the same path.

    Args:
        experiment: the folder's parent below runs/.
        name: of the run; a number is appended where it is taken.
        asked: the folder that the user chose, which must be empty or new.
        option: that the user chooses it with.

    Raises:
        UserError: if the chosen folder holds files, or cannot be made.
    """
    if not is_first_rank():  # Lightning's own launcher hands it down; under torchrun only rank 0 writes
        return Path(os.environ.get(CHOSEN) or asked or Path("runs", experiment, name))
    folder = _chosen(asked, option) if asked else _numbered(Path("runs", experiment), name, option)
    hand_down(folder)
    return folder


def hand_down(folder: Path) -> None:
    """Tell the processes of further ranks which folder it is."""
    os.environ[CHOSEN] = str(folder.resolve())


def _chosen(folder: Path, option: str) -> Path:
    check_free(folder, option)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the run's folder {folder} cannot be made: {error.strerror}; choose another {option}"
        ) from error
    return folder


def _numbered(parent: Path, name: str, option: str) -> Path:
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"{folder} cannot be made: {error.strerror}; choose a folder with {option}") from error
