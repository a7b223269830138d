"""Help and mistakes that are answered before torch is imported; the kept help is what the commands give."""

import json
import os
import subprocess
import sys
from pathlib import Path

import help_pages
import pytest

from worldmodel import early
from worldmodel.early import PAGES, check, help_page
from worldmodel.errors import UserError
from worldmodel.presets import presets

OF_PRESETS = {"policy": ["policy", "fit"], "imagine": ["imagine", "fit"], "pbt": ["pbt"]}
MISTAKES = {
    "fit --model.lr 3": "unknown option --model.lr: it is called --model.learning_rate",
    "fit quickstar": "no file and no preset quickstar: did you mean 'quickstart'?",
    "fit bad.yaml": "bad.yaml: unknown key 'model.rul': did you mean 'model.rule'?",
    "compare --config quickstart --rule gru": "unknown option --rule: did you mean '--rules'?",
    "plan --ckpt nowhere": "no checkpoint at nowhere: there is none to choose from",
    "rollout": "rollout needs a trained model: give --ckpt RUN, a run's folder or a checkpoint",
    "data check here --formt csv": "unknown option --formt: did you mean '--format'?",
}


@pytest.fixture(autouse=True)
def current(monkeypatch):
    """Whatever is being changed."""
    early._pages.cache_clear()
    monkeypatch.setattr(early, "_is_current", lambda: True)


@pytest.mark.slow
def test_the_help_that_is_kept_is_the_commands_own():
    kept, now = json.loads(PAGES.read_text(encoding="utf-8")), json.loads(json.dumps(help_pages.pages()))
    for command, page in now.items():
        assert kept.get(command) == page, f"{command}: run `make help`"
    assert kept.keys() == now.keys()


def test_it_fits_the_terminal(monkeypatch):
    for columns, widest in ((60, 80), (100, 80), (200, 120)):
        monkeypatch.setenv("COLUMNS", str(columns))
        page = help_page(["fit", "--help"])
        assert page is not None and widest - 20 < max(map(len, page.splitlines())) <= widest
    assert help_page(["fit"]) is help_page(["fit", "x", "--help"]) is help_page(["--help"]) is None


def test_mistakes_and_help_import_nothing(tmp_path):
    """In a process of its own, as a user's, for each line."""
    (tmp_path / "bad.yaml").write_text("model: {rul: gru, layers: 1}\n")
    program = (
        "import sys\nfrom worldmodel import early\nfrom worldmodel.cli import main\n"
        "early._is_current = lambda: True\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert not {'torch', 'lightning', 'numpy', 'matplotlib'} & sys.modules.keys()"
    )
    for words, message in MISTAKES.items():
        command = [sys.executable, "-c", program, *words.split()]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (2, f"worldmodel: error: {message}\n"), words
    command = [sys.executable, "-c", program, "help", "rollout"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0 and "--horizon" in ended.stdout and not ended.stderr


def test_what_is_right_passes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in presets():
        check([*OF_PRESETS.get(name.split("/")[0], ["fit"]), "--config", name])
    own = "model: {}\ndata: {collect: {env_kwargs: {a: {b: 1}}}}\ntrainer: {callbacks: [{a: b}]}\n"
    Path("own.yaml").write_text(own)
    check(
        [
            "fit",
            "--config=own.yaml",
            "--trainer.callbacks+=x.Y",
            "--trainer.logger.init_args.a",
            "1",
            "--data.collect.b=2",
        ]
    )
    check(["compare", "--out", "x", "--model.rule", "gru"])
    check(["pbt", "--whatever", "3"])
    with pytest.raises(UserError, match="unknown option --trainer.logge:"):
        check(["fit", "--trainer.logge", "1"])


def test_once_the_program_has_changed_the_commands_answer(tmp_path, monkeypatch):
    monkeypatch.undo()
    pages = tmp_path / "help.json"
    pages.write_text('{"fit": {"help": {"80": ["usage"], "120": ["usage"]}, "options": ["--a"]}}')
    monkeypatch.setattr(early, "PAGES", pages)
    (tmp_path / "rules.py").touch()
    assert help_page(["fit", "--help"]) == "usage"
    early._pages.cache_clear()
    os.utime(pages, (0, 0))
    assert help_page(["fit", "--help"]) is None
    check(["fit", "--b"])
    early._pages.cache_clear()
