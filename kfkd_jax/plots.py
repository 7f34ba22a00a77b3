"""Figures of forgetting and fusion, from plain arrays.

Every function returns a matplotlib `Figure` that no global state knows of: show
it in a notebook, save it, or turn it into text for a page with `to_svg`. One
meaning has one colour everywhere: blue is fusion, orange is what was forgotten
or memorised, green is what was learned or is right, grey is a reference.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import style, ticker
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

# After Okabe and Ito, darkened to a contrast of 3.5 or more on white.
INK = "#1f2328"
MUTED = "#626c77"
GRID = "#dfe3e8"
PAPER = "#ffffff"
BLUE = "#0072b2"
ORANGE = "#d55e00"
GREEN = "#00855f"

METHODS = {
  "final": "Final network",
  "best_epoch": "Best epoch",
  "early_stopping": "Early stopping",
  "horizontal": "Last epochs",
  "fixed_jumps": "Evenly spaced epochs",
  "random_epochs": "Random epochs",
  "kf_one_step": "Knowledge Fusion, one step",
  "kf": "Knowledge Fusion",
  "mixture": "Mixture fusion",
  "uniform_soup": "Uniform soup",
  "greedy_soup": "Greedy soup",
  "kf_soup": "Soup of KF's members",
  "ema": "Averaged weights (EMA)",
  "swa": "Averaged weights (SWA)",
  "snapshot": "Snapshot ensemble",
  "fge": "Fast geometric ensemble",
  "independent": "Independent ensemble",
  "independent_equal_budget": "Independent, equal budget",
  "kf_kd": "KF, distilled",
  "mixture_kd": "Mixture, distilled",
  "air": "AIR, hard",
  "air_soft": "AIR, soft",
  "air_previous": "AIR, previous epoch",
  "ps_kd": "Past predictions (PS-KD)",
  "self_adaptive": "Self-adaptive training",
  "mutual": "Mutual learning",
  "online_fusion": "Online fusion",
  "sckd": "Gated distillation (SCKD)",
  "dkd": "Decoupled distillation (DKD)",
  "dist": "Correlations (DIST)",
  "standardized_kd": "Standardised logits",
  "relational_kd": "Relations (RKD)",
  "xi_kd": "Beyond the teacher",
  "partial_kd": "Top two classes",
  "agreement_kd": "Label or teacher, by agreement",
  "propagation": "Label propagation",
}

_SIZE = (4.8, 3.0)  # inches; readable at the width of a phone
_STYLE = {
  "font.family": "DejaVu Sans",
  "font.size": 10,
  "text.color": INK,
  "axes.labelcolor": MUTED,
  "axes.edgecolor": MUTED,
  "axes.labelsize": 10,
  "legend.frameon": False,
  "legend.handlelength": 1.6,
  "legend.columnspacing": 1.2,
  "legend.borderpad": 0.1,
  "text.parse_math": False,  # a class may be called $x$
  "svg.fonttype": "none",
  "svg.hashsalt": "kfkd_jax",
}
_styled = style.context(_STYLE, after_reset=True)  # whatever the user has set

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


def method_name(slug: str) -> str:
  """What a method is called in tables and figures.

  >>> method_name("kf_kd"), method_name("my_own_rule")
  ('KF, distilled', 'My own rule')
  """
  return METHODS.get(slug, slug.replace("_", " ").capitalize())


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


@_styled
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
  """
  epochs = np.asarray(epochs)
  fig, ax = _figure(_SIZE)
  for number, (name, values) in enumerate(curves.items()):
    values = _values(name, values, epochs)
    label, color, line = _CURVES.get(name, (name, f"C{number}", "-"))
    ax.plot(epochs, values, line, color=color, label=label, lw=1.8, zorder=3)
  for name, value in (levels or {}).items():
    ax.axhline(value, color=BLUE, ls=(0, (5, 2)), lw=1.4, label=name)
  if len(members):
    first = np.asarray(next(iter(curves.values())), float)
    places = _places(members, epochs)
    ax.plot(
      epochs[places], first[places], "o", color=BLUE, mec=PAPER, mew=1.2,
      ms=8, zorder=4, label="member of KF",
    )  # fmt: skip
  _epoch_axis(ax, epochs)
  ax.set_ylabel(ylabel)
  _legend(fig)
  return fig


@_styled
def plot_memorisation(
  epochs: ArrayLike, shares: Mapping[str, ArrayLike]
) -> Figure:
  """What becomes of wrong training labels, as told by `memorisation`.

  Args:
    epochs: `[C]`.
    shares: `memorised`, `right` and `wrong`, which sum to 1, and
      `clean_accuracy`, `[C]` each.
  """
  epochs = np.asarray(epochs)
  fig, ax = _figure(_SIZE)
  floor = np.zeros(len(epochs))
  for name, (label, color, alpha) in _FATES.items():
    top = floor + _values(name, shares[name], epochs)
    ax.fill_between(
      epochs, floor, top, color=color, alpha=alpha, lw=0, label=label
    )
    floor = top
  clean = _values("clean_accuracy", shares["clean_accuracy"], epochs)
  ax.plot(epochs, clean, color=INK, lw=1.8, label="accuracy, clean labels")
  ax.set_ylim(0, 1)
  _epoch_axis(ax, epochs)
  ax.set_ylabel("share of training labels")
  _legend(fig)
  return fig


@_styled
def plot_label_projections(
  epochs: ArrayLike,
  clean: ArrayLike,
  noise: ArrayLike,
  *,
  num_leading: int,
) -> Figure:
  """Where clean labels and label noise lie in the tangent kernel, over epochs.

  Above, the shares that the leading eigenvectors hold at each epoch; below, how
  they add up over the eigenvectors at the last one. Noise without structure
  follows the dotted line.

  Args:
    epochs: `[T]`.
    clean: `[T, N]` of `theory.ntk.projection_history`.
    noise: `[T, N]` likewise.
    num_leading: eigenvectors that count as leading, 1 to N.
  """
  epochs, clean, noise = (
    np.asarray(epochs),
    np.asarray(clean),
    np.asarray(noise),
  )
  if clean.shape != noise.shape or clean.shape[:1] != epochs.shape:
    raise ValueError(
      f"clean and noise must be [T, N] where epochs is [T]; got shapes "
      f"{clean.shape}, {noise.shape} and {epochs.shape}"
    )
  count = clean.shape[1]
  if not 1 <= num_leading <= count:
    raise ValueError(f"num_leading must be in 1..{count}; got {num_leading}")
  fig, (upper, lower) = _figure((_SIZE[0], 1.8 * _SIZE[1]), rows=2)
  places = np.arange(1, count + 1)
  for shares, label, color in (
    (clean, "clean labels", GREEN),
    (noise, "label noise", ORANGE),
  ):
    held = shares[:, num_leading - 1]
    upper.plot(epochs, held, color=color, lw=1.8, label=label)
    lower.plot(places, shares[-1], color=color, lw=1.8)
  even = "if spread evenly"
  upper.axhline(num_leading / count, color=MUTED, ls=":", label=even)
  lower.plot(places, places / count, color=MUTED, ls=":")
  lower.axvline(num_leading, color=GRID, lw=1)
  _epoch_axis(upper, epochs)
  upper.set_ylabel(f"share in the first {num_leading}")
  lower.set_xlabel(f"eigenvectors at epoch {epochs[-1]}, largest first")
  lower.set_ylabel("share in all up to it")
  for ax in (upper, lower):
    ax.set_ylim(0, 1)
  _legend(fig)
  return fig


@_styled
def plot_weights(epochs: ArrayLike, weights: Mapping[str, ArrayLike]) -> Figure:
  """How much each checkpoint weighs in each fusion, a panel a fusion.

  Args:
    epochs: `[C]`.
    weights: `[C]` each, by the name of the fusion.
  """
  epochs = np.asarray(epochs)
  size = (_SIZE[0], 0.7 + 1.25 * len(weights))
  fig, axes = _figure(size, rows=max(len(weights), 1), sharex=True, sharey=True)
  for ax, (name, values) in zip(np.atleast_1d(axes), weights.items()):
    values = _values(name, values, epochs)
    ax.bar(epochs, values, width=_bar_width(epochs), color=BLUE)
    used = np.count_nonzero(values)
    ax.set_title(f"{name}: {used} of {len(epochs)} checkpoints", **_TITLE)
    _epoch_axis(ax, epochs, label=False)
  np.atleast_1d(axes)[-1].set_xlabel("epoch")
  fig.supylabel("weight", color=MUTED, fontsize=10)
  return fig


@_styled
def plot_gains(rows: Sequence[Mapping[str, Any]]) -> Figure:
  """Gains over the final network with their intervals, a line a method.

  Args:
    rows: as in `results.jsonl`: `method`, `gain`, `gain_interval` and
      `inference_cost`. A method may come several times, once a fold.
  """
  rows = [row for row in rows if row["method"] != "final"]
  methods = list(dict.fromkeys(row["method"] for row in rows))
  fig, ax = _figure((_SIZE[0], 0.8 + 0.28 * len(methods)))
  ax.axvline(0, color=MUTED, lw=1)
  for place, method in enumerate(methods):
    folds = [row for row in rows if row["method"] == method]
    heights = place + 0.26 * (np.arange(len(folds)) - (len(folds) - 1) / 2)
    for row, height in zip(folds, heights):
      _gain(ax, row, height, size=6.5 if len(folds) == 1 else 4.5)
    cost = f"{folds[0]['inference_cost']:g}"
    ax.annotate(
      cost, (1, place), xycoords=("axes fraction", "data"), xytext=(20, 0),
      textcoords="offset points", ha="right", va="center", color=MUTED,
      annotation_clip=False,
    )  # fmt: skip
  ax.set_yticks(range(len(methods)), [method_name(m) for m in methods])
  ax.tick_params(axis="y", labelcolor=INK)
  ax.set_ylim(len(methods) - 0.4, -0.6)
  ax.grid(axis="y", visible=False)
  ax.grid(axis="x", color=GRID, lw=0.8)
  ax.set_xlabel("gain over the final network, points")
  ax.set_title("networks", loc="right", fontsize=9.5, color=MUTED, x=1.09)
  return fig


@_styled
def plot_time_to_forget(epochs: ArrayLike, counts: ArrayLike) -> Figure:
  """When the forgotten examples were right for the last time.

  Args:
    epochs: `[C]`.
    counts: `[C]` examples right there for the last time (`time_to_forget`).
  """
  epochs = np.asarray(epochs)
  fig, ax = _figure(_SIZE)
  values = _values("counts", counts, epochs)
  ax.bar(epochs, values, width=_bar_width(epochs), color=ORANGE)
  _epoch_axis(ax, epochs)
  ax.yaxis.set_major_locator(
    ticker.MaxNLocator(5, integer=True, steps=[1, 2, 5, 10])
  )
  ax.set_xlabel("epoch that was right for the last time")
  ax.set_ylabel("forgotten examples")
  return fig


@_styled
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
  """
  forget = _values("forget", forget, class_names)
  order = np.argsort(-forget, kind="stable")  # nan comes last
  order = order[np.isfinite(forget[order])][:num_classes]
  fig, ax = _figure((_SIZE[0], max(_SIZE[1], 0.7 + 0.23 * len(order))))
  places = np.arange(len(order))
  ax.barh(places, forget[order], height=0.62, color=ORANGE, label="Fₑ")
  if null is not None:
    expected = _values("null", null, class_names)[order]
    ax.plot(
      expected, places, "|", color=INK, ms=11, mew=1.6, label=_CURVES["null"][0]
    )
  ax.set_yticks(places, [_short(class_names[k]) for k in order])
  ax.tick_params(axis="y", labelcolor=INK)
  ax.set_ylim(len(order) - 0.4, -0.6)
  ax.set_xlim(left=0)
  ax.grid(axis="y", visible=False)
  ax.grid(axis="x", color=GRID, lw=0.8)
  ax.set_xlabel("share of the class")
  _legend(fig)
  return fig


@_styled
def plot_label_noise(counts: ArrayLike, class_names: Sequence[str]) -> Figure:
  """How often each clean label was given as which, as a table of shades.

  Args:
    counts: `[K, K]`, clean labels down, given labels across.
    class_names: K names.
  """
  counts = np.asarray(counts)
  num_classes = len(class_names)
  if counts.shape != (num_classes, num_classes):
    raise ValueError(
      f"counts must be [K, K] for {num_classes} class_names, got shape "
      f"{counts.shape}"
    )
  fig, ax = _figure((_SIZE[0], max(1.6, 0.9 + 0.3 * num_classes)))
  ax.grid(visible=False)
  for clean, given in np.argwhere(counts):
    count = counts[clean, given]
    share = count / counts[clean].sum()
    color = BLUE if clean == given else ORANGE
    corner = (given - 0.47, clean - 0.47)
    cell = Rectangle(corner, 0.94, 0.94, fc=color, alpha=0.12 + 0.48 * share)
    ax.add_patch(cell)
    size = 9 if num_classes <= 12 else 6.5
    ax.text(given, clean, f"{count}", ha="center", va="center", fontsize=size)
  names = [_short(name, 12) for name in class_names]
  upright = max(map(len, names), default=0) > 3
  ax.set_xticks(range(num_classes), names, rotation=90 if upright else 0)
  ax.set_yticks(range(num_classes), names)
  ax.set_xlim(-0.5, num_classes - 0.5)
  ax.set_ylim(num_classes - 0.5, -0.5)
  ax.set(xlabel="given label", ylabel="clean label")
  return fig


@_styled
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
  fig, axes = _figure(
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
    names = [_short(class_names[k], 12) for k in (labels[n], classes[-1, n])]
    picture.set_title(f"{names[0]}, at the end {names[1]}", fontsize=8)
    shades = ListedColormap([GRID, GREEN])
    strip.imshow(
      correct[:, n][None], aspect="auto", cmap=shades, vmin=0, vmax=1
    )
  return fig


@_styled
def to_svg(fig: Figure, *, label: str = "", prefix: str = "") -> str:
  """The figure as an SVG element that fits into a page, light or dark.

  Text stays text. The ink becomes `currentColor`, and every other colour a CSS
  variable that falls back on itself: `--blue`, `--orange`, `--green`,
  `--muted`, `--grid` and `--paper`. The same figure gives the same text.

  Args:
    fig: the figure.
    label: says what it shows to those who do not see it.
    prefix: letters that tell its ids from those of the page's other figures.
  """
  buffer = io.StringIO()
  nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
  with warnings.catch_warnings():
    # A browser has the letters that the font of these measurements lacks.
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    fig.savefig(buffer, format="svg", transparent=True, metadata=nothing)
  svg = buffer.getvalue()
  svg = svg[svg.index("<svg") :]
  for pattern, replacement in _SVG_CHANGES:
    svg = re.sub(pattern, replacement, svg, flags=re.DOTALL)
  svg = re.sub(r'( id="| href="#|url\(#)', rf"\g<1>{prefix}", svg)
  for color, variable in _CSS_COLORS.items():
    svg = svg.replace(color, variable)
  attributes = f'role="img" aria-label="{html.escape(label)}"'
  return svg.replace("<svg", f"<svg {attributes}", 1)


_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 10, "color": INK}
_CSS_COLORS = {
  INK: "currentColor",
  MUTED: f"var(--muted, {MUTED})",
  GRID: f"var(--grid, {GRID})",
  PAPER: f"var(--paper, {PAPER})",
  BLUE: f"var(--blue, {BLUE})",
  ORANGE: f"var(--orange, {ORANGE})",
  GREEN: f"var(--green, {GREEN})",
}
_SVG_CHANGES = (
  # A style element within SVG would govern the whole page.
  (r"<defs>\s*<style.*?</style>\s*</defs>", ""),
  (r"<metadata>.*?</metadata>", ""),
  (r'(<g|<image[^>]*?) id="[^"]*"', r"\1"),  # equal images, equal ids
  (r' xmlns:xlink="[^"]*"', ""),
  (r"xlink:href", "href"),
  (r' transform="rotate\(-?0 [^)]*\)"', ""),
  (r"(?<!, )'DejaVu Sans'", "system-ui, sans-serif"),
  (r"\s*\n\s*", "\n"),
  (r"(?<=\d) ?\n(?=[LCQz])", " "),
)


def _figure(size, *, rows: int = 1, columns: int = 1, **options):
  fig = Figure(figsize=size, layout="constrained")
  axes = fig.subplots(
    rows, columns, sharex=options.pop("sharex", False),
    sharey=options.pop("sharey", False), squeeze=options.pop("squeeze", True),
    gridspec_kw=options,
  )  # fmt: skip
  for ax in np.atleast_1d(axes).flat:
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(colors=MUTED, labelsize=9.5, length=0)
    ax.grid(axis="y", color=GRID, lw=0.8)
    ax.set_axisbelow(True)
  return fig, axes


def _epoch_axis(ax: Axes, epochs: np.ndarray, *, label: bool = True) -> None:
  margin = _bar_width(epochs)
  ax.set_xlim(epochs[0] - margin, epochs[-1] + margin)
  ax.xaxis.set_major_locator(_whole_numbers(7))
  ax.tick_params(axis="x", length=3)
  if label:
    ax.set_xlabel("epoch")


def _whole_numbers(most: int) -> ticker.Locator:
  return ticker.MaxNLocator(most, integer=True, steps=[1, 2, 5, 10])


def _legend(fig: Figure) -> None:
  handles, _ = fig.axes[0].get_legend_handles_labels()
  if len(handles) > 1:
    fig.legend(loc="outside upper left", ncols=2)


def _gain(
  ax: Axes, row: Mapping[str, Any], height: float, *, size: float
) -> None:
  ours = row["method"].startswith(("kf", "mixture"))
  color = BLUE if ours else MUTED
  low, high = (100 * bound for bound in row["gain_interval"])
  ax.plot([low, high], [height] * 2, color=color, lw=1.8, zorder=3)
  fill = color if row["inference_cost"] == 1 else PAPER
  ax.plot(
    100 * row["gain"], height, "o", mfc=fill, mec=color, mew=1.6, ms=size,
    zorder=4,
  )  # fmt: skip


def _bar_width(epochs: np.ndarray) -> float:
  return 0.85 * float(np.diff(epochs).min()) if len(epochs) > 1 else 0.85


def _places(members: Sequence[int], epochs: np.ndarray) -> np.ndarray:
  missing = sorted(set(members) - set(epochs.tolist()))
  if missing:
    raise ValueError(f"members {missing} are not among the epochs {epochs}")
  return np.flatnonzero(np.isin(epochs, members))


def _values(name: str, values: ArrayLike, along: Any) -> np.ndarray:
  """`values` as floats, one for each of `along`; None becomes nan."""
  found = np.asarray(values, float)
  if found.shape != (len(along),):
    raise ValueError(
      f"{name} must have shape ({len(along)},), got {found.shape}"
    )
  return found


def _short(name: str, length: int = 22) -> str:
  return name if len(name) <= length else name[: length - 1] + "…"
