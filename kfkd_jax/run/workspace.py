"""A configuration, its directory and its data, handed along as one."""

from __future__ import annotations

import ml_collections
import numpy as np

from kfkd_jax.run import tasks

TEACHER = "teacher"


def selection_labels(
  config: ml_collections.ConfigDict, task: tasks.Task, fold: tasks.Fold
) -> np.ndarray:
  """`i32[S]` labels of the selecting points, clean or noisy as configured."""
  ledger = task.ledger
  noisy = config.selection.labels == "noisy"
  labels = (ledger.given if noisy else ledger.clean)[
    ledger.split == fold.select_split
  ]
  return labels[fold.select_rows]


def selected_on(config: ml_collections.ConfigDict, fold: tasks.Fold) -> str:
  """Says which points chose, for tables: `select (clean labels)`."""
  half = " half" if fold.select_split == "test" else ""
  return f"{fold.select_split}{half} ({config.selection.labels} labels)"
