"""The tokens objective: what it charges for, and that it learns what can be learned."""

import lightning.pytorch as pl
import pytest
import torch

from worldmodel import WorldModel
from worldmodel.callbacks.evaluation import RecallEvaluation
from worldmodel.callbacks.tbptt import TruncatedBPTT
from worldmodel.envs.collect import CollectOptions, collect
from worldmodel.errors import UserError
from worldmodel.modules.data_module import EpisodeDataModule
from worldmodel.tasks.sequences import Counting


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Episodes a^n b^n, n up to 4."""
    folder = tmp_path_factory.mktemp("words") / "data"
    collect(CollectOptions(env_id="worldmodel/Counting-v0", steps=20_000, env_kwargs={"max_n": 4}), folder)
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Haystacks, of which one step in many is asked for."""
    folder = tmp_path_factory.mktemp("questions") / "data"
    options = {"min_length": 6, "max_length": 8}
    collect(CollectOptions(env_id="worldmodel/Haystack-v0", steps=4000, env_kwargs=options), folder)
    return folder


def model_for(data, **options):
    torch.manual_seed(0)
    return WorldModel(
        data.obs_dim, data.action_dim, objective="tokens", latent_dim=8, hidden_dim=16, head_depth=0, **options
    )


def test_only_what_is_asked_for_is_charged(questions):
    data = EpisodeDataModule(questions, steps=16, lanes=8)
    model = model_for(data)
    model.reward_norm.fit(*data.statistics["reward"])
    batch = next(iter(data.train_dataloader()))
    terms, h, _ = model.losses(batch)
    probabilities, _, _ = model.closed_loop(batch["obs"][:, :-1], batch["action"], batch["is_first"])
    asked = (batch["reward"] > 0) & batch["valid"]
    truth = batch["obs"][:, 1:].argmax(-1)
    surprise = -probabilities.gather(-1, truth[..., None])[..., 0].log()[asked]
    right = (probabilities.argmax(-1) == truth)[asked]
    scale = asked.sum() / (batch["valid"].sum() * data.statistics["reward"][0])
    torch.testing.assert_close(terms["prediction"], surprise.mean() * scale[0])
    torch.testing.assert_close(terms["accuracy"], right.float().mean() * scale[0])
    assert 0.7 < scale < 1.4, "about the mean over the asked steps"
    terms, _, _ = model.eval().losses(batch)  # what is reported is the mean over them
    torch.testing.assert_close(terms["prediction"], surprise.mean())
    torch.testing.assert_close(terms["accuracy"], right.float().mean())
    assert set(terms) == {"prediction", "accuracy"}


def test_among_triads_counters_some_count_as_the_task_asks_before_training(words):
    """What makes exact counting the easiest way to learn; 1 of 300 initialisations has none."""
    data = EpisodeDataModule(words, steps=8, lanes=8)
    found = 0
    for seed in range(10):
        torch.manual_seed(seed)
        model = WorldModel(data.obs_dim, data.action_dim, objective="tokens", latent_dim=16, rule="triad")
        model.obs_norm.fit(*data.statistics["obs"])
        cell = model.predictor.cell
        x = cell.project(model.encode(torch.eye(data.obs_dim)), torch.zeros(data.obs_dim, data.action_dim))
        for_a, for_b = x.split(cell.widths, dim=-1)[1][1:3]
        found += bool((for_a * for_b == -1).any())
    assert found >= 9


def test_triads_exact_channels_answer_for_themselves(words):
    data = EpisodeDataModule(words, steps=16, lanes=8)
    model = model_for(data, rule="triad")
    model.reward_norm.fit(*data.statistics["reward"])
    terms, h, _ = model.losses(next(iter(data.train_dataloader())))
    assert set(terms) == {"prediction", "accuracy", "exact", "added"} == {*model.weights, "accuracy"}
    terms["exact"].backward(retain_graph=True)
    counters = slice(model.predictor.cell.widths[0], model.predictor.cell.widths[0] + 16)
    assert (model.predictor.cell.input.weight.grad[counters] != 0).any(), "counters learn from it"
    assert all(p.grad is None for p in model.predictor.head.rest.parameters()), "and nothing is added to it"
    alone = model.predictor.exact_prediction(h)
    h = torch.cat([torch.randn_like(h[..., :16]), h[..., 16:]], dim=-1)
    assert torch.equal(model.predictor.exact_prediction(h), alone), "whatever the gated channels hold"


def test_learning_reaches_the_least_cross_entropy(words, tmp_path):
    """Of a^n b^n with n up to 4; no model can be below it but by chance."""
    pl.seed_everything(0)
    data = EpisodeDataModule(words, steps=16, lanes=32, test_fraction=0.0)
    model = model_for(data, learning_rate=0.01)
    trainer = pl.Trainer(
        max_steps=400,
        max_epochs=-1,
        accelerator="cpu",
        callbacks=[TruncatedBPTT(), RecallEvaluation(multiples=(1,), sequences=1, limit=1)],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )
    trainer.fit(model, datamodule=data)
    [scores] = trainer.validate(model, datamodule=data, verbose=False)
    assert scores["val/loss"] == pytest.approx(Counting(max_n=4).optimum(), rel=0.06)
    assert data.task == Counting(max_n=4)


@pytest.mark.parametrize("options", [{"open_loop_steps": 4}, {"images": [(8, 8, 1)]}])
def test_what_tokens_do_not_know_is_refused(options):
    with pytest.raises(UserError, match=f"tokens does not know .*{next(iter(options))}"):
        WorldModel(8 * 8 + 1, 1, objective="tokens", **options)


def test_values_are_no_tokens(pendulum_data, tmp_path):
    data = EpisodeDataModule(pendulum_data, steps=8, lanes=4)
    trainer = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_checkpointing=False)
    with pytest.raises(UserError, match="one Discrete space, not Box: choose reconstruction or latent"):
        trainer.fit(model_for(data), datamodule=data)
