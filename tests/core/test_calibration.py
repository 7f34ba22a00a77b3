"""Temperature scaling: the optimum of a grid, and calibrated stays so."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfkd_jax import calibration, losses, metrics


def make(seed, size=400, classes=5, sharpness=1.0):
  """Probabilities whose labels are drawn from them at another sharpness."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(size, classes)) * 2
  true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  labels = np.array([rng.choice(classes, p=p) for p in true])
  said = np.exp(sharpness * logits)
  return said / said.sum(1, keepdims=True), labels


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_finds_how_sharp_the_probabilities_are(sharpness):
  probs, labels = make(0, size=4000, sharpness=sharpness)
  assert calibration.fit_temperature(probs, labels) == pytest.approx(
    sharpness, rel=0.1
  )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 4))
def test_no_temperature_of_a_grid_is_more_likely(seed, sharpness):
  probs, labels = make(seed, size=60, sharpness=sharpness)
  best = calibration.fit_temperature(probs, labels)

  def loss(temperature):
    return float(
      metrics.negative_log_likelihood(losses.temper(probs, temperature), labels)
    )

  grid = min(loss(t) for t in np.geomspace(0.05, 20, 60))
  assert loss(best) <= grid + 1e-4


def test_certain_and_always_right_stays_within_bounds():
  probs = np.eye(3)[[0, 1, 2]]
  assert 0.02 <= calibration.fit_temperature(probs, [0, 1, 2]) <= 50
  assert calibration.fit_temperature(probs, [1, 2, 0]) == pytest.approx(50, 0.1)


@pytest.mark.parametrize(
  ("probs", "labels"),
  [(np.ones((2, 2, 2)), [0, 1]), (np.ones((2, 2)), [0]), (np.ones((0, 2)), [])],
)
def test_shapes_that_do_not_fit_are_shown(probs, labels):
  with pytest.raises(ValueError, match="probs must be"):
    calibration.fit_temperature(probs, labels)
