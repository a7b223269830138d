"""What runs, under which names, and what may be added to a folder that was begun."""

import copy
import re

import pytest
import yaml

from worldmodel.comparison.plan import (
    Variant,
    check_continues,
    finished,
    keep_record,
    load,
    plan_runs,
    read_plan,
    variants,
    write_failures,
)
from worldmodel.comparison.results import Failure, Result, run_folder, write_json, write_result
from worldmodel.errors import UserError

AXES = {"rule": ["gated", "lstm"], "start": ["carry", "zero"], "model.layers": ["1", "2"]}
CONFIG = {"seed_everything": 0, "experiment": "here", "model": {"learning_rate": 0.001}, "data": {"steps": 8}}


def a_plan(out, axes=AXES, seeds=(0, 1)) -> dict:
    chosen = variants(axes)
    dims = [10 + i for i in range(len(chosen))]
    return {
        "runs": plan_runs(out, chosen, dims, list(seeds), "here"),
        "axes": axes,
        "seeds": list(seeds),
        "match": "params",
        "sizes": [{"variant": v.name, "hidden_dim": 10} for v in chosen],
        "versions": {"worldmodel": "1", "torch": "2"},
        "data": {"fingerprint": "abc"},
    }


def begin(out, plan) -> None:
    out.mkdir()
    write_json(out / "comparison.json", plan)
    (out / "config.yaml").write_text(yaml.safe_dump(CONFIG))


def a_result(run) -> Result:
    sizes = {"parameters": 1, "recurrence_parameters": 1, "hidden_dim": 1, "flops": 1}
    times = {"train_steps": 1, "steps_per_second": 1.0, "seconds": 1.0, "peak_memory_mb": 1.0}
    errors = {"closed": {8: 0.5}, "open": {8: 0.5}}
    return Result(
        run["variant"], run["axes"], run["seed"], errors, 1.0, 0.0, **sizes, **times, losses={}, command=run["argv"]
    )


def test_every_combination_has_a_name_a_folder_and_a_command(tmp_path):
    plan = a_plan(tmp_path / "out")
    assert len(plan["runs"]) == 16 and [run["seed"] for run in plan["runs"]] == [0] * 8 + [1] * 8
    run = plan["runs"][-1]
    assert run["variant"] == "lstm, zero, model.layers 2" and run["slug"] == "lstm-zero-model.layers-2"
    assert run["argv"] == [
        *("worldmodel", "fit", "--config", f"{tmp_path}/out/config.yaml"),
        *("--model.rule", "lstm", "--model.hidden_dim", "17", "--tbptt.start", "zero", "--model.layers", "2"),
        *("--seed_everything", "1", "--run_dir", f"{tmp_path}/out/runs/lstm-zero-model.layers-2/s1"),
        *("--experiment", "here"),
    ]


def test_slugs_are_safe_and_unique_and_stay_when_values_are_added():
    values = ["1e-3", "-1", "[1, 2]", "[1; 2]", "a/b", "../x", "a b", "x" * 300, "x" * 301]
    slugs = [Variant({"rule": "gated", "start": "carry", "model.width": value}).slug for value in values]
    assert len({slug.lower() for slug in slugs}) == len(values)
    for slug in slugs:
        assert re.fullmatch(r"[a-z][\w.+-]{1,120}", slug), slug


def test_a_value_that_looks_like_an_option_stays_a_value(tmp_path):
    (run,) = plan_runs(
        tmp_path, [Variant({"rule": "gated", "start": "carry", "model.gate_bias": "-1e-3"})], [5], [0], "x"
    )
    assert "--model.gate_bias=-1e-3" in run["argv"]


def test_values_and_seeds_may_be_added(tmp_path):
    out = tmp_path / "out"
    begin(out, a_plan(out))
    check_continues(out, a_plan(out), CONFIG)
    check_continues(
        out, a_plan(out, AXES | {"rule": ["gru", "lstm", "gated"]}, (2, 1, 0)), CONFIG | {"experiment": "there"}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan, config: plan["axes"].update(rule=["lstm"]), "it has the rule gated, which is left out now"),
        (lambda plan, config: plan.update(seeds=[1, 2]), "it has the seed 0, which is left out now"),
        (
            lambda plan, config: plan["axes"].pop("model.layers"),
            "axes are rule, start, model.layers, asked are rule, start",
        ),
        (lambda plan, config: plan.update(match="flops"), "--match is flops, was params"),
        (lambda plan, config: plan["data"].update(fingerprint="abd"), "the data's fingerprint is abd, was abc"),
        (lambda plan, config: plan["versions"].update(torch="3"), "the version of torch is 3, was 2"),
        (
            lambda plan, config: plan["sizes"][0].update(hidden_dim=11),
            "hidden_dim of 'gated, carry, model.layers 1' is 11",
        ),
        (lambda plan, config: config["model"].update(learning_rate=1), "model.learning_rate is 1, was 0.001"),
        (lambda plan, config: config["model"].update(new=None, depth=2), "model.depth is 2, was None"),
        (lambda plan, config: config["data"].pop("steps"), "data.steps is None, was 8"),
    ],
)
def test_any_other_difference_is_named(tmp_path, change, message):
    out = tmp_path / "out"
    begin(out, a_plan(out))
    plan, config = copy.deepcopy(a_plan(out)), copy.deepcopy(CONFIG)
    change(plan, config)
    with pytest.raises(UserError, match="choose another --out|Choose another --out") as error:
        check_continues(out, plan, config)
    assert message in str(error.value)


def test_what_changes_no_number_may_differ(tmp_path):
    out = tmp_path / "out"
    begin(out, a_plan(out) | {"data": {"fingerprint": "abc", "env_id": "here"}})
    data = {"steps": 8, "path": "there", "test_path": None, "num_workers": 2, "memory_gb": 9.0, "cache_dir": "/c"}
    config = CONFIG | {"data": data, "wandb": "online", "project": "mine", "checkpoint_every": 9}
    config["trainer"] = {"enable_progress_bar": False}
    check_continues(out, a_plan(out) | {"data": {"fingerprint": "abc", "env_id": "there"}}, config)


def test_the_versions_of_the_first_runs_stay_on_record():
    first = {"created": "then", "versions": {"python": "3.11", "gpu": None}}
    plan = {"created": "now", "versions": {"python": "3.11", "gpu": None}}
    assert keep_record(first, plan) == [] and plan == first
    plan = {"created": "now", "versions": {"python": "3.12", "gpu": "H100"}}
    assert keep_record(first, plan) == ["python is 3.12, was 3.11", "gpu is H100, was None"]
    assert plan == first | {"versions_later": [{"python": "3.12", "gpu": "H100"}]}
    third = {"created": "later", "versions": {"python": "3.12", "gpu": "H100"}}
    assert len(keep_record(plan, third)) == 2 and third == plan, "once is enough"
    back = {"created": "later", "versions": {"python": "3.11", "gpu": None}}
    assert keep_record(plan, back) == [] and back == plan


def test_a_run_is_finished_with_the_result_of_its_command(tmp_path):
    out = tmp_path / "out"
    plan = a_plan(out)
    begin(out, plan)
    run = plan["runs"][0]
    assert finished(out, run) is None
    folder = run_folder(out, run["slug"], run["seed"])
    folder.mkdir(parents=True)
    write_result(folder, a_result(run))
    assert finished(out, run) == a_result(run)
    assert finished(out, run | {"argv": [*run["argv"], "--model.width", "3"]}) is None
    moved = tmp_path / "moved"
    out.rename(moved)
    assert finished(moved, a_plan(moved)["runs"][0]) is not None, "a folder may be moved and renamed"


def test_load_gives_what_the_folder_came_to(tmp_path):
    out = tmp_path / "out"
    plan = a_plan(out)
    begin(out, plan)
    done, failed, open_run = plan["runs"][:3]
    folder = run_folder(out, done["slug"], done["seed"])
    folder.mkdir(parents=True)
    write_result(folder, a_result(done))
    failures = [Failure(run["variant"], run["axes"], run["seed"], "why", "runs/x.log") for run in (done, failed)]
    write_failures(out, failures)
    comparison = load(out)
    assert comparison.results == [a_result(done)] and comparison.references == []
    assert comparison.failures == failures[1:], "a run that came to a result since has not failed"
    assert comparison.variants[:2] == [done["variant"], failed["variant"]] and comparison.plan == plan


def test_only_a_folder_of_a_comparison_or_an_empty_one_is_taken(tmp_path):
    assert read_plan(tmp_path / "new") is None
    (tmp_path / ".lock").touch()
    assert read_plan(tmp_path) is None
    with pytest.raises(UserError, match="holds no comparison"):
        load(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="something else than a comparison: choose another --out"):
        read_plan(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        read_plan(tmp_path / "thesis.tex")
