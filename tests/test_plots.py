"""Figures hold the numbers they are given; SVG is deterministic and safe."""

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
    "examples": lambda: plots.plot_forgotten_examples(
      *examples(), class_names=names
    ),
    "colour_examples": lambda: plots.plot_forgotten_examples(
      *examples(channels=3), class_names=names, num_examples=2
    ),
  }[name]()


ALL = (
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
  "examples",
  "colour_examples",
)


def texts(svg):
  return [t.text or "" for t in ET.fromstring(svg).iter(f"{SVG}text")]


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
  subprocess.run([sys.executable, "-c", code], check=True)


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
