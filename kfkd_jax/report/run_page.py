"""Writes the report: one page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import itertools
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from PIL import Image

import kfkd_jax
from kfkd_jax import (
  catalogue,
  files,
  forgetting,
  fusion,
  plots,
  published,
)
from kfkd_jax.data import splits
from kfkd_jax.data.stored import Stored
from kfkd_jax.predictions import Subset
from kfkd_jax.report import page, verdict
from kfkd_jax.report.page import Drawn
from kfkd_jax.run import (
  build,
  results,
  seals,
  tasks,
  workspace,
)
from kfkd_jax.run.workspace import Workspace

_SHOWN = ("train", "diagnose", "fuse", "distill", "compare")
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
HEAT_MAP_CLASSES = 20  # with more, the most frequent changes as a table
_NUM_CHANGES = 15
_PICTURE_PIXELS = 160  # larger pictures are made smaller
_STRIP_LETTERS = 40  # that fit beside each other under a picture


def run(space: Workspace) -> str:
  """Writes `report/`; returns the page's size."""
  made, folder = render(space), space.path / "report"
  written = page.write(made, folder / "index.html")
  seals.write_sums(folder, written.names)
  return f"report/index.html, {written.size}"


def render(space: Workspace) -> page.Page:
  """The page, from the artefacts of the other stages."""
  diagnosis = files.read_json(space.path / "diagnosis.json")
  fused = files.read_json(space.path / "fusion.json")
  rows = [
    {**dict.fromkeys(_LATER), **row}  # earlier versions wrote none of them
    for row in files.read_json_lines(space.path / "results.jsonl")
  ]
  manifest = files.read_json(space.path / "manifest.json")
  task = space.task
  ledger = splits.read_ledger(space.path / "noise.npz")
  noise = _noise(ledger, task.class_names)
  tables = {"results": results_table(rows), "label-noise": noise["parts"]}
  forgotten = _forgotten(space, task)
  if forgotten["rows"]:
    tables["forgotten"] = forgotten["rows"]
  paper = space.config.report.paper
  if paper is not None:
    tables["paper"] = beside_paper(rows, paper)
  devices, values = jax.devices(), space.config.to_dict()
  return page.render(
    "report.html",
    {
      **fusion_figures(fused, rows),
      **forgetting_figures(diagnosis, *marked(fused, rows)),
      **_memorisation(diagnosis),
      **_noise_figure(ledger, task),
    },
    tables,
    config=space.config,
    beside_paper=tables.get("paper"),
    paper=paper and published.COLUMNS[paper],
    # What stands in no section comes first.
    sections={
      "": {k: v for k, v in values.items() if not isinstance(v, dict)},
      **{k: v for k, v in values.items() if isinstance(v, dict)},
    },
    task=task,
    verdict=verdict.judge(
      rows,
      level=space.config.compare.level,
      forgetting=diagnosis["splits"]["test"],
      name=lambda slug: f"“{catalogue.method_name(slug)}”",
    ),
    summary=_summary(rows),
    diagnosis=diagnosis,
    fusion=fused,
    rows=rows,
    forgotten=forgotten,
    noise=noise,
    made_noise=tasks.made_noise(space.config, ledger),
    objective=catalogue.method_name(space.config.train.objective),
    versions={
      "kfkd_jax": kfkd_jax.__version__,
      "Python": platform.python_version(),
      **{name: metadata.version(name) for name in _PACKAGES},
    },
    device=f"{len(devices)} × {devices[0].device_kind}",
    # Of the stages that it shows, whatever else ran before.
    manifest={k: v["inputs"] for k, v in manifest.items() if k in _SHOWN},
  )


RESULT_KEYS = (
  "method",
  "split",
  "accuracy",
  "accuracy_interval",
  "gain",
  "gain_interval",
  "nll",
  "ece",
  "brier",
  "train_cost",
  "inference_cost",
  "storage_cost",
)


_SETS = ("aurc", "set_coverage", "set_size")
_LATER = (*_SETS, "risk_coverage")
_REFUSING = ("final", "kf", "mixture", "kf_kd", "independent")


def results_table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The rows of `results.jsonl` as a table of plain columns."""
  keys = (*RESULT_KEYS, "select_gain", "selected_on", *_SETS)
  return [page.flat(row, keys) for row in rows]


def beside_paper(
  rows: list[dict[str, Any]], column: str
) -> list[dict[str, Any]]:
  """Accuracies in %: the paper's and ours, with standard errors over folds.

  Args:
    rows: of `results.jsonl`.
    column: a key of `published.COLUMNS`.

  Returns:
    Rows of `method`, `paper`, `paper_error`, `ours` and `ours_error`: all
    methods of the paper's column, then ours; None where there is no number.
  """
  numbers = published.COLUMNS[column].numbers
  table = []
  for method in dict.fromkeys([*numbers, *(row["method"] for row in rows)]):
    ours = [100 * row["accuracy"] for row in rows if row["method"] == method]
    error = np.std(ours, ddof=1) / len(ours) ** 0.5 if len(ours) > 1 else None
    paper = numbers.get(method)
    table.append({
      "method": method,
      "paper": paper and paper.mean,
      "paper_error": paper and paper.error,
      "ours": float(np.mean(ours)) if ours else None,
      "ours_error": None if error is None else float(error),
    })  # fmt: skip
  return table


def _summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """Each method's numbers, averaged where there are several folds.

  The interval is the test's own with one fold and the range over the folds
  otherwise.
  """
  summary = {}
  for method in dict.fromkeys(row["method"] for row in rows):
    folds = [row for row in rows if row["method"] == method]
    gains = [row["gain"] for row in folds]
    bounds = [min(gains), max(gains)]
    summary[method] = {
      "accuracy": float(np.mean([row["accuracy"] for row in folds])),
      "gain": float(np.mean(gains)),
      "range": folds[0]["gain_interval"] if len(folds) == 1 else bounds,
      "networks": folds[0]["inference_cost"],
      "num_examples": folds[0]["num_examples"],
      "folds": len(folds),
    }
  return summary


def fusion_figures(fused, rows) -> dict[str, Drawn]:
  """What fusions gain, and weigh, and leave unanswered, by name."""
  return {
    "gains": Drawn(
      plots.plot_gains(rows),
      "Gain of every method over the final network, with intervals; the "
      "numbers are in the table above.",
    ),
    **{name: _weights(fused, name) for name in ("kf", "mixture")},
    **_refusals(rows),
  }


def marked(fused, rows) -> tuple[list[int], float | None]:
  """The epochs that KF picked, and its accuracy where one fold gave it."""
  methods = fused["folds"][0]["methods"]
  members = sorted({fused["epochs"][m] for m in methods["kf"]["members"]})
  if len({row["split"] for row in rows}) > 1:
    return members, None
  return members, {row["method"]: row for row in rows}["kf"]["accuracy"]


def forgetting_figures(
  diagnosis, members: Sequence[int] = (), level: float | None = None
) -> dict[str, Drawn]:
  """What was forgotten, when, and of which classes, by name.

  Args:
    diagnosis: of the split `test`.
    members: epochs to mark.
    level: accuracy of Knowledge Fusion, to be drawn as a line.
  """
  test, epochs = diagnosis["splits"]["test"], diagnosis["epochs"]
  worst = test["max_forget_checkpoint"]
  found = {
    "accuracy": Drawn(
      plots.plot_curves(
        epochs,
        {"accuracy": test["accuracy"]},
        members=members,
        levels=None if level is None else {"Knowledge Fusion": level},
        ylabel="test accuracy",
      ),
      f"Test accuracy over {len(epochs)} checkpoints, from "
      f"{test['accuracy'][0]:.3f} to {test['accuracy'][-1]:.3f}; highest "
      f"{max(test['accuracy']):.3f}.",
    ),
    "forgetting": Drawn(
      plots.plot_curves(
        epochs,
        {name: test[name] for name in ("forget", "learn", "null")},
        members=members,
        ylabel="share of test points",
      ),
      "Forgotten and learned share over epochs; the forgotten share is "
      f"highest at epoch {epochs[worst]} with {test['max_forget']:.3f}, "
      f"where independence would give {test['null'][worst]:.3f}.",
    ),
    "time": Drawn(
      plots.plot_time_to_forget(epochs, test["time_to_forget"]),
      f"When {test['num_once_right']} forgotten test points were right for "
      "the last time.",
    ),
  }
  if "by_class" not in test:
    return found
  by_class = {k: v[worst] for k, v in test["by_class"].items()}
  return {
    **found,
    "classes": Drawn(
      plots.plot_class_forgetting(
        diagnosis["class_names"], by_class["forget"], null=by_class["null"]
      ),
      f"Forgotten share by class at epoch {epochs[worst]}.",
    ),
  }


def _weights(fused, method: str) -> Drawn:
  """How much each checkpoint weighs in a fusion of the first fold."""
  weights = np.asarray(fused["folds"][0]["methods"][method]["weights"])
  epochs = [fused["epochs"][c] for c in np.flatnonzero(weights)]
  name = plots.method_name(method)
  return Drawn(
    plots.plot_weights(fused["epochs"], {name: weights}),
    f"Weights over the checkpoints in {name}: not zero at epochs "
    f"{', '.join(map(str, epochs))}.",
  )


def _memorisation(diagnosis) -> dict[str, Drawn]:
  """What became of the flipped labels, where that was measured."""
  split = diagnosis.get("train", {"memorised": [None]})
  if split["memorised"][-1] is None:
    return {}
  figure = plots.plot_memorisation(diagnosis["epochs"], split)
  return {
    "memorisation": Drawn(
      figure,
      "What the network says about flipped training labels; at the end it has "
      f"memorised {split['memorised'][-1]:.3f} of them.",
    )
  }


def _refusals(rows: list[dict[str, Any]]) -> dict[str, Drawn]:
  """Risk over coverage, the mean over folds, where rows hold it."""
  curves = {
    method: np.mean(found, axis=0)
    for method in _REFUSING
    if (found := [r["risk_coverage"] for r in rows if r["method"] == method])
    and None not in found
  }
  if not curves:
    return {}
  halves = [
    f"{plots.method_name(method)} {np.interp(0.5, *curve):.3f}"
    for method, curve in curves.items()
  ]
  label = (
    "Share of wrong answers over the share of test points answered, the surest "
    f"first; with half of them answered: {', '.join(halves)}."
  )
  return {
    "risk-coverage": Drawn(
      plots.plot_risk_coverage({m: tuple(c) for m, c in curves.items()}), label
    )
  }


def _forgotten(space: Workspace, task: tasks.Task) -> dict[str, Any]:
  """Test points that were right once and are wrong at the end.

  Taken from the first fold's test points, so that none of them helped to
  choose the fusion whose opinion is shown.
  """
  store = results.predictions(space.path, workspace.TEACHER, "test")
  rows = task.folds[0].test_rows
  labels = store.labels[rows]
  epochs = build.epochs_at(space, store.epochs)
  classes = np.asarray(forgetting.predicted_classes(Subset(store, rows)))
  chosen = files.read_json(space.path / "fusion.json")["folds"][0]["methods"][
    "kf"
  ]
  weights = np.asarray(chosen["weights"], np.float32)
  now = np.asarray(fusion.fuse(Subset(store, rows), weights)).argmax(-1)
  correct = classes == labels
  lost = ~correct[-1] & correct.any(0)
  test = task.splits["test"]
  images, names = test.images[rows], np.asarray(task.class_names)
  columns: dict[str, Any] = {"id": np.asarray(test.ids)[rows]}
  if isinstance(test.images, Stored):
    columns["file"] = [test.images.name(int(n)) for n in rows]
  columns |= {"true": labels, "at_end": classes[-1], "fused": now}
  for name in ("true", "at_end", "fused"):
    columns[name] = names[columns[name]]
  return {
    "rows": forgotten_rows(correct, epochs, columns),
    "num": int(lost.sum()),
    "num_back": int((lost & (now == labels)).sum()),
    "epochs": epochs,
    "examples": [
      {
        "picture": picture(images[n]),
        "pixelated": max(images[n].shape[:2]) <= 64,
        "label": task.class_names[labels[n]],
        "at_end": task.class_names[classes[-1, n]],
        "now": task.class_names[now[n]],
        "is_back": bool(now[n] == labels[n]),
        "times": int(correct[:, n].sum()),
        "strip": strip(classes[:, n], labels[n], epochs, task.class_names),
      }
      for n in plots.most_forgotten(correct, space.config.report.num_examples)
    ],
  }


def forgotten_rows(
  correct: np.ndarray,
  epochs: Sequence[float],
  columns: Mapping[str, Any],
) -> list[dict[str, Any]]:
  """Points once right and wrong at the end, the most often right first.

  Args:
    correct: `bool[C, N]`.
    epochs: C numbers.
    columns: `[N]` each, what is said of a point before when it was right.
  """
  correct = np.asarray(correct, bool)
  said = {
    **columns,
    "times_right": correct.sum(0),
    "last_right": np.asarray(epochs)[
      len(correct) - 1 - correct[::-1].argmax(0)
    ],
  }
  order = plots.most_forgotten(correct, correct.shape[1])
  listed = {name: np.asarray(x)[order].tolist() for name, x in said.items()}
  return [
    dict(zip(listed, row, strict=True))
    for row in zip(*listed.values(), strict=True)
  ]


def picture(image: np.ndarray) -> str:
  """A `u8[H, W, Ch]` image as a data URI."""
  picture = Image.fromarray(
    image.squeeze(-1) if image.shape[-1] == 1 else image
  )
  picture.thumbnail((_PICTURE_PIXELS, _PICTURE_PIXELS))
  buffer = io.BytesIO()
  picture.save(buffer, format="PNG")
  content = base64.b64encode(buffer.getvalue()).decode()
  return f"data:image/png;base64,{content}"


def strip(
  classes: np.ndarray,
  label: int,
  epochs: Sequence[float],
  class_names: Sequence[str],
) -> list[dict[str, Any]]:
  """The runs of equal predictions of one example, in order of epochs."""
  runs = []
  for predicted, group in itertools.groupby(
    range(len(classes)), key=lambda c: int(classes[c])
  ):
    places = list(group)
    first, last = epochs[places[0]], epochs[places[-1]]
    name = class_names[predicted]
    space = _STRIP_LETTERS * len(places) / len(classes)
    runs.append({
      "length": len(places),
      "name": name,
      "is_right": predicted == label,
      "when": f"epoch {first}" if first == last else f"epochs {first}–{last}",
      "fits": len(name) + 1 <= space,
    })  # fmt: skip
  return runs


def _noise(
  ledger: splits.NoiseLedger, class_names: Sequence[str]
) -> dict[str, Any]:
  """Counts by split, and what the training labels were changed into."""
  names = list(dict.fromkeys(ledger.split.tolist()))
  parts = []
  for name in names:
    here = ledger.split == name
    changed = int((ledger.clean != ledger.given)[here].sum())
    parts.append({
      "name": name,
      "num": int(here.sum()),
      "changed": changed,
      "rate": ledger.realised_rate(name),
    })  # fmt: skip
  noise: dict[str, Any] = {
    "parts": parts,
    "realised": ledger.realised_rate("train"),
  }
  if noise["realised"] and len(class_names) > HEAT_MAP_CLASSES:
    noise["changes"] = _changes(_counts(ledger, len(class_names)), class_names)
  return noise


def _noise_figure(
  ledger: splits.NoiseLedger, task: tasks.Task
) -> dict[str, Drawn]:
  """What became of the training labels, where a picture can hold it."""
  few = task.num_classes <= HEAT_MAP_CLASSES
  if not few or not ledger.realised_rate("train"):
    return {}
  counts = _counts(ledger, task.num_classes)
  figure = plots.plot_label_noise(counts, task.class_names)
  label = "Counts of training labels, clean class by given class."
  return {"noise": Drawn(figure, label)}


def _counts(ledger: splits.NoiseLedger, num_classes: int) -> np.ndarray:
  """Training labels `[K, K]`, clean by given."""
  train = ledger.split == "train"
  counts = np.zeros([num_classes] * 2, np.int64)
  np.add.at(counts, (ledger.clean[train], ledger.given[train]), 1)
  return counts


def _changes(
  counts: np.ndarray, class_names: Sequence[str]
) -> list[dict[str, Any]]:
  """The most frequent changes from one class to another."""
  changed = np.where(np.eye(len(counts), dtype=bool), 0, counts)
  order = np.argsort(-changed.ravel(), kind="stable")[:_NUM_CHANGES]
  places = [divmod(int(i), len(counts)) for i in order]
  return [
    {
      "clean": class_names[clean],
      "given": class_names[given],
      "num": int(changed[clean, given]),
    }
    for clean, given in places
    if changed[clean, given]
  ]
