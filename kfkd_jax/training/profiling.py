"""A trace of a few training steps, for TensorBoard or Perfetto."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from etils import epath

WARM_UP = 10  # steps before the trace: the first one compiles
NUM_STEPS = 5


class StepTrace:
  """Traces steps once they run at full speed; use as a context manager.

  Args:
    folder: where the trace goes; None: nothing is traced.
  """

  def __init__(self, folder: epath.Path | None):
    self._folder = folder
    self._taken = 0
    self._tracing = False

  def __enter__(self) -> StepTrace:
    return self

  def __exit__(self, *unused) -> None:
    if self._folder is None:
      return
    if self._tracing:
      self._stop()
    elif self._taken <= WARM_UP:
      print(
        f"{self._folder}: no trace, for it begins after {WARM_UP} steps and "
        f"there were {self._taken}"
      )

  def wrap(self, step: Callable[..., Any]) -> Callable[..., Any]:
    """The same step, annotated and traced when its time has come."""
    if self._folder is None:
      return step

    def traced(*arguments):
      if self._taken == WARM_UP:
        jax.profiler.start_trace(str(self._folder))
        self._tracing = True
      with jax.profiler.StepTraceAnnotation("train", step_num=self._taken):
        result = step(*arguments)
      self._taken += 1
      if self._taken == WARM_UP + NUM_STEPS:
        jax.block_until_ready(result)
        self._stop()
      return result

    return traced

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    self._tracing = False
    print(f"{self._folder}: a trace of up to {NUM_STEPS} steps")
