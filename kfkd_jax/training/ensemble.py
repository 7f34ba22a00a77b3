"""Stacks of networks shared out over the devices of the ensemble axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np
from jax.sharding import PartitionSpec

from kfkd_jax import history, parallel
from kfkd_jax.data import order


def predict_checkpoints(
  apply_fn: Callable[[Any, chex.Array], chex.Array],
  stacked: Any,
  inputs: np.ndarray,
  mesh: jax.sharding.Mesh,
  *,
  batch_size: int = 1024,
) -> np.ndarray:
  """`history.predict_checkpoints` of stacks that no single device holds.

  Args:
    apply_fn: `(variables, inputs) -> logits [N, K]`.
    stacked: leaves `[C, ...]` in NumPy; a device takes C / E of them.
    inputs: `[N, ...]`.
    mesh: from `parallel.data_mesh(ensemble=E)`.
    batch_size: examples at once, over all devices; halved as long as there is
      no room.

  Returns:
    `f32[C, N, K]`.
  """
  size, count = history.num_checkpoints(stacked), len(inputs)
  num_devices = mesh.shape[parallel.ENSEMBLE_AXIS]
  # Members are cut off again below; their weights nobody needs.
  filled, _ = history.pad_members(stacked, np.zeros(size), num_devices)
  predict = parallel.pmapped(
    lambda members, x: history.predict_checkpoints(apply_fn, members, x),
    mesh,
    in_specs=(parallel.MEMBERS, parallel.SHARDED),
    out_specs=PartitionSpec(parallel.ENSEMBLE_AXIS, parallel.DATA_AXIS),
  )
  members = parallel.shard(filled, mesh, parallel.MEMBERS)

  def by_batches(rows: int) -> np.ndarray:
    # Both axes are filled up: rows over the data axis, members over the other.
    index, _ = order.padded_batches(count, parallel.round_up(rows, mesh))
    parts = [
      parallel.to_host(predict(members, parallel.shard(inputs[i], mesh)))
      for i in index
    ]
    return np.concatenate(parts, axis=1)[:size, :count]

  return history.with_room(by_batches, min(count, batch_size))
