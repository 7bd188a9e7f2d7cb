"""Prints rows as a table and writes them as JSON."""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxadv.report import tables

Row = Mapping[str, Any]


def show(title: str, rows: Sequence[Row]) -> None:
  """Prints rows that have the same keys."""
  print(tables.to_text(_table(title, rows)))


def write_markdown(path: str, title: str, rows: Sequence[Row]) -> None:
  """Writes the table that `show` prints, whole or not at all."""
  _write(path, tables.to_markdown(_table(title, rows)))


def _table(title: str, rows: Sequence[Row]) -> tables.Table:
  columns = [name.replace("_", " ") for name in rows[0]]
  values = [[_cell(value) for value in row.values()] for row in rows]
  return tables.Table(title, columns, values)


def _cell(value: Any) -> Any:
  if not isinstance(value, float):
    return value
  return None if math.isnan(value) else f"{value:.4g}"


def save(path: str, rows: Mapping[str, Sequence[Row]]) -> None:
  """Writes the rows of each table, whole or not at all."""
  _write(path, json.dumps(rows, indent=2) + "\n")


def _write(path: str, text: str) -> None:
  final = pathlib.Path(path)
  temporary = final.with_name(final.name + ".tmp")
  temporary.write_text(text)
  os.replace(temporary, final)
