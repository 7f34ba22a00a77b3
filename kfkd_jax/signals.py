"""Ctrl-C and SIGTERM, which are obeyed wherever the program is.

What a signal's handler raises may be lost: Python swallows it in `__del__` and
in callbacks of the garbage collector, libraries in callbacks of their own. It
is raised again until it is on its way out, and a program that stays for long
all the same is ended.
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # as a shell's

# Training saves the full state before it leaves, which may take a while.
_PATIENCE_SECONDS = 300
_AGAIN_SECONDS = (0.2, 5)  # until it is raised again, first and in the end


class Orders:
  """Leads SIGINT and SIGTERM out of a block, through every `finally`.

  The first raises KeyboardInterrupt or SystemExit; a second SIGINT ends the
  process at once. Use as a context manager, which puts back what it changed;
  outside the main thread it changes nothing.

  Attributes:
    code: the exit code of the first signal; None before it.
  """

  def __init__(self, line: str):
    """Says what to print should the process be ended on SIGINT: `line`."""
    self.code: int | None = None
    self._line = line
    self._previous: dict[signal.Signals, Any] = {}
    self._is_over = True
    self._checking = threading.Lock()  # `_is_over`, to act on it

  def __enter__(self) -> Orders:
    if threading.current_thread() is not threading.main_thread():
      return self
    self._is_over = False
    self._reader, self._writer = os.pipe()
    os.set_blocking(self._writer, False)
    self._hook, sys.unraisablehook = sys.unraisablehook, self._hide
    self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
    self._previous = {n: signal.getsignal(n) for n in EXIT_CODES}
    self.listen()
    threading.Thread(target=self._watch, daemon=True).start()
    return self

  def listen(self) -> None:
    """Takes the signals, again after a library took them."""
    for number, handler in self._previous.items():
      if handler != signal.SIG_IGN:  # such as after `nohup`
        signal.signal(number, self._raise)

  def settle(self) -> None:
    """From now on nothing is raised, and the process is not ended."""
    self._is_over = True
    with self._checking:  # the other thread may have looked before
      pass

  def __exit__(self, *unused: Any) -> None:
    if not self._previous:
      return
    self.settle()
    for number, handler in self._previous.items():
      signal.signal(number, handler or signal.SIG_DFL)
    signal.set_wakeup_fd(self._wakeup)
    sys.unraisablehook = self._hook
    os.close(self._writer)  # the thread hears of it and closes the other end

  def _raise(self, number: int, frame: FrameType | None) -> None:
    if self.code is None:
      self.code = EXIT_CODES[signal.Signals(number)]
    if self._is_over or _is_leaving(sys.exception()):
      return
    if self.code == EXIT_CODES[signal.SIGINT]:
      raise KeyboardInterrupt
    raise SystemExit(self.code)

  def _hide(self, unraisable: Any) -> None:
    """What was swallowed is raised again: nobody needs to read of it."""
    if self.code is None or not _is_leaving(unraisable.exc_value):
      self._hook(unraisable)

  def _watch(self) -> None:
    """Sees to it that signals are obeyed; in a thread, for the main may wait.

    The system's own handler writes the numbers of signals into the pipe.
    """
    gap, most = _AGAIN_SECONDS
    interrupts, first, again, end = 0, None, 0.0, 0.0
    while True:
      if select.select([self._reader], [], [], first and gap)[0]:
        numbers = os.read(self._reader, 64)
        if not numbers:
          os.close(self._reader)
          return
        interrupts += numbers.count(signal.SIGINT)
        if first is None and not set(EXIT_CODES).isdisjoint(numbers):
          first = next(n for n in numbers if n in EXIT_CODES)
          again = time.monotonic() + gap
          end = time.monotonic() + _PATIENCE_SECONDS
      now = time.monotonic()
      if first and (interrupts > 1 or now > end):
        self._end(EXIT_CODES[signal.Signals(first)])
      if first and now > again:
        self._remind()
        gap = min(2 * gap, most)
        again = now + gap

  def _remind(self) -> None:
    """Calls the handler of SIGTERM in the main thread, whosever it is now.

    Not that of SIGINT: a second one means another thing.
    """
    with self._checking:
      if not self._is_over:
        _thread.interrupt_main(signal.SIGTERM)

  def _end(self, code: int) -> None:
    with self._checking:
      if self._is_over:
        return
      if code == EXIT_CODES[signal.SIGINT]:
        os.write(2, f"{self._line}\n".encode())
      os._exit(code)


def _is_leaving(error: BaseException | None) -> bool:
  """Whether the program is on its way out by `error` or what led to it."""
  while error is not None:
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
      return True
    error = error.__context__
  return False
