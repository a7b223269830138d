"""Configurations by name, in a folder without any; runs named alone, listed, and evaluated by their folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, one_line

from worldmodel.cli import main
from worldmodel.commands.runs import find_runs
from worldmodel.envs.policies import make_policy
from worldmodel.presets import located, presets

SMALL = {"latent_dim": 4, "hidden_dim": 6, "width": 8}


def test_every_configuration_of_the_checkout_is_a_preset():
    files = (ROOT / "conf").rglob("*.yaml")
    assert {path.relative_to(ROOT / "conf").with_suffix("").as_posix() for path in files} == set(presets())


def test_a_file_comes_before_a_preset_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quickstart = str(presets()["quickstart"])
    for word in ("quickstart", "quickstart.yaml", "conf/quickstart.yaml"):
        assert located(["fit", "--config", word, "--x"]) == ["fit", "--config", quickstart, "--x"]
        assert located(["fit", f"--config={word}"]) == ["fit", f"--config={quickstart}"]
    Path("quickstart").touch()
    assert located(["fit", "-c", "quickstart"]) == ["fit", "-c", "quickstart"]
    assert located(["fit", "-c", "x" * 5000]) == ["fit", "-c", "x" * 5000]


def test_a_policy_that_a_preset_names_is_found_in_any_folder(tmp_path, monkeypatch):
    import gymnasium as gym

    monkeypatch.chdir(tmp_path)
    assert make_policy("conf/results/balance.py:act", gym.spaces.Discrete(2), 1, 0) is not None


def test_configurations_are_listed_shown_and_copied(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["configs"])
    assert "quickstart            Pendulum-v1 without its velocity" in capsys.readouterr().out
    main(["configs", "quickstart"])
    assert capsys.readouterr().out == (ROOT / "conf" / "quickstart.yaml").read_text()
    main(["configs", "quickstart", "--out", "mine.yaml"])
    assert Path("mine.yaml").read_bytes() == (ROOT / "conf" / "quickstart.yaml").read_bytes()
    for arguments, message in (
        (["quickstart", "--out", "mine.yaml"], "mine.yaml is there already"),
        (["--out", "x.yaml"], "name it, worldmodel configs quickstart --out my.yaml"),
        (["quickstrat"], "did you mean 'quickstart'?"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["configs", *arguments])
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_mistyped_preset_gets_the_nearest(worldmodel):
    line = one_line(worldmodel("fit", "quickstrat"))
    assert "no file and no preset quickstrat: did you mean 'quickstart'?" in line


@pytest.fixture
def trained(worldmodel, toy_data, tmp_path):
    """A run that was trained on a copy of the data, `runs/toy/RUN`."""
    shutil.copytree(toy_data, tmp_path / "data")
    conf = {
        "wandb": "disabled", "data": {"path": "data", "steps": 8, "lanes": 3}, "model": SMALL,
        "rollout": {"multiples": [1], "examples": 1}, "trainer": {"accelerator": "cpu", "max_steps": 4},
    }  # fmt: skip
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(conf))
    process = worldmodel("fit", "toy.yaml")
    assert process.returncode == 0, process.stderr[-2000:]
    return Path(process.stdout.strip().splitlines()[-1].removeprefix("run: "))


def test_a_run_s_folder_is_enough(worldmodel, trained, tmp_path):
    """`test RUN` is `test --config RUN/config.yaml --ckpt_path RUN`; further options come after the run's."""
    long = worldmodel("test", "--config", trained / "config.yaml", "--ckpt_path", trained)
    results = {name: (tmp_path / f"runs/toy/{name}").read_bytes() for name in _results(tmp_path)}
    shutil.rmtree(tmp_path / "runs/toy" / next(iter(results)).split("/")[0])
    for words in ([trained], ["--ckpt", trained], ["@last"]):
        short = worldmodel("test", *words)
        assert short.returncode == 0, short.stderr[-2000:]
        assert short.stdout == long.stdout
        assert results == {name: (tmp_path / f"runs/toy/{name}").read_bytes() for name in _results(tmp_path)}
        shutil.rmtree(tmp_path / "runs/toy" / next(iter(results)).split("/")[0])
    shutil.rmtree(tmp_path / "data")
    assert "no dataset at data" in one_line(worldmodel("validate", trained))
    assert "test needs a trained model: give --ckpt RUN" in one_line(worldmodel("test"))
    assert "unknown option --rollout.multiple: did you mean '--rollout.multiples'?" in one_line(
        worldmodel("test", trained, "--rollout.multiple", "3")
    )
    (tmp_path / trained / "config.yaml").unlink()
    assert "has no config.yaml of its run beside it: say which model and data" in one_line(worldmodel("test", trained))


def _results(tmp_path: Path) -> list[str]:
    """Files of the test, as RUN/FILE; metrics.csv and rollout.csv hold what it found."""
    folder = tmp_path / "runs" / "toy"
    return [str(path.relative_to(folder)) for path in folder.glob("test-*/*.csv")]


def test_runs_are_listed_with_the_newest_last(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["a/old", "b/new", "b/broken", "b/other"]):
        folder = tmp_path / "runs" / name
        (folder / "wandb" / "run-1" / "files" / "checkpoints").mkdir(parents=True)
        (folder / "wandb" / "run-1" / "files" / "config.yaml").write_text("no: run")
        (folder / "config.yaml").write_text("[" if name == "b/broken" else f"model: {{rule: rule{number}}}")
        (folder / "metrics.csv").write_text(f"step,val/loss\n5,{9 - number}\n{1000 + number},\n")
        for file in folder.glob("*.*"):
            os.utime(file, (1e9 + number, 1e9 + number))
    assert [run.folder.name for run in find_runs(Path("runs"))] == ["old", "new", "other"]

    def rows(*arguments):
        main(["runs", *arguments])
        lines = [line.split("│")[1:5] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
        return [[cell.strip() for cell in line] for line in lines]

    every = rows()
    assert every == [
        ["a/old", "rule0", "1,000", "9"], ["b/new", "rule1", "1,001", "8"], ["b/other", "rule3", "1,003", "6"],
    ]  # fmt: skip
    assert rows("--sort", "val/loss") == every[::-1] and rows("--last", "1") == every[-1:]
    assert rows("runs", "--filter", "b/", "--filter", "rule1") == every[1:2]
    main(["runs", "runs/b/new"])
    assert "val/loss  8" in capsys.readouterr().out
    for arguments, message in (
        (["--sort", "val/los"], "no run has logged val/los: did you mean 'val/loss'?"),
        (["nowhere"], "no folder nowhere"),
        (["--last", "0"], "--last is 0: it must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            main(["runs", *arguments])
        assert message in capsys.readouterr().err


def test_a_wheel_holds_every_preset_and_trains_from_one(tmp_path, often):
    source = tmp_path / "source"
    kept = ("worldmodel", "conf", "pyproject.toml", "README.md", "LICENSE")
    leave = shutil.ignore_patterns("__pycache__")
    for name in kept:
        one = ROOT / name
        shutil.copytree(one, source / name, True, leave) if one.is_dir() else shutil.copyfile(one, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "out", "."]
    subprocess.run(command, cwd=source, check=True)
    (wheel,) = (source / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name.removeprefix("worldmodel/conf/") for name in archive.namelist() if "/conf/" in name}
        archive.extractall(tmp_path / "installed")
    files = (path for path in (ROOT / "conf").rglob("*.*") if path.suffix in (".yaml", ".py"))
    assert held == {path.relative_to(ROOT / "conf").as_posix() for path in files}
    short = {"collect": {"env_id": "Pendulum-v1", "steps": 3200, "max_episode_steps": 80, "observe": [0, 1]}}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump({"data": short, "trainer": {"max_steps": 20}}))
    commands = [["fit", "--config", "quickstart", "--config", "short.yaml"], ["test", "@last"], ["configs"]]
    for words in often(commands, commands[2:]):
        process = subprocess.run(
            [sys.executable, "-m", "worldmodel", *words], cwd=tmp_path, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        )  # fmt: skip
        assert process.returncode == 0, process.stderr[-2000:]
    assert "quickstart" in process.stdout
