"""Shows a run as it goes: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

import ml_collections
from etils import epath
from rich import console, progress

from kfkd_jax import files, processes
from kfkd_jax.config import ConfigError
from kfkd_jax.training.loop import EpochReport

_LINES = 4  # plain lines a run, where there is no terminal


class Progress:
  """An observer of the training loop; use as a context manager.

  Args:
    run: the run's folder.
    title: what it is called.
    config: whose section `runtime` names the places to log to.
  """

  def __init__(
    self, run: epath.Path, title: str, config: ml_collections.ConfigDict
  ):
    self._title = title
    self._started = time.perf_counter()
    self._main = processes.is_main_process()
    self._bar: progress.Progress | None = None
    self._writer = None
    if self._main and config.runtime.tensorboard:
      from tensorboardX import SummaryWriter

      self._writer = SummaryWriter(str(run / "tensorboard"))
    self._wandb: Any = None
    if self._main and config.runtime.wandb is not None:
      self._wandb = _start_wandb(run, title, config)

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

  def __exit__(self, kind, *unused) -> None:
    if self._bar is not None:
      self._bar.stop()
    if self._writer is not None:
      self._writer.close()
    if self._wandb is not None:
      self._wandb.finish(exit_code=0 if kind is None else 1)

  def __call__(self, report: EpochReport) -> None:
    """Shows one finished epoch."""
    if self._writer is not None:
      for name, value in report.metrics.items():
        self._writer.add_scalar(name, value, report.epoch)
    if self._wandb is not None:
      self._wandb.log({"epoch": report.epoch, **report.metrics})
    if self._bar is not None:
      self._bar.update(
        self._task,
        total=report.epochs,
        completed=report.epoch,
        status=_short_status(report),
      )
    elif self._main and (
      report.epoch % max(1, report.epochs // _LINES) == 0
      or report.epoch == report.epochs
    ):
      seconds = time.perf_counter() - self._started
      print(
        f"{self._title}: epoch {report.epoch}/{report.epochs} "
        f"{_status(report)} "
        f"({duration(seconds)})",
        flush=True,
      )


def duration(seconds: float) -> str:
  """How long something took.

  >>> duration(7.25), duration(130), duration(3900)
  ('7.2 s', '2 min 10 s', '1 h 5 min')
  """
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f"{minutes} min {rest} s"
  return "{} h {} min".format(*divmod(minutes, 60))


def about(seconds: float) -> str:
  """How long something will take, as far as one can know.

  >>> about(7.25), about(59.9), about(130), about(3900)
  ('about 7 s', 'about 1 min', 'about 2 min', 'about 1 h 5 min')
  """
  if round(seconds) < 60:
    return f"about {max(1, round(seconds))} s"
  if seconds < 3600:
    return f"about {round(seconds / 60)} min"
  return f"about {duration(seconds)}"


def _start_wandb(
  run: epath.Path, title: str, config: ml_collections.ConfigDict
) -> Any:
  """A run of Weights & Biases, the same one when training continues."""
  project, note = config.runtime.wandb, run / "wandb.json"
  try:
    wandb = importlib.import_module("wandb")
  except ImportError as error:
    raise ConfigError(
      f"runtime.wandb={project!r} needs the package wandb, which is not "
      "installed; run `pip install wandb`"
    ) from error
  started = wandb.init(
    project=project,
    name=title,
    group=run.parent.parent.name,
    dir=str(run),
    id=files.read_json(note).get("id") if files.exists(note) else None,
    resume="allow",
    config=config.to_dict(),
  )
  files.write_json(note, {"id": started.id})
  started.define_metric("*", step_metric="epoch")
  return started


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
