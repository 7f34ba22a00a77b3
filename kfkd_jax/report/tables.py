"""One table over the seeds of every grid point: means, intervals, tests."""

from __future__ import annotations

import statistics as plain
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kfkd_jax import statistics
from kfkd_jax.report import page, text
from kfkd_jax.run.results import Hits

_MEANS = (
  "nll",
  "ece",
  "brier",
  "train_cost",
  "inference_cost",
  "storage_cost",
)


class Run(NamedTuple):
  """What one seed left: the rows of `results.jsonl`, and `hits.npz`."""

  rows: list[dict[str, Any]]
  hits: Hits


def only(run: Run, methods: Sequence[str]) -> Run:
  """What a run says of those of `methods` that it has; its rows stay."""
  names = [str(name) for name in run.hits.methods]
  there = [names.index(method) for method in methods if method in names]
  hits = run.hits._replace(
    methods=run.hits.methods[there],
    hits=run.hits.hits[:, there],
    scored=run.hits.scored[:, there],
  )
  return Run(run.rows, hits)


def beside(run: Run, other: Run, method: str, name: str) -> Run:
  """A run and, as its method `name`, a method of another run."""
  for part in ("ids", "tested"):
    if not np.array_equal(getattr(other.hits, part), getattr(run.hits, part)):
      raise ValueError(
        f"runs cannot be compared: their hits.npz differ in {part}"
      )
  theirs = only(other, [method]).hits
  hits = run.hits._replace(
    methods=np.append(run.hits.methods, name),
    hits=np.concatenate([run.hits.hits, theirs.hits], axis=1),
    scored=np.concatenate([run.hits.scored, theirs.scored], axis=1),
  )
  found = [{**r, "method": name} for r in other.rows if r["method"] == method]
  return Run([*run.rows, *found], hits)


def summarise(
  runs: Sequence[Run],
  *,
  against: str = "final",
  num_samples: int = 2000,
  level: float = 0.95,
) -> list[dict[str, Any]]:
  """One row a method, over the seeds of one grid point.

  A seed's folds share one network: they are pooled before seeds are compared,
  and a gain is taken over the folds in which both methods were scored.

  Args:
    runs: of the same configuration but for the seed.
    against: the method that gains, wins and p-values are over.
    num_samples: of the bootstrap.
    level: of the intervals.

  Returns:
    Rows with `method`, `against`, `seeds`, `level`; `accuracy` and `gain`, each
    with `_error` (standard error over seeds, None for one seed), `_low` and
    `_high` (bootstrap over seeds and test points); `wins`, `ties` and `losses`
    over seeds; `p_value` and `p_holm` (None for `against` itself); and means of
    the other scores and of the costs.
  """
  methods = [str(name) for name in runs[0].hits.methods]
  if against not in methods:
    raise ValueError(
      f"--against={against!r} is no method of this sweep; there are "
      f"{', '.join(methods)}"
    )
  totals, counts = _measured(runs, methods.index(against))
  means = statistics.run_means(totals, counts)
  # Of one seed, 0: a table is the same whenever it is made.
  intervals = statistics.bootstrap_runs(
    0, totals, counts, num_samples=num_samples, level=level
  )
  num = len(methods)
  # Whole numbers of points, so that a tie is a tie.
  signs = np.sign(totals[num:].sum(-1)).astype(int)
  p_values, p_holm = _p_values(means[num:], methods.index(against))
  return [
    {
      "method": method,
      "against": against,
      "seeds": len(runs),
      "level": level,
      **_estimate("accuracy", means, intervals, m),
      **_estimate("gain", means, intervals, num + m),
      "wins": int(np.sum(signs[m] > 0)),
      "ties": int(np.sum(signs[m] == 0)),
      "losses": int(np.sum(signs[m] < 0)),
      "p_value": p_values[m],
      "p_holm": p_holm[m],
      **{  # over a run's folds first: each seed counts once
        key: plain.fmean(
          plain.fmean(r[key] for r in run.rows if r["method"] == method)
          for run in runs
        )
        for key in _MEANS
      },
    }
    for m, method in enumerate(methods)
  ]


def _measured(
  runs: Sequence[Run], reference: int
) -> tuple[np.ndarray, np.ndarray]:
  """Hits, then gains, of all M methods, summed over folds.

  Returns:
    totals `[2M, S, N]` and counts `[2M, N]`.
  """
  first = runs[0].hits
  for run in runs:
    for name in ("methods", "ids", "tested", "scored"):
      if not np.array_equal(getattr(run.hits, name), getattr(first, name)):
        raise ValueError(
          f"seeds cannot be compared: their hits.npz differ in {name}"
        )
  tested, scored = first.tested[:, None], first.scored[..., None]
  alone = tested & scored  # [F, M, N]
  both = alone & scored[:, reference, None]
  hits = np.stack([run.hits.hits for run in runs]).astype(np.int8)
  gains = hits - hits[:, :, reference, None]
  totals = np.concatenate(
    [np.where(alone, hits, 0).sum(1), np.where(both, gains, 0).sum(1)], axis=1
  )
  counts = np.concatenate([alone.sum(0), both.sum(0)])
  return totals.swapaxes(0, 1), counts


def _estimate(name, means, intervals, r: int) -> dict[str, float | None]:
  values = means[r]
  error = None
  if len(values) > 1:
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
  return {
    name: float(values.mean()),
    f"{name}_error": error,
    f"{name}_low": float(intervals.low[r]),
    f"{name}_high": float(intervals.high[r]),
  }


def _p_values(
  gains: np.ndarray, reference: int
) -> tuple[list[float | None], list[float | None]]:
  """p-values of `gains[M, S]`, and corrected; the reference has none."""
  others = [m for m in range(len(gains)) if m != reference]
  found = [statistics.sign_flip_p_value(0, gains[m]) for m in others]
  p_values: list[float | None] = [None] * len(gains)
  p_holm = p_values.copy()
  corrected = statistics.holm(np.array(found)).tolist()
  for m, p, q in zip(others, found, corrected, strict=True):
    p_values[m], p_holm[m] = p, q
  return p_values, p_holm


Summaries = Mapping[tuple[str, ...], list[dict[str, Any]]]


def markdown(summaries: Summaries, *, num_seeds: int) -> str:
  """The summaries by grid point for a terminal or a README; in %."""
  if not summaries:
    return "no cell is finished yet"
  parts = []
  for point, rows in summaries.items():
    seeds = rows[0]["seeds"]
    title = (
      f"{seeds} seeds"
      if seeds == num_seeds
      else f"{seeds} of {num_seeds} seeds"
    )
    if point:
      title = f"{text.to_markdown(', '.join(point))}: {title}"
    parts.append(f"### {title}\n\n{page.to_markdown(shown(rows)).strip()}")
  return "\n\n".join([*parts, note(summaries)])


def note(summaries: Summaries) -> str:
  """What the numbers of `shown` mean, as a caption says it."""
  first = next(iter(summaries.values()))[0]
  level = first["level"]
  said = (
    f"Accuracy and gain over {first['against']} in %: mean over seeds ± "
    f"standard error over seeds, and ({100 * level:g} % paired bootstrap "
    "interval over seeds and test points)"
  )
  left_out = {len(rows) - 1 for rows in summaries.values() if not _tells(rows)}
  if any(map(_tells, summaries.values())):
    said += (
      ". p: sign-flip test of the mean gain over seeds, Holm-corrected for the "
      "other methods of the table"
    )
  if left_out:
    below = ", ".join(
      f"below {statistics.fewest_runs(num, level=level)} seeds with {num} "
      "other methods in the table"
      for num in sorted(left_out)
    )
    said += (
      f". p is left out {below}: no gain however clear could have one below "
      f"{1 - level:.2g}"
    )
  return f"{said}."


def _tells(rows: Sequence[Mapping[str, Any]]) -> bool:
  """Whether there are seeds enough for a p-value that says something."""
  num_others, level = len(rows) - 1, rows[0]["level"]
  return rows[0]["seeds"] >= statistics.fewest_runs(num_others, level=level)


def shown(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
  """A grid point's summary as people read it, in %."""
  tells = _tells(rows)
  return [
    {
      "method": row["method"],
      "accuracy": text.percent(
        row["accuracy"], row["accuracy_error"], decimals=2
      ),
      f"gain over {row['against']}": text.percent(
        row["gain"],
        row["gain_error"],
        sign="+",
        decimals=2,
        ends=(row["gain_low"], row["gain_high"]),
      ),
      "wins/ties/losses": f"{row['wins']}/{row['ties']}/{row['losses']}",
      "p": "-"
      if row["p_holm"] is None or not tells
      else f"{row['p_holm']:.3f}",
      "NLL": f"{row['nll']:.3f}",
      "ECE": f"{row['ece']:.3f}",
      "train": f"{row['train_cost']:.2f}",
      "inference": f"{row['inference_cost']:.1f}",
    }
    for row in rows
  ]


def flat(
  summaries: Mapping[tuple[str, ...], Sequence[Mapping[str, Any]]],
) -> list[dict[str, Any]]:
  """The rows of all grid points as one table with a column an axis."""
  return [
    {**dict(part.split("=", 1) for part in point), **row}
    for point, rows in summaries.items()
    for row in rows
  ]
