"""Methods that train along another schedule and average what they pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from kfkd_jax import parallel, processes
from kfkd_jax.methods import soups
from kfkd_jax.methods.ensemble import (
  Ensemble,
  Method,
  Source,
  of_runs,
  on_all_folds,
)
from kfkd_jax.run import build, networks, results, workspace
from kfkd_jax.run.workspace import Workspace


def _ema(space: Workspace) -> list[Ensemble]:
  if space.config.train.average_decay is None:
    return []
  return [of_runs("ema", [f"{workspace.TEACHER}_ema"], 1.0)]


EMA = Method(on_all_folds(_ema))


# Every checkpoint of these runs is meant, none an approximation.
_WHOLE = {
  "history.unit": "epoch",
  "history.keep": None,
  "history.dtype": "float32",
}


def _plan(space: Workspace, name: str, changes: dict[str, Any], **options):
  """A network that learns what the teacher does, but otherwise."""
  changes = {**_WHOLE, **changes}
  return networks.Plan(
    name,
    lambda: networks.supervised(space.changed(changes).config),
    inputs=options.pop("inputs", {}),
    changes=changes,
    keep_history=True,
    **options,
  )


def _num_kept(workdir, run: str) -> int:
  return len(_kept(workdir, run))


def _kept(workdir, run: str) -> list[int]:
  return processes.on_main(
    lambda: results.predictions(workdir, run, "test").epochs
  )


def _swa_plans(space: Workspace) -> list[networks.Plan]:
  changes = {
    "optim.schedule": "swa",
    "optim.hold": space.config.baselines.swa_start,
    "optim.low": space.config.baselines.swa_rate,
    "optim.cycle": space.config.baselines.swa_cycle,
    "history.every": space.config.baselines.swa_cycle or 1,
  }
  return [_plan(space, "swa_path", changes)]


def swa_weights(num: int, start: float) -> np.ndarray:
  """Even weights over the checkpoints after `start`, a share of the run."""
  weights = (np.arange(1, num + 1) > start * num).astype(np.float32)
  return weights / weights.sum()


def _make_swa(space: Workspace) -> None:
  num = _num_kept(space.path, "swa_path")
  weights = swa_weights(num, space.config.baselines.swa_start)
  network = soups.averaged(space, weights, run="swa_path")
  networks.store(space, "swa", network)


SWA = Method(
  on_all_folds(
    lambda space: [
      # A pass forwards, to estimate BatchNorm, is a third of an epoch's
      # training.
      of_runs("swa", ["swa"], 1 + 1 / (3 * space.config.train.epochs))
    ]
  ),
  _swa_plans,
  _make_swa,
  ("swa",),
)


def _snapshot_cycle(config) -> int:
  return max(config.train.epochs // config.baselines.snapshot_cycles, 1)


def _snapshot_plans(space: Workspace) -> list[networks.Plan]:
  cycle = _snapshot_cycle(space.config)
  # Whole cycles only: the last network must be at the end of one.
  changes = {
    "optim.schedule": "restarts",
    "optim.cycle": cycle,
    "optim.warmup_epochs": 0,
    "train.epochs": cycle * (space.config.train.epochs // cycle),
    "history.every": cycle,
  }
  return [_plan(space, "snapshot", changes)]


def _snapshot(space: Workspace) -> list[Ensemble]:
  """The networks at the last cycles' ends, as many as there are cycles."""
  kept = _num_kept(space.path, "snapshot")
  used = min(space.config.baselines.snapshot_cycles, kept)
  weights = np.zeros(kept, np.float32)
  weights[-used:] = 1 / used
  cost = _snapshot_cycle(space.config) * kept / space.config.train.epochs
  return [Ensemble("snapshot", (Source("snapshot", weights),), "", cost)]


SNAPSHOT = Method(on_all_folds(_snapshot), _snapshot_plans)


def _fge_epochs(space: Workspace) -> tuple[int, int, int]:
  """Where FGE starts in the teacher's history, its epochs and half a cycle."""
  half = max(space.config.baselines.fge_cycle // 2, 1)
  kept = _kept(space.path, workspace.TEACHER)
  epochs = build.epochs_at(space, kept)
  wanted = space.config.baselines.fge_start * space.config.train.epochs
  there = results.kept_checkpoints(space.path, workspace.TEACHER)
  start = int(min(there, key=lambda c: abs(epochs[c] - wanted)))
  rest = max(space.config.train.epochs - epochs[start], 1)
  # In whole cycles what the teacher still had to train: one budget for both.
  cycles = max(round(rest / (2 * half)), 1)
  return kept[start], cycles * 2 * half, half


def _fge_plans(space: Workspace) -> list[networks.Plan]:
  """From a checkpoint of the teacher, up and down between two rates."""
  start, epochs, half = _fge_epochs(space)
  high, low = space.config.baselines.fge_rates
  changes = {
    "optim.schedule": "triangular",
    "optim.learning_rate": high * space.config.optim.learning_rate,
    "optim.low": low / high,
    "optim.cycle": 2 * half,
    "optim.warmup_epochs": 0,
    "optim.head_epochs": 0,
    "train.epochs": epochs,
    "history.every": half,
  }

  def init():
    with results.open_history(space.path, workspace.TEACHER) as history:
      return parallel.to_host(history.restore(start, results.template(space)))

  return [_plan(space, "fge", changes, inputs={"start": int(start)}, init=init)]


def _fge(space: Workspace) -> list[Ensemble]:
  """The networks in the middle of the cycles, where the rate is lowest."""
  _, epochs, _ = _fge_epochs(space)
  weights = np.zeros(_num_kept(space.path, "fge"), np.float32)
  weights[::2] = 1  # kept twice a cycle, the first half-way
  cost = space.config.baselines.fge_start + epochs / space.config.train.epochs
  source = Source("fge", weights / weights.sum())
  return [Ensemble("fge", (source,), "", cost)]


FGE = Method(on_all_folds(_fge), _fge_plans)
