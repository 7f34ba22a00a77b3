"""SIGTERM, which a machine that is about to be taken away sends."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import jax

EXIT_CODE = 143  # 128 + SIGTERM, as a shell reports it


class Terminated(SystemExit):
  """Ends the program with `EXIT_CODE`; what was done is saved."""

  def __init__(self) -> None:
    super().__init__(EXIT_CODE)


class Termination:
  """Notes SIGTERM while a block runs, so that the block ends where it can.

  Use as a context manager around code that looks at `requested`; a request it
  did not see is served when it ends. Does nothing outside the main thread, and
  with several processes, which would have to agree on a step.
  """

  def __init__(self) -> None:
    self.requested = False
    self._installed = False

  def __enter__(self) -> Termination:
    main = threading.current_thread() is threading.main_thread()
    if main and jax.process_count() == 1:
      self._previous = signal.signal(signal.SIGTERM, self._note)
      self._installed = True
    return self

  def __exit__(self, kind: type | None, *unused: object) -> None:
    if self._installed:
      signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
    if self.requested and kind is None:
      raise Terminated

  def _note(self, number: int, frame: FrameType | None) -> None:
    self.requested = True
