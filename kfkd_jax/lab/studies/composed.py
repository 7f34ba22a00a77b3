"""Fusions and students beside their own teacher, and beside the best network.

Unlike in other studies, cells are compared with each other: runs of one seed
that differ in `train.objective` alone, point by point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from etils import epath

from kfkd_jax import files
from kfkd_jax.report.tables import Run, beside, only
from kfkd_jax.report.tables import summarise as over_seeds
from kfkd_jax.run import results

Row = dict[str, Any]

OBJECTIVE = "train.objective"
METHODS = (
  "final", "best_epoch", "kf", "mixture", "kf_soup", "independent", "kf_kd",
  "mixture_kd",
)  # fmt: skip
_BEST = "best"  # what the best network is called among another run's methods


def run_of(config: ml_collections.ConfigDict, workdir: epath.Path) -> list[Row]:
  """One row: the cell's seed, and what it scored and got right."""
  rows = files.read_json_lines(workdir / "results.jsonl")
  hits = results.read_hits(workdir)
  return [{"seed": config.seed, "run": Run(rows, hits)}]


def summarise(rows: Sequence[Row], by: Sequence[str]) -> list[Row]:
  """One row for every objective and method, with paired intervals.

  Args:
    rows: of `run_of`, each with its values of the axes.
    by: the axes, and `method`.

  Returns:
    Rows of the keys in `by`, `seeds`, and, each with `_error`, `_low` and
    `_high`: `accuracy`, `over_final`, the gain over the final network of the
    same objective, and `over_best`, that over the final network of the
    objective whose final network is best on the mean, in the same seeds.
  """
  apart = [key for key in by if key not in (OBJECTIVE, "method")]
  groups: dict[tuple, dict[str, dict[int, Run]]] = {}
  for row in rows:
    group = groups.setdefault(tuple(row[key] for key in apart), {})
    group.setdefault(row[OBJECTIVE], {})[row["seed"]] = row["run"]
  return [
    {**dict(zip(apart, point, strict=True)), **row}
    for point, group in groups.items()
    for row in _compared(group)
  ]


def _compared(group: Mapping[str, Mapping[int, Run]]) -> list[Row]:
  """Rows of all objectives; of each, its runs by their seeds."""
  own = {
    objective: over_seeds([_chosen(run) for run in runs.values()])
    for objective, runs in group.items()
  }
  best = max(
    own,
    key=lambda objective: next(
      row["accuracy"] for row in own[objective] if row["method"] == "final"
    ),
  )
  table = []
  for objective, runs in group.items():
    both = [
      _chosen(run, group[best][seed])
      for seed, run in runs.items()
      if seed in group[best]
    ]
    over_best: dict[str, Any] = {}
    if both:
      rows = over_seeds(both, against=_BEST)
      over_best = {row["method"]: row for row in rows}
    table += [
      {
        OBJECTIVE: objective,
        "method": row["method"],
        "seeds": row["seeds"],
        **_estimate("accuracy", row, "accuracy"),
        **_estimate("over_final", row, "gain"),
        **_estimate("over_best", over_best.get(row["method"], {}), "gain"),
      }
      for row in own[objective]
    ]
  return table


def _estimate(name: str, row: Mapping[str, Any], value: str) -> Row:
  ends = ("", "_error", "_low", "_high")
  return {f"{name}{end}": row.get(f"{value}{end}") for end in ends}


def _chosen(run: Run, other: Run | None = None) -> Run:
  """The methods looked at; with the final network of another as `_BEST`."""
  chosen = only(run, METHODS)
  return chosen if other is None else beside(chosen, other, "final", _BEST)
