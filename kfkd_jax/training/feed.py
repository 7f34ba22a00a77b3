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

  Images in memory lie on every device, and a row is a number. Of `Stored` ones
  each process decodes the rows of its own devices, and all that an example has
  travels with it, except labels.
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
    """The rows of each of these steps, on the devices.

    Of stored images, the steps of a call continue those of the last one.
    """
    position = np.arange(self._batch_size, dtype=np.int32)
    per_epoch = order.num_batches(self._count, self._batch_size)
    epoch = -1
    for number in steps:
      if number // per_epoch != epoch:
        epoch = number // per_epoch
        permutation = order.epoch_order(self._order_seed, epoch, self._count)
        index, weight = order.epoch_batches(permutation, self._batch_size)
      chosen = index[number % per_epoch]
      rows = {
        "index": chosen,
        "weight": weight[number % per_epoch],
        "position": position,
        **{name: values[chosen] for name, values in self._travelling.items()},
      }
      rows = parallel.shard(rows, self._mesh)
      if self._batches is not None:
        images = self._images_of(number)
        rows["image"] = parallel.shard_own(
          images, self._mesh, count=self._batch_size
        )
      yield rows

  def _images_of(self, number: int) -> np.ndarray:
    """Decoded ahead from the first step on; steps follow one another."""
    assert self._batches is not None
    if self._images is None:
      self._images = self._open.enter_context(
        stream.ahead(self._batches, first=number, workers=self._workers)
      )
    return next(self._images)
