"""What a fit says of its last weights is what `validate` says of last.ckpt, wherever the fit stopped."""

import csv

import pytest
import torch
import yaml

from worldmodel.cli import main
from worldmodel.evaluation import calibration
from worldmodel.experiments.world_model import TrainingCLI

SMALL = ["--model.latent_dim", "6", "--model.hidden_dim", "10", "--model.width", "12"]
AVERAGE = "lightning.pytorch.callbacks.EMAWeightAveraging"
USUAL = ("in mid-epoch", "with averaged weights", "with a distribution")  # of the stops, in every run of the tests
STOPS = {
    "behind a validation": ["--trainer.max_epochs", "1"],
    "behind an epoch without one": ["--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "2"],
    "in mid-epoch": ["--trainer.max_epochs", "9", "--trainer.max_steps", "25"],
    "with a distribution": ["--trainer.max_epochs", "9", "--trainer.max_steps", "25", "--model.output", "mixture"],
    "with members": ["--trainer.max_steps", "25", "--model.members", "2", "--model.output", "gaussian"],
    "with averaged weights": ["--trainer.max_steps", "25", "--trainer.callbacks+=" + AVERAGE],
}


@pytest.fixture
def fit(toy_data, tmp_path, monkeypatch):
    """Fit in an empty folder, in this process: returns the run's folder."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "PL_GLOBAL_SEED",
        "PL_SEED_WORKERS",
        "WORLDMODEL_RUN_DIR",
        "WORLDMODEL_RESUME_FROM",
    ):  # what a run sets is taken back
        monkeypatch.setenv(name, "0")
    conf = {
        "wandb": "disabled",
        "data": {"path": str(toy_data), "steps": 8, "lanes": 3},
        "model": {"lr_schedule": "constant"},
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
        "rollout": {"multiples": [1, 2]},
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(conf))

    def run(name, *options):
        monkeypatch.delenv("WORLDMODEL_RESUME_FROM", raising=False)
        TrainingCLI(["fit", "--config", "toy.yaml", "--run_dir", name, *SMALL, *options]).lock.release()
        return tmp_path / name

    return run


def last_row(folder):
    """The evaluated metrics of the last row that has them, as they were written."""
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    found = [{k: v for k, v in row.items() if k.startswith(("rollout/", "val/")) and v} for row in rows]
    return [row for row in found if "val/loss" in row][-1]


def test_members_go_on_bit_for_bit_and_are_told(fit, capsys):
    members = ["--model.members", "2", "--model.bootstrap", "true", "--trainer.max_epochs", "9"]
    run = fit("run", *members, "--trainer.max_steps", "9")
    fit("run", *members, "--trainer.max_steps", "14", "--resume")
    said = capsys.readouterr().out
    whole = fit("whole", *members, "--trainer.max_steps", "14")
    ours, theirs = (torch.load(path / "checkpoints/last.ckpt", weights_only=True) for path in (run, whole))
    torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=0)
    carries = (path["callbacks"]["TruncatedBPTT"]["carry"] for path in (ours, theirs))
    torch.testing.assert_close(*carries, rtol=0, atol=0)
    assert ours["callbacks"]["TruncatedBPTT"]["carry"].shape[-1] > 2 * 10 and "apart" in said
    assert "disagreement" in (run / "rollout.csv").read_text()


def test_the_futures_of_a_validation_are_drawn_once(fit, monkeypatch):
    draw, drawn = calibration.scores, []
    monkeypatch.setattr(calibration, "scores", lambda *args: drawn.append(args) or draw(*args))
    run = fit("run", *STOPS["with a distribution"], "--rollout.samples", "5")
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert len(drawn) == sum(bool(row["val/loss"]) for row in rows) > 1
    assert all(5 in args for args in drawn)


@pytest.mark.parametrize(
    "stop", [pytest.param(stop, marks=() if stop in USUAL else pytest.mark.full) for stop in STOPS]
)
def test_validate_gives_the_numbers_of_the_fit(fit, stop, capsys):
    run = fit("run", *STOPS[stop])
    said = capsys.readouterr().out
    main(["validate", "--config", str(run / "config.yaml"), "--ckpt_path", str(run), "--run_dir", "again"])
    again = run.parent / "again"
    at_fit, now = last_row(run), last_row(again)
    assert at_fit == now, "digit for digit"
    scored = {"val/nll", "rollout/crps@8", "rollout/coverage90@16", "rollout/conformal90@16"} & set(now)
    assert len(scored) == (4 if stop in ("with a distribution", "with members") else 0)
    assert ("rollout/disagreement@8" in now) == (stop == "with members")
    assert {"val/loss", "rollout/nmse@8", "rollout/nmse@16", "rollout/copy_last@16"} <= set(now)
    assert (run / "rollout.csv").read_text() == (again / "rollout.csv").read_text()
    assert f"val/loss {float(now['val/loss']):.4g}" in said, "what the fit printed"


@pytest.mark.full
def test_going_on_from_the_best_weights_of_a_fit_that_stopped_in_mid_epoch(fit):
    """The validation behind the last step may save best.ckpt: the rest of its epoch is not skipped."""
    rare = ["--trainer.check_val_every_n_epoch", "3"]  # no other validation comes before
    stopped = fit("stopped", "--trainer.max_epochs", "2", "--trainer.max_steps", "25", *rare)
    more = ["--trainer.max_epochs", "2", "--ckpt_path"]
    runs = [
        fit("whole", "--trainer.max_epochs", "2"),
        *(fit(name, *more, str(stopped / f"checkpoints/{name}.ckpt")) for name in ("best", "last")),
    ]
    whole, *others = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in runs)
    for other in others:
        assert other["global_step"] == whole["global_step"] > 25
        torch.testing.assert_close(other["state_dict"], whole["state_dict"], rtol=0, atol=0)
