"""The explaining figures hold the numbers they are given."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from kfkd_jax import plots


def lines_of(fig, place=0):
  return {line.get_label(): line for line in fig.axes[place].lines}


def draw(name):
  return {
    "correctness": lambda: plots.plot_correctness(
      [1, 2, 5], [[1, 1, 0], [0, 1, 0], [0, 1, 1]]
    ),
    "fits": lambda: plots.plot_fits(
      [0.0, 0.5, 1.0],
      {"1 fit": [1, 2, 3], "2 rounds": [1, 1, 1]},
      truth=[0, 0, 0],
      points=([0.5], [2.0]),
    ),
    "rounds": lambda: plots.plot_rounds(
      {"exact": [3.0, 1.0, 2.0], "measured": [3.0, 1.5, 1.0]}
    ),
    "filters": lambda: plots.plot_filters([[1, 1], [0.5, 0.2], [0.2, 0.0]]),
    "projections": lambda: plots.plot_projections([0.8, 1], [0.4, 1]),
    "descent": lambda: plots.plot_descent(
      [1, 2, 4], {"test error": [0.3, 0.4, 0.2], "forgotten": [0.1, 0.2, 0]}
    ),
    "times": lambda: plots.plot_forget_times([-1.0, 2.0], [3, 40]),
    "over_time": lambda: plots.plot_over_time(
      [0.1, 1, 10], {"clean": [0, 0.5, 1], "noise": [0, 0.1, 1]}
    ),
  }[name]()


ALL = (
  "correctness",
  "fits",
  "rounds",
  "filters",
  "projections",
  "descent",
  "times",
  "over_time",
)


@pytest.mark.parametrize("name", ALL)
def test_becomes_a_page_and_a_picture(name, tmp_path):
  fig = draw(name)
  svg = plots.to_svg(fig)
  assert svg == plots.to_svg(draw(name))
  assert plots.INK not in svg
  plots.save(fig, tmp_path / "figure.png")
  assert (tmp_path / "figure.png").stat().st_size > 1000


def test_correctness_tells_right_wrong_and_forgotten():
  (mesh,) = draw("correctness").axes[0].collections
  states = mesh.get_array()
  assert states.shape == (3, 3)  # a row an example
  colors = [to_hex(color) for color in mesh.to_rgba(states.ravel())]
  known, gone, wrong = plots.GREEN, plots.ORANGE, plots.GRID
  assert colors == [
    gone, wrong, wrong,
    known, known, known,
    wrong, wrong, known,
  ]  # fmt: skip


def test_correctness_of_many_examples_has_no_row_names():
  fig = plots.plot_correctness([1, 2], np.ones((2, 300)))
  assert len(fig.axes[0].get_yticks()) == 0
  assert fig.get_figheight() < 5


def test_fits_grow_darker_and_show_truth_and_points():
  lines = lines_of(draw("fits"))
  first, last = lines["1 fit"], lines["2 rounds"]
  np.testing.assert_array_equal(last.get_ydata(), [1, 1, 1])
  assert sum(first.get_color()[:3]) > sum(last.get_color()[:3])
  np.testing.assert_array_equal(lines["truth"].get_ydata(), [0, 0, 0])
  np.testing.assert_array_equal(lines["noisy targets"].get_xdata(), [0.5])


def test_rounds_count_from_one_and_mark_the_best():
  ax = draw("rounds").axes[0]
  curves = [line for line in ax.lines if line.get_marker() != "o"]
  dots = [line for line in ax.lines if line.get_marker() == "o"]
  np.testing.assert_array_equal(curves[0].get_xdata(), [1, 2, 3])
  assert [int(dot.get_xdata()[0]) for dot in dots] == [2, 3]
  assert [t.get_text() for t in ax.texts] == ["round 2", "round 3"]


def test_equal_best_rounds_are_named_once():
  ax = plots.plot_rounds({"a": [2, 1], "b": [3, 1]}).axes[0]
  assert [t.get_text() for t in ax.texts] == ["round 2"]


def test_filters_have_a_line_a_round():
  lines = draw("filters").axes[0].lines
  values = [line.get_ydata().tolist() for line in lines]
  assert values == [[1, 1], [0.5, 0.2], [0.2, 0.0]]


def test_projections_stand_beside_an_even_spread():
  lines = lines_of(draw("projections"))
  np.testing.assert_array_equal(lines["evenly"].get_ydata(), [0.5, 1])
  np.testing.assert_array_equal(lines["clean labels"].get_ydata(), [0.8, 1])
  np.testing.assert_array_equal(lines["label noise"].get_ydata(), [0.4, 1])


def test_descent_has_a_panel_a_curve_on_a_log_axis():
  fig = draw("descent")
  assert [ax.get_title(loc="left") for ax in fig.axes] == [
    "test error",
    "forgotten",
  ]
  assert {ax.get_xscale() for ax in fig.axes} == {"log"}
  np.testing.assert_array_equal(fig.axes[1].lines[0].get_ydata(), [0.1, 0.2, 0])


def test_forget_times_are_on_a_log_axis():
  ax = draw("times").axes[0]
  np.testing.assert_array_equal(ax.lines[1].get_xdata(), [-1, 2])
  np.testing.assert_array_equal(ax.lines[1].get_ydata(), [3, 40])
  assert ax.get_yscale() == "log"


def test_over_time_keeps_order_and_names():
  fig = plots.plot_over_time(
    [1, 2], {"a": [0, 1], "b": [1, 0]}, xlabel="step", ylabel="share"
  )
  lines = lines_of(fig)
  assert lines["a"].get_color() == plots.GREEN
  np.testing.assert_array_equal(lines["b"].get_ydata(), [1, 0])
  assert (fig.axes[0].get_xlabel(), fig.axes[0].get_ylabel()) == (
    "step",
    "share",
  )


@pytest.mark.parametrize(
  "wrong, message",
  [
    (
      lambda: plots.plot_correctness([1, 2], np.ones((3, 4))),
      r"correct must be \[C, N\] with C = 2 epochs, got shape \(3, 4\)",
    ),
    (
      lambda: plots.plot_fits([0, 1], {"fit": [1]}),
      r"fit must have shape \(2,\), got \(1,\)",
    ),
    (
      lambda: plots.plot_filters([1, 0.5]),
      r"filters must be \[T \+ 1, N\], got shape \(2,\)",
    ),
    (
      lambda: plots.plot_projections([0.5, 1], [1]),
      r"noise must have shape \(2,\), got \(1,\)",
    ),
    (
      lambda: plots.plot_descent([1, 2], {"error": [1]}),
      r"error must have shape \(2,\), got \(1,\)",
    ),
    (
      lambda: plots.plot_forget_times([1, 2], [1]),
      r"times must have shape \(2,\), got \(1,\)",
    ),
  ],
)
def test_errors_name_the_argument_and_both_shapes(wrong, message):
  with pytest.raises(ValueError, match=message):
    wrong()
