"""What a history believes of each point, and the noise that it tells."""

from typing import Any

import numpy as np
from jax.typing import ArrayLike

from kfkd_jax import stacks
from kfkd_jax.auditing.sums import LEAST, AuditSums, summed


def estimated_noise(probs: Any, labels: ArrayLike) -> np.ndarray:
  """Returns the noise of labels as the history of their points tells it.

  Args:
    probs: [C, N, K], as for `audit`.
    labels: int[N] as given.

  Returns:
    f64[K, K] share of each right class, down, that was given each class, drawn
    towards even noise as `noise_of` does; nothing is 0. The right class is told
    by the plain mean of the predictions, divided as in `audit`.

  >>> told = estimated_noise(
  ...   [np.asarray([[0.9, 0.1]] * 9 + [[0.1, 0.9]] * 9)], [0] * 8 + [1] * 10
  ... )
  >>> told.argmax(axis=1).tolist()
  [0, 1]
  """
  sums = summed(probs, labels)
  means = class_means(sums.probs, sums.labels, int(sums.num_epochs))
  believed, _ = believed_classes(sums.probs, means)
  return noise_of(counted(believed, sums.labels, len(means)))


def noise_of(counts: np.ndarray) -> np.ndarray:
  """Returns the noise that counts of believed and given classes speak of.

  The matrix is drawn towards even noise of the same rate by twice the share of
  its spread that chance alone would make: mistakes of the history itself spread
  it as well. One point of each class counts as right and one as wrong before
  any is seen, so that nothing is impossible.

  Args:
    counts: [K, K] points of each believed class, down, by given class.

  Returns:
    f64[K, K], rows sum to 1, nothing is 0.
  """
  num_classes = len(counts)
  apart = ~np.eye(num_classes, dtype=bool)
  mean, spread = counts[apart].mean(), counts[apart].var()
  drawn = min(1.0, 2 * mean / spread) if spread else 1.0
  prior = np.where(apart, 1 / (num_classes - 1), 1.0)
  rate = (counts[apart].sum() + num_classes) / (counts.sum() + 2 * num_classes)
  even = np.where(apart, rate / (num_classes - 1), 1 - rate)
  return drawn * even + (1 - drawn) * rows_of(counts + prior)


def rows_of(counts: np.ndarray) -> np.ndarray:
  """Rows as shares; a class that nobody believes in keeps its label."""
  total = counts.sum(axis=1, keepdims=True)
  return np.where(total > 0, counts / np.maximum(total, 1), np.eye(len(counts)))


def counted(
  believed: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
  cells = np.asarray(believed, np.int64) * num_classes + labels
  counts = np.bincount(cells, minlength=num_classes**2)
  return counts.reshape(num_classes, num_classes)


def class_means(
  probs: np.ndarray, labels: np.ndarray, weight: float
) -> np.ndarray:
  """Mean of a class's column over the points given as it, f64[K], above 0.

  Args:
    probs: [N, K] a sum over epochs.
    labels: int[N].
    weight: of the epochs together.

  Returns:
    Means of the epochs' mean; a class that nobody is given as has the largest.
  """
  num_classes = probs.shape[1]
  own = np.take_along_axis(probs, labels[:, None], axis=1)[:, 0]
  sizes = np.bincount(labels, minlength=num_classes)
  sums = np.bincount(labels, own, minlength=num_classes)
  means = sums / np.maximum(sizes, 1) / weight
  return np.maximum(np.where(sizes > 0, means, means.max()), LEAST)


def believed_classes(
  probs: np.ndarray, levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The classes highest above their levels, and the surer half of each.

  Args:
    probs: [N, K] a sum over epochs.
    levels: f64[K] above 0.

  Returns:
    i32[N] the classes, and bool[N] the points whose class has no smaller share
    of all classes than the median point of that class.
  """
  num, num_classes = probs.shape
  best, share = np.empty(num, np.int32), np.empty(num, np.float32)
  for rows in stacks.row_slices(num, num_classes):
    told = probs[rows] / levels
    best[rows] = told.argmax(axis=1)
    share[rows] = told.max(axis=1) / told.sum(axis=1)
  order = np.lexsort((share, best))
  ends = np.cumsum(np.bincount(best, minlength=num_classes))
  middles = (ends - 1 + np.append(0, ends[:-1])) // 2
  # A class that nobody believes in has another's middle, which nobody asks.
  medians = share[order][np.clip(middles, 0, num - 1)]
  return best, share >= medians[best]


def confident_joint(sums: AuditSums, num_epochs: int) -> np.ndarray:
  """Confident learning's joint of true and given classes, f64[K, K].

  A point counts for the most likely of the classes that reach their threshold,
  the mean over the points given as such; counts of a given class are scaled to
  its size.
  """
  labels, num_classes = sums.labels, sums.probs.shape[1]
  levels = class_means(sums.probs, labels, num_epochs)
  counts = np.zeros((num_classes, num_classes))
  for rows in stacks.row_slices(*sums.probs.shape):
    part, given = sums.probs[rows] / num_epochs, labels[rows]
    # Half a rounding error, or a class of one would miss its own mean.
    reached = np.where(part >= levels * (1 - 1e-6), part, -1)
    sure = reached.max(axis=1) >= 0
    best = reached.argmax(axis=1)
    counts += counted(best[sure], given[sure], num_classes)
  sizes = np.bincount(labels, minlength=num_classes)
  found = counts.sum(axis=0)
  counts = np.where(found > 0, counts, np.eye(num_classes))
  joint = counts / np.maximum(counts.sum(axis=0), 1) * sizes
  return joint / joint.sum()
