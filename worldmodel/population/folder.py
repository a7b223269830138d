"""A population's folder: who reported what, who copied whom, and what was decided at each exchange."""

import csv
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from worldmodel.callbacks.exchange import Report
from worldmodel.durable import intact, read_json, summed_file, write_json
from worldmodel.errors import UserError
from worldmodel.experiments.config import config_differences
from worldmodel.population.design import Population
from worldmodel.runs.folder import LOCK

CONFIG, SETTINGS, REPORTS, LINEAGE = "config.yaml", "population.json", "population.csv", "lineage.csv"
RESTORE = "restore it from a copy, or choose another --out"
PATIENCE = 60.0  # seconds that the processes of a killed population may take to end


@dataclass(frozen=True)
class Exploit:
    """A member copies another's weights, optimizer and normalisers, and goes on with other hyperparameters."""

    step: int
    member: int
    donor: int
    score: float
    donor_score: float
    before: Mapping[str, float]  # hyperparameters of the member
    after: Mapping[str, float]  # the donor's, perturbed


class Lineage:
    """Reports and exploits by step and member; a repeated one replaces the first."""

    def __init__(self) -> None:
        self._reports: dict[tuple[int, int], Report] = {}
        self._exploits: dict[tuple[int, int], Exploit] = {}

    def report(self, member: int, report: Report) -> None:
        """Add a member's report."""
        self._reports[report.step, member] = report

    def exploit(self, exploit: Exploit) -> None:
        """Add an exploit."""
        self._exploits[exploit.step, exploit.member] = exploit

    @property
    def reports(self) -> dict[tuple[int, int], Report]:
        """(step, member) -> report, in this order."""
        return dict(sorted(self._reports.items()))

    @property
    def exploits(self) -> list[Exploit]:
        """By step, then member."""
        return [self._exploits[key] for key in sorted(self._exploits)]

    def last(self) -> dict[int, Report]:
        """The last report of each member."""
        return {member: report for (_, member), report in self.reports.items()}

    def of(self, member: int) -> list[Report]:
        """A member's reports, by step."""
        return [report for (_, other), report in self.reports.items() if other == member]

    def ancestors(self, member: int) -> list[Exploit]:
        """The exploits through which a member got its weights, the last first."""
        path, holder = [], member
        for exploit in reversed(self.exploits):
            if exploit.member == holder:
                path.append(exploit)
                holder = exploit.donor
        return path

    def write(self, folder: Path) -> None:
        """Write population.csv, a row for each report, and lineage.csv, a row for each exploit."""
        reports = [
            {"step": step, "member": member, "score": report.score, **report.hyperparameters}
            for (step, member), report in self.reports.items()
        ]
        _write(folder / REPORTS, reports)
        exploits = []
        for exploit in self.exploits:
            row = asdict(exploit)
            for when in ("before", "after"):
                row |= {f"{key} {when}": value for key, value in row.pop(when).items()}
            exploits.append(row)
        _write(folder / LINEAGE, exploits)

    @classmethod
    def read(cls, folder: Path) -> "Lineage":
        """The lineage in a population's folder: reports from population.csv, exploits from the board."""
        lineage = cls()
        if (folder / REPORTS).is_file():
            with intact(folder / REPORTS, RESTORE), (folder / REPORTS).open(newline="") as file:
                reader = csv.DictReader(file)
                if list(reader.fieldnames or ())[:3] != ["step", "member", "score"]:
                    raise ValueError(f"its columns are {reader.fieldnames}")
                for row in reader:
                    step, member, score = int(row.pop("step")), int(row.pop("member")), float(row.pop("score"))
                    lineage.report(member, Report(step, score, {key: float(value) for key, value in row.items()}))
        for exploit in Board(folder).all():
            lineage.exploit(exploit)
        return lineage


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    with summed_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


class Board:
    """The decisions of a population, one file for each exchange, which the members read. None is ever changed.

    Args:
        folder: of the population.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "decisions"

    def publish(self, step: int, exploits: Iterable[Exploit]) -> None:
        """Announce the exploits of this step; all other members go on as they are."""
        self.folder.mkdir(exist_ok=True)
        write_json(self._path(step), [asdict(exploit) for exploit in exploits], summed=True)

    def read(self, step: int) -> list[Exploit] | None:
        """The exploits of this step; None if it is not decided yet."""
        try:
            with intact(self._path(step), RESTORE):
                return [Exploit(**values) for values in read_json(self._path(step))]
        except FileNotFoundError:
            return None

    def wait(self, step: int, seconds: float = 0.05) -> list[Exploit]:
        """Wait for the exploits of this step, with a look every few `seconds`."""
        while (exploits := self.read(step)) is None:
            time.sleep(seconds)
        return exploits

    def all(self) -> list[Exploit]:
        """All exploits, by step."""
        return [exploit for step in self._steps() for exploit in self.read(step) or ()]

    def last(self) -> int:
        """The last step that was decided; 0: none yet."""
        return max(self._steps(), default=0)

    def _steps(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("*.json"))

    def _path(self, step: int) -> Path:
        return self.folder / f"{step}.json"


def begin(population: Population) -> Lineage:
    """Write settings and configuration, and return what the population has done so far.

    Raises:
        UserError: if the folder holds another population or other files, or if members still train there.
    """
    out, lineage = population.out, Lineage()
    if (out / SETTINGS).is_file():
        with intact(out / SETTINGS, RESTORE):
            differences = config_differences(read_json(out / SETTINGS), population.settings, {})
        if (out / CONFIG).is_file():  # it may have been killed between the two
            with intact(out / CONFIG, RESTORE):
                before = yaml.safe_load((out / CONFIG).read_text())
                differences += config_differences(before, yaml.safe_load(population.config), population.defaults)
        if differences:
            raise UserError(f"the population in {out} differs: {'; '.join(differences[:3])}. Choose another --out")
        lineage = Lineage.read(out)
        _wait_for_members(out)
        reached = min((report.step for report in lineage.last().values()), default=0)
        print(f"continuing the population in {out} from step {reached}", flush=True)
    elif any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} holds files, but no population: choose another --out")
    write_json(out / SETTINGS, population.settings, summed=True)
    with summed_file(out / CONFIG) as temporary:
        temporary.write_text(population.config)
    return lineage


def _wait_for_members(out: Path) -> None:
    """Wait for the processes of a population whose starter was killed: they end by themselves, but not at once."""
    for lock in sorted(out.glob(f"member-*/{LOCK}")):
        try:
            FileLock(lock).acquire(timeout=PATIENCE).lock.release()
        except Timeout as error:
            raise UserError(f"another process still trains in {lock.parent}: wait for it, or stop it") from error
