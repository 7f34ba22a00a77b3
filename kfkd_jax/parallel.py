"""Devices and processes: the mesh, the pmapped step, global arrays.

The only module that knows how a per-device function becomes a program on every
device. `jax.pmap` has itself been `jit(shard_map(...))` since JAX 0.10; writing
that out keeps the state one replicated pytree without a leading device axis,
so it is saved and restored as it is, on one chip or on a pod.

With several processes, each runs the whole program. They share a file system,
which the first of them, the main one, alone reads and writes through `on_main`:
so they never decide differently. Checkpoints are the exception: Orbax brings
the processes together itself.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import itertools
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")

DATA_AXIS = "data"
ENSEMBLE_AXIS = "ensemble"
ALL_AXES = (DATA_AXIS, ENSEMBLE_AXIS)

REPLICATED = PartitionSpec()
SHARDED = PartitionSpec(DATA_AXIS)
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
    devices = jax.local_devices() if _alone else jax.devices()
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
      `MEMBERS`.
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
  """Splits each leaf's leading axis over `mesh`; every process passes it whole.

  Each process hands its own devices their rows, so no row is lost or doubled
  whatever the number of processes.

  Args:
    tree: leaves `[N, ...]`.
    mesh: from `data_mesh`.
    spec: `SHARDED`, or `MEMBERS` for a stack of networks.
  """
  sharding = NamedSharding(mesh, spec)
  parts = math.prod(mesh.shape[axis] for axis in jax.tree.leaves(tuple(spec)))

  def put(x):
    x = np.asarray(x)
    if x.shape[0] % parts:
      raise ValueError(
        f"leading axis of {x.shape} does not divide over {parts} devices"
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
      return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)

  return jax.tree.map(fetch, tree)


def round_up(count: int, mesh: Mesh) -> int:
  """The smallest number of rows, `count` or more, that `SHARDED` divides."""
  parts = mesh.shape[DATA_AXIS]
  return -(-count // parts) * parts


_SILENT_SECONDS = 30  # after so many a process counts as dead
_BEAT_SECONDS = 2
_LINGER_SECONDS = 3 * _BEAT_SECONDS
_ALIVE = "kfkd/alive/"
_FAILED = "failed: "


def connect(
  address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  lost: Callable[[str], Any],
) -> None:
  """Joins the other processes of this program; before any device is used.

  Args:
    address: `host:port` of process 0; None, like the other two, to find out
      from the cluster (Cloud TPU, Slurm, Kubernetes, Open MPI).
    num_processes: P.
    process_id: 0 to P - 1.
    lost: called in another thread, with what happened, once a process is gone.
      The main thread may then be waiting for it for good.
  """
  try:
    jax.distributed.initialize(address, num_processes, process_id)
  except (ValueError, RuntimeError) as error:
    raise ValueError(
      "--multihost: the processes cannot be connected "
      f"({str(error).splitlines()[0]}); outside Cloud TPU, Slurm, Kubernetes "
      "and Open MPI give --multihost=HOST:PORT,P,I"
    ) from error
  atexit.register(_ending.set)
  jax.process_index()  # starts the devices, once, in this thread
  watch = threading.Thread(target=_watch, args=(lost,), daemon=True)
  watch.start()


_ending = threading.Event()


def _watch(lost: Callable[[str], Any]) -> None:
  """Says that this process is alive, and looks whether the others are.

  JAX would abort this process with a stack trace, and only after minutes.
  """
  heard: dict[str, tuple[str, float]] = {}
  for beat in itertools.count():
    try:
      beats = _beat(str(beat))
    except jax.errors.JaxRuntimeError:
      beats = {"0": f"{_FAILED}it cannot be reached"}
    now = time.monotonic()
    for process, word in beats.items():
      if word != heard.get(process, ("", now))[0]:
        heard[process] = (word, now)
      silent = now - heard[process][1] > _SILENT_SECONDS
      if silent or word.startswith(_FAILED):
        # What ended that process may be about to end this one.
        if not _ending.wait(_BEAT_SECONDS):
          why = "it is silent" if silent else word.removeprefix(_FAILED)
          lost(f"process {process} is gone ({why})")
        return
    if _ending.wait(_BEAT_SECONDS):
      return


def _beat(word: str) -> dict[str, str]:
  """Leaves a word about this process; returns everybody's, by number."""
  name = f"{_ALIVE}{jax.process_index()}"
  _client().key_value_set(name, word, allow_overwrite=True)
  words = _client().key_value_dir_get(_ALIVE)
  return {key.rpartition("/")[2]: value for key, value in words}


_leaving = threading.Lock()  # two threads may want to


def leave(code: int, why: str, line: str = "") -> None:
  """Ends this process without waiting for the others, which hear why.

  Does nothing where there are no others. The main process waits a little for
  them to leave: without it JAX aborts them.

  Args:
    code: the exit code.
    why: for the others.
    line: to print.
  """
  if not jax.distributed.is_initialized():
    return
  _leaving.acquire()
  _ending.set()
  print(line, end="\n" if line else "", file=sys.stderr)
  end = time.monotonic() + (_LINGER_SECONDS if is_main_process() else 0)
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    while True:
      words = _beat(_FAILED + why)
      here = [w for w in words.values() if not w.startswith(_FAILED)]
      if not here or time.monotonic() > end:
        break
      time.sleep(0.1)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def is_main_process() -> bool:
  """Whether this process is the one that writes reports and prints."""
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def say(line: str) -> None:
  """Prints, on the main process."""
  if is_main_process():
    print(line)


_calls = itertools.count()  # of `on_main`; processes make the same ones
_alone = False  # inside `on_main`, where the other processes are not
_LEAVING = "kfkd/leaving"
_ERRORS = (FloatingPointError, OSError, ValueError)


def on_main(fn: Callable[..., T], *args: Any) -> T:
  """`fn(*args)` on the main process; every process gets its result or error.

  All processes must come here, in the same order. While the main one works,
  the others wait without using a device, as long as it takes. Where one of
  them is told to leave meanwhile (`SystemExit`), all leave when `fn` is done.

  Args:
    fn: what JSON holds is what it may return.
    *args: for `fn`; they matter on the main process only.
  """
  if _alone or not jax.distributed.is_initialized():
    return fn(*args)
  key = f"kfkd/main/{next(_calls)}"
  return _tell(key, fn, args) if is_main_process() else _hear(key)


def _tell(key: str, fn: Callable[..., T], args: Sequence[Any]) -> T:
  """Runs `fn` and lets the others know what became of it."""
  try:
    with _on_its_own():
      value = fn(*args)
    for _, code in _client().key_value_dir_get(_LEAVING):
      raise SystemExit(int(code))
    word = {"value": value}
  except BaseException as error:
    word = _description(error)
    raise
  finally:
    _client().key_value_set(key, json.dumps(word))
  return value


def _hear(key: str) -> Any:
  """Waits for the main process's word, and does alike."""
  while True:
    try:
      word = json.loads(_client().blocking_key_value_get(key, 1000))
      break
    except SystemExit as leaving:
      name = f"{_LEAVING}/{jax.process_index()}"
      _client().key_value_set(name, str(leaving.code), allow_overwrite=True)
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise
  if "value" in word:
    return word["value"]
  if word["kind"] == "SystemExit":
    raise SystemExit(word["code"])
  kinds = {kind.__name__: kind for kind in _ERRORS}
  raise kinds.get(word["kind"], RuntimeError)(f"process 0: {word['text']}")


def _description(error: BaseException) -> dict[str, Any]:
  """An error, or a wish to leave, for other processes."""
  if isinstance(error, SystemExit):
    return {"kind": "SystemExit", "code": error.code}
  kinds = [k.__name__ for k in _ERRORS if isinstance(error, k)]
  text = str(error) or type(error).__name__
  return {"kind": (kinds or ["RuntimeError"])[0], "text": text}


@contextlib.contextmanager
def _on_its_own() -> Iterator[None]:
  global _alone
  _alone = True
  try:
    yield
  finally:
    _alone = False


def _client() -> Any:
  """The processes' common store of strings; JAX has no public name for it."""
  from jax._src import distributed

  return distributed.global_state.client


def arrays_from_main(
  fn: Callable[..., dict[str, Any]], *args: Any
) -> dict[str, np.ndarray]:
  """Like `on_main` for arrays by name, which go through the devices."""
  found: dict[str, np.ndarray] = {}

  def make():
    found.update({k: np.asarray(v) for k, v in fn(*args).items()})
    return {k: (v.shape, v.dtype.name) for k, v in found.items()}

  described = on_main(make)
  if _alone or not jax.distributed.is_initialized():
    return found
  for name in described.keys() - found.keys():
    shape, dtype = described[name]
    found[name] = np.empty(shape, dtype)
  return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(found))


def anywhere(flag: bool) -> bool:
  """Whether `flag` is set on any process; all of them must ask together."""
  if not jax.distributed.is_initialized():
    return flag
  return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


class Agreement:
  """`anywhere` for every step of a loop, where waiting would cost time.

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
    self._call += 1
    if self._call % self._EVERY:
      return False
    before = self._before
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
