"""What a finished cell of a sweep says to a question: rows of numbers.

A measure is `(config, workdir) -> rows`. Shares, not %. Where the test set is
halved, the first halving is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from etils import epath
from jax.typing import ArrayLike

from kfkd_jax import auditing, files, forgetting, fusion, metrics
from kfkd_jax.config import changed
from kfkd_jax.lab import choosing
from kfkd_jax.predictions import PredictionStore, Subset
from kfkd_jax.run import (
  results,
  students,
  tasks,
  workspace,
)
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages import fuse

Row = dict[str, Any]


RETENTION = (1.0, 0.5, 0.25, 0.1, 0.05)  # shares of the checkpoints
WINDOWS = (0, 1, 2, 4, 8)
NUM_EPSILONS = (2, 3, 6, 11, 101)
NUM_SELECT = (25, 50, 100, 200, 400)
_GAINS = (
  "fixed_jumps", "random_epochs", "best_epoch", "kf", "mixture", "kf_kd",
  "mixture_kd",
)  # fmt: skip


def gains(config: ml_collections.ConfigDict, workdir: epath.Path) -> list[Row]:
  """One row: accuracy, the largest F_e, and gains over the final network."""
  del config
  test = files.read_json(workdir / "diagnosis.json")["splits"]["test"]
  rows = files.read_json_lines(workdir / "results.jsonl")
  return [gains_of(test, rows)]


def gains_of(test: Mapping[str, Any], rows: Sequence[Mapping]) -> Row:
  """`gains` of a diagnosed split and the rows of `results.jsonl`."""
  worst = test["max_forget_checkpoint"]

  def mean(method: str, key: str) -> float:
    found = [row[key] for row in rows if row["method"] == method]
    return fmean(found) if found else float("nan")

  return {
    "accuracy": mean("final", "accuracy"),
    "max_forget": test["max_forget"],
    "null_forget": test["null"][worst],
    **{method: mean(method, "gain") for method in _GAINS},
  }


def chosen(config: ml_collections.ConfigDict, workdir: epath.Path) -> list[Row]:
  """One row: accuracy where points selected, which chooses, and on test."""
  del config
  rows = files.read_json_lines(workdir / "results.jsonl")
  fused = files.read_json(workdir / "fusion.json")
  select = choosing.selecting_accuracy(rows, fused)
  tested = {
    method: fmean(r["accuracy"] for r in rows if r["method"] == method)
    for method in ("final", "kf", "mixture")
  }
  return [{**tested, **{f"select_{m}": select[m] for m in tested}}]


def epochs(config: ml_collections.ConfigDict, workdir: epath.Path) -> list[Row]:
  """One row a checkpoint: accuracy, F_e, and memorised noise."""
  del config
  diagnosis = files.read_json(workdir / "diagnosis.json")
  test = diagnosis["splits"]["test"]
  none = [None] * len(diagnosis["epochs"])
  memorised = diagnosis.get("train", {}).get("memorised", none)
  return [
    {
      "epoch": epoch,
      "accuracy": test["accuracy"][c],
      "forget": test["forget"][c],
      "null_forget": test["null"][c],
      "memorised": float("nan") if memorised[c] is None else memorised[c],
    }
    for c, epoch in enumerate(diagnosis["epochs"])
  ]


def audits(config: ml_collections.ConfigDict, workdir: epath.Path) -> list[Row]:
  """One row a score: how well it tells the labels that noise changed.

  `accused` is the share that our score calls wrong, few where nothing is.
  """
  given = Workspace(config, workdir).task.given
  store = results.predictions(workdir, workspace.TEACHER, "train")
  found = auditing.audit(store, given)
  wrong = given != store.labels
  accused = {"ours": float(found.accused.mean())}
  return [
    {
      "score": name,
      **auditing.judge(scores, wrong)._asdict(),
      "accused": accused.get(name, float("nan")),
    }
    for name, scores in {"ours": found.score, **found.scores._asdict()}.items()
  ]


def online(config: ml_collections.ConfigDict, workdir: epath.Path) -> list[Row]:
  """One row: plain training beside online fusion."""
  del config
  rows = files.read_json_lines(workdir / "results.jsonl")
  plain = files.read_json(workdir / "diagnosis.json")["splits"]["test"]
  store = results.predictions(workdir, "online_fusion", "test")
  forgotten = forgetting.forget_fractions(
    forgetting.correctness(store, store.labels)
  )
  (of_run,) = [row for row in rows if row["method"] == "online_fusion"]
  return [
    {
      "accuracy": plain["accuracy"][-1],
      "online_accuracy": of_run["accuracy"],
      "gain": of_run["gain"],
      "max_forget": plain["max_forget"],
      "online_max_forget": float(np.max(forgotten)),
    }
  ]


class History(NamedTuple):
  """A run's stored predictions and how its points are used.

  Attributes:
    select: the store that selects.
    select_rows: `[S]` rows of it.
    clean: `[S]` labels of them.
    given: `[S]` their labels with the noise of the training labels.
    test: the store that tests.
    test_rows: `[N]` rows of it.
    transition: `[K, K]` of the noise, None where it has no matrix.
  """

  select: PredictionStore
  select_rows: np.ndarray
  clean: np.ndarray
  given: np.ndarray
  test: PredictionStore
  test_rows: np.ndarray
  transition: np.ndarray | None

  def gain(
    self, weights: ArrayLike, checkpoints: np.ndarray | None = None
  ) -> float:
    """Test accuracy of a fusion over that of the last checkpoint.

    Args:
      weights: `[M]`.
      checkpoints: `[M]` their places; None for all.
    """
    probs = Subset(self.test, self.test_rows, checkpoints)
    labels = self.test.labels[self.test_rows]
    fused = np.asarray(fusion.fuse(probs, np.asarray(weights, np.float32)))
    last = self.test[len(self.test) - 1][self.test_rows]
    return float(
      np.mean(fused.argmax(-1) == labels) - np.mean(last.argmax(-1) == labels)
    )


def history(config: ml_collections.ConfigDict, workdir: epath.Path) -> History:
  """What the teacher left for fusing anew; nothing is trained."""
  task = tasks.load_task(config)
  fold = task.folds[0]

  def labels(kind: str) -> np.ndarray:
    of_kind = {"selection.labels": kind, "fuse.transition": "none"}
    return workspace.selection_labels(Workspace(changed(config, of_kind)), fold)

  return History(
    results.predictions(workdir, workspace.TEACHER, fold.select_split),
    fold.select_rows,
    labels("clean"),
    labels("noisy"),
    results.predictions(workdir, workspace.TEACHER, "test"),
    fold.test_rows,
    task.transition,
  )


def retention(config, workdir) -> list[Row]:
  """Gains when fewer checkpoints had been kept, evenly spaced."""
  return retention_of(config, history(config, workdir))


def retention_of(config: ml_collections.ConfigDict, run: History) -> list[Row]:
  """One row a share of the checkpoints; `fixed_jumps` averages all of them."""
  rows = []
  for share in RETENTION:
    num = max(1, round(share * len(run.test)))
    kept = np.flatnonzero(fusion.fixed_jumps(len(run.test), num))
    select = Subset(run.select, run.select_rows, kept)
    chosen = fuse.fuse(config, select, run.clean)
    rows.append({
      "kept": share,
      "fixed_jumps": run.gain(np.full(len(kept), 1 / len(kept)), kept),
      "kf": run.gain(chosen["kf"]["weights"], kept),
      "mixture": run.gain(chosen["mixture"]["weights"], kept),
    })  # fmt: skip
  return rows


def window(config, workdir) -> list[Row]:
  """Gains of Knowledge Fusion by its window and its number of epsilons."""
  return window_of(config, history(config, workdir))


def window_of(config: ml_collections.ConfigDict, run: History) -> list[Row]:
  """One row for each pair of them."""
  select = Subset(run.select, run.select_rows)
  probs = np.stack([select[c] for c in range(len(select))])
  rows = []
  for num in NUM_EPSILONS:
    for width in WINDOWS:
      chosen = fusion.knowledge_fusion(
        probs,
        run.clean,
        window=width,
        num_epsilons=num,
        max_members=config.fuse.max_members,
      )
      gain = run.gain(chosen.weights)
      rows.append({"num_epsilons": num, "window": width, "kf": gain})
  return rows


def selection(config, workdir) -> list[Row]:
  """Gains by the number of selecting points and the kind of their labels."""
  return selection_of(config, history(config, workdir))


def selection_of(config: ml_collections.ConfigDict, run: History) -> list[Row]:
  """One row for each number and kind; fewer points are among more."""
  order = np.random.default_rng(config.seed).permutation(len(run.select_rows))
  rows = []
  for kind, labels in (("clean", run.clean), ("noisy", run.given)):
    for num in [n for n in NUM_SELECT if n <= len(order)]:
      part = order[:num]
      select = Subset(run.select, run.select_rows[part])
      chosen = fuse.fuse(config, select, labels[part])
      told: dict[str, np.ndarray | None] = {"known": None, "estimated": None}
      if kind == "noisy":
        told["known"] = run.transition
        told["estimated"] = auditing.estimated_noise(select, labels[part])
      rows.append({
        "labels": kind,
        "num_select": num,
        "kf": run.gain(chosen["kf"]["weights"]),
        "mixture": run.gain(chosen["mixture"]["weights"]),
        **{
          f"mixture_{how}": float("nan")
          if noise is None
          else _told_gain(config, run, select, labels[part], noise)
          for how, noise in told.items()
        },
      })  # fmt: skip
  return rows


def _told_gain(config, run: History, select, labels, noise) -> float:
  told = fuse.fuse(config, select, labels, transition=noise)
  return run.gain(told["mixture"]["weights"])


def student(config, workdir) -> list[Row]:
  """One row a student: what it kept of its teacher."""
  run = history(config, workdir)
  labels = run.test.labels[run.test_rows]
  probs = Subset(run.test, run.test_rows)
  rows = []
  for teacher in config.distill.teachers:
    fused = fusion.fuse(probs, results.weights_of(workdir, teacher))
    name = students.student_name(teacher)
    learned = results.predictions(workdir, name, "test")
    of_student = learned[len(learned) - 1][run.test_rows]
    kept = student_of(probs[len(probs) - 1], fused, of_student, labels)
    rows.append({"student": name, **kept})
  return rows


def student_of(
  final: ArrayLike, teacher: ArrayLike, student: ArrayLike, labels: np.ndarray
) -> Row:
  """What a student kept of its teacher; `[N, K]` probabilities each.

  Returns:
    `recovered`, the share of the points that the final network has wrong and
    the teacher right that the student has right; `beyond`, the same of those
    that both have wrong; `agreement`, the share of points on which student and
    teacher say the same; gains and calibration errors. A share of nothing is
    nan.
  """
  says = [np.asarray(p).argmax(-1) for p in (final, teacher, student)]
  final_right, teacher_right, right = (s == labels for s in says)

  def among(points: np.ndarray) -> float:
    return float(right[points].mean()) if points.any() else float("nan")

  return {
    "recovered": among(~final_right & teacher_right),
    "beyond": among(~final_right & ~teacher_right),
    "agreement": float(np.mean(says[1] == says[2])),
    "teacher_gain": float(teacher_right.mean() - final_right.mean()),
    "student_gain": float(right.mean() - final_right.mean()),
    "final_ece": float(metrics.calibration_error(final, labels)),
    "teacher_ece": float(metrics.calibration_error(teacher, labels)),
    "student_ece": float(metrics.calibration_error(student, labels)),
  }
