"""What an audit keeps of every epoch: sums over the history, a pytree.

Two arrays `[N, K]` and some `[N]`, however many epochs there are.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.typing import ArrayLike

from kfkd_jax import stacks

# The least that float16 holds: the same scores whatever kept the predictions.
LEAST = 2.0**-24
EARLY = 10  # epochs whose errors make EL2N


class AuditSums(NamedTuple):
  """What an audit keeps of the epochs so far; a pytree.

  Attributes:
    labels: i32[N] as given.
    num_epochs: i32[] so far.
    probs: f32[N, K] sum of the probabilities.
    early: f32[N, K] sum of the probabilities, weighted by epoch.
    weight: f32[] sum of the epochs' weights.
    learnt: f32[] sum over the epochs of what they gave the labels above chance.
    deviation: f32[N] squared deviations of the label's probability, summed.
    margin: f32[N] sum of the label's probability less the best other one.
    log_margin: f32[N] the same of log-probabilities.
    loss: f32[N] sum of -log p(label).
    last_loss: f32[N] of the newest epoch.
    error: f32[N] sum of the first epochs' distances to the one-hot label.
    num_right: i32[N] epochs that had the label.
    first_right: i32[N] the first of them, counted from 1; 0 for none.
    num_forgotten: i32[N] times that the label was had and lost at once.
    is_right: bool[N] at the newest epoch.
  """

  labels: Any
  num_epochs: Any
  probs: Any
  early: Any
  weight: Any
  learnt: Any
  deviation: Any
  margin: Any
  log_margin: Any
  loss: Any
  last_loss: Any
  error: Any
  num_right: Any
  first_right: Any
  num_forgotten: Any
  is_right: Any


def summed(probs: Any, labels: ArrayLike) -> AuditSums:
  num_epochs, labels = stacks.check(probs, labels)
  shape = stacks.checked_shape(probs)
  sums = audit_init(labels, shape[2])
  for c in range(num_epochs):
    _add(sums, stacks.slab_of(probs, c, shape), f"probs[{c}]")
  return sums


def audit_init(labels: ArrayLike, num_classes: int) -> AuditSums:
  """Begins an audit inside a training loop.

  Args:
    labels: int[N] as given, in the order of the predictions to come.
    num_classes: K.

  Returns:
    AuditSums, a pytree of NumPy arrays [N] and [N, K].

  >>> audit_init([0, 1, 1], 2).probs.shape
  (3, 2)
  """
  labels = np.asarray(labels)
  if num_classes < 2 or not labels.size:
    raise ValueError(
      f"an audit needs labels and at least 2 classes; got {labels.size} labels "
      f"and num_classes={num_classes}."
    )
  num = len(labels)
  stacks.check_labels(labels, (num, num_classes))
  stacks.check_classes(labels, num_classes)
  numbers = {k: np.zeros(num, np.float32) for k in _NUMBERS}
  counts = {k: np.zeros(num, np.int32) for k in _COUNTS}
  return AuditSums(
    labels=labels.astype(np.int32),
    num_epochs=np.zeros((), np.int32),
    probs=np.zeros((num, num_classes), np.float32),
    early=np.zeros((num, num_classes), np.float32),
    weight=np.zeros((), np.float32),
    learnt=np.zeros((), np.float32),
    is_right=np.zeros(num, bool),
    **numbers,
    **counts,
  )


_NUMBERS = ("deviation", "margin", "log_margin", "loss", "last_loss", "error")
_COUNTS = ("num_right", "first_right", "num_forgotten")


def audit_update(sums: AuditSums, probs: ArrayLike) -> AuditSums:
  """Adds what was said of the training points after one more epoch.

  Works under `jit` as well, where nothing is checked.

  Args:
    sums: of the epochs before, which stay as they are.
    probs: [N, K] probabilities, of the points in the order of the labels.

  Returns:
    AuditSums, a pytree of arrays [N] and [N, K] like those given.

  >>> sums = audit_update(audit_init([0, 1], 2), np.asarray([[1, 0.0]] * 2))
  >>> sums.num_right.tolist(), int(sums.num_epochs)
  ([1, 0], 1)
  """
  if np.shape(probs) != np.shape(sums.probs):
    raise ValueError(
      f"probs must be [N, K] as at the start, {np.shape(sums.probs)}; got "
      f"shape {np.shape(probs)}."
    )
  if isinstance(probs, jax.core.Tracer):
    probs = jnp.asarray(probs, jnp.float32)
    labels = jnp.asarray(sums.labels)[:, None]
    told = jnp.take_along_axis(probs, labels, axis=1).mean()
    return _added(sums, probs, _learnt(told, probs.shape[1], jnp), jnp)
  stacks.check_rows("probs", probs)
  fresh = AuditSums(*(np.array(part) for part in sums))
  _add(fresh, np.asarray(probs), "probs")
  return fresh


def _add(sums: AuditSums, probs: np.ndarray, name: str) -> None:
  """Adds an epoch to NumPy arrays, in place and some rows at a time."""
  told = probs[np.arange(len(probs)), sums.labels].mean(dtype=np.float64)
  learnt = _learnt(np.float32(told), probs.shape[1], np)
  for rows in stacks.row_slices(*probs.shape):
    part = stacks.as_float32(probs[rows])
    before = AuditSums(*(x[rows] if np.ndim(x) else x for x in sums))
    after = _added(before, part, learnt, np)
    if np.isnan(after.margin).any():
      raise ValueError(f"{name} must hold probabilities; it holds nan.")
    for old, new in zip(before, after, strict=True):
      if np.ndim(old):
        old[...] = new
  for old, new in zip(sums, after, strict=True):
    if not np.ndim(old):
      old[...] = new


def _learnt(told: Any, num_classes: int, xp: Any) -> Any:
  """How far an epoch that gives the labels so much is above chance, above 0."""
  return xp.maximum(told - 1 / num_classes, 1e-3)


def _added(sums: AuditSums, probs: Any, learnt: Any, xp: Any) -> AuditSums:
  """The sums and one epoch more, in NumPy or in JAX.

  Args:
    sums: so far.
    probs: f32[N, K].
    learnt: by the epoch, of all points.
    xp: `numpy` or `jax.numpy`.
  """
  epoch = sums.num_epochs + 1
  unlearnt = xp.maximum(1 - 1 / probs.shape[1] - learnt, 1e-4)
  weight = learnt * unlearnt / (0.02 + sums.learnt + learnt)
  column = sums.labels[:, None]
  own = xp.take_along_axis(probs, column, axis=1)[:, 0]
  is_own = xp.arange(probs.shape[1])[None] == column
  others = xp.where(is_own, -1, probs)
  other, best = others.max(axis=1), others.argmax(axis=1)
  right = (own > other) | ((own == other) & (sums.labels < best))
  # Welford's sum of squares, which loses nothing where all values are alike.
  before = xp.take_along_axis(sums.probs, column, axis=1)[:, 0]
  count = xp.float32(epoch)
  mean = before / xp.maximum(count - 1, 1)
  after = (before + own) / count
  loss = -xp.log(xp.maximum(own, LEAST))
  error = xp.sqrt(xp.maximum((probs**2).sum(axis=1) - 2 * own + 1, 0))
  starts = right & (sums.first_right == 0)
  return AuditSums(
    labels=sums.labels,
    num_epochs=epoch,
    probs=sums.probs + probs,
    early=sums.early + weight * probs,
    weight=sums.weight + weight,
    learnt=sums.learnt + learnt,
    deviation=sums.deviation + (own - mean) * (own - after),
    margin=sums.margin + own - other,
    log_margin=sums.log_margin - loss - xp.log(xp.maximum(other, LEAST)),
    loss=sums.loss + loss,
    last_loss=loss,
    error=sums.error + xp.where(epoch <= EARLY, error, 0),
    num_right=sums.num_right + right,
    first_right=xp.where(starts, epoch, sums.first_right),
    num_forgotten=sums.num_forgotten + (sums.is_right & ~right),
    is_right=right,
  )
