"""The students of the distill stage."""

from __future__ import annotations

import numpy as np

from kfkd_jax.methods.ensemble import (
  Ensemble,
  Method,
  of_runs,
  on_first_fold,
  watching_cost,
)
from kfkd_jax.run import results, students, workspace
from kfkd_jax.run.workspace import Workspace


def _ensembles(space: Workspace) -> list[Ensemble]:
  fold = space.task.folds[0]
  on = workspace.selected_on(space.config, fold)
  found, size = [], students.student_size(space)
  for teacher in space.config.distill.teachers:
    members = float(np.count_nonzero(results.weights_of(space.path, teacher)))
    cost = 1 + watching_cost(space, fold)
    for name in students.students(space, teacher):
      cost += students.train_cost(space, members)
      found.append(of_runs(name, [name], cost, selected_on=on, size=size))
      members = size.compute  # a round's student teaches the next alone
  return found


STUDENTS = Method(on_first_fold(_ensembles))
