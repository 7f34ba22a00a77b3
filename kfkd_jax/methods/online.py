"""Online fusion: the run's own past, fused, teaches it while it trains.

Before every epoch weights over the checkpoints so far are found on the
selecting points, and what these say of the training points together joins the
labels. It takes no training but the run's own, and its history is its teacher.
Rows differ in the weights: the likeliest mixture, or what each checkpoint
covers that others miss.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from kfkd_jax import files, forgetting, fusion, losses
from kfkd_jax.methods.ensemble import Ensemble, Method, of_runs, on_first_fold
from kfkd_jax.predictions import PredictionStore
from kfkd_jax.run import build, networks, objectives, results, workspace
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.training import loop, objective

_LEAST = 8  # rows that the mixture is padded to, at least


class Past(NamedTuple):
  """What the past is worth.

  Attributes:
    weights: `f32[C]` of the checkpoints so far.
    share: of it in the targets, 0 to 1.
  """

  weights: np.ndarray
  share: float


def fused_past(likelihoods: np.ndarray, correct: np.ndarray) -> Past:
  """The mixture of the checkpoints so far, and how far to trust it.

  The share is the largest part of the present mistakes that one checkpoint of
  the past got right: max_c F_c / (1 - accuracy). It is 0 while nothing has been
  forgotten and 1 when some checkpoint mends all that is wrong now.

  Args:
    likelihoods: `[C, S]` probability of each selecting point's label.
    correct: `bool[C, S]` who was right.
  """
  count, num_points = likelihoods.shape
  size = max(_LEAST, 1 << (count - 1).bit_length())
  # Few sizes mean few compilations; rows of zeros get no weight.
  padded = np.zeros((size, num_points), np.float32)
  padded[:count] = likelihoods
  weights = np.asarray(fusion.mixture_weights(padded))[:count]
  wrong = 1 - float(correct[-1].mean())
  forgotten = float(np.max(forgetting.forget_fractions(correct)))
  share = forgotten / wrong if wrong else 0.0
  return Past(weights / weights.sum(), min(share, 1.0))


def _review(space: Workspace, name: str) -> loop.Review:
  """Targets from the stores alone, so that a resumed run finds the same."""
  task = space.task
  fold = task.folds[0]
  labels = workspace.selection_labels(space, fold)
  one_hot = np.eye(task.num_classes, dtype=np.float32)[task.given]
  seen: dict[int, tuple[np.ndarray, np.ndarray]] = {}

  def judged(store: PredictionStore, epoch: int):
    if epoch not in seen:  # a checkpoint's predictions never change
      probs = store.read(epoch)[fold.select_rows]
      right = probs.argmax(-1) == labels
      # Never estimated: there is no history yet to tell the noise from.
      transition = workspace.told_noise(
        space.config, task.transition, probs[None], labels
      )
      likely = fusion.label_likelihoods(
        probs[None], labels, transition=transition
      )
      seen[epoch] = likely[0], right
    return seen[epoch]

  def review(finished: int, stores: dict[str, PredictionStore]):
    select = stores[fold.select_split]
    if not select.epochs:
      return {"teacher_probs": one_hot}
    found = [judged(select, epoch) for epoch in select.epochs]
    likelihoods, correct = (np.stack(x) for x in zip(*found, strict=True))
    if name == "online_fusion":
      past = fused_past(likelihoods, correct)
    else:
      (epoch,) = build.epochs_at(space, [finished])
      share = space.config.strategy.coverage_share
      share *= epoch / space.config.train.epochs
      past = Past(fusion.coverage(correct), share)
    told = np.asarray(fusion.fuse(stores["train"], past.weights))
    return {
      "teacher_probs": np.asarray(
        losses.blended_targets(one_hot, told, past.share)
      )
    }

  return review


def _plans(space: Workspace, name: str) -> list[networks.Plan]:
  task = space.task
  fold = task.folds[0]
  labels = workspace.selection_labels(space, fold)
  return [
    networks.Plan(
      name,
      lambda: networks.Lesson(
        objective.cached_distillation(), review=_review(space, name)
      ),
      inputs={
        "selected_on": files.digest(
          [fold.select_split, fold.select_rows.tolist(), labels.tolist()]
        ),
        "transition": space.config.fuse.transition,
      },
      changes={**objectives.PLAIN, "predictions.train": True},
      keep_history=True,
    )
  ]


def _ensembles(space: Workspace, name: str) -> list[Ensemble]:
  """One row: training, and predicting both splits at every checkpoint."""
  task = space.task
  fold = task.folds[0]
  store = results.predictions(space.path, name, fold.select_split)
  forwards = len(store) * (len(task.given) + len(fold.select_rows))
  cost = 1 + forwards / (3 * len(task.given) * space.config.train.epochs)
  on = workspace.selected_on(space.config, fold)
  return [of_runs(name, [name], cost, selected_on=on)]


ONLINE = {
  name: Method(
    on_first_fold(functools.partial(_ensembles, name=name)),
    functools.partial(_plans, name=name),
  )
  for name in ("online_fusion", "online_coverage")
}
