"""What somebody's checkpoints answered, in any task with right and wrong.

Letters: C checkpoints in time order, N examples.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from kfkd_jax import files


class Answers(NamedTuple):
  """What somebody's checkpoints got right, in any task.

  Attributes:
    correct: `bool[C, N]`.
    answers: `[C, N]` integers or strings, None where only `correct` is known.
    labels: `[N]` of their type, None with them.
    epochs: `[C]` as in `Predictions`.
    ids: `[N]` names of the examples, or their numbers.
  """

  correct: np.ndarray
  answers: np.ndarray | None
  labels: np.ndarray | None
  epochs: np.ndarray
  ids: np.ndarray


_KINDS = {"i": "integers", "u": "integers", "U": "strings"}


def of_arrays(arrays: Mapping[str, np.ndarray]) -> Answers:
  """Checks the arrays of an `.npz`, `correct` or `answers` and `labels`."""
  name = "answers" if "answers" in arrays else "correct"
  given = native(arrays[name])
  if given.ndim != 2 or 0 in given.shape:
    raise ValueError(
      f"{name} must be [checkpoints, examples], neither of them 0; got shape "
      f"{given.shape}"
    )
  size, num = given.shape
  answers = labels = None
  if name == "correct":
    if given.dtype != bool and not np.isin(given, (0, 1)).all():
      raise ValueError(
        f"correct must hold booleans, or 0 and 1; got {given.dtype} with other "
        "values"
      )
    correct = given.astype(bool)
  else:
    answers, labels = given, native(arrays["labels"])
    kinds = [_KINDS.get(array.dtype.kind) for array in (answers, labels)]
    if labels.shape != (num,) or kinds[0] is None or kinds[0] != kinds[1]:
      raise ValueError(
        f"labels must be [{num}] and of the type of answers, integers or "
        f"strings; got {labels.dtype}{list(labels.shape)} and {answers.dtype}"
      )
    correct = answers == labels
  ids = checked_ids(arrays, num)
  epochs = arrays.get("epochs", np.arange(1, size + 1))
  return Answers(correct, answers, labels, checked_epochs(epochs, size), ids)


def checked_ids(arrays: Mapping[str, np.ndarray], num: int) -> np.ndarray:
  """What names the `num` examples; their numbers where nothing does."""
  ids = arrays.get("ids", np.arange(num))
  if ids.shape != (num,) or ids.dtype.kind not in _KINDS:
    raise ValueError(
      f"ids must be {num} integers or strings; got {ids.dtype}{list(ids.shape)}"
    )
  return ids


def read_rows(path: epath.Path) -> Answers:
  """A `.csv` or `.jsonl`, brought into the arrays that an `.npz` holds."""
  rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
  cells: dict[tuple[int, str], Any] = {}
  labels: dict[str, str] = {}
  kind = ""
  for number, row in rows:
    where = f"{path} line {number}"
    kind = kind or ("answer" if "answer" in row else "correct")
    needed = ("epoch", "example", kind, *(["label"] * (kind == "answer")))
    missing = [
      name
      for name in needed
      if row.get(name, "") in (None, "")
      # Nothing is an answer too, and is wrong.
      and (name != "answer" or name not in row)
    ]
    if missing:
      raise ValueError(
        f"{where} has no {missing[0]}; every row has epoch, example, and "
        "correct or answer and label"
      )
    place = _whole(where, row["epoch"]), _text(where, "example", row["example"])
    if place in cells:
      raise ValueError(
        f"{where}: epoch {place[0]} has example {place[1]!r} twice"
      )
    if kind == "correct":
      cells[place] = _truth(where, row["correct"])
      continue
    answer = row["answer"]
    cells[place] = "" if answer is None else _text(where, "answer", answer)
    label = _text(where, "label", row["label"])
    if labels.setdefault(place[1], label) != label:
      raise ValueError(
        f"{where}: example {place[1]!r} has label {label!r}, and "
        f"{labels[place[1]]!r} before"
      )
  epochs = sorted({epoch for epoch, _ in cells})
  ids = list(dict.fromkeys(example for _, example in cells))
  for epoch, example in itertools.product(epochs, ids):
    if (epoch, example) not in cells:
      raise ValueError(
        f"{path}: epoch {epoch} has no row for example {example!r}; every "
        "checkpoint has one for every example"
      )
  if not cells:
    raise ValueError(f"{path} has no rows")
  table = np.array([[cells[epoch, i] for i in ids] for epoch in epochs])
  arrays = {"epochs": np.array(epochs), "ids": np.array(ids)}
  if kind == "correct":
    return of_arrays({**arrays, "correct": table})
  given = np.array([labels[example] for example in ids])
  return of_arrays({**arrays, "answers": table, "labels": given})


def _csv_rows(path: epath.Path) -> Iterator[tuple[int, dict[str, Any]]]:
  reader = csv.DictReader(io.StringIO(_decoded(path), newline=""))
  try:
    for row in reader:
      yield reader.line_num, row
  except csv.Error as error:
    raise ValueError(f"{path} line {reader.line_num}: {error}") from error


def _json_rows(path: epath.Path) -> Iterator[tuple[int, dict[str, Any]]]:
  for number, line in enumerate(_decoded(path).split("\n"), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise ValueError(f"{path} line {number} is no JSON ({error})") from error
    if not isinstance(row, dict):
      raise ValueError(f"{path} line {number} is no JSON object")
    yield number, row


def _decoded(path: epath.Path) -> str:
  try:
    return files.read_bytes(path).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 ({error.reason})") from error


def _whole(where: str, value: Any) -> int:
  try:
    if isinstance(value, (str, int)) and not isinstance(value, bool):
      return int(value)
  except ValueError:
    pass
  raise ValueError(f"{where}: epoch must be a whole number, got {value!r}")


def _text(where: str, name: str, value: Any) -> str:
  """So that 3 and "3" are one answer."""
  if isinstance(value, bool) or not isinstance(value, (str, int)):
    raise ValueError(
      f"{where}: {name} must be text or a whole number, got {value!r}"
    )
  return str(value)


_TRUTHS = {"1": True, "true": True, "0": False, "false": False}


def _truth(where: str, value: Any) -> bool:
  found = _TRUTHS.get(str(value).lower())
  if found is None:
    raise ValueError(f"{where}: correct must be 0 or 1, got {value!r}")
  return found


def native(array: np.ndarray) -> np.ndarray:
  """The same numbers in this machine's byte order, which JAX asks for."""
  return array.astype(array.dtype.newbyteorder("="), copy=False)


def checked_epochs(epochs: np.ndarray, count: int) -> np.ndarray:
  """Epochs that are what they must be."""
  ascending = (
    epochs.shape == (count,)
    and np.issubdtype(epochs.dtype, np.integer)
    and bool(np.all(epochs[1:] > epochs[:-1]))
  )
  if not ascending:
    raise ValueError(
      f"epochs must be {count} ascending whole numbers, got "
      f"{epochs.dtype}{list(epochs.shape)} {epochs.ravel()[:6].tolist()}"
    )
  return epochs
