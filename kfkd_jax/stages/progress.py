"""Shows a run as it goes: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from etils import epath
from rich import console, progress

from kfkd_jax import parallel
from kfkd_jax.training.loop import EpochReport

_LINES = 4  # plain lines a run, where there is no terminal


class Progress:
  """An observer of the training loop; use as a context manager."""

  def __init__(self, run: epath.Path, title: str, *, tensorboard: bool):
    self._title = title
    self._started = time.perf_counter()
    self._main = parallel.is_main_process()
    self._bar: progress.Progress | None = None
    self._writer = None
    if self._main and tensorboard:
      from tensorboardX import SummaryWriter

      self._writer = SummaryWriter(str(run / "tensorboard"))

  def __enter__(self) -> Progress:
    if self._main and sys.stderr.isatty():
      self._bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=12),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(compact=True),
        progress.TextColumn("{task.fields[status]}"),
        console=console.Console(stderr=True),
      )
      self._bar.start()
      self._task = self._bar.add_task(self._title, total=None, status="")
    return self

  def __exit__(self, *unused) -> None:
    if self._bar is not None:
      self._bar.stop()
    if self._writer is not None:
      self._writer.close()

  def __call__(self, report: EpochReport) -> None:
    """Shows one finished epoch."""
    if self._writer is not None:
      for name, value in report.metrics.items():
        self._writer.add_scalar(name, value, report.epoch)
    if self._bar is not None:
      self._bar.update(
        self._task,
        total=report.epochs,
        completed=report.epoch,
        status=_short_status(report),
      )
    elif self._main and _is_shown(report):
      seconds = time.perf_counter() - self._started
      print(
        f"{self._title}: epoch {report.epoch}/{report.epochs} "
        f"{_status(report)} "
        f"({seconds:.1f} s)",
        flush=True,
      )


def _status(report: EpochReport) -> str:
  metrics = report.metrics
  parts = [
    f"{report.steps_per_second:.0f} steps/s",
    f"loss {metrics['fit/loss']:.3f}",
    *(
      f"{name.split('/')[0]} {value:.3f}"
      for name, value in sorted(metrics.items())
      if name.endswith("/accuracy")
    ),
  ]
  if "select/max_forget" in metrics:
    parts.append(f"max F_e {metrics['select/max_forget']:.3f}")
  return " ".join(parts)


def _short_status(report: EpochReport) -> str:
  """What fits beside the bar in a terminal of 80 columns."""
  metrics = report.metrics
  watched = "select" if "select/accuracy" in metrics else "test"
  parts = [
    f"{report.steps_per_second:.0f}/s",
    f"loss {metrics['fit/loss']:.2f}",
    f"acc {metrics[f'{watched}/accuracy']:.3f}",
  ]
  if f"{watched}/max_forget" in metrics:
    parts.append(f"F_e {metrics[f'{watched}/max_forget']:.3f}")
  return " ".join(parts)


def _is_shown(report: EpochReport) -> bool:
  every = max(1, report.epochs // _LINES)
  return report.epoch % every == 0 or report.epoch == report.epochs
