"""Paths and names that are markup, too long, not UTF-8, pipes, devices or folders: work done, or one line of error."""

import os
import shutil

import pytest
import warm
import yaml
from conftest import one_line

LONG, BYTES, DEEP = "n" * 300, "bad\udcff", "[" * 3000 + "]" * 3000
REFUSED = {  # a command of these files: what the line says
    "fit --config pipe": "pipe is a pipe or a device",
    "fit --config=/dev/zero": "/dev/zero is a pipe or a device",
    "fit --config toy.yaml --model pipe": "pipe is a pipe or a device",
    "fit --config deep.yaml": "deep.yaml is not valid YAML: it is nested too deeply",
    "fit --config toy.yaml --trainer.precision 16-true": "trainer.precision 16-true ends at 65,504",
    "fit --config toy.yaml --trainer.devices 100000": "trainer.devices 100000 would start as many processes here",
    "fit --config null.yaml": "data.steps is null: it needs a value, such as 32",
    "fit --config nul.yaml": "a path in an option or a file holds a null byte",
    f"fit --config toy.yaml --data.collect {DEEP}": "an option, or a file of options, is nested too deeply",
    f"fit --config toy.yaml --run_dir {LONG}": "File name too long",
    f"fit --config toy.yaml --experiment {BYTES}": r"'bad\udcff' is not UTF-8",
    f"export --ckpt {LONG} --out out": "File name too long",
    "rollout --ckpt pipe": "no checkpoint at pipe",
    "data info table.csv --schema .": ". is a folder, not a YAML file",
    "data info table.csv --schema /dev/zero": "/dev/zero is a pipe or a device",
    "data info table.csv --schema tag.yaml": "tag.yaml is not valid YAML: 'maybe'",
    "collect CartPole-v1 --out out --policy pipe.py:act": "pipe.py is a pipe or a device",
    "pbt --config pipe --out out": "pipe is a pipe or a device",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("paths")
    shutil.copy(config, folder / "toy.yaml")
    for name in ("pipe", "pipe.py"):
        os.mkfifo(folder / name)
    (folder / "deep.yaml").write_text(f"a: {DEEP}")
    (folder / "null.yaml").write_text("data: {path: nowhere, steps: }\n")
    toy = yaml.safe_load(config.read_text())
    (folder / "nul.yaml").write_text(yaml.safe_dump(toy | {"run_dir": "a\0b"}))
    (folder / "tag.yaml").write_text("a: !!bool maybe\n")
    (folder / "table.csv").write_text("x,u\n" + "1,2\n" * 9)
    return folder


USUAL = [
    command for command in REFUSED if command.startswith(("data", "export", "fit --config pipe"))
]  # they are quick
FULL = [pytest.param(command, marks=pytest.mark.full) for command in REFUSED if command not in USUAL]


@pytest.mark.parametrize("command", [*USUAL, *FULL])
def test_what_cannot_be_used_is_named(here, command):
    assert REFUSED[command] in one_line(warm.run(command.split(" "), here, timeout=60))


def test_markup_is_shown_as_it_is(here, toy_data, tmp_path):
    """Neither taken for a style, nor for an emoji, nor refused."""
    shutil.copytree(toy_data, tmp_path / "[red]" / "b:smile:[")
    shutil.move(tmp_path / "[red]", tmp_path / "x[")  # x[/b:smile:[
    checked = warm.run(["data", "check", "x[/b:smile:["], tmp_path)
    assert "\nx[/b:smile:[: " in checked.stdout and not checked.stderr
    words = ["fit", "--config", here / "toy.yaml", "--data.path", "x[/b:smile:[", "--run_dir", "run[/b]"]
    fit = warm.run([*words, "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"], tmp_path)
    assert fit.returncode == 0, fit.stderr
    assert fit.stdout.endswith("run: run[/b]\n")
    assert yaml.safe_load((tmp_path / "run[" / "b]" / "config.yaml").read_text())["data"]["path"] == "x[/b:smile:["
