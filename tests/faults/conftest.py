"""A small training that things happen to."""

from pathlib import Path

import pytest
import yaml
from faults.processes import run


@pytest.fixture(scope="session")
def config(toy_data, tmp_path_factory) -> Path:
    """A fit of 40 steps: an epoch has 14, and a checkpoint is saved every 7."""
    path = tmp_path_factory.mktemp("faults") / "toy.yaml"
    trainer = {"accelerator": "cpu", "devices": 1, "max_steps": 40, "max_epochs": -1, "log_every_n_steps": 4}
    conf = {
        "wandb": "disabled",
        "threads": 1,
        "checkpoint_every": 7,
        "data": {"path": str(toy_data), "steps": 8, "lanes": 4},
        "model": {"latent_dim": 6, "hidden_dim": 10, "width": 12, "objective": "latent"},
        "trainer": {**trainer, "enable_progress_bar": False, "check_val_every_n_epoch": 1},
        "rollout": {"multiples": [1, 2], "examples": 1},
    }
    path.write_text(yaml.safe_dump(conf))
    return path


@pytest.fixture(scope="session")
def whole(config) -> Path:
    """The folder of an undisturbed run."""
    process = run(["fit", "--config", config, "--run_dir", "whole"], config.parent)
    assert process.returncode == 0, process.stderr
    return config.parent / "whole"
