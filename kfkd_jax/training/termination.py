"""SIGTERM, which a machine that is about to be taken away sends."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import jax

from kfkd_jax import parallel, processes

EXIT_CODE = 143  # 128 + SIGTERM, as a shell reports it


class Terminated(SystemExit):
  """Ends the program with `EXIT_CODE`; what was done is saved."""

  def __init__(self) -> None:
    super().__init__(EXIT_CODE)


class Termination:
  """Notes SIGTERM while a block runs, so that the block ends where it can.

  Use as a context manager around code that asks whether to end; a request it
  did not see is served when it ends. With several processes, all of them ask
  together and are told the same, whichever was sent the signal. Nothing is
  noted outside the main thread.
  """

  def __init__(self, mesh: jax.sharding.Mesh) -> None:
    self._noted = False
    self._installed = False
    self._agreement = parallel.Agreement(mesh)

  def __enter__(self) -> Termination:
    if threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(signal.SIGTERM, self._note)
      self._installed = True
    return self

  def __exit__(self, kind: type | None, *unused: object) -> None:
    if self._installed:
      signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
    if kind is None and self.requested():
      raise Terminated

  def requested(self) -> bool:
    """Whether to end now."""
    return processes.anywhere(self._noted)

  def requested_before(self) -> bool:
    """Whether to end, for every step: does not wait for other processes."""
    return self._agreement(self._noted)

  def _note(self, number: int, frame: FrameType | None) -> None:
    self._noted = True
