"""Devices: the mesh, the pmapped step, global arrays.

The only module that knows how a per-device function becomes a program on every
device. `jax.pmap` has itself been `jit(shard_map(...))` since JAX 0.10; writing
that out keeps the state one replicated pytree without a leading device axis,
so it is saved and restored as it is, on one chip or on a pod.
"""

from __future__ import annotations

import collections
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kfkd_jax import processes

DATA_AXIS = "data"
ENSEMBLE_AXIS = "ensemble"
ALL_AXES = (DATA_AXIS, ENSEMBLE_AXIS)

REPLICATED = PartitionSpec()
SHARDED = PartitionSpec(DATA_AXIS)
BATCHES = PartitionSpec(None, DATA_AXIS)
MEMBERS = PartitionSpec(ENSEMBLE_AXIS)


def data_mesh(
  devices: Sequence[jax.Device] | None = None, *, ensemble: int = 1
) -> Mesh:
  """A mesh `[D / E, E]` of the axes `data` and `ensemble` over D devices.

  Rows of a batch are shared out over `data`, members of a stack of networks
  over `ensemble`; the E devices of a row do the rest of the work all alike.

  Args:
    devices: by default all; in `on_main` those of the main process.
    ensemble: E.
  """
  if devices is None:
    devices = jax.local_devices() if processes.on_its_own() else jax.devices()
  if jax.process_count() > 1 and not jax.distributed.is_initialized():
    raise ValueError(
      f"this is one of {jax.process_count()} processes that share their "
      "devices; start kfkd with --multihost on all of them"
    )
  if len(devices) % ensemble:
    raise ValueError(
      f"an ensemble axis of {ensemble} (runtime.ensemble_axis) does not divide "
      f"{len(devices)} devices"
    )
  return Mesh(np.asarray(devices).reshape(-1, ensemble), ALL_AXES)


def cpu() -> jax.Device:
  """The CPU of this process, also where an accelerator does the work."""
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError as error:
    raise ValueError(
      "the CPU is needed beside the accelerator, but JAX_PLATFORMS="
      f"{os.environ.get('JAX_PLATFORMS')!r} leaves it out; add cpu to it"
    ) from error


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
  axis and `lax.pmean(x, DATA_AXIS)` averages over the shares. Whatever `fn`
  returns under `REPLICATED` must have been averaged: with `check_vma=False`
  nothing else makes it equal everywhere. (With checking on, the familiar
  `pmean(grad(local_loss))` silently yields gradients that are too large by the
  number of devices.)

  Args:
    fn: the per-device function.
    mesh: from `data_mesh`.
    in_specs: a prefix of the argument tuple: `REPLICATED`, `SHARDED`,
      `BATCHES`, `MEMBERS`.
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


def shard(tree: Any, mesh: Mesh, spec: PartitionSpec = SHARDED) -> Any:
  """Splits an axis of each leaf over `mesh`; every process passes it whole.

  Each process hands its own devices their rows, so no row is lost or doubled
  whatever the number of processes.

  Args:
    tree: leaves `[N, ...]`.
    mesh: from `data_mesh`.
    spec: `SHARDED`, `MEMBERS` for a stack of networks, or `BATCHES` for leaves
      `[S, N, ...]`.
  """
  sharding = NamedSharding(mesh, spec)
  # A spec may name several axes for one dimension.
  parts = math.prod(mesh.shape[axis] for axis in jax.tree.leaves(tuple(spec)))
  axis = len(spec) - 1

  def put(x):
    x = np.asarray(x)
    if x.shape[axis] % parts:
      raise ValueError(
        f"axis {axis} of {x.shape} does not divide over {parts} devices"
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


def shard_own(
  x: np.ndarray, mesh: Mesh, *, count: int, spec: PartitionSpec = SHARDED
) -> jax.Array:
  """Splits an axis over `mesh`; a process passes its own rows alone.

  Args:
    x: `[R, ...]` the rows `own_rows(count, mesh)`.
    mesh: from `data_mesh`.
    count: of all rows.
    spec: `SHARDED`, or `BATCHES` for `[S, R, ...]`.
  """
  axis = len(spec) - 1
  shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
  return jax.make_array_from_process_local_data(
    NamedSharding(mesh, spec), x, shape
  )


def to_host(tree: Any) -> Any:
  """Whole arrays as NumPy, on every process."""

  def fetch(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      if x.is_fully_replicated:
        return np.asarray(x.addressable_data(0))
      return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)

  return jax.tree.map(fetch, tree)


def snapshot(tree: Any) -> Any:
  """Copies on their way to the host, of `jax.Array`s on the devices.

  Donating or changing the originals leaves them alone, and `to_host` of them,
  in whatever thread, holds nothing up.
  """
  leaves, structure = jax.tree.flatten(tree)
  copies = iter(_copied([x for x in leaves if isinstance(x, jax.Array)]))
  leaves = [
    next(copies) if isinstance(x, jax.Array) else np.array(x) for x in leaves
  ]
  for x in leaves:
    if isinstance(x, jax.Array):
      x.copy_to_host_async()
  return jax.tree.unflatten(structure, leaves)


@jax.jit
def _copied(arrays: list[jax.Array]) -> list[jax.Array]:
  return [jnp.copy(x) for x in arrays]


def round_up(count: int, mesh: Mesh) -> int:
  """The smallest number of rows, `count` or more, that `SHARDED` divides."""
  parts = mesh.shape[DATA_AXIS]
  return -(-count // parts) * parts


class Agreement:
  """`processes.anywhere` for every step of a loop, without its waiting.

  Processes hear of a flag a few calls after it was set, all at the same call.
  With one process that is at once.
  """

  _EVERY = 8

  def __init__(self, mesh: Mesh):
    self._mesh = mesh
    self._call = 0
    self._before: jax.Array | None = None
    self._count = pmapped(
      lambda flags: lax.psum(flags.sum(), ALL_AXES),
      mesh,
      in_specs=PartitionSpec(ALL_AXES),
      out_specs=REPLICATED,
    )

  def __call__(self, flag: bool) -> bool:
    """Whether the flag was set anywhere."""
    if not jax.distributed.is_initialized():
      return flag
    # All processes make the same calls, so all of them sum at the same one.
    self._call += 1
    if self._call % self._EVERY:
      return False
    before = self._before
    # A sum that was asked for at the last call has arrived by this one: no
    # wait.
    flags = np.full(self._mesh.size, flag, np.int32)
    self._before = self._count(
      shard(flags, self._mesh, PartitionSpec(ALL_AXES))
    )
    return before is not None and bool(to_host(before))


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
