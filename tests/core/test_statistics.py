"""Intervals and tests over runs, against plain loops and by hand."""

import itertools

import numpy as np
import pytest
from scipy import stats

from kfkd_jax import statistics


def made(num=3, runs=4, size=6, seed=0):
  """Totals and counts of examples measured up to three times."""
  rng = np.random.default_rng(seed)
  counts = rng.integers(0, 3, (num, size))
  counts[:, 0] = 1
  totals = rng.integers(-1, 2, (num, runs, size)) * counts[:, None]
  return totals, counts


def draws(generator, rows, size):
  """The indices that the bootstrap draws, a row each."""
  return generator.integers(size, size=(rows, size))


def plain_bootstrap(seed, totals, counts, num_samples, level):
  """The same draws, one mean at a time."""
  num, runs, size = totals.shape
  generator = np.random.default_rng(seed)
  drawn_runs = draws(generator, num_samples, runs)
  drawn_examples = draws(generator, num_samples, size)
  means = [[] for _ in range(num)]
  for some_runs, examples in zip(drawn_runs, drawn_examples):
    for r in range(num):
      by_run = []
      measured = sum(counts[r, n] for n in examples)
      for s in some_runs:
        total = sum(totals[r, s, n] for n in examples)
        by_run.append(total / measured if measured else None)
      if measured:
        means[r].append(sum(by_run) / len(by_run))
  tails = [(1 - level) / 2, (1 + level) / 2]
  return np.array([np.quantile(m, tails) for m in means]).T


@pytest.mark.parametrize(
  ("runs", "size"), [(4, 6), (1, 6), (4, 1), (1, 1), (3, 40)]
)
def test_bootstrap_is_that_of_plain_loops(runs, size):
  totals, counts = made(runs=runs, size=size)
  found = statistics.bootstrap_runs(
    7, totals, counts, num_samples=150, level=0.9
  )
  expected = plain_bootstrap(7, totals, counts, 150, 0.9)
  np.testing.assert_allclose(found, expected, atol=1e-12)


def test_bootstrap_in_chunks_covers_every_sample(monkeypatch):
  totals, counts = made(size=50)
  whole = statistics.bootstrap_runs(0, totals, counts, num_samples=4000)
  monkeypatch.setattr(statistics, "_CHUNK", 7 * 50)
  parts = statistics.bootstrap_runs(0, totals, counts, num_samples=4000)
  np.testing.assert_allclose(whole, parts, atol=0.03)


def test_run_means_are_those_of_plain_loops():
  totals, counts = made()
  expected = [
    [sum(run) / sum(count) for run in rows]
    for rows, count in zip(totals.tolist(), counts.tolist())
  ]
  found = statistics.run_means(totals, counts)
  np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_interval_is_as_wide_as_both_sources_of_chance_make_it():
  """Runs that differ by 0.1 a run, points by 0.5 a point; many of both."""
  rng = np.random.default_rng(0)
  runs, size = 60, 400
  run_effect = rng.normal(0, 0.1, (1, runs, 1))
  point_effect = rng.normal(0, 0.5, (1, 1, size))
  totals = run_effect + point_effect + rng.normal(0, 0.01, (1, runs, size))
  low, high = statistics.bootstrap_runs(
    0, totals, np.ones((1, size)), num_samples=4000
  )
  # Points that are shared by all runs do not average out over the runs.
  error = np.sqrt(0.1**2 / runs + 0.5**2 / size)
  assert (high - low)[0] == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_gains_of_equal_methods_have_an_interval_of_zero():
  found = statistics.bootstrap_runs(0, np.zeros((1, 3, 5)), np.ones((1, 5)))
  assert found.low == found.high == 0


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_sign_flips_by_enumeration(size):
  rng = np.random.default_rng(size)
  for gains in (rng.normal(size=size), rng.integers(-2, 3, size) / 10):
    seen = abs(sum(gains))
    at_least = [
      abs(sum(s * g for s, g in zip(signs, gains))) >= seen - 1e-12
      for signs in itertools.product((1, -1), repeat=size)
    ]
    expected = sum(at_least) / len(at_least)
    assert statistics.sign_flip_p_value(0, gains) == pytest.approx(expected)


def test_equal_sums_count_as_equal_however_they_round():
  rng = np.random.default_rng(0)
  for _ in range(20):
    points = rng.integers(-9, 10, 7)
    signs = itertools.product((1, -1), repeat=7)
    sums = [abs(sum(s * int(p) for s, p in zip(row, points))) for row in signs]
    expected = np.mean(np.array(sums) >= abs(int(points.sum())))
    found = statistics.sign_flip_p_value(0, points / 300)
    assert found == pytest.approx(expected)


def test_sign_flips_agree_with_scipy():
  gains = np.array([0.3, -0.1, 0.2, 0.5, 0.1, -0.05, 0.2])
  other = stats.permutation_test(
    (gains,), np.mean, permutation_type="samples", n_resamples=np.inf
  )
  assert statistics.sign_flip_p_value(0, gains) == pytest.approx(other.pvalue)


def test_smallest_p_value_and_no_gain_at_all():
  assert statistics.sign_flip_p_value(0, [0.1] * 5) == 2 / 32
  assert statistics.sign_flip_p_value(0, [0.0] * 5) == 1
  assert statistics.sign_flip_p_value(0, [0.1]) == 1


def test_sampled_signs_come_close_to_all_signs_and_never_to_zero():
  gains = np.random.default_rng(0).normal(0.25, 1, 14)
  exact = statistics.sign_flip_p_value(0, gains)
  sampled = statistics.sign_flip_p_value(0, gains, max_exact=10)
  assert 0.05 < exact < 0.95
  assert sampled == pytest.approx(exact, abs=0.01)
  sure = statistics.sign_flip_p_value(0, np.ones(40), num_samples=99)
  assert sure == 1 / 100


def test_no_gain_is_called_one_as_often_as_it_should():
  rng = np.random.default_rng(0)
  p_values = [
    statistics.sign_flip_p_value(0, rng.normal(size=8)) for _ in range(400)
  ]
  assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_holm_by_hand():
  found = statistics.holm([0.01, 0.04, 0.03, 0.005])
  np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02])
  np.testing.assert_allclose(statistics.holm([0.6, 0.5]), [1, 1])
  np.testing.assert_allclose(statistics.holm([0.02]), [0.02])
  np.testing.assert_allclose(statistics.holm([0.02, 0.02]), [0.04, 0.04])
  assert statistics.holm([]).shape == (0,)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: statistics.holm([1.5]), "p_values must be"),
    (lambda: statistics.holm([np.nan]), "p_values must be"),
    (lambda: statistics.sign_flip_p_value(0, []), "gains must be"),
    (lambda: statistics.sign_flip_p_value(0, [np.nan]), "gains must be"),
    (
      lambda: statistics.bootstrap_runs(0, np.ones((1, 2, 3)), np.ones((1, 2))),
      r"shapes \(1, 2, 3\) and \(1, 2\)",
    ),
    (
      lambda: statistics.run_means(np.ones((1, 2, 3)), np.zeros((1, 3))),
      "each row must hold a measured example",
    ),
    (
      lambda: statistics.bootstrap_runs(
        0, np.ones((1, 2, 3)), np.ones((1, 3)), level=1
      ),
      "level must lie",
    ),
    (
      lambda: statistics.bootstrap_runs(
        0, np.ones((1, 2, 3)), np.ones((1, 3)), num_samples=0
      ),
      "num_samples must be",
    ),
  ],
)
def test_mistakes_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call()
