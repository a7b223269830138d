"""Parquet files: columns of numbers, true and false, or lists of as many numbers in every row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data.readers.parquet import need, open_parquet, readable
from worldmodel.errors import UserError, nearest

SUFFIXES = (".parquet", ".pq")


class ParquetFile:
    """A Parquet file as `Columns`.

    The columns in `wanted` are read together, once any of them is, and kept as float64; a cell without a value is NaN.

    Raises:
        UserError: if the file is damaged or declares more than it can hold, a column holds no numbers, or pyarrow is
            missing.
    """

    def __init__(self, path: Path, wanted: Sequence[str]) -> None:
        self.path, self.wanted = path, wanted
        self.values: dict[str, np.ndarray] = {}
        need("pyarrow")
        with open_parquet(path, []) as reader:
            self.schema, self.length = reader.schema_arrow, reader.metadata.num_rows

    def has(self, name: str) -> bool:
        return name in self.schema.names

    def rows(self, name: str) -> int:
        self._check(name)
        return self.length

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        self._check(name)
        if name not in self.values:
            names = list(dict.fromkeys([name, *(other for other in self.wanted if self.has(other))]))
            table = self._table(names)
            self.values |= {name: self._numbers(table[name], name) for name in names}
        return self.values[name][start:stop]

    def labels(self, name: str) -> np.ndarray:
        self._check(name)
        values = self._table([name])[name].to_pylist()
        if not all(value is None or isinstance(value, int | float | str) for value in values):
            raise UserError(f"{self.path}: the column {name!r} holds {self.schema.field(name).type}, no number or text")
        return np.array(["" if value is None else value for value in values] or np.zeros(0))

    def place(self, name: str, row: int) -> str:
        return f"{self.path}: row {row}, column {name!r}"

    def sample(self) -> dict[str, bool]:
        """The names of the columns, and whether they hold numbers."""
        return {field.name: self._is_number(field.type) for field in self.schema}

    def _check(self, name: str) -> None:
        if not self.has(name):
            raise UserError(f"{self.path}: there is no column {name!r}; {nearest(name, self.schema.names)}")

    def _table(self, names: list[str]) -> Any:
        with open_parquet(self.path, names) as reader, readable(self.path):
            return reader.read(columns=names)

    @staticmethod
    def _is_number(kind: Any) -> bool:
        types = need("pyarrow").types
        while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            kind = kind.value_type
        return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)

    def _numbers(self, column: Any, name: str) -> np.ndarray:
        """A column of N rows as float64 (N,), of lists (N, entries)."""
        pa = need("pyarrow")
        if not self._is_number(column.type):
            raise UserError(f"{self.path}: the column {name!r} holds {column.type}, not numbers")
        values, shape = column.combine_chunks(), [len(column)]
        while not pa.types.is_primitive(values.type):
            sizes = set(need("pyarrow.compute").list_value_length(values).to_pylist())
            if len(sizes) != 1 or None in sizes:
                raise UserError(
                    f"{self.path}: the column {name!r} has lists of different lengths: {sorted(map(str, sizes))}"
                )
            shape.append(sizes.pop())
            values = values.flatten()
        numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return numbers.reshape(shape)
