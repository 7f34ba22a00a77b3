"""A network trained anew on the labels that the teacher's history corrects."""

from __future__ import annotations

from typing import Any

import numpy as np

from kfkd_jax import auditing, processes
from kfkd_jax.data.stored import take
from kfkd_jax.methods.ensemble import Ensemble, Method, of_runs, on_all_folds
from kfkd_jax.run import networks, objectives, results, workspace
from kfkd_jax.run.workspace import Workspace

NAME = "audit_retrain"


def _lesson(space: Workspace) -> networks.Lesson:
  """The labels that an audit leaves, or as it suggests them."""
  task = space.task
  store = results.predictions(space.path, workspace.TEACHER, "train")
  found = auditing.audit(store, task.given)
  lesson = networks.supervised(space.config)
  if space.config.baselines.audit_correct == "relabel":
    return lesson._replace(extra={"label": found.suggested})
  kept = np.flatnonzero(~found.accused)
  images: Any = take(task.images, kept)
  return lesson._replace(extra={"image": images, "label": task.given[kept]})


def _plans(space: Workspace) -> list[networks.Plan]:
  teacher = results.run_path(space.path, workspace.TEACHER)
  return [
    networks.Plan(
      NAME,
      lambda: _lesson(space),
      inputs={
        **objectives.inputs(space.config, NAME),
        "teacher": processes.on_main(results.origin_of, teacher),
      },
    )
  ]


def _ensembles(space: Workspace) -> list[Ensemble]:
  """Two trainings, and predicting the training points at every checkpoint."""
  store = results.predictions(space.path, workspace.TEACHER, "train")
  cost = 2 + len(store) / (3 * space.config.train.epochs)
  return [of_runs(NAME, [NAME], cost)]


AUDIT_RETRAIN = Method(on_all_folds(_ensembles), _plans)
