"""A user's own rule, encoder, decoder, environment, policy, reader and callback: docs/own.md, and what is wrong."""

import json
import logging
import re
import shlex
import sys

import numpy as np
import pytest
import torch
import warm
from conftest import ROOT

from worldmodel import EpisodeDataModule, LatentPredictor, WorldModel, load_exported
from worldmodel.cli import main
from worldmodel.errors import UserError
from worldmodel.parts import PartError, digests
from worldmodel.runs.checkpoint import read_checkpoint

PAGE = (ROOT / "docs" / "own.md").read_text()
FILES = dict(re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
SHELL = "".join(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)).splitlines()
TINY = ["--data.steps=8", "--data.lanes=2", "--trainer.max_steps=2", "--rollout.multiples=[1]", "--wandb=disabled"]
TINY += ["--trainer.accelerator=cpu", "--rollout.max_episodes=1"]
SMALL = ["--model.hidden_dim=8", "--model.latent_dim=4", "--model.width=8", "--model.open_loop_steps=0"]
BRIEF = {  # what makes a command of the page quick
    "fit": TINY + SMALL,
    "compare": [*TINY, *SMALL, "--seeds=0", "--match=hidden", "--jobs=1"],
    "rollout": ["--horizon=4", "--episodes=0"],
    "plan": ["--horizon=2", "--candidates=4", "--elites=2", "--iterations=1"],
    "diagnose": ["--batches=1"],
}
SELDOM = ("compare", "runs/walk", "test --ckpt", "diagnose")  # with --full; compare has a test of its own


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with the files of the page."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def write_lines(folder):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        rows = [{"obs": rng.normal(size=2).tolist(), "action": rng.normal(size=1).tolist()} for _ in range(40)]
        (folder / f"{number}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def brief(words, data):
    quick = [*words, *BRIEF.get(words[0], [])]
    return [*quick, "--data.path", str(data), "--data.collect=null"] if "quickstart" in words else quick


def test_every_line_of_the_page_runs(here, pendulum_data, often, capsys):
    write_lines(here / "lines")
    for line in SHELL:
        words = shlex.split(line, comments=True)[1:]
        if not any(word in line for word in often((), SELDOM)):
            try:
                main(brief(words, pendulum_data))
            except SystemExit as end:  # of `data check`
                assert not end.code, line
    digest = digests(["leaky.py:leaky"])
    assert json.loads((here / "runs/leaky/parts.json").read_text()) == digest
    assert read_checkpoint(here / "runs/leaky/checkpoints/last.ckpt")["parts"] == digest
    assert json.loads((here / "exported/model.json").read_text())["parts"] == digest
    assert list(json.loads((here / "data/walk/manifest.json").read_text())["parts"]) == [
        "walk.py:Walk-v0",
        "walk.py:home",
    ]
    assert "class_path: beat.py:Heartbeat" in (here / "runs/beat/config.yaml").read_text()
    assert (here / "alive").exists()
    kept = read_checkpoint(here / "runs/nets/checkpoints/last.ckpt")["state_dict"]
    assert kept["encoder.0.weight"].shape == (8, 6) and kept["decoder.weight"].shape == (2, 4)
    with pytest.raises(PartError, match="names leaky.py:leaky, whose Python code would run"):
        load_exported(here / "exported")
    assert load_exported(here / "exported", trust=True).predictor.state_dim == 8


@pytest.mark.full
def test_a_comparison_trains_them_and_goes_on_while_they_are_the_same(here, pendulum_data, capsys):
    words = ["compare", "--config", "quickstart", "--rules", "leaky.py:leaky", "--out", "own"]
    main(brief(words, pendulum_data))
    assert "leaky.py:leaky, carry" in (here / "own" / "results.csv").read_text()
    (here / "leaky.py").write_text(FILES["leaky.py"].replace("rate=0.5", "rate=0.4"))
    with pytest.raises(SystemExit):
        main(brief(words, pendulum_data))
    assert re.search(
        r"differs: the code of leaky.py:leaky is \w{12}, was \w{12}. Choose another --out", capsys.readouterr().err
    )


@pytest.mark.full
def test_other_ranks_have_them_too(here, pendulum_data):
    words = ["fit", "--config", "quickstart", "--model.rule", "integrator.py:Integrator", "--run_dir", "two"]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    process = warm.run(brief(words, pendulum_data), here, 400)
    assert process.returncode == 0, process.stderr


def test_a_changed_file_is_named(here, pendulum_data, caplog):
    data = EpisodeDataModule(pendulum_data)
    model = WorldModel(data.obs_dim, data.action_dim, rule="leaky.py:leaky", latent_dim=4, hidden_dim=8, width=8)
    state = {"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}
    torch.save(state | {"parts": digests(["leaky.py:leaky"])}, "model.ckpt")
    main(["export", "model.ckpt", "--out", "same", "--trust"])
    assert not caplog.records
    (here / "leaky.py").write_text(FILES["leaky.py"] + "\n")
    with caplog.at_level(logging.WARNING):
        main(["export", "model.ckpt", "--out", "changed", "--trust"])
    assert "leaky.py:leaky has changed since model.ckpt was written" in caplog.text


def test_members_of_a_function_stand_side_by_side(here):
    rows = torch.randn(6, 4), torch.zeros(6, 8), torch.randn(6, 1)
    LatentPredictor(4, 1, 8, "leaky.py:leaky", members=2)(*rows)
    with pytest.raises(PartError, match="integrator.py:Integrator cannot stand side by side as 2 members"):
        LatentPredictor(4, 1, 8, "integrator.py:Integrator", members=2)


def test_a_module_of_the_current_folder_is_found_and_one_that_is_installed_comes_first(here, monkeypatch):
    monkeypatch.syspath_prepend("nowhere")  # what is appended is taken back
    monkeypatch.delitem(sys.modules, "tabnanny", raising=False)
    (here / "tabnanny.py").write_text("def check(h, u): return h + u\n")
    (here / "mine_alone.py").write_text(FILES["leaky.py"])
    assert LatentPredictor(4, 1, 8, "mine_alone:leaky").state_dim == 8
    with pytest.raises(PartError, match="tabnanny:check is no rule: it takes"):
        LatentPredictor(4, 1, 8, "tabnanny:check")


WRONG = """
import numpy as np, torch, gymnasium
from torch import nn
from worldmodel.cells import Cell
THREE = 3
def alone(h): return h
def many(h, *proposals): return h
def narrow(h, u): return u[..., :1]
def burst(h, u): return h + u / h
def breaks(h, u): raise KeyError("u")
class Module(nn.Module): pass
class NoState(Cell): pass
class Asks(Cell):
    def __init__(self, input_dim, hidden_dim, flavour): super().__init__()
class Wide(nn.Linear):
    def __init__(self, input_dim, output_dim): super().__init__(input_dim, output_dim + 1)
class Flat(nn.Module):
    def __init__(self, input_dim, output_dim):
        super().__init__()
        self.layer = nn.Linear(input_dim, output_dim)
    def forward(self, x): return self.layer(x).flatten()
def reads(path): yield {"obs": 1}
def stops(path): yield from ()
def fails(path): raise OSError("no such file")
"""
RULES = {
    "wrong.py:THREE": "it is int. A rule is a function",
    "wrong.py:alone": "it takes (h). A rule",
    "wrong.py:many": "it takes (h, *proposals). A rule",
    "wrong.py:narrow": "h_next of 3 lanes is (3, 1), not (3, 128). A rule",
    "wrong.py:burst": "h_next is not finite after a first step, from zeros. A rule",
    "wrong.py:breaks": "a step raises KeyError: 'u' (wrong.py:10). A rule",
    "wrong.py:Module": "it is a class, and not of Cell. A rule",
    "wrong.py:NoState": "is no rule: TypeError: ",
    "wrong.py:Asks": "missing 1 required positional argument: 'flavour'",
    "wrong.py:narow": "wrong.py has no rule 'narow': did you mean 'narrow'. A rule is",
    "wrong.py": "name the rule in wrong.py too: wrong.py:NAME",
    "nowhere.py:rule": "the rule 'nowhere.py:rule' cannot be loaded: there is no file nowhere.py",
    "no_module:rule": "cannot be loaded: No module named 'no_module'",
    "broken.py:rule": "cannot be loaded: SyntaxError: ",
}
OTHERS = {
    "--model.encoder=wrong.py:Wide": "gives (3, 129) for (3, 3); it must give (3, 128)",
    "--model.encoder=wrong.py:Flat": "gives (384,) for (3, 3); it must give (3, 128)",
    "--model.decoder=wrong.py:THREE": "wrong.py:THREE is no decoder: it is int. A decoder is called with",
    "--model.decoder=wrong.py:alone": "wrong.py:alone is no decoder: TypeError",
    "--trainer.callbacks=wrong.py:alone": "is no callback: it is function. A callback is a class",
    "--trainer.callbacks+=wrong.py:Module": "A callback is a class of lightning.pytorch.Callback",
    "--trainer.callbacks=wrong.py:Modul": "has no callback 'Modul': did you mean 'Module'",
    "--data.format=wrong.py:reads": "it yields dict. A reader is a function from a path",
    "--data.format=wrong.py:stops": "wrong.py:stops gives no episode",
    "--data.format=wrong.py:fails": "OSError: no such file",
    "--data.format=wrong.py:red": "has no reader 'red': did you mean 'reads'",
}
COLLECTED = {
    ("wrong.py:Wlk-v0",): "wrong.py:Wlk-v0: there is no such environment; ",
    ("Pendulum-v1", "--policy=wrong.py:THREE"): "wrong.py:THREE is no policy: it is int. A policy is a function",
    ("wrong.py:Module",): "cannot be made with its defaults",
}


@pytest.fixture
def wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "broken.py").write_text("def rule(h, u) return u\n")
    return tmp_path


def line_of(capsys, *words):
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as end:
        main([*words])
    lines = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_is_none_is_one_line(wrong, rule):
    with pytest.raises(UserError, match=re.escape(RULES[rule])):
        WorldModel.check({"rule": rule})


@pytest.mark.parametrize("option", OTHERS)
def test_another_part_that_is_none_is_one_line(wrong, capsys, option):
    (wrong / "data").mkdir()
    model = "--model.latent_dim=128" if "encoder" in option else "--model.width=8"
    said = line_of(capsys, "fit", "--data.path", "data", "--wandb=disabled", model, option)
    assert OTHERS[option] in said


@pytest.mark.parametrize("words", COLLECTED)
def test_an_environment_or_a_policy_that_is_none_is_one_line(wrong, capsys, words):
    assert COLLECTED[words] in line_of(capsys, "collect", *words, "--out", "x", "--steps", "9")


def test_an_encoder_that_a_subclass_put_in_is_checked(here, toy_data):
    class Mine(WorldModel):
        def __init__(self, **options):
            super().__init__(**options)
            self.encoder = torch.nn.Linear(2, self.latent_dim)

    from lightning.pytorch import Trainer

    data = EpisodeDataModule(toy_data, steps=8, lanes=2)
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="the encoder, Linear, whose input is 3 obs_dim wide with a base, else obs_dim"):
        trainer.fit(Mine(obs_dim=data.obs_dim, action_dim=data.action_dim), data)
