"""What a GPU is asked, where there is one: elsewhere nothing here is collected."""

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from worldmodel.cli import main

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    """Plain float32, whatever a fit has set."""
    torch.set_float32_matmul_precision("highest")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def config(tmp_path, toy_data) -> Path:
    """Of a small fit on the GPU, in float32."""
    trainer = {"accelerator": "gpu", "devices": 1, "max_steps": 40, "max_epochs": -1, "log_every_n_steps": 1}
    conf = {
        "wandb": "disabled",
        "matmul_precision": "highest",
        "checkpoint_every": 7,
        "data": {"path": str(toy_data), "steps": 8, "lanes": 4},
        "model": {
            "latent_dim": 6, "hidden_dim": 10, "width": 12, "open_loop_steps": 4, "warmup_steps": 5,
            "lr_schedule": "constant",
        },
        "trainer": {**trainer, "enable_progress_bar": False, "limit_val_batches": 0},
        "rollout": {"multiples": [1], "max_episodes": 1, "starts": 1},
    }  # fmt: skip
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(conf))
    return path


@pytest.fixture
def fit(tmp_path, config) -> Callable[..., Path]:
    """`worldmodel fit` in this process, with further options; returns the run's folder."""

    def run(name: str, *options: Any) -> Path:
        folder = tmp_path / name
        with redirect_stdout(io.StringIO()):
            main(["fit", "--config", str(config), "--run_dir", str(folder), *map(str, options)])
        return folder

    return run


def losses_of(run: Path) -> list[float]:
    """Of each step."""
    with (run / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def checkpoint_of(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
