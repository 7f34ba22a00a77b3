"""Strategies: other objectives of the same loop, one network a row.

`SELF_TAUGHT` need no teacher, `TAUGHT` are students of the fusion that
`strategy.teacher` names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from etils import epath

from kfkd_jax import files, losses, models, relabelling
from kfkd_jax.data import Stored
from kfkd_jax.stages import distill, experiment, fuse, networks
from kfkd_jax.stages.methods.ensemble import (
  SINGLE_IMAGES,
  Ensemble,
  Method,
  of_runs,
  watching_cost,
)
from kfkd_jax.training import objective, self_taught, taught


def _inputs(config, keys) -> dict[str, Any]:
  return {key: config.strategy[key] for key in keys}


def _self_taught(
  name: str,
  keys: tuple[str, ...],
  make: Callable[[ml_collections.ConfigDict], objective.Objective],
  **changes: Any,
) -> Method:
  """One network, trained once, that learns from itself."""

  def plans(config, workdir) -> list[networks.Plan]:
    del workdir
    return [
      networks.Plan(
        name,
        lambda: networks.Lesson(make(config)),
        inputs=_inputs(config, keys),
        **changes,
      )
    ]

  def ensembles(config, workdir, number) -> list[Ensemble]:
    del config, workdir, number
    return [of_runs(name, [name], 1.0)]

  return Method(ensembles, plans)


SELF_TAUGHT: dict[str, Method] = {
  "air": _self_taught(
    "air",
    ("air_share",),
    lambda c: self_taught.air(share=c.strategy.air_share),
  ),
  "air_soft": _self_taught(
    "air_soft",
    ("air_share",),
    lambda c: self_taught.air(hard=False, share=c.strategy.air_share),
  ),
  "air_previous": _self_taught(
    "air_previous",
    ("air_share",),
    lambda c: self_taught.air(
      hard=False, previous=True, share=c.strategy.air_share
    ),
    changes=SINGLE_IMAGES,
  ),
  "ps_kd": _self_taught(
    "ps_kd",
    ("ps_kd_share",),
    lambda c: self_taught.past_predictions(
      c.train.epochs, last_share=c.strategy.ps_kd_share
    ),
    changes=SINGLE_IMAGES,
  ),
  "self_adaptive": _self_taught(
    "self_adaptive",
    ("self_adaptive_start", "self_adaptive_decay"),
    lambda c: self_taught.self_adaptive(
      round(c.strategy.self_adaptive_start * c.train.epochs),
      decay=c.strategy.self_adaptive_decay,
    ),
    changes=SINGLE_IMAGES,
  ),
}


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


def _teaching(config, workdir) -> Teaching:
  task = experiment.load_task(config)
  weights = fuse.weights_of(workdir, config.strategy.teacher)
  stacked, weights = networks.read_members(config, workdir, weights)
  probs = distill.teacher_probs(config, stacked, weights, task.images)
  return Teaching(stacked, weights, task.images, task.given, probs)


def _taught(
  name: str,
  keys: tuple[str, ...],
  lesson: Callable[[ml_collections.ConfigDict, Teaching], networks.Lesson],
) -> Method:
  """One student of the fusion `strategy.teacher`."""

  def plans(config, workdir) -> list[networks.Plan]:
    weights = fuse.weights_of(workdir, config.strategy.teacher)
    return [
      networks.Plan(
        name,
        lambda: lesson(config, _teaching(config, workdir)),
        inputs={
          **_inputs(config, keys),
          "weights": files.digest(weights.tobytes()),
        },
        changes=distill.student_changes(config),
      )
    ]

  def ensembles(config, workdir, number) -> list[Ensemble]:
    if number:
      return []
    fold = experiment.load_task(config).folds[0]
    weights = fuse.weights_of(workdir, config.strategy.teacher)
    cost = 1 + watching_cost(config, workdir, 0)
    cost += distill.taught_cost(config, int(np.count_nonzero(weights)))
    on = experiment.selected_on(config, fold)
    size = distill.student_size(config)
    return [of_runs(name, [name], cost, selected_on=on, size=size)]

  return Method(ensembles, plans)


def _with_probs(
  make: Callable[[ml_collections.ConfigDict], objective.Objective],
) -> Callable[[ml_collections.ConfigDict, Teaching], networks.Lesson]:
  """The fused probabilities beside the given labels."""
  return lambda config, teaching: networks.Lesson(
    make(config), extra={"teacher_probs": teaching.probs}
  )


def _with_targets(
  targets: Callable[[ml_collections.ConfigDict, Teaching], Any],
) -> Callable[[ml_collections.ConfigDict, Teaching], networks.Lesson]:
  """Probabilities that stand for the labels, and nothing else."""
  return lambda config, teaching: networks.Lesson(
    objective.cached_distillation(),
    extra={"teacher_probs": np.asarray(targets(config, teaching))},
  )


def _relational(config, teaching: Teaching) -> networks.Lesson:
  lesson = taught.relational(
    label_weight=config.strategy.label_weight,
    weights=config.strategy.relational_weights,
  )
  return networks.Lesson(
    lesson, extra={"teacher_features": _features(config, teaching)}
  )


def _features(config, teaching: Teaching) -> np.ndarray:
  return distill.teacher_features(
    config, teaching.stacked, teaching.weights, teaching.images
  )


def _propagated(config, teaching: Teaching) -> np.ndarray:
  """Labels the fusion finds likely, spread over its features."""
  return propagated(
    teaching.probs,
    _features(config, teaching),
    teaching.labels,
    num_neighbours=config.strategy.neighbours,
    decay=config.strategy.propagation_decay,
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
  values = -np.log(np.maximum(likelihood, 1e-7))
  clean = relabelling.clean_probabilities(values) > 0.5
  seeds = np.eye(num_classes)[labels] * clean[:, None]
  graph = relabelling.neighbour_graph(features, num_neighbours=num_neighbours)
  return relabelling.propagate(graph, seeds, decay=decay)


_BESIDE = ("teacher", "label_weight")


def _of_two_terms(
  name: str, make: Callable[..., objective.Objective]
) -> Method:
  """A loss of two terms, whose weights are the key `<name>_weights`."""
  key = f"{name}_weights"
  return _taught(
    name,
    (*_BESIDE, "temperature", key),
    _with_probs(
      lambda c: make(
        label_weight=c.strategy.label_weight,
        weights=c.strategy[key],
        temperature=c.strategy.temperature,
      )
    ),
  )


TAUGHT: dict[str, Method] = {
  "sckd": _taught(
    "sckd",
    (*_BESIDE, "temperature", "sckd_threshold", "sckd_by_group"),
    _with_probs(
      lambda c: taught.gated(
        label_weight=c.strategy.label_weight,
        temperature=c.strategy.temperature,
        threshold=c.strategy.sckd_threshold,
        by_group=c.strategy.sckd_by_group,
      )
    ),
  ),
  "dkd": _of_two_terms("dkd", taught.decoupled),
  "dist": _of_two_terms("dist", taught.correlated),
  "standardized_kd": _taught(
    "standardized_kd",
    (*_BESIDE, "standardized_weight"),
    _with_probs(
      lambda c: taught.standardized(
        label_weight=c.strategy.label_weight,
        weight=c.strategy.standardized_weight,
      )
    ),
  ),
  "relational_kd": _taught(
    "relational_kd", (*_BESIDE, "relational_weights"), _relational
  ),
  "xi_kd": _taught(
    "xi_kd",
    ("teacher", "xi"),
    _with_targets(
      lambda c, t: losses.extrapolated_targets(t.labels, t.probs, c.strategy.xi)
    ),
  ),
  "partial_kd": _taught(
    "partial_kd",
    ("teacher",),
    _with_targets(lambda c, t: losses.partial_targets(t.probs)),
  ),
  "agreement_kd": _taught(
    "agreement_kd",
    ("teacher",),
    _with_targets(lambda c, t: losses.agreement_targets(t.labels, t.probs)),
  ),
  "propagation": _taught(
    "propagation",
    ("teacher", "neighbours", "propagation_decay"),
    _with_targets(_propagated),
  ),
}


def _pair(module):
  return models.Pair(num_classes=module.num_classes, make=module.clone)


def _mutual_plans(config, workdir) -> list[networks.Plan]:
  del workdir

  def init() -> dict[str, Any]:
    """Two times the pretrained weights, with heads of their own."""
    task = experiment.load_task(config)
    pair: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for member, place in enumerate(("first", "second")):
      seeds = experiment.seeds_for(config, member)
      found = experiment.initial_variables(config, task, seeds) or {}
      for name, tree in found.items():
        pair[name][place] = tree
    return pair

  return [
    networks.Plan(
      "mutual_pair",
      lambda: networks.Lesson(self_taught.mutual()),
      inputs={},
      changes={"train.average_decay": None},
      init=init if config.model.pretrained is not None else None,
      module=_pair,
    )
  ]


def _make_mutual(config, workdir: epath.Path) -> None:
  """Keeps the first of the two networks as a network like any other."""
  template = networks.template(config, module=_pair)
  with networks.open_history(workdir, "mutual_pair") as history:
    both = history.restore(history.steps()[-1], template)
  networks.store(config, workdir, "mutual", models.first_of(both))


def _mutual(config, workdir, number) -> list[Ensemble]:
  del config, workdir, number
  return [of_runs("mutual", ["mutual"], 2.0)]


SELF_TAUGHT["mutual"] = Method(_mutual, _mutual_plans, _make_mutual)
