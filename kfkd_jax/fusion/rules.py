"""Weights that look at no predictions, and what weights are for: `fuse`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.typing import ArrayLike

from kfkd_jax import stacks


def final_only(num_checkpoints: int) -> np.ndarray:
  """Returns all weight on the last checkpoint.

  Args:
    num_checkpoints: C.

  Returns:
    f32[C], a NumPy array.

  >>> final_only(3).tolist()
  [0.0, 0.0, 1.0]
  """
  return horizontal(num_checkpoints, 1)


def best_checkpoint(accuracy: ArrayLike) -> np.ndarray:
  """Returns all weight on the most accurate checkpoint, ties to the latest.

  Args:
    accuracy: [C] on a selection split.

  Returns:
    f32[C], a NumPy array.

  >>> best_checkpoint([0.5, 0.75, 0.75, 0.6]).tolist()
  [0.0, 0.0, 1.0, 0.0]
  """
  values = np.asarray(accuracy)
  if values.ndim != 1 or values.size == 0 or np.isnan(values).any():
    raise ValueError(
      f"accuracy must be [C] without nan, C at least 1; got {accuracy}."
    )
  # `argmax` takes the first of equals: of the reversed, the latest.
  latest = values.size - 1 - values[::-1].argmax()
  return _uniform_over([latest], values.size)


def coverage(correct: ArrayLike) -> np.ndarray:
  """Returns weights by what each checkpoint has right that others miss.

  The checkpoint that has most points right comes first, then the one that has
  most of the rest, of equals the latest, until nobody has more. A weight is the
  share of the covered points that were new with it.

  Args:
    correct: bool[C, S] who was right on a selection split.

  Returns:
    f32[C], a NumPy array; all on the last checkpoint where nobody is right.

  >>> coverage([[0, 1, 1, 1], [1, 0, 0, 1], [0, 0, 1, 1]]).tolist()
  [0.75, 0.25, 0.0]
  """
  right = np.asarray(stacks.as_booleans("correct", correct))
  if right.ndim != 2 or not len(right):
    raise ValueError(
      f"correct must be [C, S], C at least 1; got shape {right.shape}."
    )
  new = np.zeros(len(right), np.float32)
  missed = np.ones(right.shape[1], bool)
  while (counts := (right & missed).sum(axis=1)).any():
    # `argmax` takes the first of equals: of the reversed, the latest.
    best = len(right) - 1 - counts[::-1].argmax()
    new[best] = counts[best]
    missed &= ~right[best]
  if not new.any():
    return final_only(len(right))
  return new / new.sum()


class Stopped(NamedTuple):
  """Where patience ended.

  Attributes:
    weights: f32[C], all on the best checkpoint seen until then.
    num_watched: checkpoints seen, at least 1.
  """

  weights: np.ndarray
  num_watched: int


def early_stopping(accuracy: ArrayLike, *, patience: int) -> Stopped:
  """Stops once the best checkpoint so far is `patience` checkpoints old.

  Args:
    accuracy: [C] on a selection split; only a new maximum counts as progress.
    patience: at least 1.

  >>> early_stopping([0.5, 0.7, 0.6, 0.7, 0.9], patience=2)
  Stopped(weights=array([0., 1., 0., 0., 0.], dtype=float32), num_watched=4)
  """
  check_at_least("patience", patience, 1)
  values = np.asarray(accuracy)
  if values.ndim != 1 or values.size == 0 or np.isnan(values).any():
    raise ValueError(
      f"accuracy must be [C] without nan, C at least 1; got {accuracy}."
    )
  # The first place of the running maximum: where it was reached.
  best = np.array([values[: c + 1].argmax() for c in range(values.size)])
  waited = np.flatnonzero(np.arange(values.size) - best >= patience)
  end = int(waited[0]) if waited.size else values.size - 1
  return Stopped(_uniform_over([best[end]], values.size), end + 1)


def horizontal(num_checkpoints: int, num_members: int) -> np.ndarray:
  """Returns even weights over the last M of C checkpoints.

  Args:
    num_checkpoints: C.
    num_members: M.

  Returns:
    f32[C], a NumPy array.

  >>> horizontal(4, 2).tolist()
  [0.0, 0.0, 0.5, 0.5]
  """
  _check_members(num_checkpoints, num_members)
  return _uniform_over(
    range(num_checkpoints - num_members, num_checkpoints), num_checkpoints
  )


def fixed_jumps(num_checkpoints: int, num_members: int) -> np.ndarray:
  """Returns even weights over M of C checkpoints at even distances.

  The last checkpoint is one of them, the first one only where M = C.

  Args:
    num_checkpoints: C.
    num_members: M.

  Returns:
    f32[C], a NumPy array.

  >>> fixed_jumps(4, 2).tolist()
  [0.0, 0.5, 0.0, 0.5]
  """
  _check_members(num_checkpoints, num_members)
  # In whole numbers, or rounding could take a checkpoint twice.
  stops = np.arange(1, num_members + 1) * num_checkpoints // num_members
  return _uniform_over(stops - 1, num_checkpoints)


def random_checkpoints(
  key: jax.Array, num_checkpoints: int, num_members: int
) -> jax.Array:
  """Returns even weights over M different checkpoints drawn of C.

  Args:
    key: random key.
    num_checkpoints: C.
    num_members: M.

  Returns:
    f32[C].

  >>> random_checkpoints(jax.random.key(0), 2, 2).tolist()
  [0.5, 0.5]
  """
  _check_members(num_checkpoints, num_members)
  drawn = jax.random.permutation(key, num_checkpoints)[:num_members]
  return jnp.zeros(num_checkpoints, jnp.float32).at[drawn].set(1 / num_members)


def fuse(probs: Any, weights: ArrayLike) -> jax.Array | np.ndarray:
  """Returns the weighted mean of the checkpoints' probabilities.

  JAX arrays (and lists of them) are fused by one product that works under
  `jit`, `vmap` and `grad`. Of anything else, only the checkpoints with weight
  are read, one at a time.

  Args:
    probs: [C, ..., K], or a list of C arrays, or an object with `shape`, `[c]`.
    weights: [C], not negative, of sum 1 (not looked at where traced).

  Returns:
    f32[..., K], a JAX array where the product was used, else a NumPy array.

  >>> fuse(np.asarray([[0.0, 1.0], [0.5, 0.5]]), horizontal(2, 2)).tolist()
  [0.25, 0.75]
  """
  shape = stacks.shape_of(probs)
  if len(shape) < 2 or not shape[-1] or np.shape(weights) != shape[:1]:
    raise ValueError(
      f"weights must be [C] where probs is [C, ..., K]; got shapes "
      f"{np.shape(weights)} and {shape}."
    )
  stacks.check_weights(weights, shape[0])
  if isinstance(probs, Sequence) and isinstance(probs[0], jax.Array):
    probs = jnp.stack(probs)
  # Traced weights have no values to choose checkpoints by.
  if isinstance(probs, jax.Array) or isinstance(weights, jax.core.Tracer):
    if isinstance(probs, jax.Array):
      stacks.check_rows("probs", probs)
    return jnp.tensordot(
      jnp.asarray(weights, jnp.float32),
      jnp.asarray(probs, jnp.float32),
      axes=1,
      # TPUs would multiply in bfloat16, and near ties change class.
      precision=jax.lax.Precision.HIGHEST,
    )
  weights = np.asarray(weights, np.float32)
  total = np.zeros(shape[1:], np.float32)
  for c in np.flatnonzero(weights):
    slab = probs[int(c)]
    stacks.check_rows(f"probs[{c}]", slab)
    for rows in stacks.row_slices(shape[1], int(np.prod(shape[2:]))):
      total[rows] += weights[c] * stacks.as_float32(slab[rows])
  return total


def check_at_least(name: str, value: int, least: int) -> None:
  if value < least:
    raise ValueError(f"{name} must be at least {least}; got {value}.")
  if value % 1:
    raise ValueError(f"{name} must be a whole number; got {value}.")


def _check_members(num_checkpoints: int, num_members: int) -> None:
  check_at_least("num_checkpoints", num_checkpoints, 1)
  if not 1 <= num_members <= num_checkpoints or num_members % 1:
    raise ValueError(
      f"num_members must lie in 1..{num_checkpoints} for num_checkpoints = "
      f"{num_checkpoints}; got {num_members}."
    )


def _uniform_over(members: Any, num_checkpoints: int) -> np.ndarray:
  members = np.asarray(members)
  weights = np.zeros(num_checkpoints, np.float32)
  weights[members] = 1 / members.size
  return weights
