"""Methods over the teacher's history: nothing more is trained."""

from __future__ import annotations

import jax
import ml_collections
import numpy as np
from etils import epath

from kfkd_jax import files, forgetting, fusion
from kfkd_jax.predictions import Subset
from kfkd_jax.stages import experiment, fuse, networks
from kfkd_jax.stages.methods.ensemble import (
  Ensemble,
  Method,
  Source,
  watching_cost,
)


def _ensembles(
  config: ml_collections.ConfigDict, workdir: epath.Path, number: int
) -> list[Ensemble]:
  """Every rule that only weighs what the prediction store holds."""
  kf = fuse.weights_of(workdir, "kf", number)
  return [
    *_unchosen(config, len(kf), int(np.count_nonzero(kf)), number),
    *_by_accuracy(config, workdir, number),
    *_fused(config, workdir, number),
  ]


HISTORY = Method(_ensembles)


def _of_teacher(method, weights, cost, on="", gain=None) -> Ensemble:
  source = Source(experiment.TEACHER, np.asarray(weights, np.float32))
  return Ensemble(method, (source,), on, cost, gain)


def _unchosen(config, num_checkpoints, num_members, number) -> list[Ensemble]:
  """Rules that look at no label, with as many members as KF."""
  key = jax.random.key(experiment.stream(config, "selection", number))
  counts = (num_checkpoints, num_members)
  rules = {
    "final": fusion.final_only(num_checkpoints),
    "horizontal": fusion.horizontal(*counts),
    "fixed_jumps": fusion.fixed_jumps(*counts),
    "random_epochs": fusion.random_checkpoints(key, *counts),
  }
  return [_of_teacher(rule, weights, 1.0) for rule, weights in rules.items()]


def _by_accuracy(config, workdir, number) -> list[Ensemble]:
  """One checkpoint, chosen by its accuracy on the selecting points."""
  accuracy = select_accuracy(config, workdir, number)
  watching = watching_cost(config, workdir, number)
  on = _selected_on(config, number)
  stop = fusion.early_stopping(accuracy, patience=config.compare.patience)
  best = fusion.best_checkpoint(accuracy)
  stopped = (1 + watching) * stop.num_watched / len(accuracy)
  return [
    _of_teacher(method, weights, cost, on, weights @ accuracy - accuracy[-1])
    for method, weights, cost in (
      ("best_epoch", best, 1 + watching),
      ("early_stopping", stop.weights, stopped),
    )
  ]


def _fused(config, workdir, number) -> list[Ensemble]:
  """What the fuse stage chose."""
  folds = files.read_json(workdir / "fusion.json")["folds"]
  cost = 1 + watching_cost(config, workdir, number)
  on = _selected_on(config, number)
  return [
    _of_teacher(method, chosen["weights"], cost, on, chosen["gain"])
    for method, chosen in folds[number]["methods"].items()
  ]


def select_accuracy(
  config: ml_collections.ConfigDict, workdir: epath.Path, number: int
) -> np.ndarray:
  """`[C]` accuracy of each checkpoint on a fold's selecting points."""
  task = experiment.load_task(config)
  fold = task.folds[number]
  store = networks.predictions(workdir, experiment.TEACHER, fold.select_split)
  labels = experiment.selection_labels(config, task, fold)
  correct = forgetting.correctness(Subset(store, fold.select_rows), labels)
  return np.asarray(correct).mean(1)


def _selected_on(config, number) -> str:
  fold = experiment.load_task(config).folds[number]
  return experiment.selected_on(config, fold)
