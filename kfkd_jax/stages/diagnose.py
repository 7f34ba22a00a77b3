"""Measures what was forgotten: F_e, L_e, the null model, memorised noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kfkd_jax import files, forgetting
from kfkd_jax.answers import Answers
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
  return of_classes(forgetting.correctness(probs, labels), labels, num_classes)


def of_classes(
  correct: Any, labels: np.ndarray, num_classes: int
) -> dict[str, Any]:
  """What of `diagnose` needs no more than `correct[C, N]` and `labels[N]`."""
  by_class = forgetting.forgetting_curves_by_class(correct, labels, num_classes)
  return {
    **of_correct(correct),
    "by_class": {k: _numbers(v) for k, v in by_class._asdict().items()},
  }


def of_correct(correct: Any) -> dict[str, Any]:
  """What of `diagnose` needs no more than `correct[C, N]`."""
  correct = np.asarray(correct)
  curves = forgetting.forgetting_curves(correct)
  forget = np.asarray(curves.forget)
  worst = int(forget.argmax())
  return {
    **{k: _numbers(v) for k, v in curves._asdict().items()},
    "time_to_forget": _numbers(forgetting.time_to_forget(correct)),
    "num_examples": correct.shape[1],
    "num_wrong_at_end": int((~correct[-1]).sum()),
    "num_once_right": int(np.sum(~correct[-1] & correct.any(0))),
    "max_forget": float(forget[worst]),
    "max_forget_checkpoint": worst,
  }


def together(found: Answers) -> dict[str, Any]:
  """What the checkpoints know together, for some numbers k of them.

  `forgotten` lists the ids of those once right and wrong at the end, and
  `forgotten_share` is their share. For every number in `k`, `pass_at_k` is the
  share that one of k checkpoints at random has right, `pass_of_last` that one
  of the last k has, and `majority_of_last` that most of these answer rightly.
  Without answers, `majority_at_least` counts where more than half of them are
  right, as a vote then is.
  """
  correct = found.correct
  size = len(correct)
  forgotten = np.asarray(forgetting.forgotten(correct))
  numbers = sorted({*(2**i for i in range(size.bit_length())), size})
  numbers = [k for k in numbers if k <= size]
  found_together: dict[str, Any] = {
    "forgotten": found.ids[forgotten].tolist(),
    "forgotten_share": float(forgotten.mean()),
    "k": numbers,
    "pass_at_k": [
      float(forgetting.pass_at_k(correct, k).mean()) for k in numbers
    ],
    "pass_of_last": [float(correct[-k:].any(0).mean()) for k in numbers],
  }
  if found.answers is None:
    least = [float((correct[-k:].mean(0) > 0.5).mean()) for k in numbers]
    return {**found_together, "majority_at_least": least}
  votes = [forgetting.majority_vote(found.answers[-k:]) for k in numbers]
  right = [float((vote == found.labels).mean()) for vote in votes]
  return {**found_together, "majority_of_last": right}


def summary_together(split: dict[str, Any]) -> str:
  """One line about what `together` found of all checkpoints."""
  least = "majority_at_least" in split
  majority = split["majority_at_least" if least else "majority_of_last"]
  some = min(1, len(split["k"]) - 1)
  return (
    f"final {split['pass_of_last'][0]:.3f}, majority of all {split['k'][-1]} "
    f"{'at least ' if least else ''}{majority[-1]:.3f}, one of all right "
    f"{split['pass_of_last'][-1]:.3f}, one of {split['k'][some]} at random "
    f"{split['pass_at_k'][some]:.3f}; once right and wrong at the end "
    f"{split['forgotten_share']:.3f}"
  )


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
