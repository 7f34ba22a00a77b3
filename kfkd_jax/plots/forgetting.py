"""What was learned and forgotten, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from kfkd_jax.plots.style import (
  BLUE,
  GREEN,
  GRID,
  INK,
  MUTED,
  ORANGE,
  PAPER,
  SIZE,
  as_floats,
  bar_width,
  epoch_axis,
  figure,
  legend,
  name_axis,
  short,
  styled,
)

_CURVES = {
  "accuracy": ("accuracy", INK, "-"),
  "forget": ("forgotten, Fₑ", ORANGE, "-"),
  "learn": ("learned, Lₑ", GREEN, "--"),
  "null": ("Fₑ if independent", MUTED, ":"),
}
_FATES = {
  "memorised": ("memorised: as given", ORANGE, 0.75),
  "right": ("right: the clean class", GREEN, 0.75),
  "wrong": ("a third class", MUTED, 0.45),
}


def most_forgotten(correct: ArrayLike, num_examples: int) -> np.ndarray:
  """The examples wrong at the end that were right most often before.

  Args:
    correct: `bool[C, N]`.
    num_examples: how many at most.

  Returns:
    `i64[M]` their places, the most often right first; ties in order.

  >>> most_forgotten([[1, 1, 0], [0, 1, 1], [0, 0, 1]], 5).tolist()
  [1, 0]
  """
  correct = np.asarray(correct, bool)
  times = np.where(correct[-1], 0, correct.sum(0))
  order = np.argsort(-times, kind="stable")
  return order[: min(num_examples, np.count_nonzero(times))]


@styled
def plot_curves(
  epochs: ArrayLike,
  curves: Mapping[str, ArrayLike],
  *,
  members: Sequence[int] = (),
  levels: Mapping[str, float] | None = None,
  ylabel: str = "share of examples",
) -> Figure:
  """Curves over the epochs, such as those of `forgetting_curves`.

  Args:
    epochs: `[C]`.
    curves: `[C]` each; `accuracy`, `forget`, `learn` and `null` have their own
      look, other names are drawn as they come.
    members: epochs to mark on the first curve, as those that were fused.
    levels: values to draw as horizontal lines, such as a fusion's accuracy.
    ylabel: of the vertical axis.

  >>> fig = plot_curves([1, 2, 3], {"accuracy": [0.2, 0.5, 0.4]}, members=[2])
  >>> fig.axes[0].get_xlabel()
  'epoch'
  """
  epochs = np.asarray(epochs)
  fig, ax = figure(SIZE)
  for number, (name, values) in enumerate(curves.items()):
    values = as_floats(name, values, epochs)
    label, color, line = _CURVES.get(name, (name, f"C{number}", "-"))
    ax.plot(epochs, values, line, color=color, label=label, lw=1.8, zorder=3)
    texts = [f"epoch {e:g}: {label} {v:.3f}" for e, v in zip(epochs, values)]
    fig.say(ax, epochs, values, texts)
  for name, value in (levels or {}).items():
    ax.axhline(value, color=BLUE, ls=(0, (5, 2)), lw=1.4, label=name)
  if len(members):
    first = np.asarray(next(iter(curves.values())), float)
    places = _places(members, epochs)
    ax.plot(
      epochs[places], first[places], "o", color=BLUE, mec=PAPER, mew=1.2,
      ms=8, zorder=4, label="member of KF",
    )  # fmt: skip
  epoch_axis(ax, epochs)
  ax.set_ylabel(ylabel)
  legend(fig)
  return fig


@styled
def plot_memorisation(
  epochs: ArrayLike, shares: Mapping[str, ArrayLike]
) -> Figure:
  """What becomes of wrong training labels, as told by `memorisation`.

  Args:
    epochs: `[C]`.
    shares: `memorised`, `right` and `wrong`, which sum to 1, and
      `clean_accuracy`, `[C]` each.

  >>> shares = {"memorised": [0.1, 0.4], "right": [0.6, 0.5]}
  >>> shares |= {"wrong": [0.3, 0.1], "clean_accuracy": [0.7, 0.9]}
  >>> plot_memorisation([1, 2], shares).axes[0].get_ylim()
  (np.float64(0.0), np.float64(1.0))
  """
  epochs = np.asarray(epochs)
  fig, ax = figure(SIZE)
  floor = np.zeros(len(epochs))
  for name, (label, color, alpha) in _FATES.items():
    values = as_floats(name, shares[name], epochs)
    top = floor + values
    ax.fill_between(
      epochs, floor, top, color=color, alpha=alpha, lw=0, label=label
    )
    texts = [f"epoch {e:g}: {v:.3f} {label}" for e, v in zip(epochs, values)]
    fig.say(ax, epochs, (floor + top) / 2, texts)
    floor = top
  clean = as_floats("clean_accuracy", shares["clean_accuracy"], epochs)
  ax.plot(epochs, clean, color=INK, lw=1.8, label="accuracy, clean labels")
  texts = [f"epoch {e:g}: accuracy {v:.3f}" for e, v in zip(epochs, clean)]
  fig.say(ax, epochs, clean, texts)
  ax.set_ylim(0, 1)
  epoch_axis(ax, epochs)
  ax.set_ylabel("share of training labels")
  legend(fig)
  return fig


@styled
def plot_time_to_forget(epochs: ArrayLike, counts: ArrayLike) -> Figure:
  """When the forgotten examples were right for the last time.

  Args:
    epochs: `[C]`.
    counts: `[C]` examples right there for the last time (`time_to_forget`).

  >>> fig = plot_time_to_forget([1, 2, 3], [4, 1, 0])
  >>> [float(bar.get_height()) for bar in fig.axes[0].patches]
  [4.0, 1.0, 0.0]
  """
  epochs = np.asarray(epochs)
  fig, ax = figure(SIZE)
  values = as_floats("counts", counts, epochs)
  ax.bar(epochs, values, width=bar_width(epochs), color=ORANGE)
  texts = [f"epoch {e:g}: {v:g} examples" for e, v in zip(epochs, values)]
  fig.say(ax, epochs, values, texts)
  epoch_axis(ax, epochs)
  ax.yaxis.set_major_locator(
    ticker.MaxNLocator(5, integer=True, steps=[1, 2, 5, 10])
  )
  ax.set_xlabel("epoch that was right for the last time")
  ax.set_ylabel("forgotten examples")
  return fig


@styled
def plot_class_forgetting(
  class_names: Sequence[str],
  forget: ArrayLike,
  *,
  null: ArrayLike | None = None,
  num_classes: int = 20,
) -> Figure:
  """F_e by class at one epoch, the most forgotten class on top.

  Args:
    class_names: K names.
    forget: `[K]`; nan for a class without examples, which is left out.
    null: `[K]` what independence would give, drawn as a tick.
    num_classes: how many classes at most.

  >>> fig = plot_class_forgetting(["cat", "dog"], [0.1, 0.3])
  >>> [label.get_text() for label in fig.axes[0].get_yticklabels()]
  ['dog', 'cat']
  """
  forget = as_floats("forget", forget, class_names)
  order = np.argsort(-forget, kind="stable")  # nan comes last
  order = order[np.isfinite(forget[order])][:num_classes]
  fig, ax = figure((SIZE[0], max(SIZE[1], 0.7 + 0.23 * len(order))))
  places = np.arange(len(order))
  ax.barh(places, forget[order], height=0.62, color=ORANGE, label="Fₑ")
  texts = [f"{class_names[k]}: Fₑ {forget[k]:.3f}" for k in order]
  fig.say(ax, forget[order], places, texts)
  if null is not None:
    expected = as_floats("null", null, class_names)[order]
    ax.plot(
      expected, places, "|", color=INK, ms=11, mew=1.6, label=_CURVES["null"][0]
    )
  name_axis(ax, [short(class_names[k]) for k in order])
  ax.set_xlim(left=0)
  ax.set_xlabel("share of the class")
  legend(fig)
  return fig


@styled
def plot_label_noise(
  counts: ArrayLike, class_names: Sequence[str], *, down: str = "clean"
) -> Figure:
  """How often each clean label was given as which, as a table of shades.

  Args:
    counts: `[K, K]`, clean labels down, given labels across.
    class_names: K names.
    down: what the labels down are called.

  >>> fig = plot_label_noise([[8, 2], [0, 9]], ["cat", "dog"])
  >>> [text.get_text() for text in fig.axes[0].texts]
  ['8', '2', '9']
  """
  counts = np.asarray(counts)
  num_classes = len(class_names)
  if counts.shape != (num_classes, num_classes):
    raise ValueError(
      f"counts must be [K, K] for {num_classes} class_names, got shape "
      f"{counts.shape}"
    )
  fig, ax = figure((SIZE[0], max(1.6, 0.9 + 0.3 * num_classes)))
  ax.grid(visible=False)
  for clean, given in np.argwhere(counts):
    count = counts[clean, given]
    part = count / counts[clean].sum()
    color = BLUE if clean == given else ORANGE
    corner = (given - 0.47, clean - 0.47)
    cell = Rectangle(corner, 0.94, 0.94, fc=color, alpha=0.12 + 0.48 * part)
    ax.add_patch(cell)
    says = f"{class_names[clean]}, given as {class_names[given]}: {count}"
    fig.say(ax, [given], [clean], [f"{says} ({100 * part:.1f} %)"])
    size = 9 if num_classes <= 12 else 6.5
    ax.text(given, clean, f"{count}", ha="center", va="center", fontsize=size)
  names = [short(name, 12) for name in class_names]
  upright = max(map(len, names), default=0) > 3
  ax.set_xticks(range(num_classes), names, rotation=90 if upright else 0)
  ax.set_yticks(range(num_classes), names)
  ax.set_xlim(-0.5, num_classes - 0.5)
  ax.set_ylim(num_classes - 0.5, -0.5)
  ax.set(xlabel="given label", ylabel=f"{down} label")
  return fig


@styled
def plot_cartography(
  variability: ArrayLike,
  confidence: ArrayLike,
  groups: ArrayLike,
  *,
  texts: Sequence[str],
  names: Sequence[str] = ("trusted", "accused"),
) -> Figure:
  """Training points by how sure the network was of their labels, and how long.

  A data map (Swayamdipta et al. 2020): hard and wrongly labelled points are
  low, those that were learned at some time to the right.

  Args:
    variability: `[N]` deviation of the label's probability over the epochs.
    confidence: `[N]` mean probability of the label.
    groups: `bool[N]`, drawn apart.
    texts: N texts, what is said of each point.
    names: of both groups, false first.

  >>> fig = plot_cartography([0.1, 0.3], [0.9, 0.2], [0, 1], texts=["a", "b"])
  >>> fig.axes[0].get_xlabel()
  'variability of the label’s probability'
  """
  groups = np.asarray(groups, bool)
  variability = as_floats("variability", variability, groups)
  confidence = as_floats("confidence", confidence, groups)
  fig, ax = figure(SIZE)
  looks = ((MUTED, "o", 0.45), (ORANGE, "D", 0.75))
  for group, (color, marker, alpha) in enumerate(looks):
    here = groups == bool(group)
    ax.plot(
      variability[here], confidence[here], marker, color=color, alpha=alpha,
      ms=3.5, mew=0, label=names[group],
    )  # fmt: skip
  fig.say(ax, variability, confidence, texts)
  ax.set_ylim(-0.02, 1.02)
  ax.set(
    xlabel="variability of the label’s probability", ylabel="mean probability"
  )
  legend(fig)
  return fig


@styled
def plot_forgotten_examples(
  images: ArrayLike,
  classes: ArrayLike,
  labels: ArrayLike,
  *,
  class_names: Sequence[str],
  num_examples: int = 12,
  columns: int = 4,
) -> Figure:
  """The most forgotten examples; under each, when it was right.

  Args:
    images: `u8[N, H, W, Ch]`, one channel or three.
    classes: `int[C, N]` predicted classes (`forgetting.predicted_classes`).
    labels: `int[N]`.
    class_names: K names.
    num_examples: how many at most.
    columns: how many side by side.

  >>> images = np.zeros((2, 4, 4, 1), np.uint8)
  >>> fig = plot_forgotten_examples(
  ...   images, [[0, 1], [1, 1]], [0, 1], class_names=["cat", "dog"]
  ... )
  >>> fig.axes[0].get_title()
  'cat, at the end dog'
  """
  images, classes = np.asarray(images), np.asarray(classes)
  labels = np.asarray(labels)
  if classes.shape[1:] != labels.shape or images.shape[:1] != labels.shape:
    raise ValueError(
      "images [N, H, W, Ch], classes [C, N] and labels [N] must agree; got "
      f"shapes {images.shape}, {classes.shape} and {labels.shape}"
    )
  correct = classes == labels
  shown = most_forgotten(correct, num_examples)
  rows = max(1, -(-len(shown) // columns))
  fig, axes = figure(
    (1.6 * columns, 2.1 * rows), rows=2 * rows, columns=columns,
    squeeze=False, height_ratios=[8, 1] * rows,
  )  # fmt: skip
  for ax in axes.flat:
    ax.set_axis_off()
  for place, n in enumerate(shown):
    row, column = divmod(place, columns)
    picture, strip = axes[2 * row, column], axes[2 * row + 1, column]
    gray = images[n].squeeze(-1) if images.shape[-1] == 1 else images[n]
    picture.imshow(gray, cmap="gray", interpolation="nearest")
    names = [short(class_names[k], 12) for k in (labels[n], classes[-1, n])]
    picture.set_title(f"{names[0]}, at the end {names[1]}", fontsize=8)
    shades = ListedColormap([GRID, GREEN])
    strip.imshow(
      correct[:, n][None], aspect="auto", cmap=shades, vmin=0, vmax=1
    )
  return fig


def _places(members: Sequence[int], epochs: np.ndarray) -> np.ndarray:
  missing = sorted(set(members) - set(epochs.tolist()))
  if missing:
    raise ValueError(f"members {missing} are not among the epochs {epochs}")
  return np.flatnonzero(np.isin(epochs, members))
