"""`fit --init_from`: a new run begins as the function that a checkpoint is, and takes nothing else from it."""

import json
import shutil

import pytest
import torch
import warm
import yaml
from conftest import TOY

from worldmodel.cli import main
from worldmodel.durable import sha256
from worldmodel.envs.collect import collect


@pytest.fixture(scope="module")
def source(toy_data, tmp_path_factory):
    """A folder with a configuration and a run `old` of 6 steps."""
    folder = tmp_path_factory.mktemp("start")
    conf = {
        "wandb": "disabled",
        "data": {"path": str(toy_data), "steps": 8, "lanes": 3},
        "model": {"latent_dim": 6, "hidden_dim": 10, "width": 12},
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
        "rollout": {"multiples": [1], "max_episodes": 1},
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(conf))
    with pytest.MonkeyPatch.context() as patch:
        fit(folder, patch, "old", "--trainer.max_steps", "6")
    return folder


def fit(folder, patch, name, *options):
    """Fit in this process; returns the last checkpoint."""
    patch.chdir(folder)
    for variable in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "WORLDMODEL_RUN_DIR", "WORLDMODEL_RESUME_FROM"):
        patch.delenv(variable, raising=False)
    main(["fit", "--config", "toy.yaml", "--run_dir", name, *options])
    return torch.load(folder / name / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_fit_starts_as_the_model_that_was_and_anew_in_all_else(source, monkeypatch, tmp_path):
    """On other data, whose statistics and line it does not take; a learning rate of nothing shows the first weights."""
    collect({**TOY, "seed": 5, "steps": 300}, tmp_path / "other")
    still = [
        "--model.learning_rate",
        "1e-30",
        "--trainer.max_steps",
        "1",
        "--data.steps",
        "4",
        "--seed_everything",
        "1",
    ]
    other = ["--data.path", str(tmp_path / "other"), "--model.gate_bias", "-2"]
    old = torch.load(source / "old" / "checkpoints" / "last.ckpt", weights_only=True)
    new = fit(source, monkeypatch, "still", "--init_from", "old", *still, *other)
    assert new["global_step"] == 1 and new["EpisodeDataModule"]["position"] == 1
    assert new["hyper_parameters"]["base_lags"] == old["hyper_parameters"]["base_lags"]
    for name, tensor in old["state_dict"].items():
        if name != "base.shrinkage":  # measured again in every validation
            torch.testing.assert_close(new["state_dict"][name], tensor, rtol=0, atol=0, msg=name)
    path = source / "old" / "checkpoints" / "last.ckpt"
    recorded = json.loads((source / "still" / "init_from.json").read_text())
    assert recorded == {"checkpoint": "old/checkpoints/last.ckpt", "sha256": sha256(path), "step": 6}
    assert yaml.safe_load((source / "still" / "config.yaml").read_text())["init_from"] == "old"


def test_the_same_command_in_a_loop_goes_on_with_the_run_s_own_weights(source):
    begin = ["fit", "--config", "toy.yaml", "--run_dir", "loop", "--init_from", "first", "--resume"]
    shutil.copytree(source / "old", source / "first")
    first = warm.run([*begin, "--trainer.max_steps", "1"], source)
    assert first.returncode == 0 and "weights and statistics: from first/checkpoints/last.ckpt, step 6" in first.stdout
    recorded = (source / "loop" / "init_from.json").read_bytes()
    shutil.rmtree(source / "first")  # it counts no more
    again = warm.run([*begin, "--trainer.max_steps", "2"], source)
    assert again.returncode == 0 and "resume: from loop/checkpoints/last.ckpt" in again.stdout, again.stderr
    assert torch.load(source / "loop" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert (source / "loop" / "init_from.json").read_bytes() == recorded


REFUSED = {
    "--init_from old --model.hidden_dim 11 --model.rule gru": "model.hidden_dim is 11, in the checkpoint 10",
    "--init_from old --model.base_lags 9": "model.base_lags is 9, in the checkpoint",
    "--init_from old --ckpt_path old": "goes on from no checkpoint: leave out one of the two",
    "--init_from olt": "no checkpoint at olt",
    "--init_from policy.ckpt": "policy.ckpt was not saved by `worldmodel fit`",
    "--init_from renamed.ckpt": "trained on other observations: those of the data are observation: Box",
    "--init_from acts.ckpt": "trained on other actions",
    "--init_from odd.ckpt": "is not a checkpoint of this program",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_does_not_fit_is_refused_by_name(source, monkeypatch, capsys, options):
    saved = torch.load(source / "old" / "checkpoints" / "last.ckpt", weights_only=True)
    data = saved["EpisodeDataModule"]["data"]
    space, action = data["observation_space"]["observation"], data["action_space"]
    renamed = {"EpisodeDataModule": {"data": {**data, "observation_space": {"speed": space}}}}
    acts = {"EpisodeDataModule": {"data": {**data, "action_space": {"type": "Discrete", "n": action.get("n", 1) + 1}}}}
    changes = {"policy": {"hyper_parameters": {"rule": "gru"}}, "renamed": renamed, "acts": acts}
    changes["odd"] = {"EpisodeDataModule": {"data": {"observation_space": 3}}}
    for name in changes.keys() & {options.split()[1].removesuffix(".ckpt")}:
        torch.save(saved | changes[name], source / f"{name}.ckpt")
    with pytest.raises(SystemExit) as ended:
        fit(source, monkeypatch, "refused", *options.split())
    said = capsys.readouterr().err
    assert ended.value.code == 2 and REFUSED[options] in said and len(said.splitlines()) == 1
    assert not (source / "refused").exists()
