"""One network from averaged weights, its BatchNorm estimated anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from kfkd_jax import averaging, fusion, parallel, processes
from kfkd_jax.data import order, stored
from kfkd_jax.methods.ensemble import (
  Ensemble,
  Method,
  of_runs,
  on_first_fold,
  watching_cost,
)
from kfkd_jax.methods.fusions import select_accuracy
from kfkd_jax.run import (
  build,
  networks,
  results,
  streams,
  workspace,
)
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.training import evaluation

Variables = dict[str, Any]


def averaged(
  space: Workspace,
  weights: np.ndarray,
  *,
  run: str = workspace.TEACHER,
) -> Variables:
  """The weighted average of a run's checkpoints, ready to be used."""
  stacked, weights = results.read_members(space, weights, name=run)
  average = averaging.weighted_average(stacked, weights)
  return with_statistics(space)(average)


def with_statistics(
  space: Workspace,
) -> Callable[[Variables], Variables]:
  """Builds what gives a network the statistics of the training images.

  They are those of one epoch on clean views, the mean over its batches.
  """
  task = space.task
  views = build.make_views(space)
  module = build.make_module(space).clone(
    axis_name=None,
    norm_momentum=0.0,  # the statistics of a batch alone
  )

  @jax.jit
  def batch_stats(variables, images):
    _, updates = module.apply(
      variables, views.clean(images), train=True, mutable=["batch_stats"]
    )
    return updates.get("batch_stats", {})

  seeds = streams.seeds_for(space.config)
  index, weight = order.epoch_batches(
    order.epoch_order(seeds.order, 0, len(task.images)),
    space.config.train.batch_size,
  )

  def renew(variables: Variables) -> Variables:
    statistics = averaging.reestimate_batch_stats(
      batch_stats,
      variables,
      # Without the rows that fill a batch up: each image counts once.
      (task.images[r[w > 0]] for r, w in zip(index, weight, strict=True)),
    )
    return {**variables, "batch_stats": statistics}

  return renew


def _make_uniform(space: Workspace) -> None:
  """The checkpoints of `fixed_jumps`: evenly spaced, as many as KF uses."""
  kf = results.weights_of(space.path, "kf")
  kept = results.kept_checkpoints(space.path, workspace.TEACHER)
  jumps = fusion.fixed_jumps(len(kept), int(np.count_nonzero(kf)))
  weights = results.over_all(jumps, kept, len(kf))
  networks.store(space, "uniform_soup", averaged(space, weights))


def _make_greedy(space: Workspace) -> None:
  """From the `fuse.max_members` checkpoints best on the selecting points."""
  # As a list: what the main process tells the others travels as JSON.
  accuracy = np.asarray(
    processes.on_main(
      lambda: select_accuracy(space, space.task.folds[0]).tolist()
    )
  )
  best = np.argsort(accuracy, kind="stable")[-space.config.fuse.max_members :]
  kept = results.kept_checkpoints(space.path, workspace.TEACHER)
  num = len(results.predictions(space.path, workspace.TEACHER, "test"))
  candidates = results.over_all(1, kept[best], num)
  stacked, _ = results.read_members(space, candidates)
  renew = with_statistics(space)
  # The stack is in time order, `best` in order of accuracy.
  chosen = averaging.greedy_soup(
    stacked, accuracy[np.sort(best)], _scorer(space, renew)
  )
  soup = renew(averaging.weighted_average(stacked, chosen))
  networks.store(space, "greedy_soup", soup)


def _scorer(space: Workspace, renew) -> Callable[[Variables], float]:
  """Builds the accuracy of averaged weights on the first fold's points."""
  task = space.task
  fold = task.folds[0]
  labels = workspace.selection_labels(space, fold)
  mesh = parallel.data_mesh()
  predictor = evaluation.Predictor(build.make_recipe(space), mesh)
  selecting = stored.take(
    task.splits[fold.select_split].images, fold.select_rows
  )
  images = predictor.put(selecting)

  def score(variables: Variables) -> float:
    variables = parallel.replicate(renew(variables), mesh)
    return float((predictor(variables, images).argmax(-1) == labels).mean())

  return score


def _method(name: str, make, *, passes: Callable[[Any], int]):
  """The row of a soup: one network; `passes` counts those over the data."""

  def ensembles(space: Workspace) -> list[Ensemble]:
    config, fold = space.config, space.task.folds[0]
    cost = 1 + watching_cost(space, fold)
    cost += passes(config) / (3 * config.train.epochs)
    on = workspace.selected_on(config, fold)
    return [of_runs(name, [name], cost, selected_on=on)]

  return Method(on_first_fold(ensembles), make=make, made=(name,))


KF_SOUP = _method(
  "kf_soup",
  lambda space: networks.store(
    space, "kf_soup", averaged(space, results.weights_of(space.path, "kf"))
  ),
  passes=lambda config: 1,
)
UNIFORM_SOUP = _method("uniform_soup", _make_uniform, passes=lambda config: 1)
GREEDY_SOUP = _method(
  "greedy_soup", _make_greedy, passes=lambda config: config.fuse.max_members
)
