"""Methods over the teacher's history: nothing more is trained."""

from __future__ import annotations

import jax
import numpy as np
from jax.typing import ArrayLike

from kfkd_jax import files, forgetting, fusion
from kfkd_jax.methods.ensemble import Ensemble, Method, Source, watching_cost
from kfkd_jax.predictions import Subset
from kfkd_jax.run import (
  results,
  streams,
  workspace,
)
from kfkd_jax.run.tasks import Fold
from kfkd_jax.run.workspace import Workspace


def _ensembles(space: Workspace, fold: Fold) -> list[Ensemble]:
  """Every rule that only weighs what the prediction store holds."""
  chosen = files.read_json(space.path / "fusion.json")["folds"][fold.number]
  cost = 1 + watching_cost(space, fold)
  on = workspace.selected_on(space.config, fold)
  return [
    *_unchosen(space, fold),
    *_by_accuracy(space, fold),
    *(
      _of_teacher(method, found["weights"], cost, on, found["gain"])
      for method, found in chosen["methods"].items()
    ),
  ]


HISTORY = Method(_ensembles)


def _of_teacher(method, weights, cost, on="", gain=None) -> Ensemble:
  """An ensemble by weights over all checkpoints, also those not kept."""
  source = Source(workspace.TEACHER, np.asarray(weights, np.float32))
  return Ensemble(method, (source,), on, float(cost), gain)


def _unchosen(space: Workspace, fold: Fold) -> list[Ensemble]:
  """Rules that look at no label, with as many members as KF."""
  key = jax.random.key(streams.stream(space.config, "selection", fold.number))
  kf = results.weights_of(space.path, "kf", fold.number)
  kept = results.kept_checkpoints(space.path, workspace.TEACHER)
  counts = (len(kept), int(np.count_nonzero(kf)))
  rules: dict[str, ArrayLike] = {
    "final": fusion.final_only(len(kept)),
    "horizontal": fusion.horizontal(*counts),
    "fixed_jumps": fusion.fixed_jumps(*counts),
    "random_epochs": fusion.random_checkpoints(key, *counts),
  }
  return [
    _of_teacher(rule, results.over_all(weights, kept, len(kf)), 1.0)
    for rule, weights in rules.items()
  ]


def _by_accuracy(space: Workspace, fold: Fold) -> list[Ensemble]:
  """One checkpoint, chosen by its accuracy on the selecting points."""
  accuracy = select_accuracy(space, fold)
  watching = watching_cost(space, fold)
  on = workspace.selected_on(space.config, fold)
  kept = results.kept_checkpoints(space.path, workspace.TEACHER)
  num = len(results.predictions(space.path, workspace.TEACHER, "test"))
  stop = fusion.early_stopping(accuracy, patience=space.config.compare.patience)
  best = fusion.best_checkpoint(accuracy)
  # It costs no more than it was trained: until its patience ended.
  stopped = (1 + watching) * (kept[stop.num_watched - 1] + 1) / num
  return [
    _of_teacher(
      method,
      results.over_all(weights, kept, num),
      cost,
      on,
      float(weights @ accuracy - accuracy[-1]),
    )
    for method, weights, cost in (
      ("best_epoch", best, 1 + watching),
      ("early_stopping", stop.weights, stopped),
    )
  ]


def select_accuracy(space: Workspace, fold: Fold) -> np.ndarray:
  """`[M]` accuracy of each kept checkpoint on a fold's selecting points."""
  store = results.predictions(space.path, workspace.TEACHER, fold.select_split)
  labels = workspace.selection_labels(space, fold)
  kept = results.kept_checkpoints(space.path, workspace.TEACHER)
  chosen = Subset(store, fold.select_rows, kept)
  return np.asarray(forgetting.correctness(chosen, labels)).mean(1)
