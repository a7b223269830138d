"""`worldmodel data info | check | convert | compact`: look at a dataset, find faults, bring it into our own form."""

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from worldmodel.arguments import Parser, fail
from worldmodel.data.check.findings import Finding, check_episodes
from worldmodel.data.episode import Source
from worldmodel.data.episodes import split_episodes
from worldmodel.data.info import describe_dataset, info_table
from worldmodel.data.manifest import MANIFEST, read_manifest
from worldmodel.data.sources import FORMATS, Alignment, open_source
from worldmodel.data.writer import EpisodeWriter, compact
from worldmodel.errors import UserError, nearest
from worldmodel.evaluation.contact_sheet import contact_sheet

OWN = ("collect", "collected", "env_entry_point", "versions", "render")  # of a manifest, kept by convert
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
    picture = arguments.picture
    if picture and (picture.suffix != ".png" or not picture.absolute().parent.is_dir()):
        raise UserError(f"--picture {picture}: it must be a .png file in a folder that is there")
    source = _open(arguments)
    info = describe_dataset(source)
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in [*info_table(info), *_notes(source)]:
        table.add_row(Text(name), Text(value))  # a bracket is a bracket, not a style
    Console(soft_wrap=True, highlight=False).print(table)
    if picture:
        try:
            contact_sheet(source, info).savefig(picture, dpi=110)
        except OSError as error:
            raise UserError(f"--picture {picture} cannot be written: {error.strerror}") from error
        print(f"picture: {picture}")


def _notes(source: Source) -> list[tuple[str, str]]:
    """What a reader left out, and whether the recording came to its end."""
    about = source.provenance
    notes = [("unfinished", "the recording or conversion broke off")] if about.get("complete") is False else []
    for key in ("dropped_transitions", "dropped_last_actions"):
        if about.get(key):
            notes.append(("dropped", f"{about[key]} last transitions: no observation follows them in the file"))
    return notes + ([("left out", ", ".join(about["left_out"]))] if about.get("left_out") else [])


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
    for note in _notes(source):
        console.print(": ".join(note), markup=False)
    for finding in found:
        _print(console, finding)
    errors = sum(finding.level == "error" for finding in found)
    if not found:
        console.print(f"{arguments.path}: nothing found. (A shift can hide where actions hardly matter, or answer what")
        console.print("is seen: where you know a trajectory, hold it against `worldmodel data info --picture`.)")
    else:
        console.print(f"{arguments.path}: {_number(errors, 'error')}, {_number(len(found) - errors, 'warning')}")
    raise SystemExit(1 if errors else 0)


def _print(console: Console, finding: Finding) -> None:
    colour = "red" if finding.level == "error" else "yellow"
    console.print(f"[{colour}]{finding.level}[/{colour}] {finding.check}: ", end="")
    console.print(f"{finding.where}: {finding.what}", markup=False)
    console.print(f"      {finding.remedy}", markup=False)


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _convert(arguments: argparse.Namespace) -> None:
    source, out = _open(arguments), arguments.out
    about = _provenance(source, arguments)
    writer = EpisodeWriter(out, about, append=arguments.append)
    writer.manifest["converted"] = about["converted"]
    columns = (TextColumn("converting {task.description}"), BarColumn(), TextColumn("{task.completed} episodes"))
    try:
        with Progress(*columns, TimeElapsedColumn(), transient=True, disable=not sys.stdout.isatty()) as progress:
            task = progress.add_task(source.path.name, total=None)
            for name, episode in source.episodes():
                try:
                    writer.add(episode)
                except UserError as error:
                    raise UserError(f"{source.path}: {name}: {error}") from None
                progress.advance(task)
        writer.flush()
        if not writer.episodes:
            raise UserError(f"{source.path} holds no episodes")
    except BaseException as error:
        with suppress(OSError):  # the disk may be what failed; what was acknowledged stays
            writer.close()
        if isinstance(error, UserError | OSError):
            what = f"{out} cannot be written: {error.strerror}" if isinstance(error, OSError) else str(error)
            kept = f"the {_number(writer.episodes, 'episode')} before it are in {out}" if writer.episodes else ""
            raise UserError(f"{what}; {kept}" if kept else what) from error
        raise
    manifest = writer.finish()
    print(f"{out} holds {_number(manifest['episodes'], 'episode')}, {_number(manifest['steps'], 'step')}")
    print(f"look at it: worldmodel data check {out}; train: worldmodel fit --data.path {out} --trainer.max_epochs 10")


def _provenance(source: Source, arguments: argparse.Namespace) -> dict[str, Any]:
    """The manifest of what is converted: where it comes from, and what is known of that.

    Raises:
        UserError: if the same data was converted into the folder before, or is the folder.
    """
    out, spaces = arguments.out, (source.observation_space, source.action_space)
    if out.resolve() == source.path.resolve():
        raise UserError(f"{out} is what is to be converted: choose another --out")
    there = read_manifest(out) if arguments.append and (out / MANIFEST).exists() else {}
    converted = {
        "name": source.path.name,
        "format": source.format,
        "alignment": source.alignment,
        "fingerprint": source.fingerprint,
    }
    if any(past["fingerprint"] == source.fingerprint for past in there.get("converted", [])):
        raise UserError(f"{source.path} was already converted into {out}: its episodes would be there twice")
    # of our own: where the episodes come from, and with which seeds
    own = {key: source.provenance[key] for key in OWN if key in source.provenance}
    foreign = {} if source.format == "worldmodel" else {"source": dict(source.provenance)}
    about = {"env_id": source.provenance.get("env_id"), "converted": [*there.get("converted", []), converted]}
    return own | foreign | about | dict(zip(("observation_space", "action_space"), spaces, strict=True))


def _compact(arguments: argparse.Namespace) -> None:
    if arguments.path.exists() and not (arguments.path / MANIFEST).exists():
        raise UserError(
            f"{arguments.path} is no dataset of this program, which alone can be compacted:"
            " bring it into that form with `worldmodel data convert`"
        )
    manifest = compact(arguments.path)
    sizes, files = sum(entry["bytes"] for entry in manifest["files"]), _number(len(manifest["files"]), "file")
    print(f"{arguments.path}: {_number(manifest['episodes'], 'episode')} in {files}, {sizes / 1e6:.1f} MB")
