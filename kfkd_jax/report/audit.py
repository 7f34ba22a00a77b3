"""An audit as a table, a summary and a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from kfkd_jax import auditing
from kfkd_jax.data.stored import Stored
from kfkd_jax.report import text

_ROWS = 10_000  # of the CSV, made at once


class Subject(NamedTuple):
  """An audit and whose labels it is of.

  Attributes:
    found: the audit.
    probs: `[C, N, K]` what it read.
    epochs: C numbers.
    given: `[N]` labels.
    clean: `[N]` labels before noise was made; None where none was.
    ids: `[N]` of the points.
    class_names: K names.
    title: of the data.
    images: `u8[N, H, W, Ch]`, where there are any.
    names: of the files by place, where there are any.
  """

  found: auditing.Audit
  probs: Any
  epochs: Sequence[float]
  given: np.ndarray
  clean: np.ndarray | None
  ids: np.ndarray
  class_names: Sequence[str]
  title: str
  images: np.ndarray | Stored | None = None
  names: Callable[[int], str] | None = None

  def why(self, n: int) -> str:
    """Why an accused label is, in words."""
    found = self.found
    given, other = self.given[n], found.suggested[n]
    times = f"{found.num_right[n]} of {found.num_epochs} epochs"
    return (
      f"{auditing.KINDS[found.kind[n]]}: {self.class_names[given]} was the "
      f"answer at {times}, with a mean probability of "
      f"{-found.scores.confidence[n]:.2f}; {self.class_names[other]} had "
      f"{found.other[n]:.2f}"
    )


def headline(summary: dict[str, Any]) -> str:
  """One line about an audit, and one where it was held against the truth."""
  low, high = summary["rate_interval"]
  lines = [
    f"{summary['num_accused']:,} of {summary['num_examples']:,} labels look "
    f"wrong, {100 * summary['rate']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
  ]
  truth = summary.get("truth")
  if truth:
    lines.append(
      f"{truth['num_wrong']:,} are: precision {truth['precision']:.3f}, recall "
      f"{truth['recall']:.3f}, AUROC {truth['scores']['score']['auroc']:.3f}"
    )
  if "need_more_epochs" in summary:
    lines.append(
      f"one epoch only: {', '.join(summary['need_more_epochs'])} need more"
    )
  return "; ".join(lines)


def summarise(
  subject: Subject, *, level: float, num_samples: int, seed: int
) -> dict[str, Any]:
  """What the audit comes to, as JSON can hold it.

  The intervals let the points vary, not the network.

  Args:
    subject: the audit.
    level: of the intervals.
    num_samples: bootstrap samples.
    seed: of them.
  """
  found, given = subject.found, subject.given
  num, num_classes = len(given), len(subject.class_names)
  generator = np.random.default_rng(seed)
  tails = [(1 - level) / 2, (1 + level) / 2]

  def interval(count: int, total: int) -> list[float]:
    drawn = generator.binomial(total, count / max(total, 1), num_samples)
    return [float(q) for q in np.quantile(drawn / max(total, 1), tails)]

  suggested = np.bincount(found.suggested, minlength=num_classes)
  sizes = np.bincount(given, minlength=num_classes)
  accused = np.bincount(given[found.accused], minlength=num_classes)
  kinds = np.bincount(found.kind, minlength=len(auditing.KINDS))
  total = int(found.accused.sum())
  summary: dict[str, Any] = {
    "title": subject.title,
    "num_examples": num,
    "num_epochs": found.num_epochs,
    "num_accused": total,
    "rate": total / num,
    "rate_interval": interval(total, num),
    "level": level,
    "kinds": dict(zip(auditing.KINDS, kinds.tolist(), strict=True)),
    "noise_matrix": found.noise_matrix.tolist(),
    "confident_rate": float(1 - np.trace(found.confident_joint)),
    "classes": [
      {
        "name": name,
        "given": int(sizes[k]),
        "suggested": int(suggested[k]),
        "accused": int(accused[k]),
        "rate_interval": interval(int(accused[k]), int(sizes[k])),
      }
      for k, name in enumerate(subject.class_names)
    ],
  }
  if found.num_epochs == 1:
    summary["need_more_epochs"] = list(auditing.NEED_MORE_EPOCHS)
  if subject.clean is not None:
    summary["truth"] = _held_against(subject, subject.clean)
  return summary


def _held_against(subject: Subject, clean: np.ndarray) -> dict[str, Any]:
  """How right the audit is, where the ledger says what was changed."""
  found, wrong = subject.found, subject.given != clean
  hit = found.accused & wrong
  counts = np.zeros([len(subject.class_names)] * 2)
  np.add.at(counts, (clean, subject.given), 1)
  scores = {"score": found.score, **found.scores._asdict()}
  return {
    "num_wrong": int(wrong.sum()),
    "rate": float(wrong.mean()),
    "precision": float(hit.sum() / max(found.accused.sum(), 1)),
    "recall": float(hit.sum() / wrong.sum()),
    "suggested_right": float(
      (found.suggested[hit] == clean[hit]).sum() / max(hit.sum(), 1)
    ),
    "noise_matrix": (
      counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ).tolist(),
    "scores": {
      name: {
        key: None if np.isnan(value) else value
        for key, value in auditing.judge(values, wrong)._asdict().items()
      }
      for name, values in scores.items()
    },
  }


def to_csv(subject: Subject) -> Iterator[str]:
  """`audit.csv`, most suspect first, a piece at a time."""
  order = np.argsort(-subject.found.score, kind="stable")
  trust = auditing.trust(subject.found)
  for start in range(0, len(order), _ROWS):
    rows = [
      _row(subject, int(n), float(trust[n]))
      for n in order[start : start + _ROWS]
    ]
    piece = text.to_csv(rows)
    yield piece if not start else piece.partition("\n")[2]


def _row(subject: Subject, n: int, trust: float) -> dict[str, Any]:
  found = subject.found
  given, suggested = int(subject.given[n]), int(found.suggested[n])
  return {
    "index": int(subject.ids[n]),
    "file": None if subject.names is None else subject.names(n),
    "given": given,
    "suggested": suggested,
    "score": round(float(found.score[n]), 5),
    "class_margin": round(float(found.scores.class_margin[n]), 5),
    "accused": int(found.accused[n]),
    "weight": round(trust, 5),
    "given_name": subject.class_names[given],
    "suggested_name": subject.class_names[suggested],
    "kind": auditing.KINDS[found.kind[n]],
    "why": subject.why(n) if found.accused[n] else "",
  }
