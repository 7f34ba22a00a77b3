"""Students that learn from a fusion in other ways than by its probabilities.

The fusion is the one that `strategy.teacher` names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from kfkd_jax import files, losses, relabelling
from kfkd_jax.data import Stored
from kfkd_jax.methods.ensemble import (
  Ensemble,
  Method,
  of_runs,
  on_first_fold,
  watching_cost,
)
from kfkd_jax.run import (
  networks,
  objectives,
  results,
  students,
  workspace,
)
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.training import objective, taught


class Teaching(NamedTuple):
  """A fusion that teaches, and what it is asked.

  Attributes:
    stacked: the members' variables `[M, ...]`.
    weights: `[M]`.
    images: `u8[N, H, W, Ch]` of the training set, in memory or on disk.
    labels: `i32[N]` as given.
    probs: `f32[N, K]` what the fusion says about them.
  """

  stacked: dict[str, Any]
  weights: np.ndarray
  images: np.ndarray | Stored
  labels: np.ndarray
  probs: np.ndarray


def _teaching(space: Workspace) -> Teaching:
  task = space.task
  weights = results.weights_of(space.path, space.config.strategy.teacher)
  stacked, weights = results.read_members(space, weights)
  probs = students.teacher_probs(space, stacked, weights, task.images)
  return Teaching(stacked, weights, task.images, task.given, probs)


def _taught(
  name: str, lesson: Callable[[Workspace, Teaching], networks.Lesson]
) -> Method:
  """One student of the fusion `strategy.teacher`."""

  def weights_of(space: Workspace) -> np.ndarray:
    return results.weights_of(space.path, space.config.strategy.teacher)

  def plans(space: Workspace) -> list[networks.Plan]:
    return [
      networks.Plan(
        name,
        lambda: lesson(space, _teaching(space)),
        inputs={
          **objectives.inputs(space.config, name),
          # Made anew where the fusion, though asked for alike, chose otherwise.
          "weights": files.digest(weights_of(space).tobytes()),
        },
        changes=students.student_changes(space.config),
      )
    ]

  def ensembles(space: Workspace) -> list[Ensemble]:
    fold, members = space.task.folds[0], np.count_nonzero(weights_of(space))
    cost = 1 + watching_cost(space, fold)
    cost += students.taught_cost(space, int(members))
    on = workspace.selected_on(space.config, fold)
    size = students.student_size(space)
    return [of_runs(name, [name], cost, selected_on=on, size=size)]

  return Method(on_first_fold(ensembles), plans)


def _with_probs(
  make: Callable[[ml_collections.ConfigDict], objective.Objective],
) -> Callable[[Workspace, Teaching], networks.Lesson]:
  """The fused probabilities beside the given labels."""
  return lambda space, teaching: networks.Lesson(
    make(space.config), extra={"teacher_probs": teaching.probs}
  )


def _with_targets(
  targets: Callable[[Workspace, Teaching], Any],
) -> Callable[[Workspace, Teaching], networks.Lesson]:
  """Probabilities that stand for the labels, and nothing else."""
  return lambda space, teaching: networks.Lesson(
    objective.cached_distillation(),
    extra={"teacher_probs": np.asarray(targets(space, teaching))},
  )


def _features(space: Workspace, teaching: Teaching) -> np.ndarray:
  return students.teacher_features(
    space, teaching.stacked, teaching.weights, teaching.images
  )


def _propagated(space: Workspace, teaching: Teaching) -> np.ndarray:
  """Labels the fusion finds likely, spread over its features."""
  return propagated(
    teaching.probs,
    _features(space, teaching),
    teaching.labels,
    num_neighbours=space.config.strategy.neighbours,
    decay=space.config.strategy.propagation_decay,
  )


def propagated(
  probs: np.ndarray,
  features: np.ndarray,
  labels: np.ndarray,
  *,
  num_neighbours: int,
  decay: float,
) -> np.ndarray:
  """Labels of small loss, spread along the graph of neighbours.

  Args:
    probs: `[N, K]` of the teacher.
    features: `[N, F]` of the teacher.
    labels: `[N]` as given.
    num_neighbours: of each example in the graph.
    decay: how far labels reach.

  Returns:
    `f32[N, K]`.
  """
  num_classes = probs.shape[1]
  likelihood = np.take_along_axis(probs, labels[:, None], 1)[:, 0]
  # Finite, or no mixture of two normals fits them.
  values = -np.log(np.maximum(likelihood, 1e-7))
  clean = relabelling.clean_probabilities(values) > 0.5
  seeds = np.eye(num_classes)[labels] * clean[:, None]
  graph = relabelling.neighbour_graph(features, num_neighbours=num_neighbours)
  return relabelling.propagate(graph, seeds, decay=decay)


def _of_two_terms(
  make: Callable[..., objective.Objective], key: str
) -> Callable[[Workspace, Teaching], networks.Lesson]:
  """A loss of two terms, whose weights are a key of `strategy`."""
  return _with_probs(
    lambda c: make(
      label_weight=c.strategy.label_weight,
      weights=c.strategy[key],
      temperature=c.strategy.temperature,
    )
  )


LESSONS: dict[str, Callable[[Workspace, Teaching], networks.Lesson]] = {
  "sckd": _with_probs(
    lambda c: taught.gated(
      label_weight=c.strategy.label_weight,
      temperature=c.strategy.temperature,
      threshold=c.strategy.sckd_threshold,
      by_group=c.strategy.sckd_by_group,
    )
  ),
  "dkd": _of_two_terms(taught.decoupled, "dkd_weights"),
  "dist": _of_two_terms(taught.correlated, "dist_weights"),
  "standardized_kd": _with_probs(
    lambda c: taught.standardized(
      label_weight=c.strategy.label_weight,
      weight=c.strategy.standardized_weight,
    )
  ),
  "relational_kd": lambda space, t: networks.Lesson(
    taught.relational(
      label_weight=space.config.strategy.label_weight,
      weights=space.config.strategy.relational_weights,
    ),
    extra={"teacher_features": _features(space, t)},
  ),
  "xi_kd": _with_targets(
    lambda space, t: losses.extrapolated_targets(
      t.labels, t.probs, space.config.strategy.xi
    )
  ),
  "partial_kd": _with_targets(lambda space, t: losses.partial_targets(t.probs)),
  "agreement_kd": _with_targets(
    lambda space, t: losses.agreement_targets(t.labels, t.probs)
  ),
  "propagation": _with_targets(_propagated),
}
TAUGHT = {name: _taught(name, lesson) for name, lesson in LESSONS.items()}
