"""The order of an epoch and its batches: pure functions, nothing dropped."""

from __future__ import annotations

import numpy as np

_EPOCH_STREAM = 2  # apart from the streams of the splits


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
  """The order in which one epoch visits the examples.

  Args:
    seed: not negative.
    epoch: number of finished epochs.
    num_examples: N.

  Returns:
    int32[N], a permutation that depends on the arguments and nothing else.
  """
  sequence = np.random.SeedSequence((seed, _EPOCH_STREAM, epoch))
  # Raw words and a stable sort: the same on every version of NumPy.
  words = np.random.Philox(sequence).random_raw(num_examples)
  return np.argsort(words, kind="stable").astype(np.int32)


def epoch_batches(
  order: np.ndarray, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cuts an epoch into full batches in which each example counts once.

  S = ceil(N / B) batches share the examples evenly (their real counts differ
  by one at most). What is left of a batch is filled with the examples that
  come next in the order, wrapping around, at weight 0: BatchNorm always sees B
  images, none of them twice unless N < B.

  Args:
    order: int[N] the epoch's order.
    batch_size: B.

  Returns:
    (index int32[S, B], weight float32[S, B]); weights sum to N.

  >>> index, weight = epoch_batches(np.arange(5), 4)
  >>> index.tolist()
  [[0, 1, 2, 3], [2, 3, 4, 0]]
  >>> weight.tolist()
  [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
  """
  num_examples = len(order)
  num_steps = num_batches(num_examples, batch_size)
  # Even shares, not full batches and a rest: the last step of an epoch would
  # otherwise be the mean of a few examples, at the full learning rate.
  bounds = np.arange(num_steps + 1) * num_examples // num_steps
  slot = np.arange(batch_size)
  place = (bounds[:-1, None] + slot) % num_examples
  weight = slot < np.diff(bounds)[:, None]
  return np.asarray(order, np.int32)[place], weight.astype(np.float32)


def padded_batches(
  num_examples: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Batches of all examples in their own order, for evaluation.

  Args:
    num_examples: N.
    batch_size: B.

  Returns:
    (index int32[S, B], mask bool[S, B]); padding repeats the last example and
    is False in the mask, so `values[mask]` is [N] in the examples' order.
  """
  num_steps = num_batches(num_examples, batch_size)
  slots = np.arange(num_steps * batch_size, dtype=np.int32)
  index = slots.reshape(num_steps, batch_size)
  return np.minimum(index, num_examples - 1), index < num_examples


def num_batches(num_examples: int, batch_size: int) -> int:
  """Batches of an epoch, S = ceil(N / B)."""
  if num_examples < 1 or batch_size < 1:
    raise ValueError(
      "both must be at least 1: got"
      f" {num_examples} examples and batch_size={batch_size}"
    )
  return -(-num_examples // batch_size)
