"""Networks trained apart: independent ensembles, at full and at equal cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_collections

from kfkd_jax.methods.ensemble import Ensemble, Method, of_runs, on_all_folds
from kfkd_jax.run import networks, workspace
from kfkd_jax.run.workspace import Workspace


def _trained_apart(
  method: str,
  stem: str,
  *,
  first: int,
  changes: Callable[[ml_collections.ConfigDict], dict[str, Any]],
) -> Method:
  """The row of M networks that differ in their random streams alone.

  Args:
    method: its slug.
    stem: of its runs' names.
    first: 1 where the teacher is one of the M, which trains anyway, else 0.
    changes: keys in which they differ from the teacher.
  """

  def names(space: Workspace) -> dict[int, str]:
    members = range(first, space.config.compare.independent)
    return {member: f"{stem}_{member}" for member in members}

  def plans(space: Workspace) -> list[networks.Plan]:
    changed = changes(space.config)
    return [
      networks.Plan(
        name,
        # Some objectives go by the epochs.
        lambda: networks.supervised(space.changed(changed).config),
        inputs={},
        member=member,
        changes=changed,
      )
      for member, name in names(space).items()
    ]

  def ensembles(space: Workspace) -> list[Ensemble]:
    runs = [*([workspace.TEACHER] * first), *names(space).values()]
    if runs == [workspace.TEACHER]:
      return []
    epochs = space.config.train.epochs
    each = changes(space.config).get("train.epochs", epochs) / epochs
    return [of_runs(method, runs, len(runs) * each)]

  return Method(on_all_folds(ensembles), plans)


INDEPENDENT = _trained_apart(
  "independent", "independent", first=1, changes=lambda config: {}
)
# M networks of 1/M of the epochs, each with the whole schedule.
EQUAL_BUDGET = _trained_apart(
  "independent_equal_budget",
  "short",
  first=0,
  changes=lambda config: {
    "train.epochs": max(config.train.epochs // config.compare.independent, 1)
  },
)
