"""A configuration, its directory and its data, handed along as one."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from kfkd_jax import auditing
from kfkd_jax import config as config_lib
from kfkd_jax.run import tasks

TEACHER = "teacher"


class Workspace:
  """A configuration, the directory it works in, and what they mean.

  Attributes:
    config: validated; nobody changes it.
    path: of the directory.
  """

  def __init__(
    self, config: ml_collections.ConfigDict, path: epath.PathLike = "."
  ):
    self.config = config
    self.path = epath.Path(path)

  @functools.cached_property
  def task(self) -> tasks.Task:
    """The data, read when first asked for."""
    return tasks.load_task(self.config)

  def changed(self, changes: Mapping[str, Any]) -> Workspace:
    """The same directory under other values of some dotted keys."""
    if not changes:
      return self
    return Workspace(config_lib.changed(self.config, changes), self.path)


def selection_labels(space: Workspace, fold: tasks.Fold) -> np.ndarray:
  """`i32[S]` labels of the selecting points, clean or noisy as configured."""
  ledger = space.task.ledger
  noisy = space.config.selection.labels == "noisy"
  labels = (ledger.given if noisy else ledger.clean)[
    ledger.split == fold.select_split
  ]
  return labels[fold.select_rows]


def selected_on(config: ml_collections.ConfigDict, fold: tasks.Fold) -> str:
  """Says which points chose, for tables: `select (clean labels)`."""
  half = " half" if fold.select_split == "test" else ""
  return f"{fold.select_split}{half} ({config.selection.labels} labels)"


def told_noise(
  config: ml_collections.ConfigDict,
  made: np.ndarray | None,
  probs: Any,
  labels: np.ndarray,
) -> np.ndarray | None:
  """What the mixture is told of the labels' noise, `[K, K]`.

  Args:
    config: its `fuse.transition` says what.
    made: the noise that was made, None where it has no matrix.
    probs: `[C, N, K]` of the selecting points.
    labels: `[N]` that they select with.
  """
  if config.fuse.transition == "estimated":
    return auditing.estimated_noise(probs, labels)
  return made if config.fuse.transition == "known" else None
