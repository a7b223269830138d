"""`worldmodel dashboard`: a workspace and a report in Weights & Biases that compare update rules.

Both are built by wandb-workspaces (https://docs.wandb.ai/ref/wandb_workspaces) from names alone; only saving them needs
an account and a network.
"""

import argparse
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.arguments import Parser
from worldmodel.durable import write_json
from worldmodel.errors import UserError
from worldmodel.runs.listing import find_runs

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import Report
    from wandb_workspaces.workspaces import Section, Workspace

HORIZONS = [32, 64, 160, 320]  # 1, 2, 5 and 10 times the default segment, where no run says more
RUNS = Path("runs")
ERROR = "rollout/nmse@"
STEP = "trainer/global_step"
RULE, START = "model.rule", "tbptt.start"  # keys of a run's configuration
VARIANT = "variant"  # key of the rule, start and other axes that a comparison varies
MOST_RUNS = 200  # in a panel; all seeds of all variants must count in the means
LONGEST_TITLE = 128
SYMBOLS = r"[^\w .:/+-]"
HIDDEN = ("norm_mean", "norm_max", "norm_growth", "delta_norm", "gate_mean", "bound_margin")


def main(argv: list[str]) -> None:
    """Save workspace and report in W&B, or write their specification to a file."""
    arguments = _parser().parse_args(argv)
    try:
        import wandb_workspaces.reports.v2  # noqa: F401
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as error:
        raise UserError("`worldmodel dashboard` needs wandb-workspaces: pip install 'worldmodel[dashboard]'") from error
    if arguments.spec is not None:
        _write(arguments)
    else:
        _save(arguments)


def _write(arguments: argparse.Namespace) -> None:
    """Write the specification; without an account, the entity may be empty."""
    about = arguments.project, arguments.entity or "", arguments.group, _chosen(arguments)
    spec = specification(build_workspace(*about), build_report(*about))
    try:
        write_json(arguments.spec, spec)
    except OSError as error:
        raise UserError(f"--spec {arguments.spec} cannot be written: {error.strerror}") from error
    print(f"specification of the workspace and the report: {arguments.spec}")


def _save(arguments: argparse.Namespace) -> None:
    import wandb
    from wandb.errors import Error as WandbError

    wandb.setup(settings=wandb.Settings(silent=True))
    about: Any = (arguments.project, arguments.entity or _account(), arguments.group, _chosen(arguments))
    try:
        workspace = build_workspace(*about).save()
        print(f"workspace: {workspace.url}")
        report = build_report(*about, workspace_url=workspace.url)
        report.save()
        print(f"report: {report.url}")
    except (WandbError, OSError, ValueError) as error:
        raise UserError(_cannot(error)) from error


def _account() -> str:
    """The account's default entity."""
    import wandb
    from wandb.errors import Error as WandbError

    try:
        entity = wandb.Api(timeout=10).default_entity
    except (WandbError, OSError, ValueError) as error:
        raise UserError(_cannot(error)) from error
    if not entity:
        raise UserError("the W&B account has no default entity: name the project's owner with --entity")
    return entity


def _cannot(error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
    return f"W&B cannot be used: {reason}; log in with `wandb login`, or write the specification with --spec FILE"


def _parser() -> Parser:
    parser = Parser("worldmodel dashboard", "Make a workspace and a report in Weights & Biases that compare the rules.")
    add = parser.add_argument
    add("--project", required=True, metavar="P", help="Project in W&B, as in fit --project.")
    add("--entity", metavar="E", help="User or team that owns the project. Default: the account's own.")
    add("--group", metavar="G", help="Only runs of this experiment or comparison. Default: all runs.")
    add(
        "--horizons",
        type=_horizons,
        metavar="H,H",
        help="Steps of rollout/nmse@H. Default: those of the runs in runs/.",
    )
    add("--spec", type=Path, metavar="FILE", help="Write the specification as JSON, without account or network.")
    return parser


def _horizons(text: str) -> list[int]:
    try:
        horizons = [int(part) for part in text.split(",")]
    except ValueError:
        horizons = [0]
    if min(horizons) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of steps such as 32,64,160")
    return horizons


def _chosen(arguments: argparse.Namespace) -> list[int]:
    """The horizons that were asked for, or that runs of the project and group below runs/ have logged."""
    if arguments.horizons or not RUNS.is_dir():
        return arguments.horizons or HORIZONS
    names = {
        name
        for run in find_runs(RUNS)
        if run.config.get("project") == arguments.project and arguments.group in (None, run.config.get("experiment"))
        for name in run.metrics
        if name.startswith(ERROR)
    }
    return sorted(int(name.removeprefix(ERROR)) for name in names) or HORIZONS


def build_workspace(project: str, entity: str, group: str | None, horizons: Sequence[int]) -> "Workspace":
    """A workspace with curves averaged over the runs of a variant, and a table of the runs.

    Args:
        project: in W&B.
        entity: user or team that owns the project.
        group: shows only the runs of this experiment or comparison; None: all runs.
        horizons: H, of `rollout/nmse@H`.

    Raises:
        UserError: if the library cannot filter by the group's name.
    """
    import wandb_workspaces.workspaces as ws

    columns = [f"config:{_column(RULE)}", f"config:{_column(START)}", "config:seed_everything.value"]
    columns += [f"summary:{name}.last" for name in ("val/loss", *_errors(horizons))]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=_title(group),
        sections=_sections(horizons),
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=_filters(group), groupby=[_config(VARIANT)], pinned_columns=["run:displayName", *columns]
        ),
    )


def build_report(
    project: str, entity: str, group: str | None, horizons: Sequence[int], workspace_url: str | None = None
) -> "Report":
    """A report with the same panels, a text that says how to read them, and a link to the workspace."""
    from wandb_workspaces.reports.v2 import interface as wr

    blocks: list[Any] = [wr.MarkdownBlock(text=_text(group))]
    if workspace_url:
        blocks.append(wr.P(text=["The workspace: ", wr.Link(text=workspace_url, url=workspace_url)]))
    for section in _sections(horizons):
        # without a project of its own a run set is of the report's: naming it would ask the server for its number
        runs = wr.Runset(name="by variant", filters=_filters(group), groupby=[f"config.{VARIANT}"])
        panels = [_placed(panel, i) for i, panel in enumerate(section.panels)]
        blocks += [wr.H2(text=section.name), wr.PanelGrid(runsets=[runs], panels=panels)]
    description = "Open-loop error, closed loop, hidden state and training, by update rule and start."
    return wr.Report(
        project=project, entity=entity, title=_title(group), description=description, blocks=blocks, width="fluid"
    )


def specification(workspace: "Workspace", report: "Report") -> dict[str, Any]:
    """Both as plain JSON values, as W&B would receive them."""
    parts = {"workspace": workspace, "report": report}
    return {
        name: part._to_model().model_dump(mode="json", by_alias=True, exclude_none=True) for name, part in parts.items()
    }


def _sections(horizons: Sequence[int]) -> "list[Section]":
    import wandb_workspaces.workspaces as ws

    losses = ("prediction", "reward", "continue")
    names: dict[str, tuple[str, ...]] = {
        "Open loop": (*_errors(horizons), "rollout/valid_prediction_time"),
        "Closed loop: validation": ("val/loss", *(f"val/loss_{name}" for name in losses)),
        "Hidden state": tuple(f"hidden/{name}" for name in HIDDEN),
        "Training": ("train/loss", *(f"train/loss_{name}" for name in losses)),
    }
    return [
        ws.Section(name=title, is_open=True, panels=[_plot(name) for name in metrics])
        for title, metrics in names.items()
    ]


def _plot(metric: str) -> Any:
    """A metric during training: the mean of each variant with its standard error."""
    from wandb_workspaces.reports.v2 import interface as wr

    return wr.LinePlot(
        title=metric,
        x=STEP,
        y=[metric],
        log_y="nmse@" in metric or "loss" in metric,
        title_x="training steps",
        groupby=wr.Config(VARIANT),
        groupby_aggfunc="mean",
        groupby_rangefunc="stderr",
        max_runs_to_show=MOST_RUNS,
    )


def _placed(panel: Any, number: int) -> Any:
    """The panel in a grid of three columns: a report does not arrange panels itself."""
    from wandb_workspaces.reports.v2 import interface as wr

    panel.layout = wr.Layout(x=8 * (number % 3), y=6 * (number // 3), w=8, h=6)
    return panel


def _errors(horizons: Sequence[int]) -> list[str]:
    return [f"{ERROR}{horizon}" for horizon in horizons]


def _filters(group: str | None) -> Any:
    """Runs of the group. wandb-workspaces handles conditions as text, and silently alters names such as lr=1."""
    from wandb_workspaces import expr

    if group is None:
        return ""
    if wrong := sorted(set(re.findall(SYMBOLS, group))):
        raise UserError(
            f"the group {group!r} cannot be filtered by because of {' '.join(wrong)}: --group takes letters, digits,"
            " spaces and . : / + _ -; leave it out, and filter in W&B"
        )
    return expr.And(expr.Metric("Group") == group)


def _config(key: str) -> Any:
    from wandb_workspaces import expr

    return expr.Config(key)


def _column(key: str) -> str:
    """W&B's name of an entry of a nested configuration."""
    first, rest = key.split(".", 1)
    return f"{first}.value.{rest}"


def _title(group: str | None) -> str:
    """A title of at most 128 characters without symbols, not even a plus: W&B takes no others."""
    title = f"worldmodel: {group or 'all runs'}, by update rule and start"
    return "".join(" " if unicodedata.category(char)[0] in "SC" else char for char in title)[:LONGEST_TITLE]


def _text(group: str | None) -> str:
    return (
        f"Runs of {'the group `' + group + '`' if group else 'all groups'}, averaged by update rule and start, with the"
        " standard error. `rollout/nmse@H` is the open-loop error H steps ahead, divided by the variance of the"
        " observations: at 1.0 a model is no better than predicting the mean; `copy_last@H`, `mean@H`, `linear@H` are"
        " the baselines' errors. A run's summary has the `last` value, of its last weights, and the `min` during"
        " training: compare the last, since the minimum is chosen in hindsight."
    )
