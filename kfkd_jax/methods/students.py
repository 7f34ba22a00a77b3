"""The students of the distill stage."""

from __future__ import annotations

import numpy as np

from kfkd_jax.methods.ensemble import Ensemble, Method, of_runs, watching_cost
from kfkd_jax.run import results, students, tasks, workspace


def _ensembles(config, workdir, number) -> list[Ensemble]:
  if number:
    return []
  on = workspace.selected_on(config, tasks.load_task(config).folds[0])
  found, size = [], students.student_size(config)
  for teacher in config.distill.teachers:
    members = float(np.count_nonzero(results.weights_of(workdir, teacher)))
    cost = 1 + watching_cost(config, workdir, 0)
    for name in students.students(config, workdir, teacher):
      cost += students.train_cost(config, members)
      found.append(of_runs(name, [name], cost, selected_on=on, size=size))
      members = size.compute  # a round's student teaches the next alone
  return found


STUDENTS = Method(_ensembles)
