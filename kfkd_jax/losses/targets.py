"""What to learn instead of a label: mixtures of labels and predictions.

Every function returns rows of probabilities, through which no gradient flows.
"""

import jax
from jax import numpy as jnp
from jax.typing import ArrayLike


def as_probs(labels: ArrayLike, num_classes: int) -> jax.Array:
  """Returns labels as rows of probabilities, f32[B, K].

  Args:
    labels: int[B] classes, or [B, K] probabilities, which stay as they are.
    num_classes: K.
  """
  labels = jnp.asarray(labels)
  if jnp.issubdtype(labels.dtype, jnp.integer):
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  if labels.shape[-1:] != (num_classes,):
    raise ValueError(
      f"labels must be int[B] or probabilities [B, K] with K = {num_classes}; "
      f"got {labels.dtype}{list(labels.shape)}."
    )
  return labels.astype(jnp.float32)


def blended_targets(
  labels: ArrayLike, probs: ArrayLike, share: ArrayLike
) -> jax.Array:
  """Returns (1 - share) labels + share probs.

  With `probs` a network's own prediction, hard or soft, this is the target of
  AIR (Dong, Hou, Lu and Zhang 2019) and of bootstrapping; with those of the
  epoch before, of PS-KD (Kim et al. 2021). The gradient of its cross entropy,
  or of KL(target || p), is p - (1 - share) labels - share probs.

  Args:
    labels: int[B] or [B, K] probabilities.
    probs: [B, K].
    share: of `probs`, a scalar or [B].

  Returns:
    f32[B, K].

  >>> blended_targets([0], jnp.asarray([[0.5, 0.5]]), 0.5).tolist()
  [[0.75, 0.25]]
  """
  probs = jnp.asarray(probs, jnp.float32)
  share = jnp.asarray(share, jnp.float32)
  if share.shape not in ((), probs.shape[:-1]):
    raise ValueError(
      f"share must be a scalar or [B] where probs is [B, K]; got shapes "
      f"{share.shape} and {probs.shape}."
    )
  # Spelt out: rank promotion may be forbidden where this runs.
  share = jnp.broadcast_to(share, probs.shape[:-1])[..., None]
  share = jnp.broadcast_to(share, probs.shape)
  mixed = (1 - share) * as_probs(labels, probs.shape[-1]) + share * probs
  return jax.lax.stop_gradient(mixed)


def extrapolated_targets(
  labels: ArrayLike, probs: ArrayLike, share: ArrayLike
) -> jax.Array:
  """Returns `blended_targets` for shares above 1, kept probabilities.

  Das and Sanghavi 2023: with much noise, going past the teacher and away from
  the labels is best. What falls below 0 becomes 0 and the row sums to 1 again;
  a row in which nothing is left is the teacher's.

  Args:
    labels: int[B] or [B, K] probabilities.
    probs: [B, K] of a teacher.
    share: of the teacher, called xi; a scalar or [B].

  Returns:
    f32[B, K].

  >>> extrapolated_targets([0], jnp.asarray([[0.25, 0.75]]), 1.5).tolist()
  [[0.0, 1.0]]
  """
  clipped = jnp.maximum(blended_targets(labels, probs, share), 0)
  total = clipped.sum(axis=-1, keepdims=True)
  teacher = jax.lax.stop_gradient(jnp.asarray(probs, jnp.float32))
  # The inner `where` is for `jax_debug_nans`, which minds branches not taken.
  return jnp.where(total > 0, clipped / jnp.where(total > 0, total, 1), teacher)


def agreement_targets(labels: ArrayLike, probs: ArrayLike) -> jax.Array:
  """Returns a mixture in which each example trusts its label by itself.

  The label's share is the probability that the teacher gives it, the teacher
  has the rest: t_y y + (1 - t_y) t. A label the teacher believes is kept, one
  it does not believe is replaced by what it believes instead.

  Args:
    labels: int[B] or [B, K] probabilities.
    probs: [B, K] of a teacher.

  Returns:
    f32[B, K].

  >>> agreement_targets([1], jnp.asarray([[1.0, 0.0]])).tolist()
  [[1.0, 0.0]]
  """
  probs = jnp.asarray(probs, jnp.float32)
  given = as_probs(labels, probs.shape[-1])
  return blended_targets(given, probs, 1 - jnp.sum(given * probs, axis=-1))


def partial_targets(probs: ArrayLike, *, count: int = 2) -> jax.Array:
  """Returns even probabilities of the teacher's `count` top classes.

  Jeong and Chung 2025 take two: where the wrong label is second to the right
  one, or the other way round, the network's own bias to simple answers decides
  between them. Ties go to the first class.

  Args:
    probs: [B, K] of a teacher, K at least `count`.
    count: classes to keep.

  Returns:
    f32[B, K].

  >>> partial_targets(jnp.asarray([0.5, 0.2, 0.3])).tolist()
  [0.5, 0.0, 0.5]
  """
  probs = jnp.asarray(probs, jnp.float32)
  num_classes = probs.shape[-1]
  if not 1 <= count <= num_classes:
    raise ValueError(
      f"count must be in 1..K with K = {num_classes} as in probs; got {count}."
    )
  _, top = jax.lax.top_k(probs, count)
  chosen = jax.nn.one_hot(top, num_classes, dtype=jnp.float32)
  return jax.lax.stop_gradient(chosen.sum(axis=-2) / count)
