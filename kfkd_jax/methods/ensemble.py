"""What a method is: weights over the checkpoints of one or more runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from kfkd_jax import fusion
from kfkd_jax.run import build, networks, results, workspace
from kfkd_jax.run.tasks import Fold
from kfkd_jax.run.workspace import Workspace


class Source(NamedTuple):
  """Checkpoints of one run that take part.

  Attributes:
    run: its name.
    weights: `[C]` over the checkpoints that it kept; `[1]` for the last alone.
  """

  run: str
  weights: np.ndarray

  def over(self, num_checkpoints: int) -> np.ndarray:
    """The weights over all checkpoints."""
    if len(self.weights) == 1:
      return fusion.final_only(num_checkpoints)
    return self.weights


class Ensemble(NamedTuple):
  """A method's outcome, ready to predict.

  Attributes:
    method: its slug.
    sources: whose weighted predictions are averaged, each source alike.
    selected_on: the points that chose it; "" where nothing was chosen.
    train_cost: in trainings of one network, all that the method needs.
    select_gain: gain over `final` on the selecting points; None if not chosen.
    size: of each network, in networks like the teacher's.
  """

  method: str
  sources: tuple[Source, ...]
  selected_on: str
  train_cost: float
  select_gain: float | None = None
  size: build.Size = build.SAME_SIZE

  @property
  def num_members(self) -> int:
    """Networks to keep, and to run at inference."""
    return sum(int(np.count_nonzero(s.weights)) for s in self.sources)


class Method(NamedTuple):
  """A row of the comparison, or several, that needs networks of its own.

  Attributes:
    ensembles: what it comes to on a fold.
    plans: the networks to train.
    make: computes further networks from those.
    made: the runs that it makes.
  """

  ensembles: Callable[[Workspace, Fold], list[Ensemble]]
  plans: Callable[[Workspace], list[networks.Plan]] = lambda space: []
  make: Callable[[Workspace], Any] = lambda space: None
  made: tuple[str, ...] = ()


def on_all_folds(
  ensembles: Callable[[Workspace], list[Ensemble]],
) -> Callable[[Workspace, Fold], list[Ensemble]]:
  """Of methods that choose nothing: they are the same on every fold."""
  return lambda space, fold: ensembles(space)


def on_first_fold(
  ensembles: Callable[[Workspace], list[Ensemble]],
) -> Callable[[Workspace, Fold], list[Ensemble]]:
  """Of methods that the first fold chose, which is none of the others'."""
  return lambda space, fold: [] if fold.number else ensembles(space)


def of_runs(
  method: str,
  runs: list[str],
  cost: float,
  *,
  selected_on: str = "",
  size: build.Size = build.SAME_SIZE,
) -> Ensemble:
  """The last checkpoints of some runs."""
  sources = tuple(Source(run, np.ones(1, np.float32)) for run in runs)
  return Ensemble(method, sources, selected_on, float(cost), size=size)


def predict(workdir: epath.Path, ensemble: Ensemble, split: str) -> np.ndarray:
  """Its probabilities `f32[N, K]` on a split, from the stored predictions."""
  parts = []
  for source in ensemble.sources:
    store = results.predictions(workdir, source.run, split)
    weights = source.over(len(store))
    parts.append(np.asarray(fusion.fuse(store, weights)))
  return np.mean(parts, axis=0)


def watching_cost(space: Workspace, fold: Fold) -> float:
  """Predicting a fold's selecting points at every checkpoint, in trainings.

  A training step counts as three forward passes: one forward, two back.
  """
  task = space.task
  store = results.predictions(space.path, workspace.TEACHER, "test")
  forwards = len(store) * len(fold.select_rows)
  return forwards / (3 * len(task.given) * space.config.train.epochs)
