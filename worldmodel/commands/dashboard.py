"""`worldmodel dashboard`: a workspace and a report in Weights & Biases that open on the comparison."""

import argparse
from pathlib import Path
from typing import Any

from worldmodel.arguments import Parser
from worldmodel.comparison.dashboard import build_report, build_workspace, specification
from worldmodel.comparison.results import write_json
from worldmodel.errors import UserError

HORIZONS = (32, 64, 160, 320, 1600)  # 1, 2, 5, 10 and 50 times the default segment


def main(argv: list[str]) -> None:
    """Parse the command line; save workspace and report, or write their specification."""
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
    """Without an account, the entity may stay open."""
    about = arguments.project, arguments.entity or "", arguments.group, arguments.horizons
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
    about: Any = (arguments.project, arguments.entity or _account(), arguments.group, arguments.horizons)
    try:
        workspace = build_workspace(*about).save()
        print(f"workspace: {workspace.url}")
        report = build_report(*about, workspace_url=workspace.url)
        report.save()
        print(f"report: {report.url}")
    except (WandbError, OSError, ValueError) as error:
        raise UserError(_cannot(error)) from error


def _account() -> str:
    """The entity that the account writes to."""
    import wandb
    from wandb.errors import Error as WandbError

    try:
        entity = wandb.Api(timeout=10).default_entity
    except (WandbError, OSError, ValueError) as error:
        raise UserError(_cannot(error)) from error
    if not entity:
        raise UserError("the W&B account has no default entity: say whose project it is with --entity")
    return entity


def _cannot(error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
    return f"W&B cannot be used: {reason}; log in with `wandb login`, or write the specification with --spec FILE"


def _parser() -> Parser:
    parser = Parser("worldmodel dashboard", "Make a workspace and a report in Weights & Biases that compare the rules.")
    add = parser.add_argument
    add("--project", required=True, metavar="P", help="as given to fit --project")
    add("--entity", metavar="E", help="the user or team that owns it; left out: the account's own")
    add("--group", metavar="G", help="only runs of this experiment or comparison; left out: all")
    add("--horizons", type=_horizons, default=list(HORIZONS), metavar="H,H", help="of rollout/nmse@H")
    add("--spec", type=Path, metavar="FILE", help="write the specification as JSON; needs neither account nor network")
    return parser


def _horizons(text: str) -> list[int]:
    try:
        horizons = [int(part) for part in text.split(",")]
    except ValueError:
        horizons = [0]
    if min(horizons) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of steps such as 32,64,160")
    return horizons
