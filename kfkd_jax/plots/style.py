"""One look for every figure, and figures as text for a page."""

from __future__ import annotations

import html
import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import style, ticker
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

# The colours of Okabe and Ito, which differ for every kind of colour vision,
# darkened to a contrast of 3.5 or more on white.
INK = "#1f2328"
MUTED = "#626c77"
GRID = "#dfe3e8"
PAPER = "#ffffff"
BLUE = "#0072b2"
ORANGE = "#d55e00"
GREEN = "#00855f"
VIOLET = "#a8477f"
AMBER = "#946400"

SIZE = (4.8, 3.0)  # inches; readable at the width of a phone
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 10, "color": INK}
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
  "path.simplify": False,
  "text.parse_math": False,  # a class may be called $x$
  "svg.fonttype": "none",
  "svg.hashsalt": "kfkd_jax",
}
styled = style.context(_STYLE, after_reset=True)  # whatever the user has set


class Look(NamedTuple):
  """How one of several things compared is drawn, legible without colour."""

  color: str
  line: Any
  marker: str


_LOOK_COLORS = (BLUE, ORANGE, GREEN, VIOLET, AMBER, INK)
_LOOK_LINES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
_LOOK_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def look(number: int) -> Look:
  """The look of the thing of this number; 42 of them differ.

  >>> look(0).color == look(6).color, look(0) == look(6)
  (True, False)
  """
  return Look(
    _LOOK_COLORS[number % len(_LOOK_COLORS)],
    _LOOK_LINES[number % len(_LOOK_LINES)],
    _LOOK_MARKERS[number % len(_LOOK_MARKERS)],
  )


class Point(NamedTuple):
  """A place in a figure and what a page says there.

  Attributes:
    ax: the axes.
    x: in the units of the axes.
    y: in the units of the axes.
    text: what is said.
    belongs: as for `mark`.
  """

  ax: Axes
  x: float
  y: float
  text: str
  belongs: Mapping[str, str]


class PageFigure(Figure):
  """A figure that knows what a page says at its points."""

  def __init__(self, *args: Any, **options: Any):
    super().__init__(*args, **options)
    self.points: list[Point] = []

  def say(
    self, ax: Axes, xs: Any, ys: Any, texts: Sequence[str], **belongs: str
  ) -> None:
    """Notes what a page says at these points; those not finite are left out."""
    self.points += [
      Point(ax, float(x), float(y), text, belongs)
      for x, y, text in zip(xs, ys, texts)
      if np.isfinite(x) and np.isfinite(y)
    ]


def mark(artist: Artist, **belongs: str) -> None:
  """Notes what an artist belongs to, for a page to hide: `method="kf"`."""
  # In letters that no quoting touches, whatever the names are.
  artist.set_gid(_BELONGS + json.dumps(belongs).encode().hex())


_BELONGS = "belongs-"


def figure(
  size: tuple[float, float], *, rows: int = 1, columns: int = 1, **options
) -> tuple[PageFigure, Any]:
  """An empty figure and its axes; `options` are of `add_gridspec`."""
  fig = PageFigure(figsize=size, layout="constrained")
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


def epoch_axis(ax: Axes, epochs: np.ndarray, *, label: bool = True) -> None:
  """Makes the horizontal axis one of epochs."""
  margin = bar_width(epochs)
  ax.set_xlim(epochs[0] - margin, epochs[-1] + margin)
  ax.xaxis.set_major_locator(whole_numbers(7))
  ax.tick_params(axis="x", length=3)
  if label:
    ax.set_xlabel("epoch")


_NAME = 30  # letters of a name on an axis


def name_axis(ax: Axes, names: Sequence[str]) -> None:
  """Makes the vertical axis one of names, from the top down.

  Long ones are cut: the values beside them say them in full.
  """
  ax.set_yticks(range(len(names)), [short(name, _NAME) for name in names])
  ax.tick_params(axis="y", labelcolor=INK)
  ax.set_ylim(len(names) - 0.4, -0.6)
  ax.grid(axis="y", visible=False)
  ax.grid(axis="x", color=GRID, lw=0.8)


def whole_numbers(most: int) -> ticker.Locator:
  return ticker.MaxNLocator(most, integer=True, steps=[1, 2, 5, 10])


def legend(fig: Figure, *, columns: int = 2) -> None:
  """A legend above the axes where there is more than one thing to tell."""
  handles, _ = fig.axes[0].get_legend_handles_labels()
  if len(handles) > 1:
    fig.legend(loc="outside upper left", ncols=columns)


def bar_width(epochs: np.ndarray) -> float:
  return 0.85 * float(np.diff(epochs).min()) if len(epochs) > 1 else 0.85


def as_floats(name: str, values: ArrayLike, along: Any) -> np.ndarray:
  """`values` as floats, one for each of `along`; None becomes nan."""
  found = np.asarray(values, float)
  if found.shape != (len(along),):
    raise ValueError(
      f"{name} must have shape ({len(along)},), got {found.shape}"
    )
  return found


def short(name: str, length: int = 22) -> str:
  """The name, cut to so many letters."""
  return name if len(name) <= length else name[: length - 1] + "…"


@styled
def to_svg(fig: Figure, *, label: str = "", prefix: str = "") -> str:
  """The figure as an SVG element that fits into a page, light or dark.

  Text stays text. The ink becomes `currentColor`, and every other colour a CSS
  variable that falls back on itself: `--blue`, `--orange`, `--green`,
  `--violet`, `--amber`, `--muted`, `--grid` and `--paper`. What belongs to a
  method has it in `data-method`, and each value is a circle of class `point`
  whose title says it. The same figure gives the same text.

  Args:
    fig: the figure.
    label: says what it shows to those who do not see it.
    prefix: letters that tell its ids from those of the page's other figures.

  >>> from kfkd_jax import plots
  >>> svg = plots.to_svg(plots.plot_time_to_forget([1, 2], [3, 0]))
  >>> svg[:15], "<title>epoch 1: 3 examples</title>" in svg
  ('<svg role="img"', True)
  """
  buffer = io.StringIO()
  nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
  with warnings.catch_warnings():
    # A browser has the letters that the font of these measurements lacks.
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    fig.savefig(buffer, format="svg", transparent=True, metadata=nothing)
  svg = buffer.getvalue()
  svg = svg[svg.index("<svg") :]
  for pattern in _SVG_REMOVED:
    svg = re.sub(pattern, "", svg, flags=re.DOTALL)
  svg = re.sub(r"<[^>]*>", lambda tag: _page_tag(tag[0], prefix), svg)
  svg = re.sub(r">\s*\n\s*<", ">\n<", svg)
  points = "".join(_circle(fig, p) for p in getattr(fig, "points", ()))
  svg = svg.replace("</svg>", f"{points}</svg>")
  attributes = f'role="img" aria-label="{html.escape(label)}"'
  return svg.replace("<svg", f"<svg {attributes}", 1)


@styled
def save(fig: Figure, file: Any, **options: Any) -> None:
  """`fig.savefig` on white, whatever the user has set."""
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    fig.savefig(file, facecolor=PAPER, **options)


_CSS_COLORS = {
  INK: "currentColor",
  MUTED: f"var(--muted, {MUTED})",
  GRID: f"var(--grid, {GRID})",
  PAPER: f"var(--paper, {PAPER})",
  BLUE: f"var(--blue, {BLUE})",
  ORANGE: f"var(--orange, {ORANGE})",
  GREEN: f"var(--green, {GREEN})",
  VIOLET: f"var(--violet, {VIOLET})",
  AMBER: f"var(--amber, {AMBER})",
}
_SVG_REMOVED = (
  # A style element within SVG would govern the whole page.
  r"<defs>\s*<style.*?</style>\s*</defs>",
  r"<metadata>.*?</metadata>",
)
_TAG_CHANGES = (
  (r'(<g|<image[^>]*?) id="[^"]*"', r"\1"),  # equal images, equal ids
  (r' xmlns:xlink="[^"]*"', ""),
  (r"xlink:href", "href"),
  (r' transform="rotate\(-?0 [^)]*\)"', ""),
  (r"(?<!, )'DejaVu Sans'", "system-ui, sans-serif"),
  (r"\s*\n\s*", "\n"),
  (r"(?<=\d) ?\n(?=[LCQz])", " "),
)


def css_color(color: str) -> str:
  """A colour of this module as a page's style sheet may change it."""
  return _CSS_COLORS[color]


def _page_tag(tag: str, prefix: str) -> str:
  """A tag as it stands in a page; text between tags is never touched."""
  belongs = re.fullmatch(rf'<g id="{_BELONGS}(\w+)">', tag)
  if belongs:
    return f"<g{_data(json.loads(bytes.fromhex(belongs[1])))}>"
  for pattern, replacement in _TAG_CHANGES:
    tag = re.sub(pattern, replacement, tag, flags=re.DOTALL)
  tag = re.sub(r'( id="| href="#|url\(#)', rf"\g<1>{prefix}", tag)
  for color, variable in _CSS_COLORS.items():
    tag = tag.replace(color, variable)
  return tag


def _circle(fig: Figure, point: Point) -> str:
  """Shows nothing until a pointer is there."""
  pixels = point.ax.transData.transform((point.x, point.y))
  x, y = pixels * 72 / fig.dpi
  y = 72 * fig.get_figheight() - y
  return (
    f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="5" fill="none" '
    f'pointer-events="all"{_data(point.belongs)}>'
    f"<title>{html.escape(point.text)}</title></circle>\n"
  )


def _data(belongs: Mapping[str, str]) -> str:
  return "".join(
    f' data-{kind}="{html.escape(name)}"' for kind, name in belongs.items()
  )
