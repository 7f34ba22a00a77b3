"""What the selecting points choose of a grid, before fusing and after it."""

import numpy as np
import pytest

from kfkd_jax.config import ConfigError
from kfkd_jax.lab import choosing
from kfkd_jax.report import tables
from kfkd_jax.run import results

NUM = 20
COSTS = dict.fromkeys(
  ("nll", "ece", "brier", "train_cost", "inference_cost", "storage_cost"), 1.0
)


def cell(select_final, select_kf, final, kf):
  """A finished cell that has so many of the 20 test points right."""
  right = np.arange(NUM)
  hits = np.stack([right < final, right < kf])[None]
  run = tables.Run(
    [{"method": m, **COSTS} for m in ("final", "kf")],
    results.Hits(
      np.array(["final", "kf"]), right, hits,
      np.ones((1, NUM), bool), np.ones((1, 2), bool),
    ),
  )  # fmt: skip
  return choosing.Finished(run, {"final": select_final, "kf": select_kf})


SHORT, LONG = ("train.epochs=15",), ("train.epochs=60",)


def lines_of(points):
  *lines, _, said = choosing.compare(points, "kf").splitlines()
  return lines[2:], said


def test_the_order_is_reversed_by_fusing():
  """Test points say the contrary of what selected, and choose nothing."""
  points = {
    SHORT: {0: cell(0.8, 0.85, 10, 18), 1: cell(0.8, 0.85, 12, 18)},
    LONG: {0: cell(0.7, 0.95, 16, 15), 1: cell(0.7, 0.95, 16, 13)},
  }
  (by_final, by_kf, gain), said = lines_of(points)
  assert by_final == (
    "| final | train.epochs=15 | 80.00 | 85.00 | 55.00 ± 5.00 | 90.00 ± 0.00 |"
  )
  assert by_kf == (
    "| kf | train.epochs=60 | 70.00 | 95.00 | 80.00 ± 0.00 | 70.00 ± 5.00 |"
  )
  # Paired by seed: final gains 6 and 4 of 20 points, KF loses 3 and 5.
  assert gain.startswith("| gain, paired |  |  |  | +25.00 ± 5.00 (+")
  assert "| -20.00 ± 5.00 (-" in gain
  assert said == (
    "Of 2 points over 2 seeds, what is best before kf is not best after it; "
    "by one seed alone, both choose the same point in 0 of 2."
  )


def test_the_order_stays():
  points = {
    SHORT: {0: cell(0.8, 0.9, 10, 12)},
    LONG: {0: cell(0.7, 0.8, 16, 18)},
  }
  (by_final, by_kf, gain), said = lines_of(points)
  assert "train.epochs=15" in by_final and "train.epochs=15" in by_kf
  # Of one seed there is neither an error nor an interval.
  assert gain == "| gain, paired |  |  |  | +0.00 | +0.00 |"
  assert said == (
    "Of 2 points over 1 seed, both choose the same point; by one seed alone, "
    "both choose the same point in 1 of 1."
  )


def test_seeds_that_a_point_lacks_choose_nothing():
  """Seed 1 would turn the choice, and is finished at one point alone."""
  points = {
    SHORT: {0: cell(0.8, 0.9, 10, 12)},
    LONG: {0: cell(0.7, 0.8, 16, 18), 1: cell(1.0, 1.0, 16, 18)},
  }
  (by_final, by_kf, _), said = lines_of(points)
  assert "train.epochs=15" in by_final and "train.epochs=15" in by_kf
  assert "over 1 seed," in said
  del points[LONG][0]
  with pytest.raises(ConfigError, match="no seed is finished at every point"):
    choosing.compare(points, "kf")


def test_equal_means_choose_the_first():
  """Of the same counts, summed in another order."""
  assert choosing.choose([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]) == 0
  assert choosing.choose([[0.3, 0.2, 0.1], [0.1, 0.2, 0.3]]) == 0
  assert np.mean([0.1, 0.2, 0.3]) != np.mean([0.3, 0.2, 0.1])


def test_selecting_accuracy_is_of_what_selected_over_all_folds():
  def fold(accuracy, gain):
    return {"methods": {"kf": {"accuracy": accuracy, "gain": gain}}}

  rows = [
    {"method": "final", "accuracy": 0.1, "select_gain": None},
    {"method": "best_epoch", "accuracy": 0.1, "select_gain": 0.05},
    {"method": "best_epoch", "accuracy": 0.1, "select_gain": 0.15},
    {"method": "kf_kd", "accuracy": 0.9, "select_gain": None},
  ]
  found = choosing.selecting_accuracy(
    rows, {"folds": [fold(0.8, 0.1), fold(0.7, 0.2)]}
  )
  assert found == pytest.approx({"final": 0.6, "best_epoch": 0.7})
