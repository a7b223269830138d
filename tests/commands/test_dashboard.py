"""The workspace and the report for W&B, built, validated and read back by the library's own models; no network."""

import json
import socket

import pytest
from wandb_workspaces.reports.v2 import interface as wr
from wandb_workspaces.reports.v2.internal import ReportViewspec
from wandb_workspaces.workspaces import Workspace
from wandb_workspaces.workspaces.internal import View

from worldmodel.commands.dashboard import build_report, build_workspace, specification
from worldmodel.errors import UserError

HORIZONS = [32, 64, 320]
ABOUT = ("pendulum", "a-team", "rules", HORIZONS)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the specification is built without a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def panels(sections):
    return {section["name"]: [panel["config"] for panel in section["panels"]] for section in sections}


def test_the_workspace_shows_the_comparison_by_rule_and_start():
    spec = specification(build_workspace(*ABOUT), build_report(*ABOUT))["workspace"]
    assert (spec["entity"], spec["project"]) == ("a-team", "pendulum") and "rules" in spec["displayName"]
    section = spec["spec"]["section"]
    shown = panels(section["panelBankConfig"]["sections"])
    assert list(shown) == ["Open loop", "Closed loop: validation", "Hidden state", "Training"]
    metrics = {name: [plot["metrics"] for plot in plots] for name, plots in shown.items()}
    assert metrics["Open loop"][:3] == [[f"rollout/nmse@{horizon}"] for horizon in HORIZONS]
    assert ["val/loss"] in metrics["Closed loop: validation"] and ["train/loss"] in metrics["Training"]
    assert ["hidden/norm_growth"] in metrics["Hidden state"]
    for plot in sum(shown.values(), []):
        assert plot["groupBy"] == "variant.value" and plot["xAxis"] == "trainer/global_step" and plot["aggregate"]
        assert plot["groupAgg"] == "mean" and plot["limit"] >= 70
    (runs,) = section["runSets"]
    assert runs["grouping"] == [{"section": "config", "name": "variant.value"}]
    (condition,) = runs["filters"]["filters"]
    assert condition["key"] == {"section": "run", "name": "group"} and condition["value"] == "rules"
    assert "summary:rollout/nmse@320.last" in runs["runFeed"]["columnOrder"]


def test_the_report_holds_the_same_panels_and_links_back():
    report = build_report(*ABOUT, workspace_url="https://wandb.ai/a-team/pendulum?nw=abc")
    workspace = build_workspace(*ABOUT)
    spec = specification(workspace, report)
    blocks = json.loads(json.dumps(spec["report"]["spec"]["blocks"]))
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    in_workspace = panels(spec["workspace"]["spec"]["section"]["panelBankConfig"]["sections"])
    in_report = [[panel["config"] for panel in grid["panelBankSectionConfig"]["panels"]] for grid in grids]
    assert in_report == list(in_workspace.values())
    for grid in grids:
        (runs,) = grid["runSets"]
        assert "project" not in runs, "of the report's own project"
        assert runs["grouping"] == [{"section": "config", "name": "variant.value"}]
        assert "rules" in json.dumps(runs["filters"])
        places = [tuple(panel["layout"].values()) for panel in grid["panelBankSectionConfig"]["panels"]]
        assert len(set(places)) == len(places), "no panel lies on another"
    text = json.dumps(blocks)
    assert "https://wandb.ai/a-team/pendulum?nw=abc" in text and "predicting the mean" in text


def test_the_library_reads_its_specification_back():
    workspace, report = build_workspace(*ABOUT), build_report(*ABOUT)
    spec = json.loads(json.dumps(specification(workspace, report)))
    view = View.model_validate(spec["workspace"])
    again = Workspace._from_model(view)
    assert [section.name for section in again.sections] == [section.name for section in workspace.sections]
    assert specification(again, report)["workspace"]["spec"] == spec["workspace"]["spec"]
    read = wr.Report._from_model(ReportViewspec.model_validate(spec["report"]))
    assert read.title == report.title and len(read.blocks) == len(report.blocks)


def test_without_a_group_all_runs_count():
    spec = specification(build_workspace("p", "", None, [8]), build_report("p", "", None, [8]))
    assert spec["workspace"]["spec"]["section"]["runSets"][0]["filters"]["filters"] == []
    assert "all runs" in spec["workspace"]["displayName"]


@pytest.mark.parametrize("group", ["a+b: c/d-e_f.g", "and", "x in y", "true", "0.10", "ж", "g" * 300, "Config"])
def test_the_filter_is_the_group_and_nothing_else(group):
    spec = specification(build_workspace("p", "e", group, [8]), build_report("p", "e", group, [8]))
    (condition,) = spec["workspace"]["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert condition["value"] == group and condition["op"] == "="


@pytest.mark.parametrize("group", ["lr=1", "a'b", 'a"b', "a>b", "f(x)", "a\\b"])
def test_a_group_that_the_library_would_change_is_refused(group):
    with pytest.raises(UserError, match="cannot be filtered by"):
        build_workspace("p", "e", group, [8])
