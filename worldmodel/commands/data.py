"""`worldmodel data info | check | convert | compact`: look at a dataset, find faults, bring it into our own form."""

import argparse
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from worldmodel.arguments import Parser, fail
from worldmodel.data.check import Finding, check_episodes
from worldmodel.data.episode import Episode, Source
from worldmodel.data.growth import Growth
from worldmodel.data.info import describe_dataset, info_table
from worldmodel.data.manifest import MANIFEST, read_manifest
from worldmodel.data.readers import FORMATS, OPTIONS, Alignment, open_source
from worldmodel.data.splits import split_episodes
from worldmodel.data.writer import BEFORE, EpisodeWriter, compact
from worldmodel.errors import UserError, nearest
from worldmodel.evaluation.contact_sheet import contact_sheet
from worldmodel.evaluation.figures import save
from worldmodel.runs.display import Display, console
from worldmodel.runs.files import check_readable

OWN = ("collect", "collected", "env_entry_point", "versions", "render")  # keys of a manifest that convert keeps
COMMANDS = {
    "info": "show what a dataset holds: episodes, lengths, ranges, rates, and a picture of it",
    "check": "look for faults that spoil training: shifted actions, lost final frames, leaks, ...; status 1 on errors",
    "convert": "write a dataset of any known format in this program's form",
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
        run = {"info": _info, "check": _check, "convert": _convert, "compact": _compact}[command]
        run(_parser(command).parse_args(argv[1:]))


def _parser(command: str) -> Parser:
    parser = Parser(f"worldmodel data {command}", COMMANDS[command])
    add = parser.add_argument
    add(
        "path",
        type=Path,
        metavar="PATH",
        help="Dataset: a folder, a file (HDF5, npz, zarr, CSV, Parquet, MATLAB), or 'DIR/*.csv'.",
    )
    if command != "compact":
        known = f"Format of the dataset, recognised if omitted: {', '.join(FORMATS)}, or your own reader, file.py:name."
        add("--format", metavar="FORMAT", help=known)
        add("--alignment", choices=get_args(Alignment), help="Whether an action in .npz follows its row, or led to it.")
        add("--schema", metavar="FILE", help="YAML file that says what your own file of arrays or table holds where.")
        add("--observations", metavar="KEYS", help="Keys to read, as info lists them, with commas between: state,tip.")
        add("--skip", metavar="KEYS", help="Keys to leave out, by name, group or pattern: images.*,depth.")
        add("--action", metavar="NAMES", help="What is the action in the files; several are put side by side.")
        add("--reward", metavar="NAME", help="What is the reward in the files.")
        add("--image_crop", metavar="T,L,H,W", help="Part of every image to keep: top, left, height, width in pixels.")
        add("--image_size", metavar="SIZE", help="Size to scale images to: 64, or height and width: 64,96.")
        add("--rename", metavar="OLD=NEW", help="Other names for keys, with commas between: a=b,c=d.")
    match command:
        case "info":
            add("--picture", type=Path, metavar="FILE", help="PNG file for frames or curves of a few episodes.")
        case "check":
            add("--val_fraction", type=float, default=0.15, help="Validation's share of the training to come.")
            add("--test_fraction", type=float, default=0.15, help="Test's share of the training to come.")
            add("--split_seed", type=int, default=0, help="Seed of the split of the training to come.")
        case "convert":
            add("--out", type=Path, required=True, metavar="DIR", help="Folder to write to; new, unless --append.")
            add("--append", action="store_true", help="Add to the dataset that DIR already holds.")
    return parser


def _open(arguments: argparse.Namespace) -> Source:
    return open_source(arguments.path, **{name: getattr(arguments, name) for name in OPTIONS})


def _counted(source: Source, display: Display) -> Source:
    """The source, whose episodes are counted by the display as they are read."""

    def episodes() -> Iterator[tuple[str, Episode]]:
        for named in source.episodes():
            display.advance()
            yield named

    return replace(source, episodes=episodes)


def _info(arguments: argparse.Namespace) -> None:
    picture = arguments.picture
    if picture and (picture.suffix != ".png" or not picture.absolute().parent.is_dir()):
        raise UserError(f"--picture {picture}: it must be a .png file in an existing folder")
    source = _open(arguments)
    with Display(f"reading {source.path.name}", None, unit="episodes") as display:
        info = describe_dataset(_counted(source, display))
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in [*info_table(info), *_notes(source)]:
        table.add_row(Text(name), Text(value))  # Text, since rich would read brackets as styles
    console().print(table)
    if picture:
        save(contact_sheet(source, info), picture)
        print(f"picture: {picture}")


def _notes(source: Source) -> list[tuple[str, str]]:
    """What a reader left out, and whether the recording is complete."""
    about = source.provenance
    notes = [("unfinished", "the recording or conversion was interrupted")] if about.get("complete") is False else []
    for key in ("dropped_transitions", "dropped_last_actions"):
        if about.get(key):
            notes.append(("dropped", f"{about[key]} last transitions: no observation follows them in the file"))
    if skipped := about.get("episodes_without_transition"):
        notes.append(("skipped", f"{_count(skipped, 'episode')} of a single row: no transition"))
    if ends := about.get("ends"):
        notes.append(("ends", ends))
    for key in ("missing", "left_out"):
        for why, names in groupby(sorted((about.get(key) or {}).items(), key=itemgetter(1)), itemgetter(1)):
            notes.append((key.replace("_", " "), f"{', '.join(name for name, _ in names)} ({why})"))
    return notes


def _check(arguments: argparse.Namespace) -> None:
    source = _open(arguments)

    def splits(episodes: int) -> dict[str, Any]:
        how = arguments.val_fraction, arguments.test_fraction, arguments.split_seed
        try:
            return {str(name): indices for name, indices in split_episodes(episodes, *how).items()}
        except UserError:  # too few to split, so nothing can leak
            return {}

    with Display(f"checking {source.path.name}", None, unit="episodes") as display:
        findings = check_episodes(_counted(source, display), splits)
    output = console()
    for note in _notes(source):
        output.print(": ".join(note))
    for finding in findings:
        _print(output, finding)
    errors = sum(finding.level == "error" for finding in findings)
    if findings:
        output.print(f"{arguments.path}: {_count(errors, 'error')}, {_count(len(findings) - errors, 'warning')}")
    else:
        output.print(f"{arguments.path}: nothing found. (A shift can hide where actions hardly matter or respond to")
        output.print("observations: if you know a trajectory, compare it with `worldmodel data info --picture`.)")
    raise SystemExit(1 if errors else 0)


def _print(output: Console, finding: Finding) -> None:
    colour = "red" if finding.level == "error" else "yellow"
    output.print(finding.level, style=colour, end="")
    output.print(f" {finding.check}: ", end="")
    output.print(f"{finding.where}: {finding.what}")
    output.print(f"      {finding.remedy}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _convert(arguments: argparse.Namespace) -> None:
    source, out = _open(arguments), arguments.out
    about, again, done = _provenance(source, arguments)
    if done is not None:
        _print_end(out, done)
        return
    writer = EpisodeWriter(out, about, append=arguments.append, again=again)
    writer.manifest["converted"] = about["converted"]
    if arguments.append:
        earlier = {"files": len(writer.manifest["files"]), "converted": len(about["converted"]) - 1}
        writer.manifest[BEFORE] = earlier
    try:
        with Display(f"converting {source.path.name}", None, unit="episodes") as display:
            new = Growth(writer, source, about["converted"][:-1])
            for episode in new.episodes():
                writer.add(episode)
                display.advance()
        writer.flush()
        if not writer.episodes:
            raise UserError(f"{source.path} holds no episodes{f' that are not in {out}' * bool(new.record)}")
        writer.manifest["converted"][-1]["episodes"] = new.record
    except BaseException as error:
        with suppress(OSError):  # the disk may be what failed; acknowledged episodes stay
            writer.close()
        if isinstance(error, UserError | OSError):
            what = f"{out} cannot be written: {error.strerror}" if isinstance(error, OSError) else str(error)
            kept = f"; the {_count(writer.episodes, 'episode')} before it are in {out}" if writer.episodes else ""
            raise UserError(what + kept) from error
        raise
    _print_end(out, writer.finish())


def _print_end(out: Path, manifest: dict[str, Any]) -> None:
    print(f"{out} holds {_count(manifest['episodes'], 'episode')}, {_count(manifest['steps'], 'step')}")
    print(f"look at it: worldmodel data check {out}; train: worldmodel fit --data.path {out} --trainer.max_epochs 10")


def _provenance(source: Source, arguments: argparse.Namespace) -> tuple[dict[str, Any], bool, dict[str, Any] | None]:
    """The manifest of converted data: its spaces, where it comes from, and what is known of that.

    And whether the folder holds a part of it, of a conversion that was killed: then that begins again. And the manifest
    of the folder, if that holds this conversion and nothing else: then there is nothing to do.

    Raises:
        UserError: if the same data was converted into the folder before, or is that folder.
    """
    out = arguments.out
    if out.resolve() == source.path.resolve():
        raise UserError(f"{out} is the dataset to convert: choose another --out")
    there = read_manifest(out) if (check_readable(out) / MANIFEST).exists() else {}
    before, begun = there.get("converted", []), there.get(BEFORE, {"converted": 0}).get("converted")
    same = begun is not None and [past["fingerprint"] for past in before[begun:]] == [source.fingerprint]
    again = same and there["complete"] is False and (arguments.append or not begun)
    done = same and there["complete"] and there.get("collected") == source.provenance.get("collected")
    if again:
        before = before[:begun]
    elif not arguments.append:
        before = []
    if any(past["fingerprint"] == source.fingerprint for past in before):
        raise UserError(f"{source.path} was already converted into {out}: its episodes would be in it twice")
    converted = {
        "name": source.path.name,
        "format": source.format,
        "alignment": source.alignment,
        "fingerprint": source.fingerprint,
    }
    about: dict[str, Any] = {key: source.provenance[key] for key in OWN if key in source.provenance}
    if source.format != "worldmodel":
        about["source"] = dict(source.provenance)
    about |= {"env_id": source.provenance.get("env_id"), "converted": [*before, converted]}
    about |= {"observation_space": source.observation_space, "action_space": source.action_space}
    return about, again, there if done and not arguments.append else None


def _compact(arguments: argparse.Namespace) -> None:
    if check_readable(arguments.path).exists() and not (arguments.path / MANIFEST).exists():
        raise UserError(
            f"{arguments.path} is no dataset of this program, the only kind that can be compacted:"
            " convert it with `worldmodel data convert`"
        )
    manifest = compact(arguments.path)
    sizes, files = sum(entry["bytes"] for entry in manifest["files"]), _count(len(manifest["files"]), "file")
    print(f"{arguments.path}: {_count(manifest['episodes'], 'episode')} in {files}, {sizes / 1e6:.1f} MB")
