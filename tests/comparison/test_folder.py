"""A comparison's folder: what may be added to it, and what it holds."""

import copy
import shutil

import pytest
import yaml
from comparison.made_up import FOUR, make_comparison

from worldmodel.comparison.design import runs_of, variants_of
from worldmodel.comparison.folder import (
    check_continues,
    damages,
    finished,
    keep_record,
    load,
    read_config,
    read_design,
    write_failures,
)
from worldmodel.comparison.results import Failure, Result, run_folder, write_result
from worldmodel.comparison.run import _trained
from worldmodel.durable import write_json
from worldmodel.errors import UserError

AXES = {"rule": ["gated", "lstm"], "start": ["carry", "zero"], "model.layers": ["1", "2"]}
CONFIG = {"seed_everything": 0, "experiment": "here", "model": {"learning_rate": 0.001}, "data": {"steps": 8}}


def a_design(out, axes=AXES, seeds=(0, 1)) -> dict:
    chosen = variants_of(axes)
    dims = [10 + i for i in range(len(chosen))]
    return {
        "runs": runs_of(out, chosen, dims, list(seeds), "here"),
        "axes": axes,
        "seeds": list(seeds),
        "match": "params",
        "sizes": [{"variant": v.name, "hidden_dim": 10} for v in chosen],
        "versions": {"worldmodel": "1", "torch": "2"},
        "data": {"fingerprint": "abc"},
    }


def begin(out, design) -> None:
    out.mkdir()
    write_json(out / "comparison.json", design)
    (out / "config.yaml").write_text(yaml.safe_dump(CONFIG))


def a_result(run) -> Result:
    sizes = {"parameters": 1, "recurrence_parameters": 1, "hidden_dim": 1, "flops": 1}
    times = {"train_steps": 1, "steps_per_second": 1.0, "seconds": 1.0, "peak_memory_mb": 1.0}
    errors = {"closed": {8: 0.5}, "open": {8: 0.5}}
    return Result(
        run["variant"], run["axes"], run["seed"], errors, 1.0, 0.0, **sizes, **times, losses={}, command=run["argv"]
    )


def test_values_and_seeds_may_be_added(tmp_path):
    out = tmp_path / "out"
    begin(out, a_design(out))
    check_continues(out, a_design(out), CONFIG, {})
    check_continues(
        out, a_design(out, AXES | {"rule": ["gru", "lstm", "gated"]}, (2, 1, 0)), CONFIG | {"experiment": "there"}, {}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda design, config: design["axes"].update(rule=["lstm"]), "it has the rule gated, which is missing now"),
        (lambda design, config: design.update(seeds=[1, 2]), "it has the seed 0, which is missing now"),
        (
            lambda design, config: design["axes"].pop("model.layers"),
            "axes are rule, start, model.layers, not rule, start",
        ),
        (lambda design, config: design.update(match="flops"), "--match is flops, was params"),
        (lambda design, config: design["data"].update(fingerprint="abd"), "the data's fingerprint is abd, was abc"),
        (lambda design, config: design["versions"].update(torch="3"), "the version of torch is 3, was 2"),
        (
            lambda design, config: design["sizes"][0].update(hidden_dim=11),
            "hidden_dim of 'gated, carry, model.layers 1' is 11",
        ),
        (lambda design, config: config["model"].update(learning_rate=1), "model.learning_rate is 1, was 0.001"),
        (lambda design, config: config["model"].update(new=None, depth=2), "model.depth is 2, was None"),
        (lambda design, config: config["data"].pop("steps"), "data.steps is None, was 8"),
    ],
)
def test_any_other_difference_is_named(tmp_path, change, message):
    out = tmp_path / "out"
    begin(out, a_design(out))
    design, config = copy.deepcopy(a_design(out)), copy.deepcopy(CONFIG)
    change(design, config)
    with pytest.raises(UserError, match="choose another --out|Choose another --out") as error:
        check_continues(out, design, config, {})
    assert message in str(error.value)


def test_an_option_that_came_later_is_no_difference_at_its_default(tmp_path):
    out = tmp_path / "out"
    begin(out, a_design(out))
    defaults = {"model": {"members": 1, "learning_rate": 0.5}}
    check_continues(out, a_design(out), CONFIG | {"model": CONFIG["model"] | {"members": 1}}, defaults)
    with pytest.raises(UserError, match="model.members is 5, was 1"):
        check_continues(out, a_design(out), CONFIG | {"model": CONFIG["model"] | {"members": 5}}, defaults)


def test_what_changes_no_number_may_differ(tmp_path):
    out = tmp_path / "out"
    begin(out, a_design(out) | {"data": {"fingerprint": "abc", "env_id": "here"}})
    data = {"steps": 8, "path": "there", "test_path": None, "num_workers": 2, "memory_gb": 9.0, "cache_dir": "/c"}
    config = CONFIG | {"data": data, "wandb": "online", "project": "mine", "checkpoint_every": 9}
    config["trainer"] = {"enable_progress_bar": False}
    check_continues(out, a_design(out) | {"data": {"fingerprint": "abc", "env_id": "there"}}, config, {})


def test_the_versions_of_the_first_runs_stay_on_record():
    first = {"created": "then", "versions": {"python": "3.11", "gpu": None}}
    design = {"created": "now", "versions": {"python": "3.11", "gpu": None}}
    assert keep_record(first, design) == [] and design == first
    design = {"created": "now", "versions": {"python": "3.12", "gpu": "H100"}}
    assert keep_record(first, design) == ["python is 3.12, was 3.11", "gpu is H100, was None"]
    assert design == first | {"versions_later": [{"python": "3.12", "gpu": "H100"}]}
    third = {"created": "later", "versions": {"python": "3.12", "gpu": "H100"}}
    assert len(keep_record(design, third)) == 2 and third == design, "once is enough"
    back = {"created": "later", "versions": {"python": "3.11", "gpu": None}}
    assert keep_record(design, back) == [] and back == design


def test_a_run_is_finished_with_the_result_of_its_command(tmp_path):
    out = tmp_path / "out"
    design = a_design(out)
    begin(out, design)
    run = design["runs"][0]
    assert finished(out, run) is None
    folder = run_folder(out, run["slug"], run["seed"])
    folder.mkdir(parents=True)
    write_result(folder, a_result(run))
    assert finished(out, run) == a_result(run)
    assert finished(out, run | {"argv": [*run["argv"], "--model.width", "3"]}) is None
    moved = tmp_path / "moved"
    out.rename(moved)
    assert finished(moved, a_design(moved)["runs"][0]) is not None, "a folder may be moved and renamed"


def test_load_gives_what_the_folder_came_to(tmp_path):
    out = tmp_path / "out"
    design = a_design(out)
    begin(out, design)
    done, failed, open_run = design["runs"][:3]
    folder = run_folder(out, done["slug"], done["seed"])
    folder.mkdir(parents=True)
    write_result(folder, a_result(done))
    failures = [Failure(run["variant"], run["axes"], run["seed"], "why", "runs/x.log") for run in (done, failed)]
    write_failures(out, failures)
    comparison = load(out)
    assert comparison.results == [a_result(done)] and comparison.references == []
    assert comparison.failures == failures[1:], "a run that came to a result since has not failed"
    assert comparison.variants[:2] == [done["variant"], failed["variant"]] and comparison.design == design


def test_only_a_folder_of_a_comparison_or_an_empty_one_is_taken(tmp_path):
    assert read_design(tmp_path / "new") is None
    (tmp_path / ".lock").touch()
    assert read_design(tmp_path) is None
    with pytest.raises(UserError, match="holds no comparison"):
        load(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="files, but no comparison: choose another --out"):
        read_design(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        read_design(tmp_path / "thesis.tex")


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a flipped bit": lambda content: bytes([*content[:-20], content[-20] ^ 1, *content[-19:]]),
    "another type": lambda content: b"5\n",
}


@pytest.mark.fault(23)
@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_damaged_is_named_and_made_again(tmp_path, seen, how):
    made = make_comparison(tmp_path / "out", FOUR[:2], [0])
    out, run = made.folder, made.design["runs"][1]
    folder = run_folder(out, run["slug"], run["seed"])
    assert finished(out, run) is not None and not list(damages(out, made.design))

    def damaged(path):
        whole = path.read_bytes()
        path.write_bytes(DAMAGE[how](whole))
        return whole

    for name in ("result.json", "curves.csv", "examples.npz"):
        whole = damaged(folder / name)
        (said,) = damages(out, made.design)
        assert said.startswith(f"{run['variant']}, seed 0: {folder / name} is damaged")
        assert finished(out, run) is None and [of.variant for of in load(out).results] == [made.variants[0]]
        (folder / name).write_bytes(whole)
    (folder / "checkpoints").mkdir()
    shutil.copyfile(out / "comparison.json", folder / "trained.json")  # not its own
    (folder / "checkpoints" / "last.ckpt").touch()
    assert _trained(folder, run["argv"]) is None
    for path in (out / "references" / "mean.csv", out / "references.json"):
        whole = damaged(path)
        (said,) = damages(out, made.design)
        assert str(path) in said and not load(out).references and len(load(out).results) == 2
        path.write_bytes(whole)
    for name, read in (("comparison.json", read_design), ("config.yaml", read_config)):
        whole = damaged(out / name)
        with pytest.raises(UserError, match=rf"{name} is damaged .*: restore it from a copy, or choose another"):
            read(out)
        with pytest.raises(UserError, match=f"{name} is damaged"):
            load(out)
        (out / name).write_bytes(whole)
    write_failures(out, [Failure(run["variant"], run["axes"], 0, "no memory", "log")])
    damaged(out / "failures.json")
    with pytest.raises(UserError, match=r"failures.json is damaged .*: remove .*failures.json\*, and give the same"):
        load(out)
    seen(f"a comparison's 8 files, each {how}: named; runs and references are made again")
