"""Devices: the `data` mesh, the pmapped step, global arrays.

The only module that knows how a per-device function becomes a program on every
device. `jax.pmap` has itself been `jit(shard_map(...))` since JAX 0.10; writing
that out keeps the state one replicated pytree without a leading device axis,
so it is saved and restored as it is, on one chip or on a pod.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"

REPLICATED = PartitionSpec()
SHARDED = PartitionSpec(DATA_AXIS)


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A one-dimensional mesh over `devices` (all of them by default)."""
  devices = jax.devices() if devices is None else devices
  return Mesh(np.asarray(devices).reshape(-1), (DATA_AXIS,))


def pmapped(
  fn: Callable,
  mesh: Mesh,
  *,
  in_specs: Any,
  out_specs: Any,
  donate: tuple[int, ...] = (),
) -> Callable:
  """Runs the per-device function `fn` on every device of `mesh`, jitted.

  Inside `fn`, arguments under `SHARDED` hold this device's share of the leading
  axis and `lax.pmean(x, DATA_AXIS)` averages over devices. Whatever `fn`
  returns under `REPLICATED` must have been averaged: with `check_vma=False`
  nothing else makes it equal everywhere. (With checking on, the familiar
  `pmean(grad(local_loss))` silently yields gradients that are too large by the
  number of devices.)

  Args:
    fn: the per-device function.
    mesh: from `data_mesh`.
    in_specs: a prefix of the argument tuple: `REPLICATED` or `SHARDED`.
    out_specs: likewise for the results.
    donate: positions of the arguments whose memory the results may take.

  Returns:
    A jitted function of global arrays.
  """
  mapped = jax.shard_map(
    fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )
  return jax.jit(mapped, donate_argnums=donate)


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Puts every leaf on all devices of `mesh`, whole, in memory of its own.

  The copy matters: a donated step would otherwise delete the caller's arrays.
  """
  sharding = NamedSharding(mesh, REPLICATED)
  host = jax.tree.map(lambda x: np.array(x), tree)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(
      x.shape, sharding, lambda index: x[index]
    ),
    host,
  )


def shard(tree: Any, mesh: Mesh) -> Any:
  """Splits each leaf's leading axis over `mesh`; every process passes it whole.

  Each process hands its own devices their rows, so no row is lost or doubled
  whatever the number of processes.
  """
  sharding = NamedSharding(mesh, SHARDED)

  def put(x):
    x = np.asarray(x)
    if x.shape[0] % mesh.size:
      raise ValueError(
        f"leading axis of {x.shape} does not divide over {mesh.size} devices"
      )
    return jax.make_array_from_callback(
      x.shape, sharding, lambda index: x[index]
    )

  return jax.tree.map(put, tree)


def own_rows(count: int, mesh: Mesh) -> np.ndarray:
  """int[R] the rows of a sharded axis that this process's devices hold."""
  sharding = NamedSharding(mesh, SHARDED)
  parts = sharding.addressable_devices_indices_map((count,)).values()
  rows = np.arange(count)
  return np.unique(np.concatenate([rows[index] for index in parts]))


def shard_own(x: np.ndarray, mesh: Mesh, *, count: int) -> jax.Array:
  """Splits a leading axis over `mesh`; a process passes its own rows alone.

  Args:
    x: `[R, ...]` the rows `own_rows(count, mesh)`.
    mesh: from `data_mesh`.
    count: of all rows.
  """
  sharding = NamedSharding(mesh, SHARDED)
  return jax.make_array_from_process_local_data(
    sharding, x, (count, *x.shape[1:])
  )


def to_host(tree: Any) -> Any:
  """Whole arrays as NumPy, on every process."""

  def fetch(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      if x.is_fully_replicated:
        return np.asarray(x.addressable_data(0))
      from jax.experimental import multihost_utils

      return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)

  return jax.tree.map(fetch, tree)


def round_up(count: int, mesh: Mesh) -> int:
  """The smallest multiple of the mesh's size that holds `count`."""
  return -(-count // mesh.size) * mesh.size


def is_main_process() -> bool:
  """Whether this process is the one that writes reports and prints."""
  return jax.process_index() == 0


class InFlight:
  """Bounds how many dispatched steps may be unfinished at once.

  An unbounded loop of collectives dead-locks fake CPU devices and aborts the
  process, and on any machine it lets Python run far ahead of the devices.
  """

  def __init__(self, limit: int):
    self._limit = limit
    self._waiting: collections.deque = collections.deque()

  def add(self, results: Any) -> None:
    """Notes a dispatched step by its results; waits for the oldest if full."""
    self._waiting.append(results)
    if len(self._waiting) > self._limit:
      jax.block_until_ready(self._waiting.popleft())

  def drain(self) -> None:
    """Waits for everything dispatched."""
    while self._waiting:
      jax.block_until_ready(self._waiting.popleft())


def in_flight_limit() -> int:
  """Two on CPU (see `InFlight`), eight where a device queue hides latency."""
  return 2 if jax.default_backend() == "cpu" else 8
