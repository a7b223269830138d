"""`worldmodel data info | check | convert | compact`: look at a dataset, find faults, bring it into our own form."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from worldmodel.commands.parser import Parser, fail
from worldmodel.data.check.findings import Finding, check_episodes
from worldmodel.data.episode import Source
from worldmodel.data.info import describe_dataset, info_table
from worldmodel.data.manifest import MANIFEST, read_manifest
from worldmodel.data.sources import FORMATS, Alignment, open_source
from worldmodel.data.splits import split_episodes
from worldmodel.data.store import EpisodeWriter, compact
from worldmodel.errors import UserError, nearest
from worldmodel.evaluation.contact_sheet import contact_sheet

COMMANDS = {
    "info": "what a dataset holds: episodes, lengths, ranges, rates, and a picture of it",
    "check": "look for what spoils a training: shifted actions, lost last frames, leaks, ...; status 1 if there is any",
    "convert": "read any format that is known, and write it as a dataset of this program",
    "compact": "merge the files of a dataset of this program into few",
}


def main(argv: list[str]) -> None:
    """Run `worldmodel data COMMAND ...`."""
    command = argv[0] if argv else "--help"
    if command in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print("usage: worldmodel data COMMAND PATH [OPTIONS]\n")
        print("\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items()))
    elif command not in COMMANDS:
        fail(f"unknown command 'data {command}': {nearest(command, COMMANDS)}")
    else:
        run: dict[str, Callable[[argparse.Namespace], None]] = {
            "info": _info,
            "check": _check,
            "convert": _convert,
            "compact": _compact,
        }
        run[command](_parser(command).parse_args(argv[1:]))


def _parser(command: str) -> Parser:
    parser = Parser(f"worldmodel data {command}", COMMANDS[command])
    add = parser.add_argument
    add("path", type=Path, metavar="PATH", help="a folder, or an HDF5 file")
    if command != "compact":
        add("--format", choices=FORMATS, help="found out, if it is left out")
        add("--alignment", choices=get_args(Alignment), help="of npz rows: what the action of a row leads to")
        add("--schema", metavar="FILE", help="YAML that says where an HDF5 file of your own keeps what")
    match command:
        case "info":
            add("--picture", type=Path, metavar="FILE", help="write a contact sheet, or plots, as a PNG")
        case "check":
            add("--val_fraction", type=float, default=0.15, help="the split that training will make: data.val_fraction")
            add("--test_fraction", type=float, default=0.15, help="data.test_fraction")
            add("--split_seed", type=int, default=0, help="data.split_seed")
        case "convert":
            add("--out", type=Path, required=True, metavar="DIR", help="the dataset's folder, new")
            add("--append", action="store_true", help="add to the dataset that DIR holds already")
    return parser


def _open(arguments: argparse.Namespace) -> Source:
    return open_source(arguments.path, arguments.format, arguments.alignment, arguments.schema)


def _info(arguments: argparse.Namespace) -> None:
    source = _open(arguments)
    info = describe_dataset(source)
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in info_table(info):
        table.add_row(Text(name), Text(value))  # a bracket is a bracket, not a style
    Console(soft_wrap=True, highlight=False).print(table)
    if arguments.picture:
        contact_sheet(source, info).savefig(arguments.picture, dpi=110)
        print(f"picture: {arguments.picture}")


def _check(arguments: argparse.Namespace) -> None:
    source = _open(arguments)
    how = arguments.val_fraction, arguments.test_fraction, arguments.split_seed

    def splits(episodes: int) -> dict[str, Any]:
        try:
            return {str(name): indices for name, indices in split_episodes(episodes, *how).items()}
        except UserError:  # too few to split: then nothing can leak either
            return {}

    found = check_episodes(source, splits)
    console = Console(soft_wrap=True, highlight=False)
    for finding in found:
        _print(console, finding)
    errors = sum(finding.level == "error" for finding in found)
    if not found:
        console.print(f"{arguments.path}: nothing found. (A shift can hide where actions hardly matter, or answer what")
        console.print("is seen: where you know a trajectory, hold it against `worldmodel data info --picture`.)")
    else:
        console.print(f"{arguments.path}: {errors} errors, {len(found) - errors} warnings")
    raise SystemExit(1 if errors else 0)


def _print(console: Console, finding: Finding) -> None:
    colour = "red" if finding.level == "error" else "yellow"
    console.print(f"[{colour}]{finding.level}[/{colour}] {finding.check}: ", end="")
    console.print(f"{finding.where}: {finding.what}", markup=False)
    console.print(f"      {finding.remedy}", markup=False)


def _convert(arguments: argparse.Namespace) -> None:
    source = _open(arguments)
    about = {
        "env_id": source.provenance.get("env_id"),
        "converted": {"name": source.path.name, "format": source.format, "alignment": source.alignment},
        "source": {key: value for key, value in source.provenance.items() if key != "env_id"},
    }
    there = arguments.append and (arguments.out / MANIFEST).exists()
    earlier = read_manifest(arguments.out).get("converted", []) if there else []
    spaces = {"observation_space": source.observation_space, "action_space": source.action_space}
    writer = EpisodeWriter(arguments.out, about | spaces, append=arguments.append)
    writer.manifest["converted"] = [*earlier, about["converted"]]
    columns = (TextColumn("converting {task.description}"), BarColumn(), TextColumn("{task.completed} episodes"))
    try:
        with Progress(*columns, TimeElapsedColumn(), transient=True) as progress:
            task = progress.add_task(source.path.name, total=None)
            for name, episode in source.episodes():
                try:
                    writer.add(episode)
                except UserError as error:
                    raise UserError(f"{source.path}: {name}: {error}") from None
                progress.advance(task)
        if not writer.manifest["files"] and not writer.waiting:
            raise UserError(f"{source.path} holds no episodes")
    except BaseException as error:
        writer.close()
        if isinstance(error, UserError):
            raise UserError(f"{error}; the {writer.episodes} episodes before it are in {arguments.out}") from error
        raise
    manifest = writer.finish()
    print(f"{arguments.out} holds {manifest['episodes']} episodes, {manifest['steps']} steps")
    print(f"train on it: worldmodel fit --config conf/quickstart.yaml --data.path {arguments.out} --data.collect null")


def _compact(arguments: argparse.Namespace) -> None:
    manifest = compact(arguments.path)
    sizes = sum(entry["bytes"] for entry in manifest["files"])
    print(f"{arguments.path}: {manifest['episodes']} episodes in {len(manifest['files'])} files, {sizes / 1e6:.1f} MB")
