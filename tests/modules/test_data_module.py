"""What needs no data is checked before any is collected."""

import pytest
import yaml
from conftest import one_line

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.errors import UserError

COLLECT = {"env_id": "Pendulum-v1", "steps": 200, "max_episode_steps": 20, "observe": [0, 1]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model.rule gatd", "unknown rule 'gatd': did you mean 'gated'"),
        ("--model.hidden_dim 0", "model.hidden_dim is 0: it must be at least 1"),
        ("--model.open_loop_steps 5", "model.open_loop_steps 5 is more than the segment of 4 steps"),
        ("--data.crop 6", "data.crop is 6: it must be a multiple of the segment, data.steps 4"),
        ("--model.base none --model.feedback false", "model.feedback false is for models with a base"),
        ("--model.gradient rtrl --tbptt.start zero", "tbptt.start zero carries nothing"),
        ("--model.gradient eligibility", "model.gradient eligibility is for --model.rule diagonal"),
        ("--data.lanes 0", "data.lanes is 0: it must be at least 1"),
        ("--run_dir full", "full is not empty: choose another --run_dir"),
    ],
)
def test_a_mistake_is_reported_before_anything_is_collected_or_written(worldmodel, tmp_path, options, message):
    conf = {"wandb": "disabled", "data": {"path": "data", "collect": COLLECT, "steps": 4, "lanes": 2}}
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(conf))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    assert message in one_line(worldmodel("fit", "--config", "conf.yaml", *options.split()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf.yaml", "full"]


def test_reading_collects_nothing_and_prepare_data_does(tmp_path):
    data = EpisodeDataModule(tmp_path / "data", collect=COLLECT, steps=4, lanes=2)
    with pytest.raises(UserError, match="data yet: call EpisodeDataModule.prepare_data"):
        _ = data.obs_dim
    assert not list(tmp_path.iterdir())
    data.prepare_data()
    assert (data.obs_dim, data.action_dim, data.env_id) == (2, 1, "Pendulum-v1")
    data.prepare_data()  # which finds the dataset there
    with pytest.raises(UserError, match="seed is 0, asked is 5"):
        EpisodeDataModule(tmp_path / "data", collect=COLLECT | {"seed": 5}).prepare_data()


def test_a_model_knows_all_its_arguments():
    """Those of Model too, which WorldModel passes on: a checkpoint names them."""
    model = WorldModel(2, 1, rule="gru")
    assert {name: model.hparams[name] for name in ("obs_dim", "rule", "latent_dim", "objective", "images")} == {
        "obs_dim": 2, "rule": "gru", "latent_dim": 32, "objective": "reconstruction", "images": None,
    }  # fmt: skip
    assert model.hparams == model.hparams_initial and "cuda_graph" not in model.hparams
    with pytest.raises(TypeError, match="'rul'"):
        WorldModel(2, 1, rul="gru")
