"""Methods that train along another schedule and average what they pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from kfkd_jax import parallel, processes
from kfkd_jax.methods import soups
from kfkd_jax.methods.ensemble import Ensemble, Method, Source, of_runs
from kfkd_jax.run import build, networks, results, tasks, workspace


def _ema(config, workdir, number) -> list[Ensemble]:
  del workdir, number
  if config.train.average_decay is None:
    return []
  return [of_runs("ema", [f"{workspace.TEACHER}_ema"], 1.0)]


EMA = Method(_ema)


# Every checkpoint of these runs is meant, none an approximation.
_WHOLE = {
  "history.unit": "epoch",
  "history.keep": None,
  "history.dtype": "float32",
}


def _plan(config, name: str, changes: dict[str, Any], **options):
  return networks.Plan(
    name,
    lambda: networks.supervised(config),
    inputs=options.pop("inputs", {}),
    changes={**_WHOLE, **changes},
    keep_history=True,
    **options,
  )


def _num_kept(workdir, run: str) -> int:
  return len(_kept(workdir, run))


def _kept(workdir, run: str) -> list[int]:
  return processes.on_main(
    lambda: results.predictions(workdir, run, "test").epochs
  )


def _swa_plans(config, workdir) -> list[networks.Plan]:
  del workdir
  changes = {
    "optim.schedule": "swa",
    "optim.hold": config.baselines.swa_start,
    "optim.low": config.baselines.swa_rate,
    "optim.cycle": config.baselines.swa_cycle,
    "history.every": config.baselines.swa_cycle or 1,
  }
  return [_plan(config, "swa_path", changes)]


def swa_weights(num: int, start: float) -> np.ndarray:
  """Even weights over the checkpoints after `start`, a share of the run."""
  weights = (np.arange(1, num + 1) > start * num).astype(np.float32)
  return weights / weights.sum()


def _make_swa(config, workdir) -> None:
  num = _num_kept(workdir, "swa_path")
  weights = swa_weights(num, config.baselines.swa_start)
  network = soups.averaged(config, workdir, weights, run="swa_path")
  networks.store(config, workdir, "swa", network)


def _swa(config, workdir, number) -> list[Ensemble]:
  del workdir, number
  return [of_runs("swa", ["swa"], 1 + 1 / (3 * config.train.epochs))]


SWA = Method(_swa, _swa_plans, _make_swa)


def _snapshot_cycle(config) -> int:
  return max(config.train.epochs // config.baselines.snapshot_cycles, 1)


def _snapshot_plans(config, workdir) -> list[networks.Plan]:
  del workdir
  cycle = _snapshot_cycle(config)
  changes = {
    "optim.schedule": "restarts",
    "optim.cycle": cycle,
    "optim.warmup_epochs": 0,
    "train.epochs": cycle * (config.train.epochs // cycle),
    "history.every": cycle,
  }
  return [_plan(config, "snapshot", changes)]


def _snapshot(config, workdir, number) -> list[Ensemble]:
  """The networks at the last cycles' ends, as many as there are cycles."""
  del number
  kept = _num_kept(workdir, "snapshot")
  used = min(config.baselines.snapshot_cycles, kept)
  weights = np.zeros(kept, np.float32)
  weights[-used:] = 1 / used
  cost = _snapshot_cycle(config) * kept / config.train.epochs
  return [Ensemble("snapshot", (Source("snapshot", weights),), "", cost)]


SNAPSHOT = Method(_snapshot, _snapshot_plans)


def _fge_epochs(config, workdir) -> tuple[int, int, int]:
  """Where FGE starts in the teacher's history, its epochs and half a cycle."""
  half = max(config.baselines.fge_cycle // 2, 1)
  kept = _kept(workdir, workspace.TEACHER)
  task = tasks.load_task(config)
  epochs = build.epochs_at(config, task, kept)
  wanted = config.baselines.fge_start * config.train.epochs
  there = results.kept_checkpoints(workdir, workspace.TEACHER)
  start = int(min(there, key=lambda c: abs(epochs[c] - wanted)))
  rest = max(config.train.epochs - epochs[start], 1)
  cycles = max(round(rest / (2 * half)), 1)
  return kept[start], cycles * 2 * half, half


def _fge_plans(config, workdir) -> list[networks.Plan]:
  """From a checkpoint of the teacher, up and down between two rates."""
  start, epochs, half = _fge_epochs(config, workdir)
  high, low = config.baselines.fge_rates
  changes = {
    "optim.schedule": "triangular",
    "optim.learning_rate": high * config.optim.learning_rate,
    "optim.low": low / high,
    "optim.cycle": 2 * half,
    "optim.warmup_epochs": 0,
    "train.epochs": epochs,
    "history.every": half,
  }

  def init():
    with results.open_history(workdir, workspace.TEACHER) as history:
      return parallel.to_host(history.restore(start, results.template(config)))

  return [
    _plan(config, "fge", changes, inputs={"start": int(start)}, init=init)
  ]


def _fge(config, workdir, number) -> list[Ensemble]:
  """The networks in the middle of the cycles, where the rate is lowest."""
  del number
  _, epochs, _ = _fge_epochs(config, workdir)
  weights = np.zeros(_num_kept(workdir, "fge"), np.float32)
  weights[::2] = 1
  cost = config.baselines.fge_start + epochs / config.train.epochs
  source = Source("fge", weights / weights.sum())
  return [Ensemble("fge", (source,), "", cost)]


FGE = Method(_fge, _fge_plans)
