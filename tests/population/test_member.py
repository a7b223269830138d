"""What a member's fit is asked to do, and which checkpoint it copies."""

from pathlib import Path

import pytest
import torch
import yaml

from worldmodel.errors import UserError
from worldmodel.population.design import Population
from worldmodel.population.member import NEVER, _argv, _checkpoint_of, _keep_in_config

RATE = "model.learning_rate"


@pytest.mark.parametrize(("keep", "kept"), [(1, 2), (5, 5)])
def test_members_differ_in_seeds_and_hyperparameters_and_save_at_exchanges_alone(keep, kept):
    population = Population(
        out=Path("out"), config="", defaults={}, trains="policy", data="", size=4, interval=10, last_step=50, mutate=[],
        mutations=[], starts=[], quantile=0.25, metric="val/return_mean", mode="max", seed=7, data_seed=30, threads=2,
        gpus=0, keep=keep,
    )  # fmt: skip
    command, *words, last = _argv(population, 3, {RATE: 0.01})
    options = dict(word.removeprefix("--").split("=") for word in words)
    assert (command, last) == ("fit", "--resume") and options[RATE] == "0.01"
    assert (options["config"], options["run_dir"]) == ("out/config.yaml", "out/member-3")
    assert (options["seed_everything"], options["data.seed"], options["threads"]) == ("10", "33", "2")
    assert int(options["checkpoint_keep"]) == kept, "that of the last exchange, and that of the one before"
    assert {options["checkpoint_every"], options["trainer.check_val_every_n_epoch"]} == {str(NEVER)}


def save(path: Path, step: int) -> None:
    path.parent.mkdir(exist_ok=True)
    report = {"step": step, "score": 1.0, "hyperparameters": {}, "exploits": 0}
    torch.save({"hyper_parameters": {}, "state_dict": {}, "callbacks": {"Exchange": {"report": report}}}, path)


def test_a_member_copies_the_checkpoint_of_the_exchange_however_far_the_donor_is(tmp_path):
    save(tmp_path / "checkpoints" / "last.ckpt", 20)
    save(tmp_path / "checkpoints" / "last-1.ckpt", 10)
    assert _checkpoint_of(tmp_path, 20).name == "last.ckpt" and _checkpoint_of(tmp_path, 10).name == "last-1.ckpt"
    with pytest.raises(UserError, match="no checkpoint of step 30"):
        _checkpoint_of(tmp_path, 30)


def test_the_configuration_follows_the_hyperparameters(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": {"learning_rate": 0.1, "rule": "gated"}, "trainer": {"max_steps": 9}}))
    _keep_in_config(path, {RATE: 0.02, "trainer.gradient_clip_val": 0.5})
    assert yaml.safe_load(path.read_text()) == {
        "model": {"learning_rate": 0.02, "rule": "gated"},
        "trainer": {"max_steps": 9, "gradient_clip_val": 0.5},
    }
