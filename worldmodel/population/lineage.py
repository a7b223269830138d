"""What a population has done: who reported what, and who copied whom. All of it follows from files in its folder."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worldmodel.durable import whole_file

REPORTS, LINEAGE = "population.csv", "lineage.csv"


@dataclass(frozen=True)
class Told:
    """A report of a member."""

    step: int
    member: int
    score: float
    hyperparameters: Mapping[str, float]  # of the steps before


@dataclass(frozen=True)
class Exploit:
    """A member took over another's weights, optimizer and normalisers, and went on with other hyperparameters."""

    step: int
    member: int
    donor: int
    score: float
    donor_score: float
    before: Mapping[str, float]  # of the member
    after: Mapping[str, float]  # the donor's, perturbed


class Lineage:
    """Reports by step and member, exploits by the same: what comes again replaces what was there."""

    def __init__(self) -> None:
        self._reports: dict[tuple[int, int], Told] = {}
        self._exploits: dict[tuple[int, int], Exploit] = {}

    def hear(self, report: Told) -> None:
        """A member reports."""
        self._reports[report.step, report.member] = report

    def exploit(self, exploit: Exploit) -> None:
        """A member is told to take over another's weights."""
        self._exploits[exploit.step, exploit.member] = exploit

    @property
    def reports(self) -> list[Told]:
        """By step, then member."""
        return [self._reports[key] for key in sorted(self._reports)]

    @property
    def exploits(self) -> list[Exploit]:
        """By step, then member."""
        return [self._exploits[key] for key in sorted(self._exploits)]

    def last(self) -> dict[int, Told]:
        """The last report of each member."""
        return {report.member: report for report in self.reports}

    def ancestors(self, member: int) -> list[Exploit]:
        """The exploits through which a member's weights came to it, the last first."""
        path, holder = [], member
        for exploit in reversed(self.exploits):
            if exploit.member == holder:
                path.append(exploit)
                holder = exploit.donor
        return path

    def write(self, folder: Path) -> None:
        """population.csv, a row a report; lineage.csv, a row an exploit."""
        _write(
            folder / REPORTS, [{**_row(report, "hyperparameters"), **report.hyperparameters} for report in self.reports]
        )
        rows = []
        for exploit in self.exploits:
            row = _row(exploit, "before", "after")
            for when, values in (("before", exploit.before), ("after", exploit.after)):
                row |= {f"{key} {when}": value for key, value in values.items()}
            rows.append(row)
        _write(folder / LINEAGE, rows)


def _row(record: Any, *without: str) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if name not in without}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    if not rows:
        return
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_reports(folder: Path) -> list[Told]:
    """What population.csv holds; empty, where there is none."""
    return [
        Told(int(row.pop("step")), int(row.pop("member")), float(row.pop("score")), _numbers(row))
        for row in _read(folder / REPORTS)
    ]


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    return {key: float(value) for key, value in row.items()}
