"""The page on what somebody's checkpoints said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kfkd_jax.answers import Answers
from kfkd_jax.report import page, run_page

_LISTED = 100  # forgotten points in the page; the table beside it has all


class Subject(NamedTuple):
  """Predictions of somebody's checkpoints, and what was made of them.

  Attributes:
    title: of the file.
    diagnosis: as in `diagnosis.json`.
    measured: the points that it is of.
    fusion: as in `fusion.json`; None without probabilities.
    rows: as in `results.jsonl`.
    now: `[N]` the classes that Knowledge Fusion gives the points.
    where: the file that measured; None where halves of one measured each other.
  """

  title: str
  diagnosis: Mapping[str, Any]
  measured: Answers
  fusion: Mapping[str, Any] | None = None
  rows: Sequence[Mapping[str, Any]] = ()
  now: np.ndarray | None = None
  where: str | None = None


def render(subject: Subject, *, level: float) -> page.Page:
  """The page; `level` is of its intervals."""
  rows = [dict(row) for row in subject.rows]
  figures: dict[str, page.Drawn] = {}
  tables: dict[str, Any] = {}
  marked: tuple[Any, ...] = ()
  if subject.fusion is not None:
    figures |= run_page.fusion_figures(subject.fusion, rows)
    tables["results"] = run_page.results_table(rows)
    marked = run_page.marked(subject.fusion, rows)
  figures |= run_page.forgetting_figures(subject.diagnosis, *marked)
  forgotten = forgotten_points(subject.measured, subject.now)
  if forgotten:
    tables["forgotten"] = forgotten
  return page.render(
    "foreign.html",
    figures,
    tables,
    subject=subject,
    level=f"{100 * level:g} %",
    by_method={row["method"]: row for row in rows},
    split=subject.diagnosis["splits"]["test"],
    epochs=subject.diagnosis["epochs"],
    forgotten=forgotten[:_LISTED],
    num_forgotten=len(forgotten),
  )


def forgotten_points(
  measured: Answers, now: np.ndarray | None
) -> list[dict[str, Any]]:
  """Points once right and wrong at the end, the most often right first.

  Args:
    measured: the points.
    now: `[N]` what a fusion says of them; None for no fusion.
  """
  columns: dict[str, Any] = {}
  if measured.answers is not None and measured.labels is not None:
    columns = {"true": measured.labels, "at_end": measured.answers[-1]}
  if now is not None:
    columns["fused"] = now
  return run_page.forgotten_rows(
    measured.correct, measured.epochs.tolist(), {"id": measured.ids, **columns}
  )
