"""Numbered checkpoints of our own in one folder, saved in the background."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import logging
import pathlib
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from kfkd_jax import files, lock, parallel, processes
from kfkd_jax.checkpoints.ways import (
  DamagedCheckpointError,
  Muted,
  absolute,
  digests,
  first_line,
)

_REMEDY = "remove it and run again"
_STEP_SECONDS = 0.2
_GRACE_SECONDS = 5  # for Orbax to notice that a thread of its own died
_LABEL = "label"  # no name of a leaf, all of which begin with a bracket or dot


class Checkpoints:
  """Numbered pytrees in one folder, saved in the background.

  Use as a context manager: leaving it waits for what is being saved.

  Args:
    path: the folder.
    keep: how many of the newest to keep; None keeps all.
    owner: whose they are, such as a run's name, by what is said of it.
      Checkpoints that say otherwise are refused; nothing is asked of what only
      one side names.
  """

  def __init__(
    self,
    path: epath.Path,
    *,
    keep: int | None = None,
    owner: Mapping[str, str] = types.MappingProxyType({}),
  ):
    self.path = absolute(path)
    self._muted = Muted()
    logging.getLogger("absl").addFilter(self._muted)
    self._deaths: list[BaseException] = []
    self._owner = owner
    self._manager = ocp.CheckpointManager(
      self.path,
      options=ocp.CheckpointManagerOptions(
        create=True,
        cleanup_tmp_directories=True,
        save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
        preservation_policy=checkpoint_managers.LatestN(keep),
      ),
      item_handlers={
        # Weights hardly pack: a tenth of the disk for twice the time.
        "tree": ocp.PyTreeCheckpointHandler(use_compression=False),
        "digests": ocp.JsonCheckpointHandler(),
      },
    )
    self._saving: concurrent.futures.Future[None] = _in_background()

  def save(
    self,
    step: int,
    tree: Any,
    *,
    dtype: str | None = None,
    after: Callable[[], None] = lambda: None,
  ) -> None:
    """Starts saving `tree` as number `step`, in its place.

    What is saved is what the tree holds now, whatever becomes of it. An error
    of a save is raised by the next call that waits for it.

    Args:
      step: its number.
      tree: global arrays, or of NumPy.
      dtype: that float32 leaves take on disk; None: their own.
      after: called before anything is written, which is not where it raises.
    """
    lock.check()
    self.wait()
    with self._writing():
      is_there = step in self._manager.all_steps()
    if is_there:  # Orbax refuses a number that is there
      self.delete(step)
    # Taken out when they are fetched, which frees the devices' memory.
    copies = [parallel.snapshot(tree)]

    def write() -> None:
      # As NumPy, which the checksums need anyway: `jax.Array`s take Orbax half
      # as long again, and TensorStore keeps some 15 kB of memory of every save.
      host = parallel.to_host(copies.pop())
      after()
      self._write(step, host, dtype)

    calls = [write, self._finish]
    if jax.process_count() > 1:
      # Orbax brings the processes together on their devices, which all of them
      # must use in the same order.
      calls.pop(0)()
    with self._writing():
      self._saving = _in_background(*calls)

  def _write(self, step: int, tree: Any, dtype: str | None) -> None:
    if dtype is not None:
      tree = jax.tree.map(
        lambda x: x.astype(dtype) if x.dtype == np.float32 else x, tree
      )
    with self._writing():
      label = {**self._owner, "checkpoint": step}
      arguments = ocp.args.Composite(
        tree=ocp.args.PyTreeSave(tree),
        digests=ocp.args.JsonSave({**digests(tree), _LABEL: label}),
      )
      with _handing_over:
        saved = self._manager.save(step, args=arguments, force=True)
    if not saved:
      raise RuntimeError(f"{self.path}: checkpoint {step} was not saved")

  def _finish(self) -> None:
    with self._writing():
      self._manager.wait_until_finished()

  def steps(self) -> list[int]:
    """Numbers of the checkpoints, ascending; emptied folders are none."""

    def is_emptied(step):
      folder = self.path / str(step)  # not there yet while it is being saved
      return folder.is_dir() and not any(folder.iterdir())

    return processes.on_main(
      lambda: sorted(s for s in self._manager.all_steps() if not is_emptied(s))
    )

  def wait(self) -> None:
    """Returns once everything is on disk.

    Signals are heard meanwhile, and what is dead is not waited for: a thread
    that dies, such as of too little memory, leaves others waiting.
    """
    died = None
    while not self._saving.done():
      concurrent.futures.wait([self._saving], _STEP_SECONDS)
      if self._deaths:
        died = died or time.monotonic()
        if time.monotonic() > died + _GRACE_SECONDS:
          with self._writing():
            raise self._deaths[0]
    self._saving.result()

  def delete(self, step: int) -> None:
    """Removes checkpoint `step`."""
    self.wait()
    self._manager.delete(step)

  def delete_after(self, step: int) -> None:
    """Removes every checkpoint numbered above `step`."""
    self.wait()
    steps = processes.on_main(lambda: list(self._manager.all_steps()))
    for later in [s for s in steps if s > step]:
      self._manager.delete(later)

  def restore(self, step: int, template: Any) -> Any:
    """Checkpoint `step` as NumPy arrays in the structure of `template`.

    Leaves that were saved as bfloat16 come back in the template's float32.

    Raises:
      DamagedCheckpointError: it cannot be read, does not fit the template, or
        its bytes are not those that were saved.
    """
    tree, cause = None, None
    try:
      tree = self._read(step, template)
    # Of any kind: what Orbax raises on damaged files differs.
    except Exception as error:
      files.check_readable(self.path / str(step))
      cause = error
    # Together, so that no process goes on while another goes back.
    if processes.anywhere(cause is not None):
      what = first_line(cause) if cause else "by another process"
      raise DamagedCheckpointError(
        f"{self.path / str(step)} cannot be read ({what}); {_REMEDY}"
      ) from cause
    return tree

  def _read(self, step: int, template: Any) -> Any:
    if "://" not in str(self.path):
      for path in pathlib.Path(self.path / str(step)).rglob("*"):
        if not path.is_dir():
          files.check_is_file(path)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        tree=_restore_args(template), digests=ocp.args.JsonRestore()
      ),
    )
    expected = dict(restored["digests"])
    # Those of earlier versions have none, and are what their name says.
    label = expected.pop(_LABEL, {})
    if digests(restored["tree"]) != expected:
      raise ValueError("it is damaged: its checksums do not match")
    wrong = files.differences(label, {**self._owner, "checkpoint": step})
    if wrong:
      raise ValueError(f"it belongs elsewhere: {wrong}")
    return jax.tree.map(_widened, restored["tree"], template)

  def restore_stacked(self, steps: Sequence[int], template: Any) -> Any:
    """Checkpoints `steps` with a leading axis C, read into one allocation."""
    stacked = jax.tree.map(
      lambda x: np.empty((len(steps), *x.shape), x.dtype), template
    )
    for c, step in enumerate(steps):
      tree = self.restore(step, template)
      jax.tree.map(lambda into, x, c=c: into.__setitem__(c, x), stacked, tree)
    return stacked

  def __enter__(self) -> Checkpoints:
    self._threads_hook = threading.excepthook
    threading.excepthook = self._note_death
    return self

  def _note_death(self, death: threading.ExceptHookArgs) -> None:
    """Keeps what ends a thread of Orbax, to be told in one line."""
    trace = traceback.extract_tb(death.exc_traceback)
    ours = any("orbax" in frame.filename for frame in trace)
    if ours:
      self._deaths.append(death.exc_value or death.exc_type())
    # Whose it was is not known: other checkpoints that are open hear of it too.
    outer = getattr(self._threads_hook, "__self__", None)
    if not ours or isinstance(outer, Checkpoints):
      self._threads_hook(death)

  def __exit__(self, kind: type | None, *unused: object) -> None:
    """Waits for what is being saved and releases the background threads."""
    # An error on the way here says more than one that follows from it.
    with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
      try:
        self.wait()
        with self._writing():
          self._manager.close()
      finally:
        threading.excepthook = self._threads_hook
        logging.getLogger("absl").removeFilter(self._muted)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Names the folder in whatever stops a save, also one begun before."""
    try:
      yield
    except Exception as error:
      number = getattr(error, "errno", None) or errno.EIO
      if isinstance(error, MemoryError) or "start new thread" in str(error):
        number = errno.ENOMEM
      reason = f"a checkpoint cannot be written ({first_line(error)})"
      raise OSError(number, reason, str(self.path)) from error


# Orbax counts its saves for all managers of a program together.
_handing_over = threading.Lock()


def _in_background(
  *calls: Callable[[], None],
) -> concurrent.futures.Future[None]:
  """Calls them in a thread; no pool's, for which the program's end waits."""
  future: concurrent.futures.Future[None] = concurrent.futures.Future()

  def run() -> None:
    try:
      for call in calls:
        call()
    except BaseException as error:
      future.set_exception(error)
    else:
      future.set_result(None)

  threading.Thread(target=run, daemon=True).start()
  return future


def _restore_args(template: Any) -> ocp.args.PyTreeRestore:
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), template
  )
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract
  )
  return ocp.args.PyTreeRestore(item=abstract, restore_args=as_numpy)


def _widened(leaf: np.ndarray, like: Any) -> np.ndarray:
  return leaf.astype(like.dtype) if leaf.dtype == jnp.bfloat16 else leaf


# What Orbax adds, measured: shapes, shardings and checksums of every leaf, and
# some twenty files and folders that end in half-filled blocks.
_BYTES_PER_LEAF = 430
_BYTES_PER_CHECKPOINT = 72_000


def disk_bytes(tree: Any, *, dtype: str | None = None) -> int:
  """About what saving `tree` with `dtype` takes on disk, in blocks of 4 KiB."""

  def size(leaf):
    short = dtype is not None and leaf.dtype == np.float32
    return leaf.size * jnp.dtype(dtype if short else leaf.dtype).itemsize

  sizes = [size(leaf) for leaf in jax.tree.leaves(tree)]
  return sum(sizes) + len(sizes) * _BYTES_PER_LEAF + _BYTES_PER_CHECKPOINT
