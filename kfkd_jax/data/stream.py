"""Batches decoded ahead of the step that reads them, through Grain.

What a batch holds is a function of seeds, step and place in the batch alone:
not of the number of workers or processes, nor of where reading began. So a run
continues by starting to read at its next step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import grain
import numpy as np
from absl import flags

from kfkd_jax.data import order, pictures
from kfkd_jax.data.rand_augment import rand_augment
from kfkd_jax.data.stored import Stored

MAX_RAND_OPS = 16
_VIEW_STREAM = 3  # apart from the streams of the splits and epochs
_NUM_DRAWS = 64  # random numbers a view may ask for: 22 for a crop, 2 an op
_NUM_AHEAD = 2  # batches ready before they are asked for, of every worker


class Batches(Protocol):
  """Makes any batch by its number."""

  def __len__(self) -> int: ...

  def __getitem__(self, number: int, /) -> np.ndarray:
    """The batch."""


@dataclasses.dataclass(frozen=True)
class RandomViews:
  """What happens to a picture before it is a row of a training batch.

  Attributes:
    crop_scale: lowest and highest share of the area that a random resized crop
      keeps; None: the fixed view of evaluation.
    crop_ratio: lowest and highest ratio of its width to its height.
    rand_ops: operations of RandAugment, at most `MAX_RAND_OPS`.
    rand_magnitude: their strength, 0 to 10.
  """

  crop_scale: tuple[float, float] | None = None
  crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
  rand_ops: int = 0
  rand_magnitude: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingBatches:
  """The images of every training step, in the order of `data.order`.

  Attributes:
    images: of the training set.
    views: random ones.
    batch_size: of all processes together.
    num_steps: of the whole training.
    order_seed: of the epochs' orders.
    view_seed: of the views.
    places: int[R] rows of each batch that this process needs.
  """

  images: Stored
  views: RandomViews
  batch_size: int
  num_steps: int
  order_seed: int
  view_seed: int
  places: np.ndarray

  def __len__(self) -> int:
    return self.num_steps

  def __getitem__(self, step: int) -> np.ndarray:
    """uint8[R, H, W, Ch] of a step, counted from the start of training."""
    count = len(self.images)
    epoch, place = divmod(step, order.num_batches(count, self.batch_size))
    index = _epoch_index(self.order_seed, epoch, count, self.batch_size)
    view = functools.partial(self._view, step)
    return self.images.batch(index[place, self.places], view, self.places)

  def _view(self, step: int, row: int, place: int) -> np.ndarray:
    """uint8[H, W, Ch]: a random view, keyed by step and place."""
    views, picture = self.views, self.images.picture(row)
    draw = _draws(self.view_seed, step, int(place))
    if views.crop_scale is None:
      picture = self.images.fitted(picture)
    else:
      height, width = self.images.shape[1:3]
      picture = pictures.random_resized_crop(
        picture,
        (width, height),
        draw,
        scale=views.crop_scale,
        ratio=views.crop_ratio,
      )
    picture = rand_augment(
      picture, draw, num_ops=views.rand_ops, magnitude=views.rand_magnitude
    )
    return pictures.to_array(picture)


@dataclasses.dataclass(frozen=True, eq=False)
class FixedBatches:
  """Batches of given rows, as evaluation sees them.

  Attributes:
    images: to read from.
    index: int[S, R] rows of each batch.
  """

  images: Stored
  index: np.ndarray

  def __len__(self) -> int:
    return len(self.index)

  def __getitem__(self, number: int) -> np.ndarray:
    """uint8[R, H, W, Ch]."""
    return self.images[self.index[number]]


@contextlib.contextmanager
def ahead(
  batches: Batches, *, first: int = 0, workers: int = 0
) -> Iterator[Iterator[np.ndarray]]:
  """Gives the batches from number `first` on, made before they are asked for.

  Args:
    batches: makes a batch by its number; workers need it picklable.
    first: number of the first batch.
    workers: processes that make them; 0: threads of this one.
  """
  iterator = iter(dataset(batches, first=first, workers=workers))
  try:
    # A copy, for a worker's memory is taken back when its batch is dropped.
    yield map(np.array, iterator) if workers else iterator
  finally:
    iterator.close()


def dataset(
  batches: Batches, *, first: int = 0, workers: int = 0
) -> grain.IterDataset[np.ndarray]:
  """The Grain pipeline behind `ahead`; its iterators can save their state."""
  # One thread: a batch decodes on several by itself.
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_NUM_AHEAD)
  pipeline = grain.MapDataset.source(batches)[first:].to_iter_dataset(options)
  if not workers:
    return pipeline
  if not flags.FLAGS.is_parsed():  # Grain reads some when it starts workers
    flags.FLAGS.mark_as_parsed()
  return pipeline.mp_prefetch(
    grain.multiprocessing.MultiprocessingOptions(
      num_workers=workers, per_worker_buffer_size=_NUM_AHEAD
    ),
    worker_init_fn=_init_worker,
  )


@functools.lru_cache(maxsize=2)
def _epoch_index(
  seed: int, epoch: int, num_examples: int, batch_size: int
) -> np.ndarray:
  """int32[S, B] rows of an epoch's batches."""
  permutation = order.epoch_order(seed, epoch, num_examples)
  return order.epoch_batches(permutation, batch_size)[0]


def _draws(seed: int, step: int, place: int) -> Callable[[], float]:
  """Gives one random number in [0, 1) after another."""
  sequence = np.random.SeedSequence((seed, _VIEW_STREAM, step, place))
  # Raw words: the same on every version of NumPy.
  words = np.random.Philox(sequence).random_raw(_NUM_DRAWS)
  return iter(((words >> np.uint64(11)) * 2.0**-53).tolist()).__next__


def _init_worker(index: int, count: int) -> None:
  """Lets the parent alone decide when a worker ends."""
  del index, count
  # Signals to the whole group are the parent's to serve; it asks workers to
  # end, and needs them until it has ended its step.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)

  def leave_with_parent() -> None:
    """A killed parent asks nobody, and a worker would wait for it for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
      parent.join()
      os._exit(1)

  threading.Thread(target=leave_with_parent, daemon=True).start()
