"""Figures that explain: who was right when, and what theory says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps, ticker
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
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
  TITLE,
  as_floats,
  epoch_axis,
  figure,
  legend,
  styled,
  whole_numbers,
)

_ROUNDS = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-"), (MUTED, "--"))


@styled
def plot_correctness(epochs: ArrayLike, correct: ArrayLike) -> Figure:
  """Who was right when: a row an example, a column a checkpoint.

  Green is right, grey is wrong. Orange is right and forgotten: wrong at the
  last checkpoint. A column's share of orange is its F_e.

  Args:
    epochs: `[C]`.
    correct: `bool[C, N]`.
  """
  epochs, correct = np.asarray(epochs), np.asarray(correct, bool)
  if correct.ndim != 2 or len(epochs) != len(correct):
    raise ValueError(
      f"correct must be [C, N] with C = {len(epochs)} epochs, got shape "
      f"{correct.shape}"
    )
  num_examples = correct.shape[1]
  states = np.where(correct, np.where(correct[-1], 1, 2), 0)
  fig, ax = figure((SIZE[0], max(1.4, min(4.5, 0.8 + 0.25 * num_examples))))
  ax.grid(visible=False)
  ax.pcolormesh(
    states.T, cmap=ListedColormap([GRID, GREEN, ORANGE]), vmin=0, vmax=2,
    edgecolors=PAPER, linewidth=1.5 if num_examples <= 20 else 0,
  )  # fmt: skip
  shown = np.unique(np.linspace(0, len(epochs) - 1, 8).round().astype(int))
  ax.set_xticks(shown + 0.5, [f"{epochs[c]}" for c in shown])
  few = range(num_examples) if num_examples <= 20 else ()
  ax.set_yticks(np.asarray(few) + 0.5, [f"{n}" for n in few])
  ax.invert_yaxis()
  ax.set(xlabel="epoch", ylabel="example")
  return fig


@styled
def plot_fits(
  grid: ArrayLike,
  fits: Mapping[str, ArrayLike],
  *,
  truth: ArrayLike | None = None,
  points: tuple[ArrayLike, ArrayLike] | None = None,
) -> Figure:
  """Functions of one variable, the later the darker.

  Args:
    grid: `[Q]`.
    fits: `[Q]` each, in order, such as the rounds of self-distillation.
    truth: `[Q]` what was to be found.
    points: inputs `[N]` and targets `[N]` that they were fitted to.
  """
  grid = np.asarray(grid, float)
  fig, ax = figure(SIZE)
  if truth is not None:
    values = as_floats("truth", truth, grid)
    ax.plot(grid, values, ":", color=MUTED, lw=1.8, label="truth")
  for (name, fit), color in zip(fits.items(), _shades(len(fits))):
    ax.plot(grid, as_floats(name, fit, grid), color=color, lw=1.8, label=name)
  if points is not None:
    ax.plot(*points, "o", color=ORANGE, ms=5, label="noisy targets")
  ax.set_xlabel("input")
  ax.tick_params(axis="x", length=3)
  legend(fig)
  return fig


@styled
def plot_rounds(
  risks: Mapping[str, ArrayLike], *, ylabel: str = "risk"
) -> Figure:
  """Risk round by round, each curve's best round marked.

  Args:
    risks: `[T]` each, of the rounds 1, 2, ... T.
    ylabel: of the vertical axis.
  """
  fig, ax = figure(SIZE)
  length = max((len(np.asarray(v)) for v in risks.values()), default=1)
  named = set()
  for (name, risk), (color, line) in zip(risks.items(), _ROUNDS):
    values = np.asarray(risk, float)
    rounds = np.arange(1, len(values) + 1)
    ax.plot(rounds, values, line, color=color, lw=1.8, label=name)
    best = int(np.nanargmin(values))
    ax.plot(rounds[best], values[best], "o", color=color, mec=PAPER, ms=8)
    if best not in named:
      ax.annotate(
        f"round {rounds[best]}", (rounds[best], values[best]), xytext=(0, -15),
        textcoords="offset points", ha="center", color=color, fontsize=9,
      )  # fmt: skip
    named.add(best)
  ax.margins(y=0.16)
  epoch_axis(ax, np.arange(1, length + 1), label=False)
  ax.set(xlabel="round of self-distillation", ylabel=ylabel)
  legend(fig)
  return fig


@styled
def plot_filters(filters: ArrayLike) -> Figure:
  """What rounds leave of each eigendirection, a line a round.

  Args:
    filters: `[T + 1, N]`, the largest eigenvalue first, as in
      `theory.hilbert.Rounds`.
  """
  filters = np.asarray(filters, float)
  if filters.ndim != 2:
    raise ValueError(f"filters must be [T + 1, N], got shape {filters.shape}")
  fig, ax = figure(SIZE)
  directions = np.arange(1, filters.shape[1] + 1)
  named = {0, 1, len(filters) // 2, len(filters) - 1}
  for number, (row, color) in enumerate(zip(filters, _shades(len(filters)))):
    label = f"{number} rounds" if number != 1 else "1 round"
    ax.plot(
      directions, row, "o-", color=color, lw=1.6, ms=3.5,
      label=label if number in named else None,
    )  # fmt: skip
  ax.set_ylim(-0.03, 1.05)
  ax.xaxis.set_major_locator(whole_numbers(8))
  ax.tick_params(axis="x", length=3)
  ax.set(
    xlabel="eigendirection, the largest first", ylabel="share that is left"
  )
  legend(fig)
  return fig


@styled
def plot_projections(clean: ArrayLike, noise: ArrayLike) -> Figure:
  """How much of labels and of label noise the leading eigenvectors hold.

  Args:
    clean: `[N]` share of the clean labels in the first 1, 2, ... N of them.
    noise: `[N]` the same of the noise (`theory.ntk.label_projections`).
  """
  clean = np.asarray(clean, float)
  noise = as_floats("noise", noise, clean)
  count = np.arange(1, len(clean) + 1)
  fig, ax = figure(SIZE)
  ax.plot(count, count / len(clean), ":", color=MUTED, lw=1.6, label="evenly")
  ax.plot(count, clean, color=GREEN, lw=1.8, label="clean labels")
  ax.plot(count, noise, color=ORANGE, lw=1.8, label="label noise")
  ax.set_ylim(0, 1.02)
  ax.set_xlim(0, len(clean))
  ax.tick_params(axis="x", length=3)
  ax.set(xlabel="leading eigenvectors of the kernel", ylabel="share held")
  legend(fig)
  return fig


@styled
def plot_projection_history(
  epochs: ArrayLike, clean: ArrayLike, noise: ArrayLike, *, num_leading: int
) -> Figure:
  """What the leading eigenvectors hold of labels and of noise, over epochs.

  Args:
    epochs: `[T]`.
    clean: `[T, N]` of `theory.ntk.projection_history`.
    noise: `[T, N]` likewise.
    num_leading: eigenvectors that count as leading, 1 to N.
  """
  epochs, clean = np.asarray(epochs), np.asarray(clean, float)
  noise = np.asarray(noise, float)
  if clean.shape != noise.shape or clean.shape[:1] != epochs.shape:
    raise ValueError(
      f"clean and noise must be [T, N] where epochs is [T]; got shapes "
      f"{clean.shape}, {noise.shape} and {epochs.shape}"
    )
  count = clean.shape[1]
  if not 1 <= num_leading <= count:
    raise ValueError(f"num_leading must be in 1..{count}; got {num_leading}")
  fig, ax = figure(SIZE)
  even = num_leading / count
  ax.axhline(even, color=MUTED, ls=":", lw=1.6, label="evenly")
  last = num_leading - 1
  ax.plot(epochs, clean[:, last], color=GREEN, lw=1.8, label="clean labels")
  ax.plot(epochs, noise[:, last], color=ORANGE, lw=1.8, label="label noise")
  ax.set_ylim(0, 1.02)
  epoch_axis(ax, epochs)
  ax.set_ylabel(f"share in {num_leading} eigenvectors")
  legend(fig)
  return fig


@styled
def plot_descent(epochs: ArrayLike, curves: Mapping[str, ArrayLike]) -> Figure:
  """Curves over the epochs on a log axis, each in a panel with its own scale.

  Args:
    epochs: `[C]`, above 0.
    curves: `[C]` each, by name, such as the test error, what was memorised of
      the noise, and F_e.
  """
  epochs = np.asarray(epochs)
  rows = max(len(curves), 1)
  fig, axes = figure((SIZE[0], 0.5 + 1.45 * rows), rows=rows, sharex=True)
  for ax, (name, values) in zip(np.atleast_1d(axes), curves.items()):
    ax.plot(epochs, as_floats(name, values, epochs), color=INK, lw=1.8)
    ax.set_title(name, **TITLE)
    _log_axis(ax)
  np.atleast_1d(axes)[-1].set_xlabel("epoch")
  return fig


@styled
def plot_forget_times(pull: ArrayLike, times: ArrayLike) -> Figure:
  """When points are forgotten against what leading directions do to them.

  Args:
    pull: `[N]` change of each forgotten point's margin, from the start to the
      end of training, that the leading directions make.
    times: `[N]` steps until it was wrong, above 0.
  """
  pull = np.asarray(pull, float)
  times = as_floats("times", times, pull)
  fig, ax = figure(SIZE)
  ax.axvline(0, color=MUTED, lw=1)
  ax.plot(pull, times, "o", color=ORANGE, mec="none", ms=4.5, alpha=0.6)
  ax.set_yscale("log")
  ax.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
  ax.tick_params(axis="both", which="both", length=3)
  ax.set_xlabel("change of the margin by leading directions")
  ax.set_ylabel("steps until forgotten")
  return fig


@styled
def plot_over_time(
  times: ArrayLike,
  curves: Mapping[str, ArrayLike],
  *,
  xlabel: str = "training time",
  ylabel: str = "share",
) -> Figure:
  """Curves over a log axis of time: the first wanted, the second not.

  Args:
    times: `[T]`, above 0.
    curves: `[T]` each, by name.
    xlabel: of the axis of time.
    ylabel: of the vertical axis.
  """
  times = np.asarray(times)
  fig, ax = figure(SIZE)
  looks = ((GREEN, "-"), (ORANGE, "--"), (BLUE, "-"), (MUTED, ":"))
  for (name, values), (color, line) in zip(curves.items(), looks):
    values = as_floats(name, values, times)
    ax.plot(times, values, line, color=color, lw=1.8, label=name)
  ax.set_ylim(bottom=0)
  _log_axis(ax)
  ax.set(xlabel=xlabel, ylabel=ylabel)
  legend(fig)
  return fig


def _shades(count: int) -> list[Any]:
  """Blues from light to dark."""
  return list(colormaps["Blues"](np.linspace(0.35, 1.0, count)))


def _log_axis(ax: Axes) -> None:
  ax.set_xscale("log")
  ax.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
  ax.tick_params(axis="x", which="both", length=3)
