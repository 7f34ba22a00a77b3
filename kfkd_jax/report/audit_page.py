"""The page of an audit: the worst labels as pictures, a map, the noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from kfkd_jax import auditing, forgetting, plots
from kfkd_jax.predictions import Subset
from kfkd_jax.report import page, run_page
from kfkd_jax.report.audit import Subject, headline

_MAPPED = 1000  # points of the map, accused ones first
_LISTED = 100  # labels in the table


def render(
  subject: Subject, summary: dict[str, Any], *, num_examples: int
) -> page.Page:
  """The page from an audit and what it comes to."""
  order = np.argsort(-subject.found.score, kind="stable")
  accused = order[: summary["num_accused"]]
  figures = {**_map(subject, order), **_matrix(subject)}
  keys = ("name", "given", "suggested", "accused", "rate_interval")
  tables: dict[str, Any] = {
    "classes": [page.flat(row, keys) for row in summary["classes"]]
  }
  if "truth" in summary:
    tables["scores"] = [
      {"score": name, **values}
      for name, values in summary["truth"]["scores"].items()
    ]
  return page.render(
    "audit.html",
    figures,
    tables,
    summary=summary,
    title=subject.title,
    headline=headline(summary),
    epochs=subject.epochs,
    examples=_examples(subject, accused[:num_examples]),
    listed=[_listed(subject, int(n)) for n in accused[:_LISTED]],
    num_listed=_LISTED,
  )


def _map(subject: Subject, order: np.ndarray) -> dict[str, page.Drawn]:
  """Accused points first, then others evenly by score, up to so many."""
  found = subject.found
  if found.num_epochs == 1:
    return {}
  accused, rest = np.split(order, [int(found.accused.sum())])
  worst = accused[: _MAPPED // 2]
  step = max(1, -(-len(rest) // (_MAPPED - len(worst))))
  shown = np.concatenate([rest[::step], worst])
  names = subject.class_names
  figure = plots.plot_cartography(
    found.scores.variability[shown],
    -found.scores.confidence[shown],
    found.accused[shown],
    texts=[
      f"{subject.ids[n]}: given {names[subject.given[n]]}"
      + (f", suggested {names[found.suggested[n]]}" if found.accused[n] else "")
      for n in shown
    ],
  )
  label = "Mean probability of the label against its variability."
  return {"cartography": page.Drawn(figure, label)}


def _matrix(subject: Subject) -> dict[str, page.Drawn]:
  num_classes = len(subject.class_names)
  if num_classes > run_page.HEAT_MAP_CLASSES:
    return {}
  counts = np.zeros([num_classes] * 2, np.int64)
  np.add.at(counts, (subject.found.suggested, subject.given), 1)
  figure = plots.plot_label_noise(counts, subject.class_names, down="suggested")
  label = "Counts of labels, suggested class by given class."
  return {"labels": page.Drawn(figure, label)}


def _examples(subject: Subject, places: np.ndarray) -> list[dict[str, Any]]:
  """The worst labels with what was said of them, epoch by epoch."""
  if not len(places):
    return []
  shown = np.sort(places)
  told = forgetting.predicted_classes(Subset(subject.probs, shown))
  classes = dict(zip(shown.tolist(), np.asarray(told).T, strict=True))
  return [
    {
      **_listed(subject, int(n)),
      "picture": None
      if subject.images is None
      else run_page.picture(subject.images[n]),
      "pixelated": subject.images is not None
      and max(subject.images.shape[1:3]) <= 64,
      "strip": run_page.strip(
        classes[int(n)],
        subject.given[n],
        subject.epochs,
        subject.class_names,
      ),
    }
    for n in places
  ]


def _listed(subject: Subject, n: int) -> dict[str, Any]:
  names, found = subject.class_names, subject.found
  return {
    "id": int(subject.ids[n]),
    "file": "" if subject.names is None else subject.names(n),
    "given": names[subject.given[n]],
    "suggested": names[found.suggested[n]],
    "clean": None if subject.clean is None else names[subject.clean[n]],
    "score": float(found.score[n]),
    "class_margin": float(found.scores.class_margin[n]),
    "kind": auditing.KINDS[found.kind[n]],
    "why": subject.why(n),
  }
