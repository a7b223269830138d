"""CSV files: a header, then rows of numbers with decimal points, separated by commas, semicolons or tabs."""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from worldmodel.errors import UserError, nearest

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
DELIMITERS = ",;\t"
BLOCK = 1 << 16  # rows parsed at once
WORDS = {"": float("nan"), "true": 1.0, "false": 0.0}


class CsvFile:
    """A CSV file as `Columns`.

    The columns in `wanted` are read together, once any of them is, and kept as float64: eight bytes a cell. Rows are
    counted from 0 without the header; blank lines are none. An empty cell is NaN, true and false are 1 and 0.

    Raises:
        UserError: if the file is damaged or no UTF-8, has no header, or a cell is no number.
    """

    def __init__(self, path: Path, wanted: Sequence[str]) -> None:
        self.path, self.wanted = path, wanted
        self.values: dict[str, np.ndarray] = {}
        with self._lines() as lines:
            _, header = next(lines, (0, ""))
        self.delimiter = max(DELIMITERS, key=header.count)
        self.header = [name.strip() for name in next(csv.reader([header], delimiter=self.delimiter), [])]
        if not any(self.header):
            raise UserError(f"{path}: it has no header: its first line must hold the names of the columns")
        if all(_number(name) is not None for name in self.header):
            raise UserError(f"{path}: its first line holds numbers; it must hold the names of the columns")

    def has(self, name: str) -> bool:
        return bool(name) and name in self.header

    def rows(self, name: str) -> int:
        self._index(name)
        return len(next(iter(self.values.values()))) if self.values else self._length

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        self._index(name)
        if start == stop:
            return np.zeros(0)
        if name not in self.values:
            self.values |= self._numbers([name, *(other for other in self.wanted if self.has(other))])
        return self.values[name][start:stop]

    def labels(self, name: str) -> np.ndarray:
        index = self._index(name)
        with self._lines() as lines:
            rows = csv.reader((line for _, line in islice(lines, 1, None)), delimiter=self.delimiter)
            return np.array([row[index].strip() if index < len(row) else "" for row in rows], dtype=str)

    def place(self, name: str, row: int) -> str:
        with self._lines() as lines:
            number, _ = next(islice(lines, row + 1, None), (0, ""))
        return f"{self.path}: row {row} (line {number}), column {name!r}"

    def sample(self, rows: int = 100) -> dict[str, bool]:
        """The names of the columns, and whether the first rows hold numbers throughout."""
        with self._lines() as lines:
            first = [line for _, line in islice(lines, 1, rows + 1)]
        cells = list(csv.reader(first, delimiter=self.delimiter))
        columns = {
            name: [row[i] if i < len(row) else "" for row in cells] for i, name in enumerate(self.header) if name
        }
        return {name: all(cell.strip() and _number(cell) is not None for cell in c) for name, c in columns.items()}

    @cached_property
    def _length(self) -> int:
        with self._lines() as lines:
            return sum(1 for _ in lines) - 1

    def _index(self, name: str) -> int:
        if not self.has(name):
            raise UserError(f"{self.path}: there is no column {name!r}; {nearest(name, filter(None, self.header))}")
        if self.header.count(name) > 1:
            raise UserError(f"{self.path}: several columns are called {name!r}: give each a name of its own")
        return self.header.index(name)

    def _numbers(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        names = list(dict.fromkeys(names))
        indices = [self._index(name) for name in names]
        how = {"delimiter": self.delimiter, "usecols": indices, "quotechar": '"', "comments": None, "ndmin": 2}
        blocks = [np.zeros((0, len(names)))]
        with self._lines() as lines:
            next(lines)
            while block := list(islice(lines, BLOCK)):
                try:
                    blocks.append(np.loadtxt((line for _, line in block), **how))
                except ValueError:  # empty cells, words, or a mistake, which is found more slowly
                    blocks.append(self._cells(block, names, indices, BLOCK * (len(blocks) - 1)))
                if len(blocks[-1]) != len(block):
                    raise UserError(f"{self.path}: a cell in quotes goes on in the next line, which is not read")
        return dict(zip(names, np.concatenate(blocks).T, strict=True))

    def _cells(self, block: list[tuple[int, str]], names: list[str], indices: list[int], first: int) -> np.ndarray:
        table = list(csv.reader((line for _, line in block), delimiter=self.delimiter))
        values = np.full((len(table), len(names)), np.nan)
        for row, cells in enumerate(table):
            for column, index in enumerate(indices):
                cell = cells[index].strip() if index < len(cells) else ""
                value = _number(cell)
                if value is None:
                    hint = (
                        " (decimals have a point, not a comma)" if _number(cell.replace(",", ".")) is not None else ""
                    )
                    raise UserError(f"{self.place(names[column], first + row)} holds {cell!r}, no number{hint}")
                values[row, column] = value
        return values

    @contextmanager
    def _lines(self) -> Iterator[Iterator[tuple[int, str]]]:
        """(number from 1, line) of each line that is not blank."""
        opened = gzip.open if self.path.suffix == ".gz" else open
        try:
            with opened(self.path, "rt", encoding="utf-8-sig", newline="") as file:
                yield ((number, line) for number, line in enumerate(file, 1) if line.strip())
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: it is not text in UTF-8: save it as such") from None
        except csv.Error as error:
            raise UserError(f"{self.path}: it cannot be read as CSV ({error})") from None
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{self.path}: it cannot be read ({error}): it is damaged") from None


def _number(cell: str) -> float | None:
    """The number in a cell, NaN if it is empty; None if it holds something else."""
    cell = cell.strip()
    if (word := WORDS.get(cell.lower())) is not None:
        return word
    try:
        return float(cell)
    except ValueError:
        return None
