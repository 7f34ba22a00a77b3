"""Every method on the test points that no method was chosen on.

A method is weights over the checkpoints of one or more runs (`methods`). Each
ends as probabilities `[N, K]`, and all are scored alike.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import flax
import jax
import ml_collections
import numpy as np

import kfkd_jax
from kfkd_jax import (
  catalogue,
  files,
  methods,
  metrics,
  processes,
  sets,
  statistics,
)
from kfkd_jax import config as config_lib
from kfkd_jax.methods import variants
from kfkd_jax.report import verdict
from kfkd_jax.run import build, results, tasks, workspace
from kfkd_jax.run.workspace import Workspace

# Where rows say the risk of answering only the surest test points.
_COVERAGES = np.arange(1, 21) / 20


class Entry(NamedTuple):
  """A method ready to be scored.

  Attributes:
    method: its slug.
    probs: `[N, K]` on the test split, or the part of it that is scored.
    selected_on: the points that chose it; "" where nothing was chosen.
    num_members: networks run at inference.
    train_cost: in trainings of one network, all that the method needs.
    size: of each network, in networks like the teacher's.
    select_gain: gain over `final` on the selecting points; None if not chosen.
    num_views: of each image at inference.
  """

  method: str
  probs: np.ndarray
  selected_on: str
  num_members: int
  train_cost: float
  size: build.Size = build.SAME_SIZE
  select_gain: float | None = None
  num_views: int = 1


def run(space: Workspace) -> str:
  """Scores every method; returns the table of those that matter.

  Writes `results.jsonl`, one row a method and fold, and `hits.npz`, what each
  method got right. Prediction sets need points that neither selected nor are
  tested: halves of a fold's test points calibrate each other (`sets`).
  """
  return processes.on_main(_compare, space, view_probs(space))


def _compare(space: Workspace, view_probs: ViewProbs) -> str:
  task = space.task
  rows = []
  by_fold: list[list[Entry]] = []
  origin = _origin(space.config)
  for fold in task.folds:
    entries = _entries(space, fold, view_probs)
    split = "test" if len(task.folds) == 1 else f"test/{fold.number}"
    here = fold.test_rows
    on_fold = [e._replace(probs=e.probs[here]) for e in entries]
    labels = task.splits["test"].labels[here]
    scored = score(space.config, on_fold, labels, split=split)
    rows += [{**row, **origin} for row in scored]
    by_fold.append(entries)
  files.write_npz(space.path / "hits.npz", **_hits(task, by_fold)._asdict())
  files.write_json_lines(space.path / "results.jsonl", rows)
  level = space.config.compare.level
  taken = verdict.judge(rows, level=level).taken
  return table(rows, level=level, besides=(taken,))


def outcome(space: Workspace, *, whole: bool) -> str:
  """The verdict on what was compared; `whole` puts the whole table first."""
  rows = files.read_json_lines(space.path / "results.jsonl")
  level, diagnosis = space.config.compare.level, space.path / "diagnosis.json"
  forgetting = None  # `compare` alone needs none
  if files.exists(diagnosis):
    forgetting = files.read_json(diagnosis)["splits"]["test"]
  said = str(verdict.judge(rows, level=level, forgetting=forgetting))
  if whole:
    said = f"{table(rows, level=level, whole=True)}\n\n{said}"
  return f"\n{said}"


def _hits(task: tasks.Task, by_fold: list[list[Entry]]) -> results.Hits:
  test = task.splits["test"]
  # Networks of their own, such as students, are in the first fold alone.
  names = list(dict.fromkeys(e.method for es in by_fold for e in es))
  tested = np.zeros((len(by_fold), len(test.labels)), bool)
  scored = np.zeros((len(by_fold), len(names)), bool)
  hits = np.zeros((*scored.shape, len(test.labels)), bool)
  for f, (fold, entries) in enumerate(zip(task.folds, by_fold, strict=True)):
    tested[f, fold.test_rows] = True
    for entry in entries:
      m = names.index(entry.method)
      scored[f, m] = True
      hits[f, m] = (entry.probs.argmax(-1) == test.labels) & tested[f]
  return results.Hits(
    np.array(names), np.asarray(test.ids), hits, tested, scored
  )


def _origin(config) -> dict[str, Any]:
  """What made the numbers, for every row."""
  stages = ("train", "fuse", "distill", "rivals", "compare")
  deciding = [config_lib.deciding(config, stage) for stage in stages]
  return {
    "config_hash": files.digest(deciding),
    "device_kind": jax.devices()[0].device_kind,
    "versions": {
      "kfkd_jax": kfkd_jax.__version__,
      "jax": jax.__version__,
      "flax": flax.__version__,
      "numpy": np.__version__,
    },
  }


def score(
  config: ml_collections.ConfigDict,
  entries: list[Entry],
  labels: np.ndarray,
  *,
  split: str,
) -> list[dict[str, Any]]:
  """One result row an entry, on the points of these labels."""
  probs = [entry.probs for entry in entries]
  hits = np.stack([p.argmax(-1) == labels for p in probs])
  curves = [sets.risk_coverage(p, labels) for p in probs]
  final = [e.method for e in entries].index("final")
  # Of one run, so that only the points vary; gains are paired.
  totals = np.concatenate([hits, hits - 1.0 * hits[final]])[:, None]
  intervals = statistics.bootstrap_runs(
    0,
    totals,
    np.ones((len(totals), len(labels))),
    num_samples=config.compare.bootstrap_samples,
    level=config.compare.level,
  )
  bounds = np.stack(intervals, axis=1).tolist()
  return [
    {
      "method": entry.method,
      "seed": config.seed,
      "split": split,
      "selected_on": entry.selected_on,
      "accuracy": float(hits[i].mean()),
      "accuracy_interval": bounds[i],
      "gain": float(hits[i].mean() - hits[final].mean()),
      "gain_interval": bounds[len(entries) + i],
      "nll": float(metrics.negative_log_likelihood(probs[i], labels)),
      "ece": float(metrics.calibration_error(probs[i], labels)),
      "brier": float(metrics.brier_score(probs[i], labels)),
      "num_examples": len(labels),
      "num_members": entry.num_members,
      "train_cost": round(entry.train_cost, 3),
      "inference_cost": round(
        entry.num_members * entry.num_views * entry.size.compute, 3
      ),
      "storage_cost": round(entry.num_members * entry.size.storage, 3),
      "select_gain": entry.select_gain,
      "aurc": curves[i].area,
      "risk_coverage": [_COVERAGES.tolist(), curves[i].at(_COVERAGES).tolist()],
      **_sets(config, probs[i], labels),
      "teacher_agreement": _agreement(entries, entry.method),
    }
    for i, entry in enumerate(entries)
  ]


def _sets(config, probs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
  """Of sets calibrated on test points, which chose nothing, by halves."""
  if config.compare.sets is None:
    return {"set_coverage": None, "set_size": None}
  found = sets.halved_sets(probs, labels, level=config.compare.sets)
  return {"set_coverage": found.coverage, "set_size": found.size}


def _agreement(entries: list[Entry], method: str) -> float | None:
  """The share of points on which a student says what its fusion says."""
  probs = {entry.method: entry.probs for entry in entries}
  teacher = catalogue.taught_by(method)
  if teacher not in probs:
    return None
  said = [probs[name].argmax(-1) for name in (method, teacher)]
  return float(np.mean(said[0] == said[1]))


def table(
  rows: list[dict[str, Any]],
  *,
  level: float,
  besides: Collection[str] = (),
  whole: bool = False,
) -> str:
  """The result rows for a terminal, in the order they come.

  Args:
    rows: of `results.jsonl`.
    level: of their intervals.
    besides: minor methods that are shown as well.
    whole: with all the rows of `catalogue.MINOR`.
  """
  minor = set() if whole else set(catalogue.MINOR) - set(besides)
  shown = [row for row in rows if row["method"] not in minor]
  wide = max(20, *(len(row["method"]) for row in shown)) + 2
  head = (
    f"{'method':<{wide}}{'split':<8}{'accuracy':>9}{'gain':>8}"
    f"  {f'{100 * level:g} % interval':<17}{'nll':>7}{'ece':>7}{'brier':>7}"
    f"{'train':>7}{'infer':>7}  chosen on"
  )
  lines = [head, "-" * len(head)]
  for row in shown:
    low, high = row["gain_interval"]
    lines.append(
      f"{row['method']:<{wide}}{row['split']:<8}{row['accuracy']:>9.3f}"
      f"{row['gain']:>+8.3f}  [{low:+.3f}, {high:+.3f}] {row['nll']:>7.3f}"
      f"{row['ece']:>7.3f}{row['brier']:>7.3f}{row['train_cost']:>7.2f}"
      f"{row['inference_cost']:>7g}  {row['selected_on'] or '-'}"
    )
  left_out = len(rows) - len(shown)
  if left_out:
    noun = "row" if left_out == 1 else "rows"
    lines.append(f"{left_out} more {noun}: kfkd compare --all")
  return "\n".join(lines)


# Test probabilities from several views of the images, by fold and method.
ViewProbs = dict[tuple[int, str], np.ndarray]


def view_probs(space: Workspace) -> ViewProbs:
  """What every process must help to predict, for `compare.test_time`."""

  def asked_for() -> list[tuple[int, str, list]]:
    """The ensembles, as JSON, each source over all checkpoints of its run."""
    found = []
    for fold in space.task.folds:
      for method in methods.configured(space.config):
        for ensemble in method.ensembles(space, fold):
          if ensemble.method not in space.config.compare.test_time:
            continue
          sources = []
          for source in ensemble.sources:
            store = results.predictions(space.path, source.run, "test")
            sources.append((source.run, source.over(len(store)).tolist()))
          found.append((fold.number, ensemble.method, sources))
    return found

  return {
    (fold, method): variants.with_views(
      space,
      [methods.Source(run, np.asarray(w, np.float32)) for run, w in sources],
    )
    for fold, method, sources in processes.on_main(asked_for)
  }


def _entries(
  space: Workspace,
  fold: tasks.Fold,
  view_probs: ViewProbs,
) -> list[Entry]:
  """Every configured method on a fold, and the rows to repeat with options."""
  entries = []
  for method in methods.configured(space.config):
    for ensemble in method.ensembles(space, fold):
      plain = Entry(
        ensemble.method,
        methods.predict(space.path, ensemble, "test"),
        ensemble.selected_on,
        ensemble.num_members,
        ensemble.train_cost,
        ensemble.size,
        ensemble.select_gain,
      )
      entries.append(plain)
      name = ensemble.method
      if name in space.config.compare.temperature:
        probs = variants.with_temperature(space, ensemble, fold)
        on = workspace.selected_on(space.config, fold)
        entries.append(
          plain._replace(
            method=f"{name}+temperature", probs=probs, selected_on=on
          )
        )
      if name in space.config.compare.test_time:
        entries.append(
          plain._replace(
            method=f"{name}+views",
            probs=view_probs[fold.number, name],
            num_views=space.config.compare.views,
          )
        )
  return entries
