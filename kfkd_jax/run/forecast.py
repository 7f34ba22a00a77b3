"""What disk and work a run will take, said before it begins."""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple

import jax
import ml_collections
from etils import epath

from kfkd_jax import checkpoints, predictions
from kfkd_jax.run import build, tasks
from kfkd_jax.training import evaluation, loop, objective
from kfkd_jax.training.state import init_state

_CERTAIN = 0.9  # a forecast is right within a tenth


class Forecast(NamedTuple):
  """Bytes on disk of a run once it is finished.

  Attributes:
    checkpoint: one network of the history.
    num_checkpoints: of them.
    resume: the newest full states.
    predictions: of all splits and epochs.
  """

  checkpoint: int
  num_checkpoints: int
  resume: int
  predictions: int

  @property
  def total(self) -> int:
    history = self.num_checkpoints * self.checkpoint
    return history + self.resume + self.predictions


class DiskTooSmallError(ValueError):
  """The run surely does not fit on the disk."""


def forecast(
  recipe: loop.Recipe,
  lesson: objective.Objective,
  task: tasks.Task,
  splits: dict[str, evaluation.Split],
) -> Forecast:
  """What a whole run of the recipe takes.

  Args:
    recipe: how it trains.
    lesson: what it learns.
    task: the data.
    splits: what it predicts.
  """
  remembered = None
  if lesson.memory is not None:
    remembered = lesson.memory.init(task.given, task.num_classes)
  state = jax.eval_shape(
    lambda: init_state(
      recipe.module,
      recipe.optimizer,
      jax.random.key(0),
      task.images[:1],
      keep_average=recipe.average_decay is not None,
      memory=remembered,
    )
  )
  stored = len(loop.make_clock(recipe, len(task.given)).kept)
  return Forecast(
    checkpoint=checkpoints.disk_bytes(
      state.variables, dtype=recipe.history_dtype
    ),
    num_checkpoints=min(stored, recipe.history_keep or stored),
    # The loop keeps two, should the newer one be cut short.
    resume=2 * checkpoints.disk_bytes(state),
    predictions=sum(
      predictions.disk_bytes(
        stored,
        len(split.labels),
        recipe.module.num_classes,
        recipe.prediction_dtype,
      )
      for split in splits.values()
    ),
  )


def check(run: epath.Path, expected: Forecast) -> str:
  """Compares a run with the free space; returns a line to print.

  Raises:
    DiskTooSmallError: what is still to be written surely does not fit.
  """
  parts = (
    f"history {expected.num_checkpoints} x {shown(expected.checkpoint)} = "
    f"{shown(expected.num_checkpoints * expected.checkpoint)}, predictions "
    f"{shown(expected.predictions)}, resume {shown(expected.resume)}"
  )
  if "://" in str(run):  # a bucket has no end
    return f"{run.name}: {parts}"
  missing = expected.total - used(run)
  free = shutil.disk_usage(run).free
  line = f"{run.name}: {parts}, free {shown(free)}"
  if _CERTAIN * missing > free:
    raise DiskTooSmallError(
      f"{line}: that does not fit in {run}; make room, or keep less with "
      "history.keep, history.every, history.dtype=bfloat16, predictions.dtype="
      "float16 or predictions.train=False"
    )
  return f"{line}, which may not be enough" if missing > free else line


def described(config: ml_collections.ConfigDict, size: build.Size) -> str:
  """A network's name and what it takes: `cnn, 72 k parameters, ...`."""
  return (
    f"{config.model.name}, {_counted(size.storage)}parameters, "
    f"{_counted(size.compute)}FLOP an image"
  )


def times(number: float) -> str:
  """`1.5 times`, `27,400 times` and the like."""
  return f"{float(f'{number:.3g}'):,.10g} times"


def _counted(number: float) -> str:
  power = max((p for p in (3, 6, 9, 12) if number >= 10**p), default=0)
  return f"{number / 10**power:.3g} {['', 'k', 'M', 'G', 'T'][power // 3]}"


def used(folder: epath.Path) -> int:
  """Bytes that a local folder takes on disk."""
  # Blocks, not sizes: files may be sparse, and small ones take a whole block.
  return sum(
    os.lstat(os.path.join(parent, name)).st_blocks * 512
    for parent, folders, names in os.walk(folder)
    for name in (*folders, *names)
  )


def shown(count: float) -> str:
  """`72 MB` and the like."""
  units = ("kB", "MB", "GB", "TB")
  power = max(1, min(len(units), (len(str(int(count))) - 1) // 3))
  return f"{count / 1000**power:.3g} {units[power - 1]}"
