"""The whole run for several seeds, and one table over them."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable
from typing import Any

import ml_collections
import numpy as np
from etils import epath
from scipy import stats

from kfkd_jax import files, parallel, stages


def run(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  seeds: Iterable[int],
) -> str:
  """Runs every seed in `seed-<n>/` and writes `sweep.json`; returns a table.

  Seeds that are finished are not run again.
  """
  workdir = epath.Path(workdir)
  seeds = list(seeds)
  if not seeds:
    raise ValueError("--seeds must be at least 1")
  with stages.held(workdir):
    for seed in seeds:
      config.seed = seed
      folder = workdir / f"seed-{seed}"
      stages.run(config, folder, say=functools.partial(_say, seed))
    level = config.compare.level
    return parallel.on_main(_summarised, workdir, seeds, level)


def _summarised(workdir: epath.Path, seeds: list[int], level: float) -> str:
  rows = [
    row
    for seed in seeds
    for row in files.read_json_lines(workdir / f"seed-{seed}" / "results.jsonl")
  ]
  summary = summarise(rows, level=level)
  files.write_json(workdir / "sweep.json", {"seeds": seeds, "methods": summary})
  return table(summary)


def summarise(
  rows: list[dict[str, Any]], *, level: float = 0.95
) -> dict[str, dict[str, Any]]:
  """Means over seeds with t intervals; gains are paired with `final`.

  A seed's folds are averaged first: they share one training run.

  Args:
    rows: of `results.jsonl`, for several seeds.
    level: of the intervals.

  Returns:
    By method: `accuracy`, `accuracy_interval`, `gain`, `gain_interval`, `nll`,
    `ece`, `brier`, the costs, `num_seeds` and `wins` (seeds above final).
  """
  by_method: dict[str, dict[int, list[dict]]] = {}
  for row in rows:
    seeds = by_method.setdefault(row["method"], {})
    seeds.setdefault(row["seed"], []).append(row)
  return {
    method: _summary(list(seeds.values()), level)
    for method, seeds in by_method.items()
  }


def _summary(seeds: list[list[dict]], level: float) -> dict[str, Any]:
  keys = ("accuracy", "gain", "nll", "ece", "brier")
  costs = ("train_cost", "inference_cost", "storage_cost")
  values = {
    key: [statistics.fmean(row[key] for row in rows) for rows in seeds]
    for key in (*keys, *costs)
  }
  return {
    **{key: statistics.fmean(values[key]) for key in values},
    "accuracy_interval": _interval(values["accuracy"], level),
    "gain_interval": _interval(values["gain"], level),
    "num_seeds": len(seeds),
    "wins": sum(gain > 0 for gain in values["gain"]),
  }


def _interval(values: list[float], level: float) -> list[float] | None:
  """The t interval of the mean; None for a single value."""
  if len(values) < 2:
    return None
  mean, error = np.mean(values), stats.sem(values)
  half = stats.t.ppf((1 + level) / 2, len(values) - 1) * error
  return [float(mean - half), float(mean + half)]


def table(summary: dict[str, dict[str, Any]]) -> str:
  """The summary for a terminal or a README, as Markdown."""
  lines = [
    "| method | accuracy | gain over final | wins | NLL | ECE | train "
    "| inference |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  for method, row in summary.items():
    interval = row["gain_interval"]
    between = f" [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else ""
    lines.append(
      f"| {method} | {row['accuracy']:.3f} | {row['gain']:+.3f}{between} "
      f"| {row['wins']}/{row['num_seeds']} | {row['nll']:.3f} "
      f"| {row['ece']:.3f} | {row['train_cost']:.2f} "
      f"| {row['inference_cost']:.1f} |"
    )
  return "\n".join(lines)


def _say(seed: int, line: str) -> None:
  print(f"[seed {seed}] {line}", flush=True)
