"""How good predicted probabilities are, with masks, means and intervals.

Per-example scores come first (`hits`, `log_losses`, `brier_losses`); the
metrics are their means. Everything is computed in float32. A mean over no
examples is 0/0 = nan. Letters: N examples, K classes, M methods.
"""

from typing import NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.typing import ArrayLike

from kfkd_jax import stacks


class Mean(NamedTuple):
  """A mean in two parts, so that unequal batches and devices add up.

  Attributes:
    total: f32[] sum of the values that count.
    count: f32[] how many count (exact up to 2**24).

  >>> mean = Mean.of([1.0, 2.0]).add(Mean.of([6.0, 99.0], [True, False]))
  >>> float(mean.value)
  3.0
  """

  total: ArrayLike
  count: ArrayLike  # type: ignore[assignment]  # hides tuple.count

  @classmethod
  def zero(cls) -> "Mean":
    """Returns the mean of nothing, to start a sum with."""
    return cls(jnp.zeros(()), jnp.zeros(()))

  @classmethod
  def of(cls, values: ArrayLike, where: ArrayLike | None = None) -> "Mean":
    """Returns the mean of `values`, those with `where` false left out.

    Args:
      values: [...] numbers; where masked they may be nan.
      where: optional bool[...] of the same shape.
    """
    values = jnp.asarray(values, jnp.float32)
    if where is None:
      return cls(values.sum(), jnp.asarray(values.size, jnp.float32))
    where = jnp.asarray(stacks.as_booleans("where", where))
    if where.shape != values.shape:
      raise ValueError(
        f"where must have the shape of the values, {values.shape}; "
        f"got {where.shape}."
      )
    total = jnp.where(where, values, 0).sum()
    return cls(total, where.sum(dtype=jnp.float32))

  def add(self, other: "Mean") -> "Mean":
    """Returns the mean over both sets of values."""
    return Mean(
      jnp.add(self.total, other.total), jnp.add(self.count, other.count)
    )

  @property
  def value(self) -> jax.Array:
    """The mean, f32[]; nan where nothing was counted."""
    return jnp.asarray(self.total) / jnp.asarray(self.count)


def hits(probs: ArrayLike, labels: ArrayLike, *, k: int = 1) -> jax.Array:
  """Says whether each label is among the k most probable classes.

  Among equal probabilities the lower class comes first, as in argmax. A row
  with a nan is never a hit.

  Args:
    probs: [N, K].
    labels: int[N].
    k: number of classes that may contain the label.

  Returns:
    f32[N], 1 or 0.
  """
  probs, labels = _checked(probs, labels)
  if not 1 <= k <= probs.shape[1]:
    raise ValueError(f"k must lie in 1..{probs.shape[1]} (K); got {k}.")
  own = jnp.take_along_axis(probs, labels[:, None], axis=1)
  earlier = jnp.arange(probs.shape[1])[None] < labels[:, None]
  # "not <=" instead of ">" counts every nan as ahead of the label.
  ahead = ~(probs <= own) | ((probs == own) & earlier)
  is_number = ~jnp.isnan(probs).any(axis=1)
  return ((ahead.sum(axis=1) < k) & is_number).astype(jnp.float32)


def log_losses(probs: ArrayLike, labels: ArrayLike) -> jax.Array:
  """Returns -log p(label), f32[N].

  A probability of 0 is read as the smallest one that the dtype of `probs` can
  hold, so that one rounded-off prediction does not make the mean infinite.

  Args:
    probs: [N, K].
    labels: int[N].
  """
  dtype = jnp.asarray(probs).dtype
  probs, labels = _checked(probs, labels)
  floor = float(jnp.finfo(jnp.float32).tiny)
  if jnp.issubdtype(dtype, jnp.floating):
    floor = max(floor, float(jnp.finfo(dtype).smallest_subnormal))
  own = jnp.take_along_axis(probs, labels[:, None], axis=1)[:, 0]
  return -jnp.log(jnp.maximum(own, floor))


def brier_losses(probs: ArrayLike, labels: ArrayLike) -> jax.Array:
  """Returns the squared distance to the one-hot label, f32[N], in [0, 2].

  Args:
    probs: [N, K].
    labels: int[N].
  """
  probs, labels = _checked(probs, labels)
  return jnp.sum((probs - jax.nn.one_hot(labels, probs.shape[1])) ** 2, axis=1)


def accuracy(
  probs: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
  """Returns the share of examples whose most probable class is right.

  Args:
    probs: [N, K]; logits do as well.
    labels: int[N].
    where: optional bool[N], the examples that count.

  Returns:
    f32[].

  >>> float(accuracy([[0.9, 0.1], [0.2, 0.8]], [0, 0]))
  0.5
  """
  _check_classes(probs, labels, where)
  return Mean.of(hits(probs, labels), where).value


def top_k_accuracy(
  probs: ArrayLike,
  labels: ArrayLike,
  *,
  k: int = 5,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Returns the share of labels among the k most probable classes, f32[].

  Args:
    probs: [N, K].
    labels: int[N].
    k: number of classes that may contain the label.
    where: optional bool[N], the examples that count.
  """
  _check_classes(probs, labels, where)
  return Mean.of(hits(probs, labels, k=k), where).value


def negative_log_likelihood(
  probs: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
  """Returns the mean of -log p(label); zeros as in `log_losses`.

  Args:
    probs: [N, K].
    labels: int[N].
    where: optional bool[N], the examples that count.

  Returns:
    f32[].

  >>> round(float(negative_log_likelihood([[0.5, 0.5], [1.0, 0.0]], [0, 0])), 4)
  0.3466
  """
  _check_values(probs, labels, where)
  return Mean.of(log_losses(probs, labels), where).value


def brier_score(
  probs: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
  """Returns the mean squared distance to the one-hot label.

  Args:
    probs: [N, K].
    labels: int[N].
    where: optional bool[N], the examples that count.

  Returns:
    f32[], in [0, 2].

  >>> float(brier_score([[0.5, 0.5], [1.0, 0.0]], [0, 0]))
  0.25
  """
  _check_values(probs, labels, where)
  return Mean.of(brier_losses(probs, labels), where).value


def calibration_error(
  probs: ArrayLike,
  labels: ArrayLike,
  *,
  num_bins: int = 15,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Returns the expected calibration error of the top label.

  The confidences are put in bins (b/num_bins, (b+1)/num_bins]; the result is
  the mean over examples of their bin's |accuracy - mean confidence|.

  Args:
    probs: [N, K].
    labels: int[N].
    num_bins: number of bins of equal width.
    where: optional bool[N], the examples that count.

  Returns:
    f32[].

  >>> float(calibration_error([[0.75, 0.25], [1.0, 0.0]], [0, 0]))
  0.125
  """
  if num_bins < 1 or num_bins % 1:
    raise ValueError(f"num_bins must be at least 1 and whole; got {num_bins}.")
  _check_values(probs, labels, where)
  right = hits(probs, labels)
  confidence = jnp.asarray(probs, jnp.float32).max(axis=1)
  index = jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1
  index = jnp.clip(index, 0, num_bins - 1)
  count = Mean.of(right, where).count
  gaps = right - confidence
  if where is not None:
    gaps = jnp.where(jnp.asarray(where, bool), gaps, 0)
  bin_gaps = jnp.zeros(num_bins).at[index].add(gaps)
  return jnp.abs(bin_gaps).sum() / count


def disagreement(
  probs_a: ArrayLike, probs_b: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
  """Returns the share of examples given different classes by two predictors.

  Args:
    probs_a: [N, K].
    probs_b: [N, K].
    where: optional bool[N], the examples that count.
  """
  if np.ndim(probs_a) != 2 or np.shape(probs_a) != np.shape(probs_b):
    raise ValueError(
      f"probs_a and probs_b must be [N, K] both; got shapes "
      f"{np.shape(probs_a)} and {np.shape(probs_b)}."
    )
  classes_a = jnp.argmax(jnp.asarray(probs_a), axis=1)
  classes_b = jnp.argmax(jnp.asarray(probs_b), axis=1)
  return Mean.of(classes_a != classes_b, where).value


def _checked(
  probs: ArrayLike, labels: ArrayLike
) -> tuple[jax.Array, jax.Array]:
  """Returns f32[N, K] and int[N] after checking that they fit."""
  probs, labels = jnp.asarray(probs, jnp.float32), jnp.asarray(labels)
  if probs.ndim != 2 or probs.shape[1] == 0:
    raise ValueError(
      f"probs must be [N, K] and labels [N]; got shapes {probs.shape} and "
      f"{labels.shape}."
    )
  stacks.check_labels(labels, probs.shape)
  return probs, labels


def _check_values(
  probs: ArrayLike, labels: ArrayLike, where: ArrayLike | None
) -> None:
  """Raises ValueError at logits or at labels that are no classes."""
  counted = _check_classes(probs, labels, where)
  if counted is None:
    return
  if not isinstance(probs, jax.Array):
    probs = np.asarray(probs)
  if not isinstance(probs, jax.core.Tracer):
    stacks.check_rows("probs", probs[counted])


def _check_classes(
  probs: ArrayLike, labels: ArrayLike, where: ArrayLike | None
) -> slice | np.ndarray | None:
  """Raises ValueError at labels that are no classes.

  What a mask leaves out may hold anything, so masked batches pass.

  Returns:
    Places of rows that count, where that is known: all, or some of a mask's.
  """
  probs, labels = _checked(probs, labels)
  if where is None:
    stacks.check_classes(labels, probs.shape[1])
    return slice(None)
  where = stacks.as_booleans("where", where)
  if isinstance(where, jax.core.Tracer) or np.shape(where) != labels.shape:
    return None
  counted = np.flatnonzero(where)
  if not isinstance(labels, jax.core.Tracer):
    stacks.check_classes(np.asarray(labels)[counted], probs.shape[1])
  return counted[:: max(1, counted.size // 64)]
