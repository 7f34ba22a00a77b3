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
  shape, labels = shape_of(probs), np.asarray(labels)
  if len(shape) != 3 or 0 in shape:
    raise ValueError(
      f"probs must be [C, N, K], none of them 0; got shape {shape}."
    )
  if labels.shape != shape[1:2] or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f"labels must be int[N] where probs is [C, N, K]; got {labels.dtype} of "
      f"shape {labels.shape} for probs of shape {shape}."
    )
  if labels.min() < 0 or labels.max() >= shape[2]:
    raise ValueError(
      f"labels must lie in 0..{shape[2] - 1} for probs of shape {shape}; got "
      f"{labels.min()}..{labels.max()}."
    )
  return shape[0], labels


def slab_of(probs: Any, c: int, num_examples: int) -> Any:
  """Returns checkpoint c as [N, K], not yet converted."""
  slab = probs[c]
  if isinstance(slab, jax.Array):
    slab = np.asarray(slab)  # else every slice would be a program of its own
  if np.ndim(slab) != 2 or len(slab) != num_examples:
    raise ValueError(
      f"every checkpoint of probs must be [N, K] with N = {num_examples}; "
      f"probs[{c}] has shape {np.shape(slab)}."
    )
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


def check_probabilities(values: np.ndarray, c: int) -> None:
  low, high = values.min(), values.max()
  if not (low >= 0 and high <= 1.01):  # a nan fails as well
    raise ValueError(
      f"probs must hold probabilities; probs[{c}] holds values in "
      f"{low:.3g}..{high:.3g}."
    )
