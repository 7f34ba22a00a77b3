"""Several experiments side by side, each with a look of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from kfkd_jax.catalogue import method_name
from kfkd_jax.plots.style import (
  MUTED,
  SIZE,
  TITLE,
  as_floats,
  epoch_axis,
  figure,
  legend,
  look,
  mark,
  name_axis,
  short,
  styled,
)

_LABEL = 44  # letters of an experiment's name in a legend
_MARKERS = 7  # along a curve
_VALUES = {
  "gain": ("gain over the final network, points", "{:+.1f}"),
  "accuracy": ("accuracy, %", "{:.1f}"),
}


@styled
def plot_methods_compared(
  results: Mapping[str, Sequence[Mapping[str, Any]]], *, value: str = "gain"
) -> Figure:
  """Every method's gain or accuracy in every experiment, with intervals.

  Args:
    results: by the name of the experiment, a row a method: `method`, the value
      as a share, and `<value>_interval`, None where there is none.
    value: gain or accuracy.

  >>> row = {"method": "kf", "gain": 0.02, "gain_interval": [0.01, 0.03]}
  >>> fig = plot_methods_compared({"first": [row], "second": [row]})
  >>> [label.get_text() for label in fig.axes[0].get_yticklabels()]
  ['Knowledge Fusion']
  """
  if value not in _VALUES:
    raise ValueError(f"value must be one of {sorted(_VALUES)}, got {value!r}")
  skip = {"final"} if value == "gain" else set()
  methods = list(
    dict.fromkeys(
      row["method"]
      for rows in results.values()
      for row in rows
      if row["method"] not in skip
    )
  )
  row_height = min(0.75, 0.16 + 0.13 * len(results))
  fig, ax = figure((SIZE[0], 1.1 + row_height * len(methods)))
  if value == "gain":
    ax.axvline(0, color=MUTED, lw=1)
  step = 0.72 / max(len(results), 1)
  for number, (name, rows) in enumerate(results.items()):
    offset = step * (number - (len(results) - 1) / 2)
    color, _, marker = look(number)
    for row in (row for row in rows if row["method"] in methods):
      at, belongs = 100 * row[value], {"method": row["method"], "run": name}
      place = methods.index(row["method"]) + offset
      drawn = ax.plot(at, place, marker, color=color, ms=5, zorder=4)
      said = _VALUES[value][1].format(at)
      if row[f"{value}_interval"] is not None:
        ends = [100 * bound for bound in row[f"{value}_interval"]]
        drawn += ax.plot(ends, [place] * 2, color=color, lw=1.4, zorder=3)
        low, high = (_VALUES[value][1].format(end) for end in ends)
        said += f" [{low}, {high}]"
      for artist in drawn:
        mark(artist, **belongs)
      text = f"{name}, {method_name(row['method'])}: {said}"
      fig.say(ax, [at], [place], [text], **belongs)
    ax.plot([], [], marker, color=color, ms=5, label=short(name, _LABEL))
  name_axis(ax, [method_name(m) for m in methods])
  for edge in np.arange(len(methods) - 1) + 0.5:
    ax.axhline(edge, color=MUTED, lw=0.4, alpha=0.4)
  ax.set_xlabel(_VALUES[value][0])
  legend(fig, columns=_columns(results))
  return fig


@styled
def plot_curves_compared(
  curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
  *,
  ylabel: str = "share of examples",
) -> Figure:
  """One curve over the epochs for every experiment.

  Args:
    curves: epochs `[C]` and values `[C]` by the name of the experiment; C may
      differ from one to the next.
    ylabel: of the vertical axis.

  >>> curves = {"short": ([1, 2], [0.5, 0.6]), "long": ([2, 4, 6], [0, 1, 1])}
  >>> fig = plot_curves_compared(curves, ylabel="accuracy")
  >>> [len(line.get_xdata()) for line in fig.axes[0].lines]
  [2, 3]
  """
  height = SIZE[1] + 0.18 * max(0, len(curves) - 2)
  fig, ax = figure((SIZE[0], height))
  seen = set()
  for number, (name, (epochs, values)) in enumerate(curves.items()):
    epochs = np.asarray(epochs)
    values = as_floats(name, values, epochs)
    color, line, marker = look(number)
    every = max(1, len(epochs) // _MARKERS)
    start = number * every // max(len(curves), 1)  # beside the others' markers
    (curve,) = ax.plot(
      epochs, values, color=color, ls=line, marker=marker, ms=4.5, lw=1.6,
      markevery=(min(start, len(epochs) - 1), every), label=short(name, _LABEL),
    )  # fmt: skip
    mark(curve, run=name)
    texts = [f"{name}, epoch {e:g}: {v:.3f}" for e, v in zip(epochs, values)]
    fig.say(ax, epochs, values, texts, run=name)
    seen |= set(epochs.tolist())
  epoch_axis(ax, np.array(sorted(seen)))
  ax.set_ylabel(ylabel)
  legend(fig, columns=_columns(curves))
  return fig


@styled
def plot_against(
  lines: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
  *,
  xlabel: str,
  title: str = "",
  log: bool = False,
) -> Figure:
  """Means of shares with error bars against one number, in %.

  Args:
    lines: by name, where `[X]`, means `[X]` and their standard errors `[X]`; X
      may differ from one to the next.
    xlabel: of the horizontal axis.
    title: of the figure.
    log: whether the horizontal axis is logarithmic, with a tick at each place.

  >>> fig = plot_against(
  ...   {"kf": ([8, 16], [0.01, 0.02], [0, 0.01])}, xlabel="width", log=True
  ... )
  >>> fig.axes[0].get_xscale(), fig.axes[0].lines[0].get_ydata().tolist()
  ('log', [1.0, 2.0])
  """
  fig, ax = figure((SIZE[0], SIZE[1] + 0.18 * max(0, len(lines) - 2)))
  places = set()
  for number, (name, (at, means, errors)) in enumerate(lines.items()):
    at = np.asarray(at, float)
    means = 100 * as_floats(name, means, at)
    errors = 100 * as_floats(f"errors of {name}", errors, at)
    color, line, marker = look(number)
    many = len(at) > 2 * _MARKERS
    ax.plot(
      at, means, color=color, ls=line, marker=None if many else marker, ms=4.5,
      lw=1.6, label=short(name, _LABEL),
    )  # fmt: skip
    ax.fill_between(
      at, means - errors, means + errors, color=color, alpha=0.15, lw=0
    )
    texts = [
      f"{name}, {x:g}: {m:.1f} ± {e:.1f}" for x, m, e in zip(at, means, errors)
    ]
    fig.say(ax, at, means, texts)
    places |= set(at.tolist())
  if log:
    ax.set_xscale("log")
    ticks = sorted(places)
    ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
    ax.set_xticks([], minor=True)
  ax.tick_params(axis="x", length=3)
  ax.set_xlabel(xlabel)
  ax.set_ylabel("%")
  if title:
    ax.set_title(short(title, _LABEL), **TITLE)
  legend(fig, columns=_columns(lines))
  return fig


@styled
def plot_risk_coverage(
  curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
) -> Figure:
  """The error of each method that answers only the surest examples, in %.

  Args:
    curves: by method, coverages `[X]` and risks `[X]`, as shares.

  >>> fig = plot_risk_coverage({"kf": ([0.5, 1], [0.1, 0.25])})
  >>> fig.axes[0].lines[0].get_ydata().tolist()
  [10.0, 25.0]
  """
  fig, ax = figure((SIZE[0], SIZE[1] + 0.18 * max(0, len(curves) - 2)))
  for number, (method, (coverages, risks)) in enumerate(curves.items()):
    coverages = 100 * np.asarray(coverages, float)
    name = method_name(method)
    risks = 100 * as_floats(name, risks, coverages)
    color, line, marker = look(number)
    every = max(1, len(coverages) // _MARKERS)
    start = min(number * every // len(curves), len(coverages) - 1)
    (curve,) = ax.plot(
      coverages, risks, color=color, ls=line, marker=marker, ms=4.5, lw=1.6,
      markevery=(start, every), label=short(name, _LABEL),
    )  # fmt: skip
    mark(curve, method=method)
    texts = [
      f"{name}, {c:g} % answered: {r:.1f} % wrong"
      for c, r in zip(coverages, risks)
    ]
    fig.say(ax, coverages, risks, texts, method=method)
  ax.tick_params(axis="x", length=3)
  ax.set_xlabel("answered, the surest first, %")
  ax.set_ylabel("wrong among them, %")
  legend(fig, columns=_columns({method_name(m): None for m in curves}))
  return fig


def _columns(names: Mapping[str, Any]) -> int:
  """As many names side by side as there is room for."""
  longest = max((min(len(name), _LABEL) for name in names), default=1)
  return max(1, min(3, 52 // (longest + 6)))
