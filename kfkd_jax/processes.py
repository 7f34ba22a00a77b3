"""The processes of one program: joining them, deciding together, leaving.

Each runs the whole program. They share a file system, which the first of them,
the main one, alone reads and writes through `on_main`: so they never decide
differently. Checkpoints are the exception: Orbax brings the processes together
itself. With one process everything here is what a plain call would be.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")

_SILENT_SECONDS = 30  # after so many a process counts as dead
_BEAT_SECONDS = 2
_LINGER_SECONDS = 5 * _BEAT_SECONDS
_EXIT_SECONDS = 1
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
  others = jax.process_count() - 1 if is_main_process() else 0
  end = time.monotonic() + _LINGER_SECONDS
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    while True:
      # Some may not have said yet that they are there.
      words = _beat(_FAILED + why).values()
      left = sum(word.startswith(_FAILED) for word in words) - 1
      if left >= others or time.monotonic() > end:
        break
      time.sleep(0.1)
    if others:  # having said so, they still have to do it
      time.sleep(_EXIT_SECONDS)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def is_main_process() -> bool:
  """Whether this process is the one that writes reports and prints."""
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def on_its_own() -> bool:
  """Whether this is the main process inside `on_main`, without the others."""
  return _alone


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
    with _without_the_others():
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
def _without_the_others() -> Iterator[None]:
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
