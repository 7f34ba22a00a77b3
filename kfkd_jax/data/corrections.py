"""Labels that somebody corrected, read from a table such as `audit.csv`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from etils import epath

from kfkd_jax import files

# What is read of a row besides the label it corrects, by what is done about it.
_TOLD = {"drop": "suggested", "relabel": "suggested", "weight": "weight"}
WAYS = tuple(_TOLD)


class Corrections(NamedTuple):
  """What to do about which labels.

  Attributes:
    ids: int64[M] of the points, positions in the data set's split.
    given: int32[M] the labels that they are known by.
    suggested: int32[M] the labels that they should have; as given where they
      are weighted.
    weights: float32[M] what they count in the loss, 0 to 1; 1 where they are
      not weighted.
  """

  ids: np.ndarray
  given: np.ndarray
  suggested: np.ndarray
  weights: np.ndarray


def read(path: epath.PathLike, num_classes: int, way: str) -> Corrections:
  """Reads the rows of a table that correct something.

  Args:
    path: of a CSV file with the columns `index`, `given`, and `suggested` or,
      to weight labels, `weight`. Where it has `accused`, rows that say 0 there
      are passed over; else rows whose suggestion is the given label are.
    num_classes: K.
    way: one of `WAYS`.

  Raises:
    ValueError: it cannot be read as that; the line is named.
  """
  content = files.read_bytes(epath.Path(path))
  needed = ("index", "given", _TOLD[way])
  try:
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
    missing = [name for name in needed if name not in (rows.fieldnames or ())]
    if missing:
      raise ValueError(
        f"{path} has no column {missing[0]!r}; noise.correct={way!r} needs "
        f"{', '.join(needed)}"
      )
    found = [
      _numbers(path, rows.line_num, row, num_classes, way)
      for row in rows
      if _corrects(row, way)
    ]
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f"{path} is no table of corrections: {error}") from None
  columns = np.array(found, np.float64).reshape(-1, 4).T
  ids, given, suggested = columns[:3].astype(np.int64)
  values, counts = np.unique(ids, return_counts=True)
  if (counts > 1).any():
    raise ValueError(f"{path} corrects index {values[counts.argmax()]} twice")
  return Corrections(
    ids,
    given.astype(np.int32),
    suggested.astype(np.int32),
    columns[3].astype(np.float32),
  )


def _corrects(row: Mapping[str, str | None], way: str) -> bool:
  if "accused" in row:
    return (row["accused"] or "").strip().lower() not in ("0", "", "false")
  if way == "weight":
    return True
  return row["given"] != row["suggested"] or row["given"] is None


def _numbers(
  path, line: int, row, num_classes: int, way: str
) -> tuple[int, int, int, float]:
  """Index, given and suggested label, and weight of a line."""
  weighted = way == "weight"
  whole = ["index", "given", *([] if weighted else ["suggested"])]
  try:
    numbers = [int(row[name] or "") for name in whole]
  except ValueError:
    raise ValueError(
      f"{path}, line {line}: {', '.join(whole[:-1])} and {whole[-1]} must be "
      f"whole numbers, got {[row[name] for name in whole]}"
    ) from None
  index, *labels = numbers
  if not all(0 <= label < num_classes for label in labels):
    raise ValueError(
      f"{path}, line {line}: labels must lie in 0..{num_classes - 1}, got "
      f"{labels}"
    )
  if not weighted:
    return index, labels[0], labels[1], 1.0
  try:
    weight = float(row["weight"] or "")
  except ValueError:
    weight = math.nan
  if not 0 <= weight <= 1:
    raise ValueError(
      f"{path}, line {line}: weight must be a number from 0 to 1, got "
      f"{row['weight']!r}"
    )
  return index, labels[0], labels[0], weight


def places(
  path: epath.PathLike,
  corrections: Corrections,
  ids: np.ndarray,
  given: np.ndarray,
) -> np.ndarray:
  """Where the corrected points lie, int64[M], once they are found to fit.

  Args:
    path: of the corrections, for errors.
    corrections: M of them.
    ids: int64[N] of the training points.
    given: int32[N] their labels.

  Raises:
    ValueError: a point is none of these, or is known by another label.
  """
  order = np.argsort(ids, kind="stable")
  found = np.searchsorted(ids, corrections.ids, sorter=order)
  found = order[np.minimum(found, len(ids) - 1)]
  strange = ids[found] != corrections.ids
  if strange.any():
    raise ValueError(
      f"{path} corrects index {corrections.ids[strange][0]}, which is none "
      f"of the {len(ids)} training points; it is of other data, or of another "
      "split of it"
    )
  other = given[found] != corrections.given
  if other.any():
    n = int(other.argmax())
    raise ValueError(
      f"{path} says that index {corrections.ids[n]} is given as "
      f"{corrections.given[n]}, but here it is given as {given[found[n]]}; it "
      "is of other labels"
    )
  return found
