"""Stacks of predictions, read one checkpoint at a time.

A stack `probs[C, N, K]` is a NumPy or JAX array, a memory map of any float
type, a list of C arrays [N, K], or any object with `shape` and `[c]`. Nothing
here holds more of it than a checkpoint, or converts more than some rows.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

# Numbers handled at once, few enough to stay in a core's cache (1 MiB).
CHUNK = 1 << 18


def shape_of(probs: Any) -> tuple[int, ...]:
  if isinstance(probs, Sequence):
    return (len(probs), *(np.shape(probs[0]) if len(probs) else ()))
  return tuple(probs.shape)


def check(probs: Any, labels: ArrayLike) -> tuple[int, np.ndarray]:
  """Returns C and the labels after checking that both arguments fit."""
  shape, labels = checked_shape(probs), np.asarray(labels)
  check_labels(labels, shape)
  check_classes(labels, shape[2])
  return shape[0], labels


def checked_shape(probs: Any) -> tuple[int, ...]:
  """Returns (C, N, K)."""
  shape = shape_of(probs)
  if len(shape) != 3 or 0 in shape:
    raise ValueError(
      f"probs must be [C, N, K], none of them 0; got shape {shape}."
    )
  return shape


def check_labels(labels: Any, shape: tuple[int, ...]) -> None:
  """Raises ValueError unless labels are int[N] where probs is [..., N, K].

  Args:
    labels: an array.
    shape: that of probs, [C, N, K] or [N, K].
  """
  letters = "[C, N, K]" if len(shape) == 3 else "[N, K]"
  is_integer = np.issubdtype(labels.dtype, np.integer)
  if labels.shape != shape[-2:-1] or not is_integer:
    raise ValueError(
      f"labels must be int[N] where probs is {letters}; got {labels.dtype} of "
      f"shape {labels.shape} for probs of shape {shape}"
      f"{_labels_advice(labels, shape)}."
    )


def check_classes(labels: Any, num_classes: int) -> None:
  """Raises ValueError unless labels, if not traced, lie in 0..K-1."""
  if isinstance(labels, jax.core.Tracer) or not labels.size:
    return
  values = np.asarray(labels)
  if values.min() < 0 or values.max() >= num_classes:
    raise ValueError(
      f"labels must lie in 0..{num_classes - 1} for K = {num_classes} classes; "
      f"got {values.min()}..{values.max()}."
    )


def check_weights(weights: Any, num_checkpoints: int) -> None:
  """Raises ValueError unless weights, if not traced, are convex [C]."""
  if np.shape(weights) != (num_checkpoints,):
    raise ValueError(
      f"weights must have shape ({num_checkpoints},), one for each "
      f"checkpoint; got {np.shape(weights)}."
    )
  if isinstance(weights, jax.core.Tracer):
    return
  values = np.asarray(weights, np.float64)
  total = values.sum()
  if not (values.min() >= 0 and abs(total - 1) < 1e-3):  # a nan fails as well
    raise ValueError(
      f"weights must be 0 or more and sum to 1; got a minimum of "
      f"{values.min():.4g} and a sum of {total:.4g}"
      f"{'; divide them by it' if values.min() >= 0 < total < np.inf else ''}."
    )


def as_booleans(name: str, values: ArrayLike) -> Any:
  """Returns values as booleans; other numbers than 0 and 1 are refused.

  Traced values are taken as they are.
  """
  if not isinstance(values, jax.Array):
    values = np.asarray(values)
  is_known = values.dtype == bool or isinstance(values, jax.core.Tracer)
  if not is_known and not np.isin(np.asarray(values), (0, 1)).all():
    raise ValueError(
      f"{name} must hold booleans, or 0 and 1; got {values.dtype} of shape "
      f"{values.shape} with other values."
    )
  return values.astype(bool)


def _labels_advice(labels: Any, shape: tuple[int, ...]) -> str:
  """Guesses what happened to labels that do not fit probs of this shape."""
  if labels.shape == shape[-2:]:
    return "; if they are one-hot, pass labels.argmax(-1)"
  if labels.shape == shape[-2:-1]:
    return "; if they are whole numbers, pass labels.astype(int)"
  if len(shape) == 3 and labels.shape == shape[:1]:
    return "; if examples come first, pass np.swapaxes(probs, 0, 1)"
  if labels.shape == shape[-1:]:
    return "; if examples come last, pass np.swapaxes(probs, -1, -2)"
  return ""


def slab_of(probs: Any, c: int, shape: tuple[int, ...]) -> Any:
  """Returns checkpoint c of probs[C, N, K] as [N, K], not yet converted."""
  slab = probs[c]
  if isinstance(slab, jax.Array):
    slab = np.asarray(slab)  # else every slice would be a program of its own
  if np.shape(slab) != tuple(shape[1:]):
    raise ValueError(
      f"every checkpoint of probs must be [N, K] as the first one, "
      f"{tuple(shape[1:])}; probs[{c}] has shape {np.shape(slab)}."
    )
  check_rows(f"probs[{c}]", slab)
  return slab


def row_slices(num_rows: int, width: int) -> Iterator[slice]:
  """Yields slices over rows of `width` numbers, a chunk each."""
  step = max(1, CHUNK // width)
  for start in range(0, num_rows, step):
    yield slice(start, start + step)


@functools.cache
def _half_values() -> np.ndarray:
  """Returns f32[65536], the numbers that float16's bit patterns stand for."""
  with np.errstate(invalid="ignore"):  # some of them are nan
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype("f4")


def as_float32(values: Any) -> np.ndarray:
  values = np.asarray(values)
  if values.dtype != np.float16:
    return values.astype(np.float32, copy=False)
  # Ten times as fast as a conversion, which is slow at subnormal numbers, and
  # most probabilities of many classes are.
  return _half_values().take(values.view(np.uint16))


# Rows that tell probabilities from anything else, and how far their sums may
# be from 1: half precision and thousands of classes round by less.
_SAMPLED_ROWS = 64
_SUM_ROUNDING = 0.02


def check_rows(name: str, probs: Any) -> None:
  """Raises ValueError if probs[..., K] cannot be class probabilities.

  A few rows of it, evenly spaced, are looked at: logits fail in almost every
  one. Traced values are not looked at. Rows with a nan and rows of zeros, which
  pad batches, are passed over.
  """
  if isinstance(probs, jax.core.Tracer) or 0 in np.shape(probs):
    return
  if isinstance(probs, jax.Array) and not probs.is_fully_addressable:
    return
  rows = probs if hasattr(probs, "ndim") else np.asarray(probs)
  with jax.ensure_compile_time_eval():  # a constant inside jit has values too
    while rows.ndim > 2:
      rows = rows[-1]
    if rows.ndim == 2:
      rows = rows[:: max(1, len(rows) // _SAMPLED_ROWS)]
    rows = np.asarray(rows, np.float32)
  sums, low = rows.sum(axis=-1), rows.min()
  off = np.where(rows.any(axis=-1), np.abs(sums - 1), 0)
  if low < 0 or np.any(off > _SUM_ROUNDING):  # both false of a nan
    worst = np.ravel(sums)[np.nanargmax(off)]
    raise ValueError(
      f"{name} must hold class probabilities; a row sums to {worst:.4g} and "
      f"the least value is {low:.3g}. If these are logits, pass "
      "jax.nn.softmax of them."
    )


def check_probabilities(values: np.ndarray, c: int) -> None:
  low, high = values.min(), values.max()
  if not (low >= 0 and high <= 1.01):  # a nan fails as well
    raise ValueError(
      f"probs must hold probabilities; probs[{c}] holds values in "
      f"{low:.3g}..{high:.3g}."
    )
