"""Figures hold the numbers they are given; SVG is deterministic and safe."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kfkd_jax import plots

SVG = "{http://www.w3.org/2000/svg}"
EPOCHS = [1, 2, 3, 5]


def gain_rows(folds=1):
  return [
    {
      "method": method,
      "gain": gain + 0.01 * fold,
      "gain_interval": [gain - 0.02, gain + 0.03],
      "inference_cost": cost,
    }
    for fold in range(folds)
    for method, gain, cost in (
      ("final", 0.0, 1),
      ("best_epoch", -0.01, 1),
      ("kf", 0.08, 7),
    )
  ]


def compared():
  """Two experiments; the second lacks a method and an interval."""
  rows = [
    {
      "method": method,
      "gain": gain,
      "gain_interval": [gain - 0.02, gain + 0.03],
      "accuracy": 0.5 + gain,
      "accuracy_interval": None,
    }
    for method, gain in (("final", 0.0), ("kf", 0.08), ("best_epoch", -0.01))
  ]
  return {
    "<a>": rows,
    "b": [{**row, "gain_interval": None} for row in rows[:2]],
  }


def memorisation():
  right = np.array([0.2, 0.5, 0.3, 0.1])
  wrong = np.array([0.6, 0.2, 0.1, 0.0])
  return {
    "memorised": 1 - right - wrong,
    "right": right,
    "wrong": wrong,
    "clean_accuracy": [0.2, 0.8, 0.9, 1.0],
  }


def examples(channels=1):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (6, 4, 4, channels), np.uint8)
  classes = rng.integers(0, 3, (4, 6))
  labels = (classes[-1] + 1) % 3  # all wrong at the end
  labels[0] = classes[-1, 0]
  return images, classes, labels


def draw(name):
  """Every plotting function on small inputs."""
  names = ("<cat>", "$\\dog$", "")
  return {
    "curves": lambda: plots.plot_curves(
      EPOCHS,
      {"accuracy": [0.1, 0.4, 0.5, 0.3], "mine": [0, 0, 0, 1]},
      members=[2, 3],
      levels={"Knowledge Fusion": 0.6},
    ),
    "one_checkpoint": lambda: plots.plot_curves([7], {"forget": [0.0]}),
    "memorisation": lambda: plots.plot_memorisation(EPOCHS, memorisation()),
    "weights": lambda: plots.plot_weights(
      EPOCHS, {"KF": [0, 0.5, 0.25, 0.25], "mixture": [1, 0, 0, 0]}
    ),
    "gains": lambda: plots.plot_gains(gain_rows()),
    "gains_of_folds": lambda: plots.plot_gains(gain_rows(folds=3)),
    "only_final": lambda: plots.plot_gains(gain_rows()[:1]),
    "time": lambda: plots.plot_time_to_forget(EPOCHS, [3, 0, 2, 0]),
    "classes": lambda: plots.plot_class_forgetting(
      names, [0.1, None, 0.3], null=[0.2, None, 0.1]
    ),
    "noise": lambda: plots.plot_label_noise(
      [[5, 2, 0], [0, 9, 0], [0, 0, 0]], names
    ),
    "methods_compared": lambda: plots.plot_methods_compared(compared()),
    "accuracies_compared": lambda: plots.plot_methods_compared(
      compared(), value="accuracy"
    ),
    "curves_compared": lambda: plots.plot_curves_compared(
      {"<a>": (EPOCHS, [0.1, 0.2, None, 0.4]), "\"b'": ([0.5, 1], [0, 1])}
    ),
    "against": lambda: plots.plot_against(
      {
        "<a>": ([0, 1, 4], [0.1, 0.2, 0.4], [0.1, 0, 0]),
        "b": ([2], [-0.1], [0]),
      },
      xlabel="window",
      title='one & "two"',
    ),
    "against_log": lambda: plots.plot_against(
      {"a": ([25, 400], [0.1, 0.2], [0, 0])}, xlabel="points", log=True
    ),
    "risk_coverage": lambda: plots.plot_risk_coverage(
      {"final": ([0.5, 1], [0, 0.25]), "kf": ([0.1, 0.5, 1], [0, 0.1, 0.2])}
    ),
    "examples": lambda: plots.plot_forgotten_examples(
      *examples(), class_names=names
    ),
    "colour_examples": lambda: plots.plot_forgotten_examples(
      *examples(channels=3), class_names=names, num_examples=2
    ),
  }[name]()


ALL = (
  "risk_coverage",
  "curves",
  "one_checkpoint",
  "memorisation",
  "weights",
  "gains",
  "gains_of_folds",
  "only_final",
  "time",
  "classes",
  "noise",
  "methods_compared",
  "accuracies_compared",
  "curves_compared",
  "against",
  "against_log",
  "examples",
  "colour_examples",
)


def texts(svg):
  return [t.text or "" for t in ET.fromstring(svg).iter(f"{SVG}text")]


def test_lines_against_a_number_are_in_percent_with_their_errors():
  fig = plots.plot_against(
    {"kf": ([25, 400], [0.1, 0.25], [0.01, 0.02])}, xlabel="points", log=True
  )
  (ax,) = fig.axes
  np.testing.assert_allclose(ax.lines[0].get_ydata(), [10, 25])
  assert [t.get_text() for t in ax.get_xticklabels()] == ["25", "400"]
  band = ax.collections[0].get_paths()[0].vertices[:, 1]
  assert (band.min(), band.max()) == pytest.approx((9, 27))
  svg = plots.to_svg(fig)
  assert "<title>kf, 400: 25.0 ± 2.0</title>" in svg
  with pytest.raises(ValueError, match="errors of kf must have shape"):
    plots.plot_against({"kf": ([1, 2], [0, 0], [0])}, xlabel="x")


@pytest.mark.parametrize("name", ALL)
def test_svg_is_whole_and_repeats(name):
  svg = plots.to_svg(draw(name), label='a "<b>"', prefix="here-")
  root = ET.fromstring(svg)
  assert root.get("role") == "img"
  assert root.get("aria-label") == 'a "<b>"'
  assert root.find(f".//{SVG}style") is None  # it would govern the page
  ids = [e.get("id") for e in root.iter() if e.get("id")]
  assert len(ids) == len(set(ids))
  assert all(i.startswith("here-") for i in ids)
  links = [e.get("href") for e in root.iter() if e.get("href")]
  assert {link[1:] for link in links if link[0] == "#"} <= set(ids)
  assert all(link[0] == "#" or link.startswith("data:") for link in links)
  assert plots.to_svg(draw(name), label='a "<b>"', prefix="here-") == svg


@pytest.mark.parametrize("name", ["curves", "gains", "noise"])
def test_svg_follows_the_page_not_the_users_settings(name):
  svg = plots.to_svg(draw(name))
  assert "currentColor" in svg
  assert "var(--blue, #0072b2)" in svg
  assert plots.INK not in svg
  settings = {"axes.linewidth": 7, "font.size": 31, "text.color": "pink"}
  with matplotlib.rc_context(settings):
    before = dict(matplotlib.rcParams)
    assert plots.to_svg(draw(name)) == svg
    assert dict(matplotlib.rcParams) == before


def test_text_stays_text_and_is_escaped():
  svg = plots.to_svg(draw("classes"))
  assert "<cat>" not in svg
  assert "<cat>" in texts(svg)
  svg = plots.to_svg(draw("noise"))
  assert "$\\dog$" in texts(svg)  # not read as mathematics


def test_letters_that_the_measuring_font_lacks_pass():
  fig = plots.plot_class_forgetting(["\U0001f408\u732b"], [0.5])
  assert "\U0001f408\u732b" in texts(plots.to_svg(fig))


def test_pyplot_is_never_imported():
  code = (
    "import sys, kfkd_jax.plots as p\n"
    "p.to_svg(p.plot_time_to_forget([1, 2], [1, 0]))\n"
    "assert 'matplotlib.pyplot' not in sys.modules\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], check=False, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


def test_curves_hold_the_values_and_mark_members():
  fig = draw("curves")
  lines = {line.get_label(): line for line in fig.axes[0].lines}
  accuracy = lines["accuracy"]
  np.testing.assert_array_equal(accuracy.get_xdata(), EPOCHS)
  np.testing.assert_array_equal(accuracy.get_ydata(), [0.1, 0.4, 0.5, 0.3])
  members = lines["member of KF"]
  np.testing.assert_array_equal(members.get_xdata(), [2, 3])
  np.testing.assert_array_equal(members.get_ydata(), [0.4, 0.5])
  assert set(lines["Knowledge Fusion"].get_ydata()) == {0.6}


def test_weights_are_bars_over_epochs():
  fig = draw("weights")
  first, second = fig.axes
  assert [bar.get_height() for bar in first.patches] == [0, 0.5, 0.25, 0.25]
  assert [bar.get_height() for bar in second.patches] == [1, 0, 0, 0]
  centres = [bar.get_x() + bar.get_width() / 2 for bar in first.patches]
  np.testing.assert_allclose(centres, EPOCHS)
  assert first.get_title(loc="left") == "KF: 3 of 4 checkpoints"


def test_gains_are_in_points_without_the_final_network():
  ax = draw("gains").axes[0]
  labels = [t.get_text() for t in ax.get_yticklabels()]
  assert labels == ["Best epoch", "Knowledge Fusion"]
  _, low_high, dot, *_ = ax.lines  # zero, then an interval and a dot each
  np.testing.assert_allclose(low_high.get_xdata(), [-3, 2])
  np.testing.assert_allclose(dot.get_xdata(), [-1])
  several = [line.get_markerfacecolor() for line in ax.lines[2::2]]
  assert several == [plots.MUTED, plots.PAPER]  # filled: one network


def test_every_fold_of_a_method_has_its_own_height():
  ax = draw("gains_of_folds").axes[0]
  assert len(ax.lines) == 1 + 2 * 2 * 3
  heights = [float(line.get_ydata()[0]) for line in ax.lines[2::2]]
  assert len(set(heights)) == 6
  assert [round(h) for h in heights] == [0, 0, 0, 1, 1, 1]


def test_memorisation_fills_up_to_one():
  areas = draw("memorisation").axes[0].collections
  tops = [area.get_paths()[0].vertices[:, 1].max() for area in areas]
  assert tops[-1] == pytest.approx(1)
  assert tops == sorted(tops)


def test_classes_go_down_from_the_most_forgotten_and_skip_the_absent():
  ax = draw("classes").axes[0]
  assert [bar.get_width() for bar in ax.patches] == [0.3, 0.1]
  assert [t.get_text() for t in ax.get_yticklabels()] == ["", "<cat>"]
  np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0.1, 0.2])
  few = plots.plot_class_forgetting("abc", [1, 3, 2], num_classes=2)
  assert [t.get_text() for t in few.axes[0].get_yticklabels()] == ["b", "c"]


def test_noise_shows_every_count_at_its_place():
  ax = draw("noise").axes[0]
  shown = {t.get_position(): t.get_text() for t in ax.texts}
  assert shown == {(0, 0): "5", (1, 0): "2", (1, 1): "9"}
  centres = [np.add(cell.get_xy(), 0.47).tolist() for cell in ax.patches]
  np.testing.assert_allclose(sorted(centres), sorted(shown), atol=1e-9)


def test_time_to_forget_is_a_bar_a_checkpoint():
  ax = draw("time").axes[0]
  assert [bar.get_height() for bar in ax.patches] == [3, 0, 2, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_forgotten_examples_show_picture_and_strip(channels):
  images, classes, labels = examples(channels)
  fig = plots.plot_forgotten_examples(
    images, classes, labels, class_names="abc", num_examples=3, columns=2
  )
  order = plots.most_forgotten(classes == labels, 3)
  pictures = [ax for ax in fig.axes if ax.get_title()]
  strips = [ax for ax in fig.axes if ax.images and not ax.get_title()]
  assert len(pictures) == len(strips) == len(order)
  for n, picture, strip in zip(order, pictures, strips):
    drawn = picture.images[0].get_array()
    np.testing.assert_array_equal(drawn, images[n].squeeze())
    np.testing.assert_array_equal(
      strip.images[0].get_array()[0], classes[:, n] == labels[n]
    )
    true, end = "abc"[labels[n]], "abc"[classes[-1, n]]
    assert picture.get_title() == f"{true}, at the end {end}"


def points(name):
  """What each value of a figure says, and where it stands on the page."""
  root = ET.fromstring(plots.to_svg(draw(name)))
  return [
    (c.find(f"{SVG}title").text, float(c.get("cx")), float(c.get("cy")), c)
    for c in root.iter(f"{SVG}circle")
  ]


def test_values_are_said_where_they_are_drawn():
  said = points("curves_compared")
  assert [text for text, *_ in said] == [
    "<a>, epoch 1: 0.100",
    "<a>, epoch 2: 0.200",
    "<a>, epoch 5: 0.400",  # without a value, nothing at epoch 3
    "\"b', epoch 0.5: 0.000",
    "\"b', epoch 1: 1.000",
  ]
  xs = np.array([x for _, x, *_ in said])
  ys = np.array([y for _, _, y, _ in said])
  np.testing.assert_allclose(
    np.diff(xs)[:2], (xs[1] - xs[0]) * np.array([1, 3]), atol=0.3
  )
  np.testing.assert_allclose(ys[2] - ys[0], 0.3 * (ys[4] - ys[3]), atol=0.3)
  svg = plots.to_svg(draw("curves_compared"))
  curve = next(
    g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("data-run") == "<a>"
  )
  start = re.match(r"M ([\d.]+) ([\d.]+)", curve.find(f"{SVG}path").get("d"))
  np.testing.assert_allclose(
    [float(start[1]), float(start[2])], [xs[0], ys[0]], atol=0.06
  )


def test_risk_belongs_to_its_method_and_is_said_in_percent():
  said = points("risk_coverage")
  assert [(c.get("data-method"), text) for text, *_, c in said][1:3] == [
    ("final", "Final network, 100 % answered: 25.0 % wrong"),
    ("kf", "Knowledge Fusion, 10 % answered: 0.0 % wrong"),
  ]
  with pytest.raises(ValueError, match="Fusion must have shape"):
    plots.plot_risk_coverage({"kf": ([0.5, 1], [0.1])})


def test_methods_compared_share_a_line_and_belong_to_their_run():
  fig = draw("methods_compared")
  names = [t.get_text() for t in fig.axes[0].get_yticklabels()]
  assert names == ["Knowledge Fusion", "Best epoch"]
  said = points("methods_compared")
  assert [text for text, *_ in said] == [
    "<a>, Knowledge Fusion: +8.0 [+6.0, +11.0]",
    "<a>, Best epoch: -1.0 [-3.0, +2.0]",
    "b, Knowledge Fusion: +8.0",
  ]
  belongs = [(c.get("data-run"), c.get("data-method")) for *_, c in said]
  assert belongs == [("<a>", "kf"), ("<a>", "best_epoch"), ("b", "kf")]
  assert said[0][2] < said[2][2] < said[1][2]
  assert len(points("accuracies_compared")) == 5


def test_text_is_never_taken_for_a_tag_or_a_colour():
  names = [plots.BLUE, "'DejaVu Sans'", 'x id="y"', "url(#z)"]
  fig = plots.plot_class_forgetting(names, [0.4, 0.3, 0.2, 0.1])
  assert set(names) <= set(texts(plots.to_svg(fig, prefix="here-")))


def test_forty_two_looks_differ():
  looks = {str(plots.look(number)) for number in range(42)}
  assert len(looks) == 42


def luminance(color):
  channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  linear = [
    c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
    for c in channels
  ]
  return np.dot([0.2126, 0.7152, 0.0722], linear)


def test_colours_stand_out_from_paper():
  for number in range(6):
    contrast = 1.05 / (luminance(plots.look(number).color) + 0.05)
    assert contrast >= 3.5


def forgotten_by_loops(correct, num):
  found = []
  for n in range(correct.shape[1]):
    if not correct[-1, n] and any(correct[:, n]):
      found.append((-sum(correct[:, n].tolist()), n))
  return [n for _, n in sorted(found)][:num]


@given(
  hnp.arrays(bool, st.tuples(st.integers(1, 5), st.integers(0, 7))),
  st.integers(0, 9),
)
def test_most_forgotten_equals_loops(correct, num):
  assert plots.most_forgotten(correct, num).tolist() == forgotten_by_loops(
    correct, num
  )


@pytest.mark.parametrize(
  "wrong, message",
  [
    (
      lambda: plots.plot_curves(EPOCHS, {"forget": [0.1]}),
      r"forget must have shape \(4,\), got \(1,\)",
    ),
    (
      lambda: plots.plot_curves([1, 2], {"x": [0, 1]}, members=[2, 4]),
      r"members \[4\] are not among the epochs \[1 2\]",
    ),
    (
      lambda: plots.plot_weights([1, 2], {"KF": np.ones((2, 2))}),
      r"KF must have shape \(2,\), got \(2, 2\)",
    ),
    (
      lambda: plots.plot_class_forgetting("ab", [1, 0], null=[1]),
      r"null must have shape \(2,\), got \(1,\)",
    ),
    (
      lambda: plots.plot_methods_compared({}, value="nll"),
      r"value must be one of \['accuracy', 'gain'\], got 'nll'",
    ),
    (
      lambda: plots.plot_curves_compared({"mine": ([1, 2], [0.1])}),
      r"mine must have shape \(2,\), got \(1,\)",
    ),
    (
      lambda: plots.plot_label_noise(np.ones((2, 3)), "ab"),
      r"counts must be \[K, K\] for 2 class_names, got shape \(2, 3\)",
    ),
    (
      lambda: plots.plot_forgotten_examples(
        np.zeros((3, 2, 2, 1)), np.zeros((2, 4)), np.zeros(3), class_names="a"
      ),
      r"must agree; got shapes \(3, 2, 2, 1\), \(2, 4\) and \(3,\)",
    ),
  ],
)
def test_errors_name_the_argument_and_both_shapes(wrong, message):
  with pytest.raises(ValueError, match=message):
    wrong()


def test_known_methods_have_names_and_others_stay_readable():
  assert plots.method_name("kf") == "Knowledge Fusion"
  assert plots.method_name("my_rule") == "My rule"
