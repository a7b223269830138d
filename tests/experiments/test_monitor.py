"""Which metric chooses best.ckpt and ends a fit, and what a fit that ended early says and keeps."""

import csv
import math

import pytest
import torch
import yaml
from faults.same_run import differences

from worldmodel.callbacks.early_stopping import EarlyStopping, used_up
from worldmodel.cli import main
from worldmodel.experiments.monitor import mode_of
from worldmodel.experiments.world_model import TrainingCLI

NEVER_BETTER = ["--early_stopping.min_delta", "1e9"]  # after the first validation


@pytest.fixture
def fit(toy_data, tmp_path, monkeypatch):
    """Fit in an empty folder, in this process and without pictures; an epoch has five steps."""
    monkeypatch.chdir(tmp_path)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "WORLDMODEL_RUN_DIR", "WORLDMODEL_RESUME_FROM"):
        monkeypatch.setenv(name, "0")  # what a run sets is taken back
    for name in ("rollout_figure", "save"):
        monkeypatch.setattr(f"worldmodel.callbacks.evaluation.{name}", lambda *arguments, **options: None)
    conf = {
        "wandb": "disabled",
        "data": {"path": str(toy_data), "steps": 8, "lanes": 3},
        "model": {"latent_dim": 6, "hidden_dim": 10, "width": 12, "lr_schedule": "constant"},
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "max_epochs": 9}
        | {"limit_train_batches": 5, "limit_val_batches": 2},
        "rollout": {"multiples": [1], "starts": 1, "max_episodes": 2, "free_run": 4},
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(conf))

    def run(name, *options):
        monkeypatch.delenv("WORLDMODEL_RESUME_FROM", raising=False)
        TrainingCLI(["fit", "--config", "toy.yaml", "--run_dir", name, *map(str, options)]).lock.release()
        return tmp_path / name

    return run


@pytest.fixture
def mistake(fit, capsys):
    """What the program says on stderr of options that are an error."""

    def run(*options):
        with pytest.raises(SystemExit) as end:
            main(["fit", "--config", "toy.yaml", "--run_dir", "run", *map(str, options)])
        assert end.value.code == 2
        return capsys.readouterr().err

    return run


def validated(folder, name):
    """Step -> value of a metric, of every validation."""
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    return {int(row["step"]) + 1: float(row[name]) for row in rows if row["val/loss"]}


def test_the_free_run_chooses_the_checkpoint_and_ends_the_fit(fit, capsys):
    best_of = ["--checkpoint_monitor", "free_run/rmse"]
    run = fit("run", *best_of, *NEVER_BETTER, "--early_stopping.patience", 2)
    said = capsys.readouterr().out
    values = validated(run, "free_run/rmse")
    first, *_, last = values
    assert len(values) == 3, "the first, and two that are no better"
    assert f"stopped early at step {last}: free_run/rmse has not improved in 2 validations" in said
    assert f"at step {first})" in said
    best = min(values, key=values.__getitem__)
    assert torch.load(run / "checkpoints/best.ckpt", weights_only=True)["global_step"] == best
    assert f"best.ckpt: free_run/rmse {values[best]:.4g} at step {best}" in said
    assert f"free_run/rmse {values[last]:.4g}" in said.splitlines()[-3], "of the last weights"
    assert yaml.safe_load((run / "config.yaml").read_text())["checkpoint_monitor"] == "free_run/rmse"
    rows = list(csv.DictReader((run / "rollout.csv").open()))
    assert {row["metric"]: float(row["value"]) for row in rows}["free_run/rmse"] == pytest.approx(values[last])

    before = (run / "metrics.csv").read_bytes()
    with pytest.raises(SystemExit) as end:
        fit("run", *best_of, *NEVER_BETTER, "--early_stopping.patience", 2, "--resume")
    assert end.value.code == 0 and (run / "metrics.csv").read_bytes() == before
    assert "finished: it stopped early, since free_run/rmse has not improved in 2" in capsys.readouterr().out

    more = [*best_of, *NEVER_BETTER, "--early_stopping.patience", 3]
    fit("run", *more, "--resume")
    said = capsys.readouterr().out
    assert "has not improved in 3 validations" in said and f"at step {first})" in said, "the count goes on"
    assert not differences(run, fit("whole", *more))


def test_a_fit_that_lightnings_callback_ended_is_finished(fit, capsys):
    callback = [
        "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
        "--trainer.callbacks.monitor=val/loss",
    ]
    never = ["--trainer.callbacks.min_delta", "1e9", "--trainer.callbacks.patience", "1"]
    run = fit("run", *callback, *never)
    last = run / "checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 10
    with pytest.raises(SystemExit) as end:
        fit("run", *callback, *never, "--resume")
    assert end.value.code == 0 and "finished: EarlyStopping among trainer.callbacks" in capsys.readouterr().out


def test_a_fit_whose_time_is_used_up_is_finished():
    checkpoint = {"callbacks": {"Timer": {"time_elapsed": {"train": 60.0}}}}
    assert "its time, trainer.max_time, is used up; raise it" in (used_up([], "00:00:01:00", checkpoint) or "")
    assert used_up([], "00:00:01:01", checkpoint) is used_up([], None, checkpoint) is None


def test_the_best_weights_are_those_of_the_file_after_a_stop_too(fit, capsys):
    """The validation of a stop in mid-epoch may save best.ckpt, which the run that goes on would not have made."""
    highest = ["--checkpoint_mode", "max"]  # of losses that fall
    run = fit("run", *highest, "--trainer.max_steps", 3)
    fit("run", *highest, "--trainer.max_epochs", 1, "--resume")
    assert torch.load(run / "checkpoints/best.ckpt", weights_only=True)["global_step"] == 3
    assert capsys.readouterr().out.count("at step 3\n") == 2


def test_what_cannot_be_written_is_left_out_of_the_config(fit):
    run = fit("run", "--trainer.max_steps", 1, "--trainer.callbacks+=faults.stops.Calls")
    fit("again", "--config", run / "config.yaml")  # has the default again


def test_a_rate_that_config_yaml_would_not_have_is_refused(mistake):
    said = mistake("--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateFinder")
    assert "LearningRateFinder sets a rate" in said and "give --model.learning_rate" in said


def test_a_fit_that_stops_in_mid_epoch_goes_on_in_that_epoch(fit):
    run = fit("run", *NEVER_BETTER, "--early_stopping.patience", 2, "--trainer.val_check_interval", 3)
    last = run / "checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 13, "the third validation, in the third epoch"
    fit("run", "--trainer.max_epochs", 3, "--resume")
    assert torch.load(last, weights_only=True)["global_step"] == 15


def test_a_high_value_is_best_where_the_name_says_so_or_the_user_does(fit, capsys):
    run = fit("run", "--trainer.max_epochs", 2, "--checkpoint_monitor", "val/loss", "--checkpoint_mode", "max")
    values = validated(run, "val/loss")
    best = max(values, key=values.__getitem__)
    assert f"best.ckpt: val/loss {values[best]:.4g} at step {best}" in capsys.readouterr().out
    assert {name: mode_of(name, None) for name in ("val/accuracy", "recall/accuracy@64", "val/return_mean")} == {
        name: "max" for name in ("val/accuracy", "recall/accuracy@64", "val/return_mean")
    }
    assert mode_of("rollout/valid_prediction_time", None) == "max" and mode_of("free_run/nmse", None) == "min"
    assert mode_of("val/accuracy", "min") == "min"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--checkpoint_monitor val/los", "unknown checkpoint_monitor metric 'val/los': did you mean 'val/loss'"),
        ("--checkpoint_monitor rollout/nmse@9", "did you mean 'rollout/nmse@8'"),
        ("--checkpoint_monitor rollout/crps@8", "unknown checkpoint_monitor metric 'rollout/crps@8'"),
        ("--model.output gaussian --checkpoint_monitor rollout/crps@9", "did you mean 'rollout/crps@8'"),
        ("--model.output mixture --checkpoint_monitor rollout/coverage90@8", "best at 0.9, neither low nor high"),
        ("--rollout.free_run null --checkpoint_monitor free_run/rmse", "which --rollout.free_run N logs"),
        ("--early_stopping.patience 1 --early_stopping.monitor val/loss_x", "unknown early_stopping.monitor metric"),
        ("--early_stopping.monitor val/loss", "say with early_stopping.patience when to stop"),
        ("--early_stopping.patience 0", "early_stopping.patience is 0: it must be at least 1"),
        ("--early_stopping.patience 1 --trainer.limit_val_batches 0", "trainer.limit_val_batches 0 leaves them out"),
        ("--rollout.free_run 0", "rollout.free_run is 0: it must be at least 1"),
    ],
)
def test_a_metric_that_is_never_logged_is_named_before_data_is_touched(mistake, options, message):
    assert message in mistake(*options.split(), "--data.path", "nowhere")


def test_one_that_only_training_could_log_is_named_at_the_first_validation(mistake):
    said = mistake("--checkpoint_monitor", "hidden/norm_men", "--trainer.log_every_n_steps", 5)
    assert "no metric 'hidden/norm_men' was logged up to the validation at step" in said
    assert "did you mean 'hidden/norm_mean'? (logged: " in said and "free_run/rmse" in said
    assert "log_every_n_steps 5" in said


def test_a_score_of_the_distribution_chooses_the_checkpoint_and_ends_the_fit(fit, capsys):
    options = ["--model.output", "gaussian", "--checkpoint_monitor", "rollout/crps@8", *NEVER_BETTER]
    run = fit("run", *options, "--early_stopping.patience", 1)
    values = validated(run, "rollout/crps@8")
    assert len(values) == 2 and f"stopped early at step {max(values)}: rollout/crps@8" in capsys.readouterr().out
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["global_step"]
    assert best == min(values, key=values.__getitem__)


def test_no_episode_for_the_free_run_is_an_error_before_training(mistake):
    assert "--rollout.free_run 999: the longest episode has" in mistake("--rollout.free_run", 999)


def test_more_steps_between_validations_than_an_epoch_has_are_named(mistake):
    said = mistake("--trainer.val_check_interval", 1000)
    assert "trainer.val_check_interval 1000 is above the 5 steps of an epoch: choose fewer, or add" in said


class Validation:
    """What EarlyStopping sees of a trainer."""

    sanity_checking = should_stop = False
    is_global_zero = True

    def __init__(self, step, value):
        self.global_step, self.callback_metrics = step, {"x": torch.tensor(value)}
        self.state = self.strategy = self
        self.fn = "fit"

    def reduce_boolean_decision(self, decision, all):
        return decision


def test_what_counts_as_an_improvement():
    def counts(values, **options):
        stopping = EarlyStopping("x", patience=9, **options)
        found = []
        for step, value in enumerate(values):
            stopping.on_validation_end(Validation(step, value), None)
            found.append(stopping.waited)
        return found

    nan = math.nan
    assert counts([3.0, 2.0, 2.0, 2.5, 1.0, nan, math.inf, 0.5], mode="min") == [0, 0, 1, 2, 0, 1, 2, 0]
    assert counts([3.0, 2.0, 4.0, 4.0], mode="max") == [0, 1, 0, 1]
    assert counts([3.0, 2.95, 2.89, 2.8], mode="min", min_delta=0.1) == [0, 1, 0, 1]
    assert counts([nan, nan, 5.0], mode="min") == [1, 2, 0]
    stopping = EarlyStopping("x", "min", 2)
    for step, (value, stops) in enumerate([(1.0, False), (1.0, False), (1.0, True)]):
        trainer = Validation(step, value)
        stopping.on_validation_end(trainer, None)
        assert trainer.should_stop == stops
