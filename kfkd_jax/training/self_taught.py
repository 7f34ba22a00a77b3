"""Objectives in which a network, or two, learn from what they say themselves.

None needs a teacher: they train at the cost of plain training, `mutual` at
twice that.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kfkd_jax import losses
from kfkd_jax.training.objective import Batch, Memory, Objective, batch_mean


def air(
  *, hard: bool = True, previous: bool = False, share: float | None = None
) -> Objective:
  """AIR: labels mixed with the network's own predictions.

  Dong, Hou, Lu and Zhang 2019. The target is (1 - l) y + l h, learnt by cross
  entropy, whose gradient is that of KL(target || p).

  Args:
    hard: h is the predicted class instead of the probabilities.
    previous: predictions are those of the epoch before, in the first epoch the
      labels, instead of those of this step.
    share: l; None takes the share of the global batch whose given label is
      predicted.
  """

  def loss(logits, batch):
    probs = batch["memory"] if previous else _said(logits)
    chosen = (
      batch_mean(_agrees(probs, batch), batch) if share is None else share
    )
    told = losses.hard_targets(probs) if hard else probs
    target = losses.blended_targets(batch["label"], told, chosen)
    return losses.cross_entropy(logits, target)

  if not previous:
    return Objective(loss)

  def update(rows, logits, batch):
    del rows, batch
    return _said(logits)

  return Objective(loss, memory=Memory(_one_hot, update))


def past_predictions(epochs: int, *, last_share: float = 0.8) -> Objective:
  """PS-KD: the predictions of the epoch before, trusted more and more.

  Kim et al. 2021. Their share in the target grows linearly to `last_share` in
  the last of the `epochs`; in the first epoch the labels stand for them.
  """

  def loss(logits, batch):
    # `epochs` is the number of finished ones: 0 in the first, whose share is 1
    # / E of the last, learnt from the labels themselves.
    seen = batch["memory"]
    share = last_share * (seen["epochs"] + 1) / epochs
    target = losses.blended_targets(batch["label"], seen["probs"], share)
    return losses.cross_entropy(logits, target)

  def init(labels, num_classes):
    return {"probs": _one_hot(labels, num_classes), "epochs": _zeros(labels)}

  def update(rows, logits, batch):
    del batch
    return {"probs": _said(logits), "epochs": rows["epochs"] + 1}

  return Objective(loss, memory=Memory(init, update))


def self_adaptive(start_epoch: int, *, decay: float = 0.9) -> Objective:
  """Self-adaptive training: labels that move to what the network says.

  Huang, Zhang and Zhang 2020. From `start_epoch` on every example's target is
  an average that forgets by `decay`, taken before it is learnt from. Examples
  count by their target's largest entry, divided by the batch's mean of it.
  """

  def moved(rows, logits):
    average = decay * rows["target"] + (1 - decay) * _said(logits)
    # Counted per example, not by the step: memory is all that a loss may read.
    waits = rows["epochs"] < start_epoch
    return jnp.where(waits[:, None], rows["target"], average)

  def loss(logits, batch):
    target = moved(batch["memory"], logits)
    # The step takes the mean of the products: divided by the weights' mean,
    # that is the paper's sum over their sum.
    trust = target.max(axis=-1)
    mean = batch_mean(trust, batch)
    return (
      trust / jnp.maximum(mean, 1e-6) * losses.cross_entropy(logits, target)
    )

  def init(labels, num_classes):
    return {"target": _one_hot(labels, num_classes), "epochs": _zeros(labels)}

  def update(rows, logits, batch):
    del batch
    return {"target": moved(rows, logits), "epochs": rows["epochs"] + 1}

  return Objective(loss, memory=Memory(init, update))


def mutual(*, weight: float = 1.0) -> Objective:
  """Deep mutual learning of the two networks of a `models.Pair`.

  Zhang et al. 2018: each learns the labels and, by KL, what the other says in
  the same step. The loss is the sum over the two.
  """

  def loss(logits, batch):
    first, second = logits[:, 0], logits[:, 1]
    labels = batch["label"]
    return sum(
      losses.cross_entropy(own, labels)
      + weight * losses.distillation(own, _said(other))
      for own, other in ((first, second), (second, first))
    )

  return Objective(loss)


def _said(logits: chex.Array) -> chex.Array:
  """The network's own probabilities, as a constant."""
  return lax.stop_gradient(jax.nn.softmax(logits.astype(jnp.float32)))


def _agrees(probs: chex.Array, batch: Batch) -> chex.Array:
  """1 where the most probable class is the given label's, `f32[B]`."""
  labels = batch["label"]
  if labels.ndim == probs.ndim:
    labels = jnp.argmax(labels, axis=-1)
  return (jnp.argmax(probs, axis=-1) == labels).astype(jnp.float32)


def _one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
  return np.eye(num_classes, dtype=np.float32)[labels]


def _zeros(labels: np.ndarray) -> np.ndarray:
  return np.zeros(len(labels), np.float32)
