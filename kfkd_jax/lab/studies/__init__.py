"""Questions about forgetting and fusing, each asked of a sweep by one command.

A study is a sweep (`stages.sweep`), a measure that reads what its cells left,
and a page. `STUDIES` has them all: to add one, add an entry. Studies that ask
the same cells share them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
from etils import epath

from kfkd_jax import plots
from kfkd_jax.catalogue import method_name
from kfkd_jax.config import parse_grid
from kfkd_jax.config.tree import ConfigError, get
from kfkd_jax.lab import sweep
from kfkd_jax.lab.studies import composed, measures
from kfkd_jax.report import page, text

Row = measures.Row


class Study(NamedTuple):
  """A question and how it is answered.

  Attributes:
    question: one sentence.
    cells: folder of the sweep.
    changes: configuration of all cells, as on the command line.
    grid: axes of the sweep, as on the command line.
    measure: rows of a finished cell.
    x: the key of the horizontal axis: of the grid or of the measure's rows.
    figures: by name, the values that are drawn.
    line: the key that tells lines of a figure apart, of the grid or of the
      measure's rows; "" for none. Whatever else tells rows apart makes figures
      of their own.
    by: keys of the measure's rows that are no numbers to average.
    log: whether the horizontal axis is logarithmic.
    summary: `(rows of all cells, keys of axes and `by`) -> table`; None takes
      means over seeds.
  """

  question: str
  cells: str
  changes: tuple[tuple[str, str], ...]
  grid: tuple[str, ...]
  measure: Callable[[ml_collections.ConfigDict, epath.Path], list[Row]]
  x: str
  figures: Mapping[str, tuple[str, ...]]
  line: str = ""
  by: tuple[str, ...] = ()
  log: bool = False
  summary: Callable[[Sequence[Row], Sequence[str]], list[Row]] | None = None


_CHEAP = (("compare.independent", "1"), ("compare.bootstrap_samples", "200"))
_NO_STUDENTS = (*_CHEAP, ("distill.teachers", ""))
# Nothing that keeps a network from memorising wrong labels.
_DESCENT = (
  *_NO_STUDENTS,
  ("augment.pad", "0"),
  ("augment.cutout", "0"),
  ("optim.schedule", "constant"),
  ("optim.learning_rate", "0.05"),
  ("optim.weight_decay", "0"),
  ("train.epochs", "120"),
)
# Labels of a third of the points; about the rest only a teacher can tell.
_UNLABELLED = (
  *_CHEAP,
  ("data.num_train", "300"),
  ("distill.teachers", "kf"),
)
_ONLINE = (*_NO_STUDENTS, ("compare.methods", "online_fusion"))
_KINDS = "noise.kind=pair,symmetric"
_HEAVY = (_KINDS, "noise.rate=0.4")
_FORGOTTEN = ("max_forget", "null_forget")
_GAINED = ("kf", "kf_kd", "mixture", "mixture_kd", "random_epochs")
_BOTH = {"forgetting": _FORGOTTEN, "gains": _GAINED}

STUDIES: dict[str, Study] = {
  "noise": Study(
    "How do forgetting and the gain of fusing grow with label noise?",
    "noise", _CHEAP, (_KINDS, "noise.rate=0,0.2,0.4"),
    measures.gains, "noise.rate", _BOTH,
  ),
  "width": Study(
    "How do forgetting and the gain of fusing change with the network's width?",
    "width", _CHEAP, (_KINDS, "model.width=2,4,8,16,32"),
    measures.gains, "model.width", _BOTH, log=True,
  ),
  "size": Study(
    "How do forgetting and the gain of fusing change with the training set?",
    "size", _CHEAP, (_KINDS, "data.num_train=200,400,800"),
    measures.gains, "data.num_train", _BOTH, log=True,
  ),
  "descent_epochs": Study(
    "Does accuracy dip while wrong labels are learned, and F_e rise with it?",
    "descent", _DESCENT, (_KINDS, "model.width=16"),
    measures.epochs, "epoch",
    {"descent": ("accuracy", "forget", "null_forget", "memorised")},
    by=("epoch",),
  ),
  "descent_width": Study(
    "Does accuracy dip where the network is just wide enough, and F_e with it?",
    "descent", _DESCENT, (_KINDS, "model.width=1,2,4,8,16,32"),
    measures.gains, "model.width",
    {"descent": ("accuracy", "max_forget", "null_forget"), "gains": ("kf",)},
    log=True,
  ),
  "retention": Study(
    "How few checkpoints are enough?",
    "noise", _CHEAP, _HEAVY, measures.retention, "kept",
    {"gains": ("kf", "mixture", "fixed_jumps")}, by=("kept",), log=True,
  ),
  "window": Study(
    "How much do KF's window and its number of epsilons matter?",
    "noise", _CHEAP, _HEAVY, measures.window, "window",
    {"gains": ("kf",)}, line="num_epsilons", by=("num_epsilons", "window"),
  ),
  "selection": Study(
    "How many selecting points are enough, and must their labels be clean?",
    "noise", _CHEAP, _HEAVY, measures.selection, "num_select",
    {"gains": ("kf", "mixture", "mixture_known", "mixture_estimated")},
    line="labels", by=("labels", "num_select"), log=True,
  ),
  "student": Study(
    "What does a student keep of its teacher?",
    "noise", _CHEAP, (_KINDS, "noise.rate=0,0.2,0.4"),
    measures.student, "noise.rate",
    {
      "kept": ("recovered", "beyond", "agreement"),
      "gains": ("teacher_gain", "student_gain"),
      "calibration": ("final_ece", "teacher_ece", "student_ece"),
    },
    line="student", by=("student",),
  ),
  "inputs": Study(
    "Should a student see more images, and whole opinions or only top classes?",
    "inputs", _UNLABELLED,
    (
      "data.name=digits,(synthetic/num_train=3000,num_test=1000)",
      "distill.hard=False,True",
      "distill.inputs=train,extra", "model.width=4,8,16",
    ),
    measures.gains, "model.width", {"gains": ("kf", "kf_kd")},
    line="distill.inputs", log=True,
  ),
  "online": Study(
    "Does a run that learns from its own fused past forget less?",
    "online", _ONLINE, (_KINDS, "train.epochs=60,90"),
    measures.online, "train.epochs",
    {
      "forgetting": ("max_forget", "online_max_forget"),
      "accuracy": ("accuracy", "online_accuracy"),
    },
  ),
  "objectives": Study(
    "What does fusion add to a network that resists wrong labels already?",
    "objectives", (),
    (
      "noise.kind=pair,symmetric,instance",
      "train.objective=ce,gce,sce,elr,mixup,air,ps_kd,self_adaptive",
    ),
    composed.run_of, "method",
    {"accuracy": ("accuracy",), "gains": ("over_final",)},
    line="train.objective", by=("method",), summary=composed.summarise,
  ),
  "reversal": Study(
    "Is the recipe that is best before fusing also best after it?",
    "reversal", _NO_STUDENTS,
    ("train.epochs=15,30,60,120", "optim.learning_rate=0.03,0.1,0.3"),
    measures.chosen, "train.epochs",
    {
      key: (key,) for method in ("final", "kf", "mixture")
      for key in (f"select_{method}", method)
    },
    line="optim.learning_rate", log=True,
  ),
  "audit": Study(
    "How well does a training history tell wrong labels?",
    "noise", _CHEAP,
    ("noise.kind=pair,symmetric,instance", "noise.rate=0.2,0.4"),
    measures.audits, "noise.rate",
    {key: (key,) for key in ("auroc", "average_precision", "missed")},
    line="score", by=("score",),
  ),
}  # fmt: skip


_VALUE_NAMES = {
  "kept": "share of the checkpoints kept",
  "num_select": "selecting points",
  "accuracy": "accuracy",
  "select_final": "final network, selecting",
  "select_kf": "KF, selecting",
  "select_mixture": "mixture, selecting",
  "max_forget": "largest Fₑ",
  "forget": "Fₑ",
  "null_forget": "Fₑ if independent",
  "memorised": "wrong labels learned",
  "mixture_known": "Mixture, noise known",
  "mixture_estimated": "Mixture, noise estimated",
  "recovered": "recovered points kept",
  "beyond": "right beyond the teacher",
  "agreement": "agreement with the teacher",
  "teacher_gain": "gain of the teacher",
  "student_gain": "gain of the student",
  "gain": "gain of online fusion",
  "online_accuracy": "accuracy, online fusion",
  "online_max_forget": "largest Fₑ, online fusion",
  "over_final": "over its own final network",
  "over_best": "over the best final network",
  "final_ece": "calibration error, final",
  "teacher_ece": "calibration error, teacher",
  "student_ece": "calibration error, student",
  "auroc": "AUROC",
  "average_precision": "average precision",
  "missed": "wrong labels missed",
  "accused": "labels accused",
}


def value_name(value: str) -> str:
  """What a value is called on a page."""
  return _VALUE_NAMES.get(value) or method_name(value)


def find(name: str) -> Study:
  """The study called `name`."""
  if name not in STUDIES:
    raise ConfigError(
      f"study {name!r} is unknown; there are {', '.join(STUDIES)}"
    )
  return STUDIES[name]


def run(
  config: ml_collections.ConfigDict,
  name: str,
  workdir: epath.Path,
  *,
  num_seeds: int | None = None,
  grid: Sequence[str] = (),
) -> sweep.Outcome:
  """Runs the cells that are missing and writes the page `workdir/NAME/`.

  Args:
    config: what the cells have in common, the study's changes among it.
    name: a key of `STUDIES`.
    workdir: of all studies.
    num_seeds: None for those of the sweep so far, or five.
    grid: other values for the study's axes, as for `kfkd sweep`.

  Returns:
    The sweep's outcome; its table is the study's.
  """
  study, workdir = find(name), epath.Path(workdir)
  axes = {axis.key: axis for axis in parse_grid(study.grid, config)}
  for asked, axis in zip(grid, parse_grid(grid, config), strict=True):
    if axis.key not in axes:
      raise ConfigError(f"--grid {asked!r}: {name} varies {', '.join(axes)}")
  given = {t.partition("=")[0]: t for t in grid}
  own = {t.partition("=")[0]: t for t in study.grid}
  swept = sweep.run(
    config,
    workdir / "cells" / study.cells,
    num_seeds=num_seeds,
    grid=tuple((own | given).values()),
  )
  rows = []
  for cell in swept.finished:
    point = {key: get(cell.config, key) for key in axes}
    folder = workdir / "cells" / study.cells / cell.name
    rows += [{**point, **r} for r in study.measure(cell.config, folder)]
  if not rows:
    return swept._replace(table="no cell is finished yet")
  table = (study.summary or summarise)(rows, (*axes, *study.by))
  path = workdir / name / "index.html"
  size = page.write(render(name, study, table, tuple(axes)), path).size
  text = f"{to_markdown(table)}\nThe study is at {path}, {size}"
  return swept._replace(table=text)


def summarise(rows: Sequence[Row], by: Sequence[str]) -> list[Row]:
  """Means and standard errors of rows that are equal in `by`.

  Returns:
    Rows of the keys in `by`, `seeds`, and for every other key its mean and
    `<key>_error` over the seeds that have it: None where none has or, for an
    error, only one. Keys without any number are left out.
  """
  groups: dict[tuple, list[Row]] = {}
  for row in rows:
    groups.setdefault(tuple(row[key] for key in by), []).append(row)
  values = [
    key
    for key in rows[0]
    if key not in by and any(np.isfinite(row[key]) for row in rows)
  ]
  summary = []
  for point, group in groups.items():
    means: Row = {**dict(zip(by, point)), "seeds": len(group)}
    for key in values:
      found = [row[key] for row in group if np.isfinite(row[key])]
      means[key] = float(np.mean(found)) if found else None
      means[f"{key}_error"] = (
        float(np.std(found, ddof=1) / len(found) ** 0.5)
        if len(found) > 1
        else None
      )
    summary.append(means)
  return summary


def values_of(table: Sequence[Row]) -> list[str]:
  """The keys of a summary that were averaged."""
  return [key for key in table[0] if f"{key}_error" in table[0]]


def to_markdown(table: Sequence[Row]) -> str:
  """A summary for a terminal or a text, in %."""
  return page.to_markdown(_shown(table))


def _shown(table: Sequence[Row]) -> list[dict[str, str]]:
  values = values_of(table)
  known = {f"{v}{end}" for v in values for end in ("", "_error", *_ENDS)}
  return [
    {
      **{k: _number(v) for k, v in row.items() if k not in known},
      **{value_name(v): shown(row, v) for v in values},
    }
    for row in table
  ]


_ENDS = ("_low", "_high")


def shown(row: Row, value: str) -> str:
  """A mean ± its standard error in %, and its interval where there is one.

  >>> shown({"gain": 0.5, "gain_error": 0.01}, "gain")
  '50.0 ± 1.0'
  """
  has_interval = all(row.get(f"{value}{end}") is not None for end in _ENDS)
  return text.percent(
    row[value],
    row[f"{value}_error"],
    ends=[row[f"{value}{end}"] for end in _ENDS] if has_interval else None,
  )


def _number(value: object) -> str:
  return f"{value:g}" if isinstance(value, float) else str(value)


def render(
  name: str, study: Study, table: Sequence[Row], axes: Sequence[str]
) -> page.Page:
  """The page of a study from its summary."""
  apart = [k for k in (*axes, *study.by) if k not in (study.x, study.line)]
  panels: dict[tuple, list[Row]] = {}
  for row in table:
    panels.setdefault(tuple(row[key] for key in apart), []).append(row)
  varying = [n for n in range(len(apart)) if len({p[n] for p in panels}) > 1]
  figures = {}
  for point, rows in panels.items():
    title = ", ".join(f"{apart[n]}={point[n]}" for n in varying)
    suffix = "".join(f"-{_as_name(point[n])}" for n in varying)
    for figure, values in study.figures.items():
      figures[f"{figure}{suffix}"] = _drawn(study, rows, values, title)
  return page.render(
    "study.html",
    figures,
    {name: table},
    name=name,
    question=study.question,
    table=table,
    keys=[*axes, *study.by],
    values=values_of(table),
    seeds=[pick(row["seeds"] for row in table) for pick in (min, max)],
    captions={title: drawn.label for title, drawn in figures.items()},
    changes=study.changes,
    name_of=value_name,
    shown=shown,
    intervals=any(f"{v}{_ENDS[0]}" in table[0] for v in values_of(table)),
    number_of=_number,
  )._replace(shown={name: _shown(table)})


def _as_name(value: object) -> str:
  """A value within a file's name."""
  return re.sub(r"[^\w.]+", "_", str(value))


def _drawn(study: Study, rows, values, title: str) -> page.Drawn:
  if study.x == "method":
    return _methods_drawn(study, rows, values[0], title)
  lines: dict[str, tuple[list, list, list]] = {}
  for value in values:
    for row in rows:
      if row.get(value) is None:
        continue
      label = value_name(value)
      if study.line and len(values) == 1:
        label = f"{study.line}={_number(row[study.line])}"
      elif study.line:
        label = f"{label}, {_number(row[study.line])}"
      line = lines.setdefault(label, ([], [], []))
      error = row[f"{value}_error"]
      for column, number in zip(line, (row[study.x], row[value], error or 0)):
        column.append(number)
  figure = plots.plot_against(lines, xlabel=study.x, title=title, log=study.log)
  said = f"{'; '.join(lines)} against {study.x}"
  return page.Drawn(figure, f"{said}, {title}" if title else said)


def _methods_drawn(study: Study, rows, value: str, title: str) -> page.Drawn:
  """Methods one under another, with the intervals of every line."""
  kind = "accuracy" if value == "accuracy" else "gain"
  found: dict[str, list[Row]] = {}
  for row in rows:
    interval = [row[f"{value}{end}"] for end in _ENDS]
    found.setdefault(row[study.line], []).append(
      {"method": row["method"], kind: row[value], f"{kind}_interval": interval}
    )
  return page.Drawn(
    plots.plot_methods_compared(found, value=kind),
    ", ".join(
      filter(
        None, [f"{value_name(value)} of every method by {study.line}", title]
      )
    ),
  )
