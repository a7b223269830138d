"""The order in which the callbacks of each kind of run do run, as the Trainer has them."""

from pathlib import Path

import pytest
import yaml
from lightning.pytorch.callbacks import Callback, EarlyStopping, LambdaCallback, Timer
from lightning.pytorch.demos.boring_classes import BoringModel

from worldmodel.callbacks.exchange import Exchange
from worldmodel.experiments.policies import ImagineCLI, PolicyCLI
from worldmodel.experiments.trainer import FitTrainer
from worldmodel.experiments.world_model import TrainingCLI
from worldmodel.population.member import NEVER, MemberCLI

SMALL = {"latent_dim": 6, "hidden_dim": 10, "width": 12}
USER = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
WORLD_MODEL = """FinalValidation FitProgress FirstLoss NumericalGuard RandomState LearningRateMonitor
    HiddenNormMonitor TruncatedBPTT RolloutEvaluation RecallEvaluation SaveConfig LastCheckpoint BestCheckpoint"""
POLICY = """FinalValidation LearningCurve FitProgress NumericalGuard RandomState LearningRateMonitor HiddenNormMonitor
    SaveConfig LastCheckpoint BestCheckpoint"""
IMAGINE = """FinalValidation FitProgress NumericalGuard RandomState LearningRateMonitor HiddenNormMonitor TruncatedBPTT
    SaveConfig LastCheckpoint BestCheckpoint"""


def ready(cli: type) -> type:
    """The CLI up to the point where it would run."""

    class Ready(cli):
        def _run_subcommand(self, subcommand):
            pass

    return Ready


def exchange(last):
    return Exchange(4, "val/loss", 0.0, {}, last, lambda report: None)


@pytest.fixture(scope="module")
def options(toy_data, tmp_path_factory):
    """The configurations of a world model, of a policy and of a policy in this world model."""
    folder = tmp_path_factory.mktemp("conf")
    trainer = {"accelerator": "cpu", "devices": 1, "max_steps": 8}
    shared = {"wandb": "disabled", "threads": 1, "trainer": trainer | {"callbacks": [USER]}}
    data = {"path": str(toy_data), "steps": 8, "lanes": 3}
    policy = {"env_id": "CartPole-v1", "num_envs": 2, "rollout_steps": 16, "chunk_steps": 8, "episodes": 2}
    world = ["fit", "--run_dir", str(folder / "world"), "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    configs = {
        "world_model": shared | {"data": data, "model": SMALL},
        "policy": shared | {"data": policy | {"total_steps": 64}, "model": {"hidden_dim": 8}},
        "imagine": shared | {"data": data, "model": {"world": str(folder / "world"), "trust": True}},
    }
    for name, config in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLDMODEL_RUN_DIR", "")
        TrainingCLI([*world, "--config", str(folder / "world_model.yaml"), "--rollout.max_episodes", "1"])
    return lambda name: ["--config", str(folder / f"{name}.yaml")]


@pytest.fixture
def order(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "WORLDMODEL_RUN_DIR"):  # what a run sets is taken back
        monkeypatch.setenv(name, "0")

    def run(cli, name, *arguments, stage="fit", member=()):
        made = ready(cli)([stage, *options(name), *arguments], *member)
        callbacks = made.trainer.callbacks
        return " ".join(type(callback).__name__ for callback in callbacks), made

    return run


@pytest.mark.parametrize(
    ("cli", "name", "expected"),
    [
        (TrainingCLI, "world_model", "PredictionWriter " + WORLD_MODEL),
        (PolicyCLI, "policy", POLICY),
        (ImagineCLI, "imagine", IMAGINE),
    ],
    ids=["world_model", "policy", "imagine"],
)
def test_the_callbacks_of_a_fit(order, cli, name, expected):
    found, made = order(cli, name)
    assert found == " ".join(expected.split())
    best = made.trainer.callbacks[-1]
    assert (best.monitor, best.mode) == (("val/loss", "min") if cli is TrainingCLI else ("val/return_mean", "max"))


@pytest.mark.parametrize(
    ("cli", "name", "expected"),
    [(TrainingCLI, "world_model", "PredictionWriter " + WORLD_MODEL), (PolicyCLI, "policy", POLICY)],
    ids=["world_model", "policy"],
)
def test_a_member_exchanges_after_all_that_carry_something_and_before_it_is_saved(order, cli, name, expected):
    found, made = order(type("Member", (MemberCLI, cli), {}), name, member=("m", exchange))
    assert found == " ".join(expected.replace("LastCheckpoint", "Exchange LastCheckpoint").split())
    guard = next(callback for callback in made.trainer.callbacks if type(callback).__name__ == "NumericalGuard")
    assert guard.max_skipped == NEVER and made.exchange in made.trainer.callbacks


def test_what_is_not_asked_for_is_left_out(order, options, tmp_path):
    off = ["--trainer.enable_progress_bar", "false", "--trainer.enable_checkpointing", "false"]
    found, _ = order(TrainingCLI, "world_model", *off, "--trainer.callbacks", "null")
    assert found == (
        "PredictionWriter FinalValidation FirstLoss NumericalGuard HiddenNormMonitor TruncatedBPTT RolloutEvaluation"
        " RecallEvaluation SaveConfig"
    )
    world = yaml.safe_load(Path(options("imagine")[1]).read_text())["model"]["world"]
    found, _ = order(TrainingCLI, "world_model", "--ckpt_path", world, "--run_dir", "v", stage="validate")
    assert found == (
        "PredictionWriter FinalValidation FitProgress LearningRateMonitor HiddenNormMonitor TruncatedBPTT"
        " RolloutEvaluation RecallEvaluation SaveConfig ModelCheckpoint"  # the Trainer's own, which saves in no fit
    )


def test_hooks_that_a_callback_does_not_have_cost_nothing(order):
    _, made = order(TrainingCLI, "world_model")
    for callback in made.trainer.callbacks:
        idle = type(callback).on_after_backward is Callback.on_after_backward
        assert (callback.on_after_backward is None) == idle


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (Timer({"seconds": 0}), "its time is used up (trainer.max_time, Timer)"),
        (EarlyStopping("loss", check_on_train_epoch_end=True, patience=0, min_delta=1e9), "EarlyStopping asked"),
        (
            LambdaCallback(on_train_batch_end=lambda trainer, *_: setattr(trainer, "should_stop", True)),
            "<lambda> asked",
        ),
        (LambdaCallback(), ""),
    ],
)
def test_what_ended_a_fit_is_remembered(callback, words):
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    trainer = FitTrainer(accelerator="cpu", max_epochs=2, limit_train_batches=2, callbacks=[callback], **quiet)
    model = BoringModel()
    model.training_step = lambda batch, batch_idx: model.log("loss", loss := model(batch).sum()) or loss
    trainer.fit(model)
    assert trainer.stopped_by.startswith(words) and bool(trainer.stopped_by) == bool(words)
