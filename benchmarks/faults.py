"""What the program survives: runs the tests of each fault in full, and writes the table of docs/reliability.md.

    python benchmarks/faults.py [--rows 5,6] [--jobs 2] [--quick]

A row's tests are those marked with its number (pytest.mark.fault); they report what they saw. A row that cannot be run
here says so. In full it takes about half an hour on two cores; --rows leaves the other rows of the table as they are.
--quick runs what `make test` runs, and does not write the file.
"""

import argparse
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

import torch
from timing import machine

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- by benchmarks/faults.py -->", "<!-- end -->"
HEAD = ["| | what happens | what is promised | what was seen | on |", "|---:|---|---|---|---|"]
ROWS = {  # what happens: what is promised
    1: ("SIGKILL at random instants, during a save too", "the end is that of an uninterrupted run, bit for bit"),
    2: ("a resume at every step from 1 to 60", "the same"),
    3: ("another number of data workers", "the same stream"),
    4: ("another number of ranks", "the same batches and states a lane, losses within 1e-6"),
    5: ("a full disk", "the checkpoint before loads; an error with path and bytes"),
    6: ("a folder without permission", "an error before the first step"),
    7: ("flipped bits, files cut short", "0 silent; file and episode named"),
    8: ("the newest checkpoint damaged", "the one before is taken, and that is said"),
    9: ("NaN or infinity", "named, or left out; weights stay finite"),
    10: ("episodes of any length", "every transition once an epoch; none changes another's outputs"),
    11: ("SIGTERM, Ctrl-C, SIGUSR1", "a checkpoint within a step, status 143, 130, 138; a second one stops at once"),
    12: ("a data worker killed or hanging", "an error within 60 s, no process left"),
    13: ("one rank killed", "all end within 60 s; resumed, nothing differs"),
    14: ("W&B not there, slow, or dying", "the run ends well, metrics.csv whole"),
    15: ("two trainers or writers in one folder", "the second refused; a dead one's lock is nobody's"),
    16: ("out of memory", "the peak and the options named; the last checkpoint whole"),
    17: ("a collector killed 50 times", "no acknowledged episode lost, none half there"),
    18: ("memory over 10,000 steps, data larger than memory", "less than 1 MB more a 1000 steps"),
    19: ("a dataset replaced between two runs", "refused, unless accepted by an option"),
    20: ("a command killed at any change of a file", "the same command again finishes"),
    21: ("a fit ended in mid-epoch by anything else", "what ended it is said; resumed, nothing differs"),
    22: ("a stranger's run, checkpoint or dataset", "nothing that it names is run"),
    23: ("a changed byte in the files of a comparison or population", "named; made again, or said what to do"),
    24: ("values that float32 does not resolve", "subtracted before, or named; no error of them reported"),
}


def measured(rows: list[int], jobs: int, full: bool) -> dict[int, list[ElementTree.Element]]:
    """The test cases of each row, as pytest reports them."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "fault", f"--junitxml={report}", "-n", str(jobs)]
        command += ["--full"] if full else []
        command += ["--faults", ",".join(map(str, rows))]
        subprocess.run(command, cwd=ROOT, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    return {row: [case for case in cases if str(row) in _properties(case, "fault")] for row in rows}


def line(number: int, cases: list[ElementTree.Element]) -> str:
    """A row of the table."""
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    said = [text for case in cases for text in _properties(case, "seen")]
    said += [f"not run here: {case.find('skipped').get('message')}" for case in skipped]  # type: ignore[union-attr]
    said += [f"{len(cases)} tests"] if not said and not failed else []
    verdict = f"**FAILED**: {', '.join(map(str, failed))}" if failed or not cases else "; ".join(said)
    fault, promise = ROWS[number]
    return f"| {number} | {fault} | {promise} | {verdict} | {date.today()} |"


def write(lines: dict[int, str]) -> None:
    """Replace these rows of the table in the docs."""
    page = PAGE.read_text()
    begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    table = (row.split("|") for row in page[begin:end].splitlines() if row.startswith("| "))
    rows = {int(cells[1]): "|".join(cells) for cells in table if cells[1].strip().isdigit()} | lines
    text = "\n".join([*HEAD, *(rows[number] for number in sorted(rows))])
    PAGE.write_text(f"{page[:begin]}\n\nOn {machine()}, torch {torch.__version__}:\n\n{text}\n\n{page[end:]}")


def _properties(case: ElementTree.Element, name: str) -> list[str]:
    return [p.get("value", "") for p in case.iter("property") if p.get("name") == name]


def main() -> None:
    """Print the table, and write it to the docs; exit status 1 if a row failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="only these, such as 5,6")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the usual forms of the tests; do not write the table")
    options = parser.parse_args()
    rows = [int(row) for row in options.rows.split(",")] if options.rows else list(ROWS)
    tests = measured(rows, options.jobs, not options.quick)
    lines = {row: line(row, tests[row]) for row in rows}
    print(*HEAD, *lines.values(), sep="\n")
    if not options.quick:
        write(lines)
    raise SystemExit(any("FAILED" in row for row in lines.values()))


if __name__ == "__main__":
    main()
