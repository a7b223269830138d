"""`worldmodel compare` as users meet it: real fits, interrupted ones that go on, mistakes that are one line."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import wandb
import warm
import yaml
from faults.processes import children, gone
from filelock import FileLock, Timeout

from worldmodel.cli import main
from worldmodel.comparison import launch
from worldmodel.comparison.design import Variant, runs_of
from worldmodel.comparison.folder import load
from worldmodel.comparison.prepare import CompareCLI, unreached
from worldmodel.comparison.run import RunCLI
from worldmodel.durable import read_json
from worldmodel.rules import RULES
from worldmodel.runs.folder import RunLock

TIMES = {"steps_per_second", "seconds", "peak_memory_mb"}  # what two runs of the same do not share
TWO = ["--rules", "gated_norm,lstm", "--seeds", "0"]


@pytest.fixture(scope="session")
def conf(pendulum_data, tmp_path_factory) -> Path:
    values = {
        "wandb": "disabled",
        "threads": 1,
        "data": {"path": str(pendulum_data), "steps": 8, "lanes": 3},
        "model": {"latent_dim": 6, "hidden_dim": 24, "width": 12},
        "trainer": {"accelerator": "cpu", "max_epochs": -1, "max_steps": 12, "log_every_n_steps": 4},
        "rollout": {"multiples": [1, 2], "starts": 2},
    }
    path = tmp_path_factory.mktemp("conf") / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def compare(conf: Path, cwd: Path, *options: str) -> str:
    """Run a comparison in OUT to its end; returns its output."""
    process = warm.run(["compare", "--config", conf, "--out", "out", *options], cwd)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


RUN = """import os, sys
log = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT)
os.dup2(log, 1), os.dup2(log, 2)
sys.argv[0] = "run.py"
from worldmodel.rules import RULES
RULES["copy"] = RULES["gated_norm"]
import runpy
runpy.run_module("worldmodel.comparison." + sys.argv.pop(1), run_name="__main__")
"""


class Run(warm.Process):
    """A process of a run, as multiprocessing has it."""

    join = warm.Process.wait

    @property
    def exitcode(self) -> int | None:
        return self.returncode


@pytest.fixture
def compare_here(conf, tmp_path, monkeypatch, capsys):
    """The command in this process; its runs start warm, one after the other, and know one more rule, `copy`."""

    def start(task: launch.Task) -> Run:
        words = ["-c", RUN, task.log, task.kind, *task.words]
        return Run(list(map(str, words)), task.folder, warm.variables(**task.environment), {})

    def run(*options: str) -> str:
        main(["compare", "--config", str(conf), "--out", "out", *options, "--jobs", "1"])
        return capsys.readouterr().out

    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setitem(RULES, "copy", RULES["gated_norm"])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture(scope="session")
def whole(conf, tmp_path_factory) -> tuple[Path, str]:
    """A comparison that was left alone, and its output."""
    cwd = tmp_path_factory.mktemp("whole")
    return cwd, compare(conf, cwd, *TWO)


def results(out: Path) -> dict[tuple[str, int], dict]:
    """The results of all runs, without times and places."""
    found = {}
    for path in sorted(out.glob("runs/*/*/result.json")):
        values = {key: value for key, value in read_json(path).items() if key not in TIMES}
        found[values["variant"], values["seed"]] = values | {"curves": path.with_name("curves.csv").read_text()}
    return found


def unfinished(whole: tuple[Path, str], folder: Path) -> Path:
    """A copy of the comparison whose second run has not begun."""
    out = shutil.copytree(whole[0] / "out", folder / "out")
    shutil.rmtree(out / "runs" / "lstm-carry")
    return out


def wait_until(condition, seconds: float = 300.0):
    """What the condition returns, once it is true."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return value


# --- what it leaves ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_comparison_leaves_a_verdict_and_all_it_is_made_of(whole):
    cwd, output = whole
    out = cwd / "out"
    for name in ("config.yaml", "references.json", "results.csv", "verdict.json", "report.html"):
        assert (out / name).is_file(), name
    for variant in ("gated_norm-carry", "lstm-carry"):
        for name in (
            "result.json",
            "curves.csv",
            "examples.npz",
            "config.yaml",
            "metrics.csv",
            "checkpoints/last.ckpt",
        ):
            assert (out / "runs" / variant / "s0" / name).is_file(), name
    assert "training: 12 steps" in (out / "runs" / "lstm-carry" / "s0.log").read_text()
    comparison = load(out)
    assert comparison.variants == ["gated_norm", "lstm"] and not comparison.failures
    assert [run.train_steps for run in comparison.results] == [12, 12]
    for run in comparison.results:
        assert 0 < run.train_steps / run.steps_per_second < run.seconds and 50 < run.peak_memory_mb < 5000
    assert all(set(run.losses) == {"train/loss", "val/loss"} for run in comparison.results)
    assert all(set(run.errors["closed"]) == set(run.errors["open"]) == {8, 16} for run in comparison.results)
    design = comparison.design
    assert design["horizons"] == [8, 16] and design["steps"] == 8 and design["axes"]["start"] == ["carry"]
    assert design["data"]["env_id"] == "Pendulum-v1" and design["data"]["splits"]["train"]["steps"] > 500
    for row, run in zip(design["sizes"], comparison.results, strict=True):
        assert abs(row["difference_percent"]) <= 2
        assert (run.hidden_dim, run.parameters, run.flops) == (row["hidden_dim"], row["parameters"], row["flops"])
        assert f"{row['parameters']:,}" in output
    assert (
        output.index("difference") < output.index("started: ") < output.index("done: ") < output.index("report: out/")
    )


@pytest.mark.full
def test_a_rule_under_another_name_makes_no_difference(compare_here):
    output = compare_here("--rules", "gated_norm,copy", "--seeds", "0,1")
    verdict = read_json(Path("out") / "verdict.json")
    assert {(pair["ratio"], pair["better"]) for pair in verdict["pairs"]} == {(1.0, None)} and verdict["pairs"]
    assert all("no difference" in ranking["statement"] for ranking in verdict["rankings"])
    assert "no difference" in output and "wins" not in output


@pytest.mark.slow
def test_the_command_of_a_run_trains_the_same_by_hand(whole, worldmodel, tmp_path):
    cwd, _ = whole
    run = load(cwd / "out").results[1]
    argv = [*run.command[1:], "--run_dir", "by-hand"]
    argv[argv.index("out/config.yaml")] = str(cwd / "out" / "config.yaml")
    process = worldmodel(*argv)
    assert process.returncode == 0, process.stderr
    logged = {}
    for row in csv.DictReader((tmp_path / "by-hand" / "metrics.csv").open()):
        logged |= {name: float(value) for name, value in row.items() if value}
    assert {name: logged[name] for name in run.losses} == pytest.approx(run.losses, rel=1e-6)


@pytest.mark.slow
@pytest.mark.full
def test_values_and_seeds_are_added_without_repeating_what_is_finished(whole, compare_here, tmp_path):
    shutil.copytree(whole[0] / "out", tmp_path / "elsewhere")
    before = {path: path.stat() for path in tmp_path.glob("elsewhere/runs/*/*/result.json")}
    printed = compare_here("--out", "elsewhere", "--seeds", "0", "--rules", "direct,lstm,gated_norm")
    assert "2 of 3 runs are finished already" in printed and "done: direct, seed 0 (3 of 3)" in printed
    assert {path: path.stat().st_ino for path in before} == {path: status.st_ino for path, status in before.items()}
    assert load(Path("elsewhere")).variants == ["direct", "lstm", "gated_norm"]
    report = Path("elsewhere/report.html")
    report.unlink()
    main(["compare", "--out", "elsewhere", "--report_only"])
    assert report.is_file()


# --- interrupted ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_comparison_that_is_killed_and_goes_on_ends_as_if_it_had_not_been(whole, conf, tmp_path):
    out = unfinished(whole, tmp_path)
    finished = (out / "runs" / "gated_norm-carry" / "s0" / "result.json").stat().st_ino
    process = warm.start(["compare", "--config", conf, "--out", "out", *TWO], tmp_path)
    wait_until((out / "runs" / "lstm-carry" / "s0" / "metrics.csv").is_file)  # the second run trains
    workers = children(process.pid)
    process.kill()
    assert workers and gone(workers, 20)
    ((first, result),) = results(out).items()
    output = compare(conf, tmp_path, *TWO)
    assert "1 of 2 runs are finished already" in output and f"started: {first[0]}" not in output
    assert (out / "runs" / "gated_norm-carry" / "s0" / "result.json").stat().st_ino == finished
    assert results(out) == results(whole[0] / "out") and results(out)[first] == result


@pytest.mark.full
def test_a_run_imports_nothing_of_the_folder_it_is_started_in(conf, tmp_path):
    """The program that is installed: `python -m` would look there itself."""
    (tmp_path / "worldmodel").mkdir()
    (tmp_path / "worldmodel" / "__init__.py").write_text("raise SystemExit('a run imports what its folder holds')")
    command = [Path(sys.executable).with_name("worldmodel"), "compare", "--config", conf, "--out", "out", *TWO]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=warm.variables())
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.full)]
)
def test_an_interrupted_comparison_ends_its_runs_and_says_how_to_go_on(conf, tmp_path, number, status):
    endless = ["--jobs", "2", "--trainer.max_steps", "60000"]
    process = warm.start(["compare", "--config", conf, "--out", "out", *TWO, *endless], tmp_path)
    logs = (tmp_path / "out" / "runs").glob
    wait_until(lambda: len(list(logs("*/*.log"))) == 2)
    workers = children(process.pid)
    process.send_signal(number)
    ended = process.end(60)
    assert ended.returncode == status, ended.stdout
    assert ended.stdout.strip().endswith("are finished and kept in out; the same command goes on from there"), ended
    assert "Traceback" not in ended.stderr and len(workers) >= 2 and gone(workers, 1)


@pytest.mark.slow
def test_a_run_whose_measurement_was_damaged_is_measured_and_not_trained_again(whole, compare_here, tmp_path, capsys):
    shutil.copytree(whole[0] / "out", tmp_path / "out")
    run = tmp_path / "out" / "runs" / "lstm-carry" / "s0"
    (run / "curves.csv").write_text((run / "curves.csv").read_text().replace("0.", "1.", 1))
    main(["compare", "--out", "out", "--report_only"])
    assert "lstm, seed 0: out/runs/lstm-carry/s0/curves.csv is damaged" in capsys.readouterr().out
    for name in ("curves.csv", "examples.npz"):
        (run / name).unlink()
    (run / "result.json").write_bytes(b"")
    before = {path: path.stat().st_mtime_ns for path in (run / "metrics.csv", run / "checkpoints" / "last.ckpt")}
    output = compare_here(*TWO)
    assert "result.json is damaged" in output and "done: lstm, seed 0 (2 of 2)" in output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert results(tmp_path / "out") == results(whole[0] / "out")
    costs = [read_json(out / "runs/lstm-carry/s0/result.json") for out in (whole[0] / "out", tmp_path / "out")]
    assert costs[0]["steps_per_second"] == costs[1]["steps_per_second"], "of the training"


# --- tuned ---------------------------------------------------------------------------------------------------------

RATE = "model.learning_rate"
TUNED = ["--rules", "lstm", "--seeds", "0", "--tune", f"{RATE}=log:1e-4..1e-1", "--trials", "3"]
TUNED += ["--checkpoint_every", "2"]


@pytest.fixture(scope="session")
def tuned(conf, tmp_path_factory) -> tuple[Path, str]:
    """A tuned comparison that was left alone, and its output."""
    cwd = tmp_path_factory.mktemp("tuned")
    return cwd, compare(conf, cwd, *TUNED)


def scores(out: Path) -> dict[str, dict]:
    return {path.parent.name: read_json(path)["scores"] for path in sorted(out.glob("tune/lstm-carry/*/trial.json"))}


@pytest.mark.slow
def test_a_rule_is_tuned_by_its_validation_before_it_is_judged(tuned, worldmodel, tmp_path):
    cwd, output = tuned
    out = cwd / "out"
    comparison, found = load(out), scores(out)
    assert "3 trials (3 to step 4, 2 to step 12: 28 steps in all) over model.learning_rate 0.0001 to 0.1" in output
    assert [list(found[f"t{n}"]) for n in range(3)].count(["4", "12"]) == 2, "the worst ends at the first rung"
    (last,) = comparison.tuned
    best = min((n for n in range(3) if 12 in last.scores[n]), key=lambda n: last.scores[n][12])
    assert last.winner == best
    (run,) = comparison.results
    rate = comparison.design["tuning"]["trials"][best][RATE]
    assert run.command[run.command.index(f"--{RATE}") + 1] == rate
    trial = out / "tune" / "lstm-carry" / f"t{best}"
    command = read_json(trial / "trial.json")["command"]
    assert command[command.index("--seed_everything") + 1] == "1000000", "no seed of the verdict"
    argv = [*command[1:], "--run_dir", "by-hand"]
    argv[argv.index("out/config.yaml")] = str(out / "config.yaml")
    process = worldmodel(*argv)  # never paused
    assert process.returncode == 0, process.stderr
    paused, straight = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (trial, tmp_path / "by-hand")
    )
    for name, weight in straight["state_dict"].items():
        assert torch.equal(weight, paused["state_dict"][name]), name
    assert paused["lr_schedulers"] == straight["lr_schedulers"] and paused["global_step"] == 12


@pytest.mark.slow
@pytest.mark.full
def test_a_tuning_that_is_killed_and_goes_on_ends_as_if_it_had_not_been(tuned, conf, tmp_path):
    out = shutil.copytree(tuned[0] / "out", tmp_path / "out")
    shutil.rmtree(out / "runs")
    gone_on = next(name for name, of in scores(out).items() if len(of) == 2)
    shutil.rmtree(out / "tune" / "lstm-carry" / gone_on)
    process = warm.start(["compare", "--config", conf, "--out", "out", *TUNED], tmp_path)
    wait_until((out / "tune" / "lstm-carry" / gone_on / "checkpoints" / "last.ckpt").is_file)
    workers = children(process.pid)
    process.kill()
    assert workers and gone(workers, 20)
    output = compare(conf, tmp_path, *TUNED)
    assert "stages are finished already" in output
    assert scores(out) == scores(tuned[0] / "out")
    assert results(out) == results(tuned[0] / "out")


# --- failing ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.full
def test_a_run_that_fails_stops_no_other_and_one_that_diverges_is_a_result(compare_here, capsys):
    """A learning rate of 1e30 gives NaN; torch's anomaly detection takes that for an error."""
    options = ["--rules", "residual", "--seeds", "0", "--vary", "trainer.detect_anomaly=true,false"]
    with pytest.raises(SystemExit) as stop:
        compare_here(*options, "--model.learning_rate", "1e30", "--model.warmup_steps", "0")
    assert stop.value.code == 1
    output, comparison = capsys.readouterr().out, load(Path("out"))
    (failure,) = comparison.failures
    assert failure.variant == "residual, trainer.detect_anomaly true" and "nan" in failure.reason.lower()
    assert "Error" in failure.reason and f"FAILED: {failure.variant}, seed 0: {failure.reason}" in output
    (result,) = comparison.results
    assert result.variant == "residual, trainer.detect_anomaly false" and result.diverged
    assert "report: out/report.html" in output


# --- names and notes --------------------------------------------------------------------------------------------------


def test_a_run_is_called_by_its_variant_in_wandb(conf, tmp_path):
    variant = Variant({"rule": "gated", "start": "zero", "model.layers": "2"})
    (run,) = runs_of(tmp_path, [variant], [8], [3], "x")
    run["argv"][run["argv"].index("--config") + 1] = str(conf)
    run["argv"] += ["--wandb", "offline"]

    class Ready(RunCLI):
        def _run_subcommand(self, subcommand: str) -> None:
            """Nothing runs."""

    logger = Ready(run).trainer.loggers[1].experiment
    try:
        assert (logger.name, logger.group) == ("gated-zero-model.layers-2-s3", "x")
        assert logger.config["variant"] == "gated, zero, model.layers 2"
    finally:
        logger.finish()
        wandb.teardown()
        os.environ.pop("WANDB_SERVICE", None)  # else the programs that later tests start would join this one's


def test_horizons_that_the_episodes_do_not_reach_are_named(conf):
    def told(*options: str) -> str | None:
        return unreached(CompareCLI(["fit", "--config", str(conf), *options], "x"))

    assert told() is None
    line = "the longest test episode has 100 steps: no errors at 160 in closed loop; 96, 160 in open loop"
    assert told("--rollout.multiples", "[1,2,12,20]") == line
    assert told("--rollout.multiples", "[12]", "--rollout.burn_in", "4") is None
    assert "val episode" in (told("--data.test_fraction", "0", "--rollout.multiples", "[20]") or "")


# --- elsewhere --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.full
def test_ray_gives_the_same(whole, conf, tmp_path):
    pytest.importorskip("ray")
    out = unfinished(whole, tmp_path)
    compare(conf, tmp_path, *TWO, "--launcher", "ray", "--jobs", "1")
    assert results(out) == results(whole[0] / "out")


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def mistake(conf, tmp_path, monkeypatch, capfd):
    """The one line that `compare` ends with, before it has made anything."""

    def run(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        before = set(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stop:
            main(["compare", *[str(conf) if word == "CONF" else word for word in arguments]])
        assert stop.value.code == 2
        assert set(tmp_path.rglob("*")) == before
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("worldmodel: error: "), lines
        return lines[0]

    return run


OUT = ["--config", "CONF", "--out", "o"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --out"),
        (["--out", "o"], "compare needs a configuration: --config conf/quickstart.yaml"),
        (["--config", "tini.yaml", "--out", "o"], "no file tini.yaml"),
        (["--config", "CONF", "--out", "o", "--rules", "gated,lstmm"], "unknown rule 'lstmm': did you mean 'lstm'"),
        (["--config", "CONF", "--out", "o", "--rules", "gru,gru"], "--rules gru,gru: gru is given twice"),
        (["--config", "CONF", "--out", "o", "--rules", "gru,"], "a value is missing"),
        (["--config", "CONF", "--out", "o", "--seeds", "0,one"], "--seeds 0,one: 'one' is no whole number"),
        (["--config", "CONF", "--out", "o", "--seeds", "-1"], "--seeds"),
        (["--config", "CONF", "--out", "o", "--start", "cary"], "unknown start 'cary': did you mean 'carry'"),
        (["--config", "CONF", "--out", "o", "--match", "param"], "--match: invalid choice: 'param'"),
        (["--config", "CONF", "--out", "o", "--jobs", "0"], "--jobs is 0: it must be at least 1"),
        (["--config", "CONF", "--out", "o", "--rulse", "gru"], "--rulse: did you mean '--rules'"),
        (["--config", "CONF", "--out", "o", "--model.layer", "1"], "--model.layer: did you mean '--model.layers'"),
        (["--config", "CONF", "--out", "o", "--model.layers", "3"], "layers is 3"),
        (
            ["--config", "CONF", "--out", "o", "--vary", "model.layer=1,2"],
            "--model.layer: did you mean '--model.layers'",
        ),
        (["--config", "CONF", "--out", "o", "--vary", "model.layers=1,3"], "layers is 3: a cell has 1 or 2 layers"),
        (["--config", "CONF", "--out", "o", "--vary", "model.layers=1,two"], "model.layers"),
        (["--config", "CONF", "--out", "o", "--vary", "trainer.strategy=auto,dpp"], "invalid strategy name"),
        (["--config", "CONF", "--out", "o", "--vary", "model.layers"], "write KEY=A,B"),
        (["--config", "CONF", "--out", "o", "--vary", "model.rule=gru,lstm"], "--vary model.rule: use --rules"),
        (["--config", "CONF", "--out", "o", "--vary", "data.steps=8,16"], "data and evaluation are the same for all"),
        (["--config", "CONF", "--out", "o", "--vary", "model.hidden_dim=8,16"], "use --match hidden"),
        (
            ["--config", "CONF", "--out", "o", "--model.hidden_dim", "2", "--model.width", "1"],
            "cannot be matched within 2%",
        ),
        (["--config", "CONF", "--out", "o", "--seed_everything", "3"], "choose a comparison's seeds with --seeds"),
        (["--config", "CONF", "--out", "o", "--run_dir", "r"], "choose a comparison's folder with --out"),
        (["--config", "CONF", "--out", "o", "--data.path", "nowhere"], "no dataset at nowhere"),
        (
            ["--config", "CONF", "--out", "o", "--data.steps", "101"],
            "the longest has 100 steps, data.steps is 101; lower data.steps",
        ),
        (["--out", "o", "--report_only", "--rulez", "x"], "error: unknown option --rulez: did you mean '--rules'?"),
        (["--out", "o", "--report_only", "--model.layer", "1"], "--model.layer: did you mean '--model.layers'"),
        (["--out", "o", "--report_only", "--model.layers", "1"], "takes only --out: leave out --model.layers 1"),
        (["--out", "o", "--report_only", "--rules", "gru"], "takes only --out: leave out --rules gru"),
        ([*OUT, "--trials", "4"], "--trials 4: say what is tuned"),
        ([*OUT, "--tune", f"{RATE}=log:0..1"], "0 must be above 0 on a log scale"),
        ([*OUT, "--tune", f"{RATE}=log:1..1e-4"], "1 is not below 1e-4"),
        ([*OUT, "--tune", f"{RATE}=-1..1"], "learning_rate is -1"),
        ([*OUT, "--tune", f"{RATE}=1e-3..1e-2", "--trials", "0"], "--trials is 0: it must be at least 2"),
        ([*OUT, "--tune", f"{RATE}=1e-3..1e-2", "--tune", f"{RATE}=1..2"], f"--tune {RATE} is given twice"),
        ([*OUT, "--tune", f"{RATE}=1..2", "--vary", f"{RATE}=1,2"], "--vary compares its values"),
        ([*OUT, "--tune", "model.learning_rat=1..2"], "--model.learning_rat: did you mean '--model.learning_rate'"),
        ([*OUT, "--tune", "model.rule=gru,lstm"], "--tune model.rule: use --rules"),
        ([*OUT, "--tune", "data.steps=8,16"], "only keys of model and tbptt, and trainer.gradient_clip_val"),
        ([*OUT, "--tune", "model.hidden_dim=8..16"], "--tune model.hidden_dim changes the model's size"),
        ([*OUT, "--tune", "model.width=8,16", "--match", "hidden"], "--tune model.width changes the model's size"),
        ([*OUT, "--tune", "model.reward_weight=0..1"], "changes val/loss itself"),
        ([*OUT, "--tune", f"{RATE}=1..2", "--seeds", "1000000"], "--seeds 1000000 is the seed of the tuning"),
        ([*OUT, "--tune", f"{RATE}=1..2", "--early_stopping.patience", "3"], "leave early_stopping.patience"),
        ([*OUT, "--tune", f"{RATE}=1..2", "--trainer.max_steps", "-1"], "--tune needs a length"),
        ([*OUT, "--tune", "model.lr_schedule=cosine,linear"], "lr_schedule is 'linear'"),
        (["--config", "CONF", "--out", "full"], "full holds files, but no comparison"),
        (["--out", "o", "--report_only"], "o holds no comparison"),
    ],
    ids=lambda value: " ".join(value[4:] or value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_clear_line_before_anything_is_made(mistake, tmp_path, arguments, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    assert message in mistake(*arguments)


@pytest.mark.slow
def test_another_comparison_in_the_same_folder_is_refused(whole, conf, mistake, tmp_path):
    shutil.copytree(whole[0] / "out", tmp_path / "out")
    again = ["--config", "CONF", "--out", "out", *TWO]
    assert "model.learning_rate is 1.0, was 0.001. Choose another --out" in mistake(
        *again, "--model.learning_rate", "1"
    )
    assert "it has the rule gated_norm, which is missing now" in mistake(*again, "--rules", "lstm")
    with FileLock(tmp_path / "out" / ".lock"):
        assert "is training into out: wait for it, or choose another --out" in mistake(*again)
        (tmp_path / "out" / "report.html").unlink()
        main(["compare", "--out", "out", "--report_only"])
        assert (tmp_path / "out" / "report.html").is_file(), "what is finished can be looked at"


def test_a_timeout_inside_is_not_a_comparison_at_work(tmp_path):
    with pytest.raises(Timeout, match=r"elsewhere\.lock"), RunLock(tmp_path, "--out"):
        raise Timeout("elsewhere.lock")
    with FileLock(tmp_path / ".lock", timeout=0):
        pass  # it is free again


@pytest.mark.slow
def test_help_names_its_options(worldmodel):
    process = worldmodel("compare", "--help")
    assert process.returncode == 0 and "--vary KEY=A,B" in process.stdout and "worldmodel fit" in process.stdout
