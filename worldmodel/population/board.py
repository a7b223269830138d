"""What was decided at each exchange: a file a step, which the members read, and a population that was killed too."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from worldmodel.durable import whole_file
from worldmodel.population.lineage import Exploit


class Board:
    """The decisions in a population's folder. Each is made once, and never changes.

    Args:
        folder: of the population.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "decisions"

    def publish(self, step: int, exploits: Iterable[Exploit]) -> None:
        """At this step these members take over others; all others go on as they are."""
        self.folder.mkdir(exist_ok=True)
        with whole_file(self._path(step)) as temporary:
            temporary.write_text(json.dumps([asdict(exploit) for exploit in exploits], indent=1))

    def read(self, step: int) -> list[Exploit] | None:
        """What was decided at this step; None: nothing yet."""
        try:
            return [Exploit(**values) for values in json.loads(self._path(step).read_text())]
        except FileNotFoundError:
            return None

    def wait(self, step: int, seconds: float = 0.05) -> list[Exploit]:
        """The same, as soon as it is there; looks as often."""
        while (exploits := self.read(step)) is None:
            time.sleep(seconds)
        return exploits

    def all(self) -> list[Exploit]:
        """Every exploit that was decided on, by step."""
        return [exploit for step in self._steps() for exploit in self.read(step) or ()]

    def last(self) -> int:
        """The last step that was decided about; 0: none yet."""
        return max(self._steps(), default=0)

    def _steps(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("*.json"))

    def _path(self, step: int) -> Path:
        return self.folder / f"{step}.json"
