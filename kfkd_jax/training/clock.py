"""When a run is looked at: every so many epochs, parts of one, or steps."""

from __future__ import annotations

from typing import NamedTuple

UNITS = ("epoch", "step")


class Clock(NamedTuple):
  """The ticks of a run. A tick ends with predictions, some with a checkpoint.

  Ticks are counted from 1, and checkpoints are numbered by them: where history
  is kept every epoch or less often, ticks are epochs.

  Attributes:
    steps_per_epoch: S.
    ends: finished steps at each tick's end, the last that of the run.
    kept: the ticks whose checkpoint is kept.
    saved: the ticks at whose end the full state is saved.
  """

  steps_per_epoch: int
  ends: tuple[int, ...]
  kept: frozenset[int]
  saved: frozenset[int]

  def start(self, tick: int) -> int:
    """Finished steps when `tick` begins."""
    return self.ends[tick - 2] if tick > 1 else 0

  def kept_until(self, tick: int) -> list[int]:
    """The kept ticks among the first `tick`, ascending."""
    return sorted(t for t in self.kept if t <= tick)

  def epochs(self, tick: int) -> int | float:
    """Finished epochs after `tick`, whole ones as whole numbers."""
    epochs = self.ends[tick - 1] / self.steps_per_epoch
    return int(epochs) if epochs.is_integer() else round(epochs, 4)


def make_clock(
  epochs: int,
  steps_per_epoch: int,
  *,
  every: float = 1,
  unit: str = "epoch",
  resume_every: int = 1,
) -> Clock:
  """The clock of a run.

  Args:
    epochs: E, of the run.
    steps_per_epoch: S.
    every: units between kept checkpoints; the last is always kept. Below 1, it
      is one over a whole number, the parts of an epoch.
    unit: `epoch` or `step`.
    resume_every: epochs between full states; the last is always saved.
  """
  if unit not in UNITS:
    raise ValueError(f"unit {unit!r} is unknown; choose from {UNITS}")
  total = epochs * steps_per_epoch
  if unit == "step":
    inner = list(range(int(every), total, int(every)))
  else:
    parts = round(1 / every) if every < 1 else 1
    # Rounded up: even the first part of an epoch has a step.
    inner = [-(-t * steps_per_epoch // parts) for t in range(1, epochs * parts)]
  # More parts than steps end at the same step: they count once.
  ends = tuple(dict.fromkeys((*inner, total)))
  stride = int(every) if unit == "epoch" and every >= 1 else 1
  period = resume_every * steps_per_epoch
  starts = (0, *ends[:-1])
  saved = {
    t
    for t, (start, end) in enumerate(zip(starts, ends, strict=True), 1)
    # A tick that crosses the end of a period saves, whatever its length.
    if start // period < end // period or end == total
  }
  kept = {*range(stride, len(ends), stride), len(ends)}
  return Clock(steps_per_epoch, ends, frozenset(kept), frozenset(saved))
