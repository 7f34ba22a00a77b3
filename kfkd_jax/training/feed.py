"""What each step reads: rows of resident arrays, or images decoded for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from kfkd_jax import parallel
from kfkd_jax.data import order, stream
from kfkd_jax.data.stored import Stored


class Feed:
  """Hands the training steps their rows; a context that ends its workers.

  Images in memory lie on every device, a row is a number, and an epoch's rows
  are put on the devices at its start. Of `Stored` ones each process decodes the
  rows of its own devices, and all that an example has travels with it, except
  labels.
  """

  def __init__(
    self,
    training_set: dict[str, Any],
    *,
    batch_size: int,
    order_seed: int,
    view_seed: int,
    num_steps: int,
    views: stream.RandomViews,
    workers: int,
    mesh: jax.sharding.Mesh,
  ):
    """Puts what is resident on the devices.

    Args:
      training_set: `image`, `label` and more, with leading axis N.
      batch_size: of all devices together.
      order_seed: of the epochs' orders.
      view_seed: of the random views.
      num_steps: of the whole training.
      views: of stored images.
      workers: processes that decode them.
      mesh: from `parallel.data_mesh`.
    """
    images = training_set["image"]
    on_disk = isinstance(images, Stored)
    kept = ("label",) if on_disk else tuple(training_set)
    self.resident = parallel.replicate(
      {name: training_set[name] for name in kept}, mesh
    )
    self._travelling = {
      k: v for k, v in training_set.items() if k not in (*kept, "image")
    }
    self._mesh = mesh
    self._count = len(training_set["label"])
    self._batch_size = batch_size
    self._per_epoch = order.num_batches(self._count, batch_size)
    self._epoch = -1
    self._index = np.empty((0, batch_size), np.int32)
    self._rows: dict[str, jax.Array] = {}
    self._order_seed = order_seed
    self._workers = workers
    self._batches = None
    if on_disk:
      self._batches = stream.TrainingBatches(
        images,
        views,
        batch_size,
        num_steps,
        order_seed,
        view_seed,
        parallel.own_rows(batch_size, mesh),
      )
    self._open = contextlib.ExitStack()
    self._images: Iterator[np.ndarray] | None = None

  def __enter__(self) -> Feed:
    return self

  def __exit__(self, *unused: object) -> None:
    self._open.close()

  def __call__(self, steps: range) -> Iterator[dict[str, jax.Array]]:
    """What each of these steps takes its rows from, on the devices.

    Of stored images, the steps of a call continue those of the last one.
    """
    for step in steps:
      epoch, place = divmod(step, self._per_epoch)
      # A run that continues within an epoch needs its rows as well.
      if epoch != self._epoch:
        self._start(epoch)
      yield {**self._rows, **self._brought(step, place)}

  def _start(self, epoch: int) -> None:
    permutation = order.epoch_order(self._order_seed, epoch, self._count)
    index, weight = order.epoch_batches(permutation, self._batch_size)
    self._epoch, self._index = epoch, index
    self._rows = parallel.shard(
      {"index": index, "weight": weight}, self._mesh, parallel.BATCHES
    )

  def _brought(self, step: int, place: int) -> dict[str, jax.Array]:
    """What is not resident: a batch of one step."""
    if self._batches is None:
      return {}
    # Sent step by step: teachers' outputs may be larger than the devices'
    # memory.
    chosen = self._index[place]
    brought = parallel.shard(
      {name: values[chosen][None] for name, values in self._travelling.items()},
      self._mesh,
      parallel.BATCHES,
    )
    # Decoded for this process's own devices alone; the whole batch nobody
    # holds.
    brought["image"] = parallel.shard_own(
      self._images_of(step)[None],
      self._mesh,
      count=self._batch_size,
      spec=parallel.BATCHES,
    )
    return brought

  def _images_of(self, step: int) -> np.ndarray:
    """Decoded ahead from the first step on; steps follow one another."""
    assert self._batches is not None
    if self._images is None:
      self._images = self._open.enter_context(
        stream.ahead(self._batches, first=step, workers=self._workers)
      )
    return next(self._images)
