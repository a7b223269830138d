"""`worldmodel pbt` as users meet it: a population, one that is killed, and mistakes that are one clear line."""

import csv
import json
import re
import signal
import time

import pytest
import torch
import yaml
from conftest import ROOT
from faults.processes import children, gone, run, start
from faults.same_run import differences

from worldmodel.callbacks.exchange import report_of
from worldmodel.cli import main
from worldmodel.runs.cluster import share

MEMBERS, STEPS = 2, 24
RATE = "model.learning_rate"
CONFS = sorted(path.name for path in (ROOT / "conf" / "pbt").glob("*.yaml"))


@pytest.fixture(scope="module")
def conf(toy_data, tmp_path_factory):
    """Exchanges after steps 6, 12 and 18."""
    values = {
        "wandb": "disabled",
        "threads": 1,
        "population": MEMBERS,
        "interval": 6,
        "mutate": [f"{RATE}=1e-5..1e-1:log", "trainer.gradient_clip_val=0.5,1,2"],
        "data": {"path": str(toy_data), "steps": 8, "lanes": 3},
        "model": {"latent_dim": 6, "hidden_dim": 10, "width": 12, "lr_schedule": "constant", "warmup_steps": 3},
        "tbptt": {"burn_in_steps": 8},
        "rollout": {"multiples": [1], "max_episodes": 2},
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": STEPS, "log_every_n_steps": 1},
    }
    path = tmp_path_factory.mktemp("conf") / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def whole(conf, tmp_path_factory):
    """A population that was left alone, and its output."""
    folder = tmp_path_factory.mktemp("whole")
    process = run(["pbt", "--config", conf, "--out", folder / "out"], folder, timeout=600)
    assert process.returncode == 0, process.stderr[-3000:]
    return folder / "out", process.stdout


def rows(path):
    return list(csv.DictReader(path.open()))


def started(arguments, folder, step):
    """A population that has just decided on this step, and the processes that it started."""
    process = start(arguments, folder)
    deadline = time.monotonic() + 500
    while not (folder / "out" / "decisions" / f"{step}.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.end(0).stderr
        time.sleep(0.01)
    return process, children(process.pid)


@pytest.mark.slow
def test_a_population_exchanges_and_reports(whole):
    out, said = whole
    exploits, reports = rows(out / "lineage.csv"), rows(out / "population.csv")
    assert [int(row["step"]) for row in exploits] == [6, 12, 18], "one member copies at each exchange"
    assert [(int(row["step"]), int(row["member"])) for row in reports] == [
        (step, member) for step in (6, 12, 18, 24) for member in range(MEMBERS)
    ]
    scores = {(row["step"], row["member"]): float(row["score"]) for row in reports}
    for exploit in exploits:
        ranked = sorted(scores[exploit["step"], str(member)] for member in range(MEMBERS))
        assert (float(exploit["donor_score"]), float(exploit["score"])) == (ranked[0], ranked[-1])
        following = next(
            row for row in reports if (row["step"], row["member"]) == (str(int(exploit["step"]) + 6), exploit["member"])
        )
        assert following[RATE] == exploit[f"{RATE} after"], "what it went on with"
    best = min((score, member) for (step, member), score in scores.items() if step == "24")
    assert f"the best is member {best[1]}" in said and said.strip().splitlines()[-1] == f"best: {out / 'best'}"
    assert (out / "population.png").stat().st_size > 10_000 and not (out / ".tune").exists()


@pytest.mark.slow
def test_a_member_is_an_ordinary_run_and_the_best_an_ordinary_checkpoint(whole, worldmodel):
    out, _ = whole
    for member in range(MEMBERS):
        folder = out / f"member-{member}"
        report = report_of(folder / "checkpoints" / "last.ckpt")
        assert report.step == STEPS
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["model"]["learning_rate"] == report.hyperparameters[RATE]
        assert config["seed_everything"] == member and config["data"]["seed"] == member and "mutate" not in config
        copied = [row for row in rows(out / "lineage.csv") if row["member"] == str(member)]
        logged = [
            row["pbt/exploitation_count"] for row in rows(folder / "metrics.csv") if row.get("pbt/exploitation_count")
        ]
        assert list(map(float, logged)) == [n + 1.0 for n in range(len(copied))] and report.exploits == len(copied)
        ratios = [row for row in rows(folder / "metrics.csv") if row.get("pbt/post_exploit_loss_ratio")]
        assert len(ratios) == len(copied)
    best = out / "best"
    validated = worldmodel("validate", "--config", best / "config.yaml", "--ckpt_path", best)
    assert validated.returncode == 0, validated.stderr
    assert f"val/loss {report_of(best / 'checkpoints' / 'last.ckpt').score:.4g}" in validated.stdout
    exported = worldmodel("export", "--ckpt", best, "--out", "exported")
    assert exported.returncode == 0, exported.stderr


@pytest.mark.full
def test_a_killed_population_goes_on_and_ends_as_one_that_nothing_happened_to(conf, whole, tmp_path):
    """kill -9 of the program alone, after the second exchange: no process is left, no member is lost."""
    arguments = ["pbt", "--config", conf, "--out", tmp_path / "out"]
    process, others = started(arguments, tmp_path, 12)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(others) >= MEMBERS and gone(others, timeout=150), "members at once, the last of Ray within a minute"
    process.end()
    killed = json.loads((tmp_path / "out" / "decisions" / "12.json").read_text())
    again = run(arguments, tmp_path, timeout=600)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "continuing the population" in again.stdout
    expected, _ = whole
    for name in ("population.csv", "lineage.csv"):
        assert (tmp_path / "out" / name).read_text() == (expected / name).read_text()
    for member in range(MEMBERS):
        run_of, as_expected = tmp_path / "out" / f"member-{member}", expected / f"member-{member}"
        assert set(differences(run_of, as_expected)) <= {"metrics.csv"}
        # the last row before the kill may come after the report's
        assert rows_of(run_of) == rows_of(as_expected)
    assert json.loads((tmp_path / "out" / "decisions" / "12.json").read_text()) == killed
    finished = run(arguments, tmp_path)
    assert finished.returncode == 0 and "is finished; train from scratch in another --out" in finished.stdout
    other = run([*arguments, "--model.hidden_dim", "12"], tmp_path)
    assert "differs: model.hidden_dim is 12, was 10. Choose another --out" in other.stderr


@pytest.mark.full
def test_ctrl_c_ends_with_what_is_kept(conf, tmp_path):
    process, others = started(["pbt", "--config", conf, "--out", "out", "--trainer.max_steps", "60000"], tmp_path, 6)
    process.send_signal(signal.SIGINT)
    ended = process.end()
    assert ended.returncode == 130, ended.stderr[-3000:]
    assert "interrupted: 2 members at step" in ended.stdout and "Traceback" not in ended.stderr
    assert gone(others, timeout=150)


@pytest.mark.full
@pytest.mark.parametrize("conf", CONFS)
def test_every_conf_evolves(conf, tmp_path):
    conf = ROOT / "conf" / "pbt" / conf
    config = yaml.safe_load(conf.read_text())
    short = ["--data.total_steps", "1024", "--interval", "32"]  # two rollouts
    if collect := config["data"].get("collect"):
        short = ["--data.collect", json.dumps(collect | {"steps": 1600, "max_episode_steps": 200})]
        short += ["--interval", "2", "--trainer.max_steps", "4"]
    process = run(["pbt", "--config", conf, *short, "--population", "2", "--out", "out"], tmp_path, timeout=600)
    assert process.returncode == 0, process.stderr[-3000:]
    assert len(rows(tmp_path / "out" / "lineage.csv")) == 1
    if not collect:
        check_best_return(tmp_path / "out", process.stdout, 64)


def check_best_return(out, said, step):
    """The best member has the highest return at the last step."""
    last = [float(row["score"]) for row in rows(out / "population.csv") if row["step"] == str(step)]
    assert f"the best is member {last.index(max(last))}" in said
    best = report_of(out / "best" / "checkpoints" / "last.ckpt")
    assert (best.step, best.score) == (step, max(last))


@pytest.mark.full
def test_a_killed_population_of_policies_goes_on_without_losing_a_member(tmp_path):
    """Simulators are not in a checkpoint: decisions stay, and members go on with new episodes."""
    conf = ROOT / "conf" / "pbt" / "cartpole_policy.yaml"
    arguments = ["pbt", "--config", conf, "--population", "3", "--interval", "32", "--data.total_steps", "2048"]
    arguments += ["--out", tmp_path / "out"]
    process, others = started(arguments, tmp_path, 64)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert gone(others, timeout=150)
    process.end()
    decided = [(tmp_path / "out" / "decisions" / f"{step}.json").read_text() for step in (32, 64)]
    again = run(arguments, tmp_path, timeout=600)
    assert again.returncode == 0, again.stderr[-3000:]
    assert decided == [(tmp_path / "out" / "decisions" / f"{step}.json").read_text() for step in (32, 64)]
    reports = rows(tmp_path / "out" / "population.csv")
    assert [(int(row["step"]), int(row["member"])) for row in reports] == [
        (step, member) for step in (32, 64, 96, 128) for member in range(3)
    ]
    check_best_return(tmp_path / "out", again.stdout, 128)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pbt needs a configuration: --config"),
        (["--config", "CONF", "--intervl", "6"], "unknown option --intervl: did you mean '--interval'"),
        (["--config", "CONF", "--interval", "5"], "--interval 5 does not divide .* 24 into exchanges: --interval 4"),
        (["--config", "CONF", "--interval", "24"], "--interval 24 does not divide .*: --interval 12 does"),
        (["--config", "CONF", "--trainer.max_steps", "-1"], "number of optimizer steps: set --trainer.max_steps"),
        (["--config", "CONF", "--population", "1"], "--population 1: copying takes at least two"),
        (["--config", "CONF", "--early_stopping.patience", "3"], "members of a population train equally long"),
        (["--config", "CONF", "--quantile", "0.6"], "--quantile 0.6: it must be above 0, and at most 0.5"),
        (["--config", "CONF", "--mutate", "model.lerning_rate=1..2"], "did you mean 'model.learning_rate'"),
        (["--config", "CONF", "--mutate", "model.hidden_dim=8,16"], "cannot change during training"),
        (["--config", "CONF", "--mode", "least"], "mode"),
        (["--config", "CONF", "--mutate", "model.reward_weight=0.1..1"], "lowest weight would win: .* rollout/nmse@8"),
        (["--config", "CONF", "--run_dir", "x"], "--run_dir is no option of pbt: .* with --out"),
        (["--config", "CONF", "--trainer.devices", "2"], "one device: use --trainer.devices 1"),
        (["--config", "CONF", "--out", "full"], "full holds files, but no population: choose another --out"),
        (["--config", "CONF", "--trains", "polcy"], "did you mean 'policy'"),
        (["--config", "CONF", "--trains"], "--trains: expected one argument"),
        (["--config"], "--config"),
        (["--config", "FIVE"], "data"),
        (["--config", "POLICY", "--interval", "100"], "into exchanges in whole rollouts of 32: --interval 96 does"),
        (["--config", "PLAIN", "--interval", "100"], "into exchanges in whole rollouts of 32: "),
        (["--config", "POLICY", "--data.target_kl", "0.1"], "data.target_kl ends rollouts early"),
        (["--config", "POLICY", "--trainer.max_steps", "5000"], "data.total_steps 50000 allow only 3104"),
        (["--config", "POLICY", "--data.total_steps", "1000"], "32 optimizer steps leave no room for an exchange"),
        (["--config", "POLICY", "--mutate", "data.update_epochs=1,2"], "it cannot change during training"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_is_one_clear_line(conf, tmp_path, monkeypatch, capfd, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    words = {"CONF": str(conf), "POLICY": str(ROOT / "conf" / "pbt" / "cartpole_policy.yaml")}
    words["PLAIN"] = str(ROOT / "conf" / "policy" / "cartpole.yaml")  # it does not say what is trained
    words["FIVE"] = str(tmp_path / "five.yaml")
    (tmp_path / "five.yaml").write_text("data: 5")
    with pytest.raises(SystemExit) as stop:
        main(["pbt", *[words.get(word, word) for word in arguments]])
    assert stop.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("worldmodel: error: ")
    assert re.search(message, line), line


def test_help_names_its_options(capsys):
    main(["pbt", "--help"])
    said = capsys.readouterr().out
    assert "--mutate" in said and "--interval" in said and "worldmodel fit" in said


@pytest.mark.parametrize(
    ("rooms", "members", "wanted", "each"),
    [
        ([2], 4, 1, 0.5),
        ([8], 4, 1, 1),
        ([1, 1, 1], 4, 1, 0.5),
        ([2, 0, 3], 3, 2, 1.5),
        ([1, 1], 2, 1, 1),
        ([1], 3, 1, 0.3333),
        ([], 3, 1, 0),
    ],
)
def test_all_members_find_room_at_once(rooms, members, wanted, each):
    assert share(rooms, members, wanted) == each
    if rooms:
        assert sum(int(room / each) for room in rooms) >= members


def test_a_checkpoint_outside_of_a_population_has_no_report(tmp_path, toy_data):
    path = tmp_path / "x.ckpt"
    torch.save({"hyper_parameters": {}, "state_dict": {}, "callbacks": {}}, path)
    assert report_of(path) is None


def rows_of(run) -> list[str]:
    return sorted((run / "metrics.csv").read_text().splitlines())
