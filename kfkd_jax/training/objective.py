"""Objectives: what a network learns from. The loop is the same for all.

A training batch is a dict of per-example arrays: `image`, `label`, `index` (the
row in the training set), `weight` (0 for fill rows), `position` (the row in the
global batch) and whatever else the training set carries, such as cached
`teacher_probs`. Where it carries `trust`, an example's loss counts so much,
which no objective has to know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from kfkd_jax import history, losses
from kfkd_jax.parallel import DATA_AXIS, ENSEMBLE_AXIS, MEMBERS, REPLICATED

Batch = dict[str, chex.Array]


class Memory(NamedTuple):
  """What an objective remembers of every training example.

  It is shared out over the devices and kept in the checkpoint. A step reads
  the rows of its examples into `batch["memory"]` and writes them where their
  weight is not 0, which is once an epoch.

  Attributes:
    init: `(labels[N], K) -> tree` of arrays `[N, ...]`.
    update: `(rows, logits[B,K], batch) -> rows`, after the forward pass.
  """

  init: Callable[[np.ndarray, int], Any]
  update: Callable[[Any, chex.Array, Batch], Any]


class Gate(NamedTuple):
  """A term of the loss that is kept in a step only if it agrees.

  Attributes:
    loss: `(logits[B,K], batch) -> [B]` the term.
    threshold: least cosine between its gradient and that of the rest.
    by_group: decide for each top-level group of parameters by itself.
  """

  loss: Callable[[chex.Array, Batch], chex.Array]
  threshold: float = 0.0
  by_group: bool = False


class Objective(NamedTuple):
  """A target and a loss, both per example.

  Attributes:
    loss: `(logits[B,K], batch) -> [B]`; a module of several networks gives
      `[B, M, K]`, of which the first is the one that is scored.
    targets: `(frozen, images[B,...], batch) -> batch`, adds to the batch what
      the loss needs, computed on the augmented images that the network is
      about to see; `frozen` are arrays that stay as they are during the run.
    memory: what it remembers of every example, None for nothing.
    gate: another term of the loss, under a condition.
    features: whether the loss reads `batch["features"]`, what the network
      computes before its last layer.
    frozen_spec: where the leaves of `frozen` lie: `REPLICATED`, or `MEMBERS`
      for stacks `[M, ...]` shared out over the mesh's ensemble axis.
  """

  loss: Callable[[chex.Array, Batch], chex.Array]
  targets: Callable[[Any, chex.Array, Batch], Batch] = (
    lambda frozen, images, batch: batch
  )
  memory: Memory | None = None
  gate: Gate | None = None
  features: bool = False
  frozen_spec: PartitionSpec = REPLICATED


def batch_mean(values: chex.Array, batch: Batch) -> chex.Array:
  """The mean of per-example `values[B]` over the real rows of all devices."""
  weight = batch["weight"]
  # One collective for both.
  sums = jnp.stack([jnp.sum(values * weight), jnp.sum(weight)])
  total, count = lax.psum(sums, DATA_AXIS)
  # Of a batch without real rows the mean is 0, not NaN.
  return total / jnp.maximum(count, 1)


def supervised(*, label_smoothing: float = 0.0) -> Objective:
  """Cross entropy with the given labels."""

  def loss(logits, batch):
    return losses.cross_entropy(
      logits, batch["label"], label_smoothing=label_smoothing
    )

  return Objective(loss)


def generalised(q: float) -> Objective:
  """Generalised cross entropy with the given labels."""

  def loss(logits, batch):
    return losses.generalised_cross_entropy(logits, batch["label"], q=q)

  return Objective(loss)


def symmetric(weights: tuple[float, float]) -> Objective:
  """Symmetric cross entropy with the given labels."""

  def loss(logits, batch):
    return losses.symmetric_cross_entropy(
      logits, batch["label"], weights=weights
    )

  return Objective(loss)


def early_learning(weight: float, decay: float) -> Objective:
  """ELR: what was said of an example before holds against its label.

  The average of an example's predictions starts at zeros and is updated before
  it is used, once an epoch.
  """

  def init(labels, num_classes):
    return np.zeros((len(labels), num_classes), np.float32)

  # Called for the loss and again after it: XLA computes it once.
  def update(rows, logits, batch):
    del batch
    probs = jax.nn.softmax(logits.astype(jnp.float32))
    return decay * rows + (1 - decay) * lax.stop_gradient(probs)

  def loss(logits, batch):
    targets = update(batch["memory"], logits, batch)
    return losses.early_learning(logits, batch["label"], targets, weight=weight)

  return Objective(loss, memory=Memory(init, update))


def cached_distillation(
  *,
  alpha: float = 1.0,
  temperature: float = 1.0,
  labels: Objective | None = None,
) -> Objective:
  """Distils `teacher_probs` that the training set carries.

  Where it carries `unlabelled` too, examples whose entry is 1 learn from the
  teacher alone, whatever alpha is, and others so far as it says.

  Args:
    alpha: weight of the teacher's term; the rest goes to the labels.
    temperature: softens teacher and student.
    labels: what is learnt from the labels, by its loss and memory; None for
      cross entropy.
  """
  if labels is None:
    labels = supervised()

  def loss(logits, batch):
    weight = alpha
    if "unlabelled" in batch:
      weight = alpha + (1 - alpha) * batch["unlabelled"]
    taught = losses.distillation(
      logits, batch["teacher_probs"], temperature=temperature
    )
    return (1 - weight) * labels.loss(logits, batch) + weight * taught

  return Objective(loss, memory=labels.memory)


def live_distillation(
  apply_fn: Callable[[Any, chex.Array], chex.Array],
  *,
  hard: bool = False,
  alpha: float = 1.0,
  temperature: float = 1.0,
  labels: Objective | None = None,
) -> Objective:
  """Distils checkpoints applied to the very view that the student sees.

  `frozen` is `{"stacked": [M,...] variables, "weights": [M]}`, of which every
  device holds and runs its share (`history.pad_members` makes M divide).

  Args:
    apply_fn: `(variables, images) -> logits` of the teachers, in eval mode.
    hard: learn the fused teacher's top class instead of its probabilities.
    alpha: weight of the teacher's term; the rest goes to the labels.
    temperature: softens teacher and student.
    labels: what is learnt from the labels; None for cross entropy.
  """
  cached = cached_distillation(
    alpha=alpha, temperature=temperature, labels=labels
  )

  def targets(frozen, images, batch):
    probs = history.fused_predict(
      apply_fn, frozen["stacked"], frozen["weights"], images
    )
    # Each device ran its members, with weights that sum to 1 over all of them.
    probs = lax.psum(probs, ENSEMBLE_AXIS)
    if hard:
      probs = losses.hard_targets(probs)
    return {**batch, "teacher_probs": probs}

  return cached._replace(targets=targets, frozen_spec=MEMBERS)
