"""Which checkpoints are fused, and what that is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from kfkd_jax.catalogue import method_name
from kfkd_jax.plots.style import (
  BLUE,
  MUTED,
  PAPER,
  SIZE,
  TITLE,
  PageFigure,
  as_floats,
  bar_width,
  epoch_axis,
  figure,
  mark,
  name_axis,
  styled,
)


@styled
def plot_weights(epochs: ArrayLike, weights: Mapping[str, ArrayLike]) -> Figure:
  """How much each checkpoint weighs in each fusion, a panel a fusion.

  Args:
    epochs: `[C]`.
    weights: `[C]` each, by the name of the fusion.

  >>> fig = plot_weights([1, 2, 3], {"mine": [0.5, 0, 0.5]})
  >>> fig.axes[0].get_title(loc="left")
  'mine: 2 of 3 checkpoints'
  """
  epochs = np.asarray(epochs)
  size = (SIZE[0], 0.7 + 1.25 * len(weights))
  fig, axes = figure(size, rows=max(len(weights), 1), sharex=True, sharey=True)
  for ax, (name, values) in zip(np.atleast_1d(axes), weights.items()):
    values = as_floats(name, values, epochs)
    ax.bar(epochs, values, width=bar_width(epochs), color=BLUE)
    texts = [f"epoch {e:g}: weight {v:.3f}" for e, v in zip(epochs, values)]
    fig.say(ax, epochs, values, texts)
    used = np.count_nonzero(values)
    ax.set_title(f"{name}: {used} of {len(epochs)} checkpoints", **TITLE)
    epoch_axis(ax, epochs, label=False)
  np.atleast_1d(axes)[-1].set_xlabel("epoch")
  fig.supylabel("weight", color=MUTED, fontsize=10)
  return fig


@styled
def plot_gains(rows: Sequence[Mapping[str, Any]]) -> Figure:
  """Gains over the final network with their intervals, a line a method.

  Args:
    rows: as in `results.jsonl`: `method`, `gain`, `gain_interval` and
      `inference_cost`. A method may come several times, once a fold.

  >>> row = {"method": "kf", "gain": 0.02, "gain_interval": [0.01, 0.03]}
  >>> fig = plot_gains([{**row, "inference_cost": 7}])
  >>> [label.get_text() for label in fig.axes[0].get_yticklabels()]
  ['Knowledge Fusion']
  """
  rows = [row for row in rows if row["method"] != "final"]
  methods = list(dict.fromkeys(row["method"] for row in rows))
  fig, ax = figure((SIZE[0], 0.8 + 0.28 * len(methods)))
  ax.axvline(0, color=MUTED, lw=1)
  for place, method in enumerate(methods):
    folds = [row for row in rows if row["method"] == method]
    heights = place + 0.26 * (np.arange(len(folds)) - (len(folds) - 1) / 2)
    for row, height in zip(folds, heights):
      _gain(fig, ax, row, height, size=6.5 if len(folds) == 1 else 4.5)
    cost = f"{folds[0]['inference_cost']:g}"
    note = ax.annotate(
      cost, (1, place), xycoords=("axes fraction", "data"), xytext=(20, 0),
      textcoords="offset points", ha="right", va="center", color=MUTED,
      annotation_clip=False,
    )  # fmt: skip
    mark(note, method=method)
  name_axis(ax, [method_name(m) for m in methods])
  ax.set_xlabel("gain over the final network, points")
  ax.set_title("networks", loc="right", fontsize=9.5, color=MUTED, x=1.09)
  return fig


def _gain(
  fig: PageFigure,
  ax: Axes,
  row: Mapping[str, Any],
  height: float,
  *,
  size: float,
) -> None:
  ours = row["method"].startswith(("kf", "mixture"))
  color = BLUE if ours else MUTED
  low, high = (100 * bound for bound in row["gain_interval"])
  (line,) = ax.plot([low, high], [height] * 2, color=color, lw=1.8, zorder=3)
  fill = color if row["inference_cost"] <= 1 else PAPER
  gain = 100 * row["gain"]
  (dot,) = ax.plot(
    gain, height, "o", mfc=fill, mec=color, mew=1.6, ms=size, zorder=4
  )
  for artist in (line, dot):
    mark(artist, method=row["method"])
  text = f"{method_name(row['method'])}: {gain:+.1f} [{low:+.1f}, {high:+.1f}]"
  fig.say(ax, [gain], [height], [text], method=row["method"])
