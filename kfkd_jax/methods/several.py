"""Networks trained apart: independent ensembles, at full and at equal cost."""

from __future__ import annotations

from kfkd_jax.methods.ensemble import Ensemble, Method, of_runs, on_all_folds
from kfkd_jax.run import networks, workspace
from kfkd_jax.run.workspace import Workspace


def _names(config) -> list[str]:
  return [f"independent_{m}" for m in range(1, config.compare.independent)]


def _plan(space: Workspace, name, member, changes) -> networks.Plan:
  """A network like the teacher, but for some keys."""
  return networks.Plan(
    name,
    # Some objectives go by the epochs.
    lambda: networks.supervised(space.changed(changes).config),
    inputs={},
    member=member,
    changes=changes,
  )


def _plans(space: Workspace) -> list[networks.Plan]:
  """What the ensemble needs beside the teacher, its first member."""
  return [
    _plan(space, n, m, {}) for m, n in enumerate(_names(space.config), start=1)
  ]


def _ensembles(space: Workspace) -> list[Ensemble]:
  if space.config.compare.independent == 1:
    return []
  runs = [workspace.TEACHER, *_names(space.config)]
  return [of_runs("independent", runs, len(runs))]


INDEPENDENT = Method(on_all_folds(_ensembles), _plans)


def _short_names(config) -> list[str]:
  return [f"short_{m}" for m in range(config.compare.independent)]


def _short_epochs(config) -> int:
  return max(config.train.epochs // config.compare.independent, 1)


def _short_plans(space: Workspace) -> list[networks.Plan]:
  """M networks of 1/M of the epochs, each with the whole schedule."""
  changes = {"train.epochs": _short_epochs(space.config)}
  return [
    _plan(space, name, member, changes)
    for member, name in enumerate(_short_names(space.config))
  ]


def _short_ensembles(space: Workspace) -> list[Ensemble]:
  runs = _short_names(space.config)
  cost = len(runs) * _short_epochs(space.config) / space.config.train.epochs
  return [of_runs("independent_equal_budget", runs, cost)]


EQUAL_BUDGET = Method(on_all_folds(_short_ensembles), _short_plans)
