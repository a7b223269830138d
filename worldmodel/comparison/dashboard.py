"""What a project in Weights & Biases opens on: a workspace and a report in which rules are compared.

Made from names alone, by wandb-workspaces (https://docs.wandb.ai/ref/wandb_workspaces), which needs neither an account
nor a network until something is saved. It is imported only here, when it is used.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from worldmodel.errors import UserError

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import Report
    from wandb_workspaces.workspaces import Section, Workspace

STEP = "trainer/global_step"
RULE, START = "model.rule", "tbptt.start"  # of a run's configuration
VARIANT = "variant"  # rule, start and what else a comparison varies; in the configuration too
MOST_RUNS = 200  # in a panel: seven rules, two starts and some seeds must all count in the means
LONGEST_TITLE = 128
SYMBOLS = r"[^\w .:/+-]"
HIDDEN = ("norm_mean", "norm_max", "norm_growth", "delta_norm", "gate_mean", "bound_margin")


def build_workspace(project: str, entity: str, group: str | None, horizons: Sequence[int]) -> "Workspace":
    """Sections of curves that are means over the runs of a variant, and a table of the runs.

    Args:
        project: in W&B.
        entity: the user or team that owns it.
        group: only the runs of this experiment or comparison; None: all.
        horizons: H, of `rollout/nmse@H`.

    Raises:
        UserError: if the group's name has symbols that the library cannot filter by.
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
    """The same panels under a text that says how to read them.

    Args:
        project: in W&B.
        entity: the user or team that owns it.
        group: only the runs of this experiment or comparison; None: all.
        horizons: H, of `rollout/nmse@H`.
        workspace_url: that the report links to.
    """
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
    """Both as they would be sent, as plain JSON values."""
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
    """A metric over the training, the mean of each variant with its standard error."""
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
    """Three panels a row: a report does not place them itself."""
    from wandb_workspaces.reports.v2 import interface as wr

    panel.layout = wr.Layout(x=8 * (number % 3), y=6 * (number // 3), w=8, h=6)
    return panel


def _errors(horizons: Sequence[int]) -> list[str]:
    return [f"rollout/nmse@{horizon}" for horizon in horizons]


def _filters(group: str | None) -> Any:
    """wandb-workspaces writes conditions as text on the way, and changes names such as lr=1 in it without a word."""
    from wandb_workspaces import expr

    if group is None:
        return ""
    if wrong := sorted(set(re.findall(SYMBOLS, group))):
        raise UserError(
            f"the group {group!r} cannot be filtered by, for its {' '.join(wrong)}: --group takes letters, digits,"
            " spaces and . : / + _ -; leave it out, and filter in W&B"
        )
    return expr.And(expr.Metric("Group") == group)


def _config(key: str) -> Any:
    from wandb_workspaces import expr

    return expr.Config(key)


def _column(key: str) -> str:
    """How W&B names an entry of a nested configuration."""
    first, rest = key.split(".", 1)
    return f"{first}.value.{rest}"


def _title(group: str | None) -> str:
    """W&B takes no symbols in a title, be it a plus, and 128 characters."""
    title = f"worldmodel: {group or 'all runs'}, by update rule and start"
    return "".join(" " if unicodedata.category(char)[0] in "SC" else char for char in title)[:LONGEST_TITLE]


def _text(group: str | None) -> str:
    return (
        f"Runs of {'the group `' + group + '`' if group else 'all groups'}, averaged by update rule and start, with the"
        " standard error. `rollout/nmse@H` is the open-loop error H steps ahead divided by the variance of the"
        " observations: at 1.0 a model is no better than predicting the mean, and `copy_last@H` and `mean@H` say what"
        " that is worth. A run's summary has the `last` value, of the weights it ended with, and the `min` on the way:"
        " compare the last, since the least is chosen by looking."
    )
