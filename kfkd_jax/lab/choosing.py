"""Which point of a grid one would take: before fusing, and after it.

Of two recipes the one with the better final network need not have the better
fusion ("post-hoc reversal", Ranjan et al., NeurIPS 2024). The selecting points
choose; the test points only say what came of it. Letters: P points of the grid,
S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from kfkd_jax.config import ConfigError
from kfkd_jax.report import page, tables, text

_THERE = "there"  # what a method is called at the point it did not choose


class Finished(NamedTuple):
  """A finished cell.

  Attributes:
    run: what it scored on the test points.
    selecting: by method, the accuracy on its selecting points.
  """

  run: tables.Run
  selecting: Mapping[str, float]


Points = Mapping[tuple[str, ...], Mapping[int, Finished]]


def selecting_accuracy(
  rows: Sequence[Mapping[str, Any]], fused: Mapping[str, Any]
) -> dict[str, float]:
  """Accuracy on the selecting points, of the final network and what they chose.

  Args:
    rows: of `results.jsonl`.
    fused: the content of `fusion.json`.

  Returns:
    By method, the mean over folds; without those whose accuracy is not noted.
  """
  kf = [fold["methods"]["kf"] for fold in fused["folds"]]
  final = fmean(found["accuracy"] - found["gain"] for found in kf)
  gains: dict[str, list[float]] = {"final": [0.0]}
  for row in rows:
    if row.get("select_gain") is not None:
      gains.setdefault(row["method"], []).append(row["select_gain"])
  return {method: final + fmean(found) for method, found in gains.items()}


def choose(accuracy: ArrayLike) -> int:
  """The point with the best mean over seeds; of equal ones the first.

  Args:
    accuracy: `[P, S]` on the selecting points.

  >>> choose([[0.7, 0.9], [0.9, 0.9], [0.9, 0.9]])
  1
  """
  # Rounded, for sums of the same counts differ in their last bits.
  return int(np.argmax(np.mean(accuracy, axis=1).round(9)))


def compare(
  points: Points, method: str, *, num_samples: int = 2000, level: float = 0.95
) -> str:
  """A table of the points that a method and the final network choose.

  Args:
    points: the finished cells by point of the grid and by seed.
    method: chosen on the selecting points.
    num_samples: of the bootstrap over seeds and test points.
    level: of its intervals.
  """
  seeds = sorted(set.intersection(*(set(cells) for cells in points.values())))
  if not seeds:
    raise ConfigError("--choose: no seed is finished at every point begun")
  selecting = {
    name: np.array(
      [[cells[s].selecting[name] for s in seeds] for cells in points.values()]
    )
    for name in ("final", method)
  }
  names = list(points)
  chosen = {name: choose(found) for name, found in selecting.items()}
  runs = {
    name: [points[names[c]][s].run for s in seeds] for name, c in chosen.items()
  }
  tested = {}
  for name in selecting:
    both = [
      tables.beside(tables.only(own, [name]), there, name, _THERE)
      for own, there in zip(runs[method], runs["final"], strict=True)
    ]
    rows = tables.summarise(
      both, against=_THERE, num_samples=num_samples, level=level
    )
    tested[name] = {row["method"]: row for row in rows}
  return _shown(points, method, seeds, selecting, chosen, tested)


def _shown(points, method, seeds, selecting, chosen, tested) -> str:
  """The comparison as Markdown."""
  heads = [f"{on}: {m}" for on in ("select", "test") for m in selecting]
  rows = []
  for by, at in (("final", _THERE), (method, None)):
    numbers = [
      *(_percent(selecting[name][chosen[by]].mean()) for name in selecting),
      *(
        _percent(row["accuracy"], row["accuracy_error"])
        for row in (tested[name][at or name] for name in selecting)
      ),
    ]
    point = ", ".join(list(points)[chosen[by]])
    rows.append({"chosen by": by, "point": point, **dict(zip(heads, numbers))})
  gains = [None, None, *(_gain(tested[name][name]) for name in selecting)]
  rows.append({
    "chosen by": "gain, paired", "point": None, **dict(zip(heads, gains)),
  })  # fmt: skip
  said = (
    "both choose the same point"
    if chosen[method] == chosen["final"]
    else f"what is best before {method} is not best after it"
  )
  count = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
  alike = sum(
    choose(selecting[method][:, [s]]) == choose(selecting["final"][:, [s]])
    for s in range(len(seeds))
  )
  return "\n".join([
    page.to_markdown(rows),
    f"Of {len(points)} points over {count}, {said}; by one seed alone, both "
    f"choose the same point in {alike} of {len(seeds)}.",
  ])  # fmt: skip


def _percent(mean: float, error: float | None = None) -> str:
  return text.percent(mean, error, decimals=2)


def _gain(row: Mapping[str, Any]) -> str:
  """Of the method's choice over the final network's, paired."""
  error = row["gain_error"]
  return text.percent(
    row["gain"],
    error,
    sign="+",
    decimals=2,
    ends=None if error is None else (row["gain_low"], row["gain_high"]),
  )
