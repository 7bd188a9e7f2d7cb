"""Prints rows as a table and writes them as JSON."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxadv.report import tables

Row = Mapping[str, Any]


def show(title: str, rows: Sequence[Row]) -> None:
  """Prints rows that have the same keys."""
  columns = [name.replace("_", " ") for name in rows[0]]
  values = [
    [f"{v:.3g}" if isinstance(v, float) else v for v in row.values()]
    for row in rows
  ]
  print(tables.to_text(tables.Table(title, columns, values)))


def save(path: str, rows: Mapping[str, Sequence[Row]]) -> None:
  """Writes the rows of each table, whole or not at all."""
  final = pathlib.Path(path)
  temporary = final.with_name(final.name + ".tmp")
  temporary.write_text(json.dumps(rows, indent=2) + "\n")
  os.replace(temporary, final)
