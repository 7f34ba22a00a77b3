"""The stages on what somebody's checkpoints said: `--predictions=FILE`.

Nothing is known of the training. What comes out is what a run's stages write,
with the points of the file in place of a split.
"""

from __future__ import annotations

import os
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from kfkd_jax import files, fusion
from kfkd_jax.answers import Answers
from kfkd_jax.predictions import (
  Predictions,
  of_probabilities,
  read_any,
  read_foreign,
)
from kfkd_jax.report import foreign_page, page
from kfkd_jax.run import workspace
from kfkd_jax.stages import compare
from kfkd_jax.stages import diagnose as diagnosing
from kfkd_jax.stages import fuse as fusing

WEIGHTS = "weights.npz"


def diagnose(source: epath.Path, output: epath.Path) -> str:
  """Writes what was forgotten of the file's points; returns what to say."""
  content = _diagnosis(*_answered(read_any(source)))
  files.write_json(output, content)
  split = content["splits"]["test"]
  points = f"points of {source}"
  return "\n".join(
    [
      diagnosing.summary(split, content["epochs"], points=points),
      diagnosing.summary_together(split),
    ]
  )


def _answered(known: Predictions | Answers) -> tuple[Answers, int | None]:
  """What the checkpoints answered, and of how many classes, where they are."""
  if isinstance(known, Answers):
    return known, None
  return of_probabilities(known), known.probs.shape[2]


def _diagnosis(answered: Answers, num_classes: int | None) -> dict[str, Any]:
  correct, labels, names = answered.correct, answered.labels, {}
  if num_classes is None or labels is None:
    split = diagnosing.of_correct(correct)
  else:
    split = diagnosing.of_classes(correct, labels, num_classes)
    names = {"class_names": [str(k) for k in range(num_classes)]}
  split |= diagnosing.together(answered)
  return {
    "epochs": answered.epochs.tolist(), **names, "splits": {"test": split},
  }  # fmt: skip


def fuse(
  source: epath.Path, output: epath.Path, config: ml_collections.ConfigDict
) -> str:
  """Writes weights chosen on the file's points; returns what to say."""
  found = read_foreign(source)
  content = _fused(config, found, str(source))
  beside = output.with_name(output.name.replace("fusion.json", WEIGHTS))
  files.write_json(output, content)
  _write_weights(content, beside)
  line = fusing.summary(
    content["folds"][0]["methods"],
    content["epochs"],
    points=f"points of {source}",
  )
  return "\n".join([
    line,
    "These points chose the weights: expect less of a gain on others, and "
    "measure it there with",
    '  fused = numpy.einsum("c,cnk->nk", '
    f'numpy.load({os.fspath(beside)!r})["kf"], probs)',
    "or let `kfkd report` do so, with the same --predictions and others in "
    "--test",
  ])  # fmt: skip


def _fused(config, found: Predictions, selected_on: str) -> dict[str, Any]:
  told = workspace.told_noise(config, None, found.probs, found.labels)
  methods = fusing.fuse(config, found.probs, found.labels, transition=told)
  fold = {
    "selected_on": selected_on,
    "num_select": len(found.labels),
    "methods": methods,
  }
  return {"epochs": found.epochs.tolist(), "folds": [fold]}


def _write_weights(content: dict[str, Any], path: epath.Path) -> None:
  methods = content["folds"][0]["methods"]
  weights = {name: np.asarray(m["weights"]) for name, m in methods.items()}
  files.write_npz(path, epochs=np.asarray(content["epochs"]), **weights)


def report(
  source: epath.Path,
  test: epath.Path | None,
  folder: epath.Path,
  config: ml_collections.ConfigDict,
) -> str:
  """Writes a page, and what it was made of; returns what to say.

  Args:
    source: the predictions that choose weights, or answers, which cannot.
    test: predictions by the same checkpoints that measure; None to choose on
      either half of the source's points and measure on the other.
    folder: for `index.html` and all the rest.
    config: of fusions, intervals and prediction sets.
  """
  known = read_any(source)
  measured = known
  if test is not None:
    if not isinstance(known, Predictions):
      raise ValueError(
        f"--test measures fusions, for which {source} needs probs[C,N,K]"
      )
    measured = read_foreign(test)
    _check_same(source, known, test, measured)
  # Once: the classes of a large file take as long to find as the file to read.
  answered, num_classes = _answered(measured)
  diagnosis = _diagnosis(answered, num_classes)
  subject = foreign_page.Subject(
    os.path.basename(os.fspath(source)), diagnosis, answered
  )
  lines = [
    diagnosing.summary(
      diagnosis["splits"]["test"],
      diagnosis["epochs"],
      points=f"points of {test or source}",
    )
  ]
  if isinstance(known, Predictions) and isinstance(measured, Predictions):
    content = _fused(config, known, str(source))
    chosen_on = answered if test is None else _answered(known)[0]
    rows, fused = _compared(
      config, known, chosen_on.correct, test and measured, content
    )
    lines.append(compare.table(rows, level=config.compare.level, whole=True))
    subject = subject._replace(
      fusion=content,
      rows=rows,
      now=fused.argmax(-1),
      where=os.path.basename(os.fspath(test)) if test else None,
    )
    files.write_json(folder / "fusion.json", content)
    files.write_json_lines(folder / "results.jsonl", rows)
    _write_weights(content, folder / WEIGHTS)
  files.write_json(folder / "diagnosis.json", diagnosis)
  made = foreign_page.render(subject, level=config.compare.level)
  written = page.write(made, folder / "index.html")
  return "\n".join([*lines, f"a page of {written.size}"])


def _check_same(source, known: Predictions, test, measured: Predictions):
  """Both must be of the same checkpoints and classes."""
  for what, axis in (("checkpoints", 0), ("classes", 2)):
    ours, theirs = (p.probs.shape[axis] for p in (known, measured))
    if ours != theirs:
      raise ValueError(
        f"{source} holds {ours} {what} and {test} holds {theirs}; both must be "
        "of the same checkpoints"
      )
  if known.epochs.tolist() != measured.epochs.tolist():
    raise ValueError(
      f"{source} and {test} name other epochs: {known.epochs.tolist()} and "
      f"{measured.epochs.tolist()}"
    )


def _compared(
  config,
  known: Predictions,
  correct: np.ndarray,
  test: Predictions | None,
  content: dict[str, Any],
) -> tuple[list[dict[str, Any]], np.ndarray]:
  """Rows of points that chose nothing of theirs, and KF's answers there.

  Without other points, each half's weights are chosen on the other half: so
  the rows are of weights that are a little worse than those of all points.
  """
  methods = content["folds"][0]["methods"]
  chosen = _weights(correct, methods)
  if test is not None:
    labels = test.labels
    probs = {m: _fuse(test.probs, w) for m, w in chosen.items()}
  else:
    labels = known.labels
    if len(labels) < 4:
      raise ValueError(
        f"{len(labels)} points are too few to choose on one half of them and "
        "measure on the other; name others by --test"
      )
    probs = {m: np.empty(known.probs.shape[1:], np.float32) for m in chosen}
    half = np.random.default_rng(config.seed).permutation(len(labels)) % 2
    for number in (0, 1):
      here = half == number
      other = known._replace(
        probs=known.probs[:, ~here], labels=labels[~here], ids=known.ids[~here]
      )
      on = _fused(config, other, "the other half")["folds"][0]["methods"]
      for m, w in _weights(correct[:, ~here], on).items():
        probs[m][here] = _fuse(known.probs[:, here], w)
  right = correct.mean(-1)
  gains = {name: found["gain"] for name, found in methods.items()}
  gains["best_epoch"] = float(right.max() - right[-1])
  entries = [
    compare.Entry(
      method,
      probs[method],
      "" if method == "final" else content["folds"][0]["selected_on"],
      int(np.count_nonzero(weights)),
      1.0,
      select_gain=gains.get(method),
    )
    for method, weights in chosen.items()
  ]
  return compare.score(config, entries, labels, split="test"), probs["kf"]


def _weights(correct: np.ndarray, methods) -> dict[str, np.ndarray]:
  """By method: the last and the best checkpoint, and the fusions."""
  right = correct.mean(-1)
  one = np.eye(len(right), dtype=np.float32)
  fusions = {
    name: np.asarray(methods[name]["weights"], np.float32)
    for name in ("kf_one_step", "kf", "mixture")
  }
  return {"final": one[-1], "best_epoch": one[np.argmax(right)], **fusions}


def _fuse(probs: np.ndarray, weights: np.ndarray) -> np.ndarray:
  return np.asarray(fusion.fuse(probs, weights))
