"""Which checkpoints are meant, of which format, and in which order."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from kfkd_jax import checkpoints, history
from kfkd_jax.merging.arrays import SUFFIX as NPZ
from kfkd_jax.merging.arrays import Arrays
from kfkd_jax.merging.tensors import INDEX, Tensors
from kfkd_jax.merging.tensors import SUFFIX as SAFETENSORS

_FITS = (
  "a .safetensors or .npz file, a folder with one .safetensors file or with "
  "shards and their index, or an Orbax folder"
)


class Checkpoint(Protocol):
  """One saved network, whatever its format."""

  path: epath.Path
  leaves: dict[str, jax.ShapeDtypeStruct]

  def read(self, names: Iterable[str]) -> dict[str, np.ndarray]: ...

  def writing(
    self, path: epath.Path
  ) -> AbstractContextManager[Callable[[dict[str, np.ndarray]], None]]: ...


class Checkpoints(Sequence):
  """C checkpoints that agree in every leaf, on disk, in time order.

  `[c]` reads checkpoint c whole, as a dict of arrays by name.

  Args:
    members: C of one format.

  Attributes:
    members: as given.
    passed_over: names in the folder that are no checkpoints.
  """

  def __init__(self, members: Sequence[Checkpoint], passed_over=()):
    self.members, self.passed_over = list(members), list(passed_over)
    first = self.members[0]
    for other in self.members[1:]:
      if type(other) is not type(first):
        raise ValueError(
          f"{first.path} and {other.path} are of different formats; merge "
          "those of one"
        )
      history.check_same_leaves(
        first.leaves, other.leaves, names=(str(first.path), str(other.path))
      )
    for name, spec in first.leaves.items():
      if spec.dtype.kind == "c":
        raise ValueError(f"{first.path}: {name} is complex; nothing sums these")

  def __len__(self) -> int:
    return len(self.members)

  def __getitem__(self, c: Any) -> Any:
    return self.members[c].read(self.members[c].leaves)


def find(inputs: Sequence[epath.PathLike] | epath.PathLike) -> Checkpoints:
  """The checkpoints that are named.

  Args:
    inputs: paths in time order, or a single one: a folder of checkpoints or a
      pattern with `*`, whose numbers then give the order.
  """
  if isinstance(inputs, (str, os.PathLike)):
    inputs = [inputs]
  paths = [epath.Path(path) for path in inputs]
  passed_over: list[str] = []
  if len(paths) == 1:
    paths, passed_over = _expanded(paths[0])
  elif twice := [p for p in paths if paths.count(p) > 1]:
    raise ValueError(f"{twice[0]} is named twice")
  if len(paths) < 2:
    raise ValueError(f"{inputs[0]} is one checkpoint; merge takes two or more")
  members: list[Checkpoint] = []
  for path in paths:
    kind = _format_of(path)
    if kind is None or not path.exists():
      what = "is no checkpoint" if path.exists() else "is not there"
      raise ValueError(f"{path} {what}; one is {_FITS}")
    members.append(kind(path))
  return Checkpoints(members, passed_over)


def _expanded(path: epath.Path) -> tuple[list[epath.Path], list[str]]:
  """What a folder or a pattern holds, by the numbers in the names."""
  if not path.exists() and "*" in path.name:
    found = sorted(path.parent.glob(path.name), key=_by_numbers)
    if not found:
      raise ValueError(f"no file is named {path}")
    return found, []
  if not path.exists():
    raise ValueError(f"there is no {path}")
  if _format_of(path) is not None:
    return [path], []
  entries = sorted(path.iterdir(), key=_by_numbers) if path.is_dir() else [path]
  seen = [p for p in entries if not p.name.startswith((".", "_"))]
  found = [p for p in seen if _format_of(p) is not None]
  if not found:
    raise ValueError(f"{path} holds no checkpoint; one is {_FITS}")
  return found, [p.name for p in seen if p not in found]


def _by_numbers(path: epath.Path) -> list:
  parts = re.split(r"(\d+)", path.name)
  return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts]


def in_order(paths: Sequence[epath.Path]) -> bool:
  """Whether paths that were named one by one are as their numbers are."""
  return list(paths) == sorted(paths, key=_by_numbers)


def _format_of(path: epath.Path) -> Callable[[epath.Path], Checkpoint] | None:
  if not path.is_dir():
    of_file: dict[str, Callable] = {SAFETENSORS: Tensors, NPZ: Arrays}
    return of_file.get(path.suffix)
  if checkpoints.is_saved_tree(path):
    return checkpoints.SavedTree
  single = len(list(path.glob(f"*{SAFETENSORS}"))) == 1
  return Tensors if single or any(path.glob(INDEX)) else None
