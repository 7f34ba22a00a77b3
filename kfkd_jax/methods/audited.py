"""What mending is worth: trained anew on labels that an audit corrects.

The network is trained once, whichever of its rows are asked for: as it ends,
with its own history fused, and that fusion distilled.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kfkd_jax import auditing, fusion, processes
from kfkd_jax import config as config_lib
from kfkd_jax.data.stored import take
from kfkd_jax.methods.ensemble import (
  Ensemble,
  Method,
  Source,
  of_runs,
  on_all_folds,
  on_first_fold,
  watching_cost,
)
from kfkd_jax.predictions import Subset
from kfkd_jax.run import networks, objectives, results, students, workspace
from kfkd_jax.run.tasks import Fold
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.training import objective

NAME = "audit_retrain"
FUSED = "audit_retrain_kf"
DISTILLED = "audit_retrain_kd"


def _plan(space: Workspace) -> networks.Plan:
  def lesson() -> networks.Lesson:
    """The labels that an audit leaves, as it suggests or as it trusts them."""
    task = space.task
    store = results.predictions(space.path, workspace.TEACHER, "train")
    found = auditing.audit(store, task.given)
    given = networks.supervised(space.config)
    way, labels = space.config.baselines.audit_correct, task.taught()
    if way == "relabel":
      return given._replace(extra={**labels, "label": found.suggested})
    if way == "weight":
      trust = auditing.trust(found) * labels.get("trust", np.float32(1))
      return given._replace(extra={**labels, "trust": trust})
    kept = np.flatnonzero(~found.accused)
    images: Any = take(task.images, kept)
    return given._replace(extra={"image": images, **task.taught(kept)})

  teacher = results.run_path(space.path, workspace.TEACHER)
  return networks.Plan(
    NAME,
    lesson,
    inputs={
      **objectives.inputs(space.config, NAME),
      "teacher": processes.on_main(results.origin_of, teacher),
    },
    keep_history=True,
  )


def _weights(space: Workspace, fold: Fold) -> np.ndarray:
  """Knowledge Fusion of the network's own history, `f32[C]`."""
  store = results.predictions(space.path, NAME, fold.select_split)
  kept = results.kept_checkpoints(space.path, NAME)
  chosen = fusion.knowledge_fusion(
    Subset(store, fold.select_rows, kept),
    workspace.selection_labels(space, fold),
    window=space.config.fuse.window,
    num_epsilons=space.config.fuse.num_epsilons,
    max_members=space.config.fuse.max_members,
  )
  return results.over_all(chosen.weights, kept, len(store))


def _student_plan(space: Workspace) -> networks.Plan:
  def lesson() -> networks.Lesson:
    """What the fusion says of every training point, dropped ones too."""
    weights = _weights(space, space.task.folds[0])
    stacked, weights = results.read_members(space, weights, name=NAME)
    probs = students.teacher_probs(space, stacked, weights, space.task.images)
    # With labels, which the objective does not read: what a table of
    # corrections says that they count is not said of a teacher's.
    extra = {"label": space.task.given, "teacher_probs": np.asarray(probs)}
    return networks.Lesson(objective.cached_distillation(), extra=extra)

  return networks.Plan(
    DISTILLED,
    lesson,
    inputs={
      "student": networks.origin(space.config, _plan(space)),
      # Chosen here and not by the fuse stage, but by the keys of that one.
      "fuse": config_lib.deciding(space.config, "fuse"),
    },
    changes=students.student_changes(space.config),
  )


def _cost(space: Workspace) -> float:
  """Two trainings, and predicting the training points at every checkpoint."""
  store = results.predictions(space.path, workspace.TEACHER, "train")
  return 2 + len(store) / (3 * space.config.train.epochs)


def _fused(space: Workspace, fold: Fold) -> list[Ensemble]:
  source = Source(NAME, _weights(space, fold))
  cost = _cost(space) + watching_cost(space, fold)
  on = workspace.selected_on(space.config, fold)
  return [Ensemble(FUSED, (source,), on, cost)]


def _distilled(space: Workspace) -> list[Ensemble]:
  fold = space.task.folds[0]
  (fused,) = _fused(space, fold)
  cost = fused.train_cost + students.taught_cost(space, fused.num_members)
  return [
    of_runs(
      DISTILLED, [DISTILLED], cost,
      selected_on=fused.selected_on, size=students.student_size(space),
    )
  ]  # fmt: skip


AUDITED = {
  NAME: Method(
    on_all_folds(lambda space: [of_runs(NAME, [NAME], _cost(space))]),
    lambda space: [_plan(space)],
  ),
  FUSED: Method(_fused, lambda space: [_plan(space)]),
  DISTILLED: Method(
    on_first_fold(_distilled),
    lambda space: [_plan(space), _student_plan(space)],
  ),
}
