"""Measures what was forgotten: F_e, L_e, the null model, memorised noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kfkd_jax import files, forgetting
from kfkd_jax.run import build, results, workspace
from kfkd_jax.run.workspace import Workspace


def run(space: Workspace) -> str:
  """Writes `diagnosis.json` from the teacher's stored predictions."""
  task = space.task
  names = build.predicted_splits(space)
  stores = {
    name: results.predictions(space.path, workspace.TEACHER, name)
    for name in names
  }
  diagnosis: dict[str, Any] = {
    "epochs": build.epochs_at(space, stores["test"].epochs),
    "class_names": list(task.class_names),
    "splits": {
      name: diagnose(store, store.labels, task.num_classes)
      for name, store in stores.items()
      if name != "train"
    },
  }
  if "train" in stores:
    memory = forgetting.memorisation(
      forgetting.predicted_classes(stores["train"]),
      task.given,
      stores["train"].labels,
    )
    diagnosis["train"] = {k: _numbers(v) for k, v in memory._asdict().items()}
  files.write_json(space.path / "diagnosis.json", diagnosis)
  return summary(diagnosis["splits"]["test"], diagnosis["epochs"])


def diagnose(
  probs: Any, labels: np.ndarray, num_classes: int
) -> dict[str, Any]:
  """Curves and counts of one split.

  Args:
    probs: `[C, N, K]`, an array or a store.
    labels: `[N]`.
    num_classes: K.

  Returns:
    `accuracy`, `forget`, `learn` and `null` as lists of C numbers, the same by
    class under `by_class`, `time_to_forget`, and the largest F_e.
  """
  correct = forgetting.correctness(probs, labels)
  curves = forgetting.forgetting_curves(correct)
  by_class = forgetting.forgetting_curves_by_class(correct, labels, num_classes)
  forget = np.asarray(curves.forget)
  worst = int(forget.argmax())
  return {
    **{k: _numbers(v) for k, v in curves._asdict().items()},
    "by_class": {k: _numbers(v) for k, v in by_class._asdict().items()},
    "time_to_forget": _numbers(forgetting.time_to_forget(correct)),
    "num_examples": len(labels),
    "num_wrong_at_end": int((~correct[-1]).sum()),
    "num_once_right": int(np.sum(~correct[-1] & correct.any(0))),
    "max_forget": float(forget[worst]),
    "max_forget_checkpoint": worst,
  }


def summary(
  split: dict[str, Any],
  epochs: Sequence[float],
  *,
  points: str = "test points",
) -> str:
  """One line about a split's diagnosis; `points` says of which."""
  worst = split["max_forget_checkpoint"]
  return (
    f"max F_e {split['max_forget']:.3f} at epoch {epochs[worst]} (null "
    f"{split['null'][worst]:.3f}); {split['num_once_right']} of the "
    f"{split['num_wrong_at_end']} {points} wrong at the end were right before"
  )


def _numbers(values: Any) -> list:
  """Plain numbers; nan (nothing to count) becomes null in JSON."""
  values = np.asarray(values)
  return np.where(np.isfinite(values), values, None).tolist()  # type: ignore
