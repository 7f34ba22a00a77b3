"""Objectives of students whose teacher's outputs the training set carries.

`teacher_probs` are the fused teacher's probabilities on the clean view of every
training image, `teacher_features` its features.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
from jax import lax

from kfkd_jax import losses
from kfkd_jax.parallel import DATA_AXIS
from kfkd_jax.training.objective import Batch, Gate, Objective


def gated(
  *,
  label_weight: float = 1.0,
  temperature: float = 4.0,
  threshold: float = 0.0,
  by_group: bool = False,
) -> Objective:
  """SCKD: the teacher is heard in a step only where it helps the labels.

  Zhu and Wang 2021. The teacher's term counts if the cosine of its gradient
  with that of the labels' term is above `threshold`.

  Args:
    label_weight: of the cross entropy with the given labels.
    temperature: softens teacher and student.
    threshold: called phi.
    by_group: decide for each top-level group of parameters by itself.
  """

  def teacher(logits, batch):
    return losses.distillation(
      logits, batch["teacher_probs"], temperature=temperature
    )

  return Objective(
    _beside_labels(label_weight, lambda logits, batch: 0.0),
    gate=Gate(teacher, threshold=threshold, by_group=by_group),
  )


def decoupled(
  *,
  label_weight: float = 1.0,
  weights: tuple[float, float] = (1.0, 8.0),
  temperature: float = 4.0,
) -> Objective:
  """DKD: the label's class and the others, each with a weight of its own."""

  def teacher(logits, batch):
    return losses.decoupled_distillation(
      logits,
      batch["teacher_probs"],
      batch["label"],
      label_weight=weights[0],
      other_weight=weights[1],
      temperature=temperature,
    )

  return Objective(_beside_labels(label_weight, teacher))


def standardized(
  *,
  label_weight: float = 1.0,
  weight: float = 9.0,
  temperature: float = 2.0,
) -> Objective:
  """Distillation of standardised logits."""

  def teacher(logits, batch):
    return weight * losses.standardized_distillation(
      logits, batch["teacher_probs"], temperature=temperature
    )

  return Objective(_beside_labels(label_weight, teacher))


def correlated(
  *,
  label_weight: float = 1.0,
  weights: tuple[float, float] = (2.0, 2.0),
  temperature: float = 4.0,
) -> Objective:
  """DIST: correlations between classes and between the examples of a batch."""

  def teacher(logits, batch):
    # Gradients flow back through the gather, so every device needs only the
    # loss of its own rows.
    everyone = losses.correlation_distance(
      _whole(logits),
      _whole(batch["teacher_probs"]),
      _whole(batch["weight"]),
      between_classes=weights[0],
      between_examples=weights[1],
      temperature=temperature,
    )
    return _own(everyone, batch)

  return Objective(_beside_labels(label_weight, teacher))


def relational(
  *,
  label_weight: float = 1.0,
  weights: tuple[float, float] = (25.0, 50.0),
) -> Objective:
  """RKD: distances and angles between the features of a batch's examples.

  Every device relates the whole batch, so angles take the cube of its size.

  Args:
    label_weight: of the cross entropy with the given labels.
    weights: of the distances and of the angles.
  """

  def teacher(logits, batch):
    del logits
    relations = (losses.relational_distances, losses.relational_angles)
    arrays = [
      _whole(batch[name]) for name in ("features", "teacher_features", "weight")
    ]
    return sum(
      weight * _own(relation(*arrays), batch)
      for weight, relation in zip(weights, relations, strict=True)
      if weight
    )

  return Objective(_beside_labels(label_weight, teacher), features=True)


def _beside_labels(
  label_weight: float, teacher: Callable[[chex.Array, Batch], chex.Array]
) -> Callable[[chex.Array, Batch], chex.Array]:
  def loss(logits, batch):
    given = losses.cross_entropy(logits, batch["label"])
    return label_weight * given + teacher(logits, batch)

  return loss


def _whole(rows: chex.Array) -> chex.Array:
  """The rows of all devices, in the order of the global batch."""
  return lax.all_gather(rows, DATA_AXIS, tiled=True)


def _own(rows: chex.Array, batch: Batch) -> chex.Array:
  """The part of this device of what was computed for all."""
  size = len(batch["weight"])
  # As `all_gather` with `tiled=True` has put the devices' rows together.
  start = lax.axis_index(DATA_AXIS) * size
  return lax.dynamic_slice_in_dim(rows, start, size)
