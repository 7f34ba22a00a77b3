"""Metrics against plain loops, masks against subsets, intervals."""

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import numpy as jnp

from kfkd_jax import metrics

_METRICS = {
  "accuracy": metrics.accuracy,
  "negative_log_likelihood": metrics.negative_log_likelihood,
  "brier_score": metrics.brier_score,
  "calibration_error": metrics.calibration_error,
  "top_2": lambda *args, **kwargs: metrics.top_k_accuracy(*args, k=2, **kwargs),
}


def _random(num, num_classes, seed=0, ties=False):
  rng = np.random.default_rng(seed)
  probs = rng.dirichlet(np.ones(num_classes), num)
  if ties:  # few distinct values
    probs = rng.integers(1, 3, (num, num_classes)).astype(float)
    probs /= probs.sum(1, keepdims=True)
  return probs.astype(np.float32), rng.integers(0, num_classes, num)


def _plain(name, probs, labels):
  """The metric `name` as loops."""
  values, bins = [], [[] for _ in range(15)]
  for row, label in zip(probs.astype(np.float64), labels):
    order = sorted(range(len(row)), key=lambda k: (-row[k], k))
    if name == "accuracy":
      values.append(order[0] == label)
    elif name == "top_2":
      values.append(label in order[:2])
    elif name == "negative_log_likelihood":
      values.append(-np.log(row[label]))
    elif name == "brier_score":
      values.append(sum((p - (k == label)) ** 2 for k, p in enumerate(row)))
    else:
      for b in range(15):
        if b / 15 < max(row) <= (b + 1) / 15:
          bins[b].append((order[0] == label, max(row)))
  if name != "calibration_error":
    return np.mean(values)
  return sum(
    abs(np.mean([hit for hit, _ in rows]) - np.mean([p for _, p in rows]))
    * len(rows)
    / len(labels)
    for rows in bins
    if rows
  )


@pytest.mark.parametrize("name", _METRICS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("num, num_classes", [(1, 2), (50, 2), (200, 7)])
def test_against_loops(name, num, num_classes, ties):
  probs, labels = _random(num, num_classes, seed=num, ties=ties)
  expected = _plain(name, probs, labels)
  actual = _METRICS[name](probs, labels)
  assert actual.shape == ()
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6)
  np.testing.assert_allclose(
    jax.jit(_METRICS[name])(probs, labels), expected, rtol=2e-6, atol=2e-6
  )


@pytest.mark.parametrize("name", _METRICS)
@hypothesis.given(seed=st.integers(0, 1000), num=st.sampled_from([1, 13]))
def test_mask_equals_subset(name, seed, num):
  probs, labels = _random(20, 3, seed=seed)
  where = np.arange(20) < num
  order = np.random.default_rng(seed).permutation(20)
  expected = _METRICS[name](probs[:num], labels[:num])
  probs[num:] = np.nan  # padding may hold anything
  labels[num:] = -1
  actual = _METRICS[name](probs[order], labels[order], where=where[order])
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", _METRICS)
def test_nothing_to_count_is_nan(name):
  probs, labels = _random(4, 3)
  assert np.isnan(_METRICS[name](probs, labels, where=np.zeros(4, bool)))


@pytest.mark.parametrize("name", _METRICS)
@hypothesis.given(seed=st.integers(0, 1000))
def test_permutations_change_nothing(name, seed):
  probs, labels = _random(20, 5, seed=seed)
  rng = np.random.default_rng(seed)
  rows, classes = rng.permutation(20), rng.permutation(5)
  shuffled = probs[rows][:, classes]
  relabelled = np.argsort(classes)[labels[rows]]
  np.testing.assert_allclose(
    _METRICS[name](shuffled, relabelled),
    _METRICS[name](probs, labels),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize("name", _METRICS)
def test_vmaps_over_checkpoints(name):
  probs = np.stack([_random(30, 4, seed=seed)[0] for seed in range(3)])
  labels = _random(30, 4)[1]
  actual = jax.vmap(_METRICS[name], in_axes=(0, None))(probs, labels)
  expected = [_METRICS[name](p, labels) for p in probs]
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_a_nan_row_is_never_right():
  probs = np.asarray([[np.nan, np.nan], [0.0, np.nan], [0.9, 0.1]])
  np.testing.assert_array_equal(metrics.hits(probs, [0, 0, 0]), [0, 0, 1])
  np.testing.assert_array_equal(metrics.hits(probs, [0, 0, 0], k=2), [0, 0, 1])


@pytest.mark.parametrize(
  "dtype, smallest", [(np.float32, 2.0**-126), (np.float16, 2.0**-24)]
)
def test_zero_probability_is_the_smallest_of_its_dtype(dtype, smallest):
  losses = metrics.log_losses(np.asarray([[0, 1]], dtype), [0])
  np.testing.assert_allclose(losses, -np.log([smallest]), rtol=1e-6)


def test_half_precision_is_summed_in_float32():
  probs = np.full((5000, 2), 0.5, np.float16)
  probs[0] = [0.75, 0.25]
  actual = metrics.brier_score(probs, np.zeros(5000, int))
  np.testing.assert_allclose(actual, 0.5 - 0.375 / 5000, rtol=1e-6)


@pytest.mark.parametrize(
  "probs, labels, expected",
  [
    ([[1.0, 0.0]] * 4, [0, 0, 0, 1], 0.25),  # confidence 1, right 3 in 4
    ([[0.6, 0.4]] * 5, [0, 0, 0, 1, 1], 0.0),  # calibrated
    ([[0.5, 0.5], [1.0, 0.0]], [1, 1], 0.75),  # two bins: .5 and 1 off
  ],
)
def test_calibration_error_by_hand(probs, labels, expected):
  np.testing.assert_allclose(
    metrics.calibration_error(probs, labels), expected, atol=1e-6
  )


def test_calibration_bins_hold_their_upper_end():
  probs = np.asarray([[0.5, 0.3, 0.2], [0.4, 0.3, 0.3]])
  # both in (0, .5], one of two right: |.5 - .45|
  np.testing.assert_allclose(
    metrics.calibration_error(probs, [1, 0], num_bins=2), 0.05, atol=1e-6
  )


def test_calibration_error_one_bin_is_the_overall_gap():
  probs, labels = _random(100, 3)
  gap = abs(probs.max(1).mean() - (probs.argmax(1) == labels).mean())
  np.testing.assert_allclose(
    metrics.calibration_error(probs, labels, num_bins=1), gap, rtol=1e-5
  )


def test_disagreement():
  a = np.asarray([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
  b = np.asarray([[0.6, 0.4], [0.4, 0.6], [0.3, 0.7]])
  np.testing.assert_allclose(metrics.disagreement(a, b), 1 / 3, rtol=1e-6)
  where = np.asarray([True, True, False])
  assert float(jax.jit(metrics.disagreement)(a, b, where=where)) == 0.5


@hypothesis.given(
  st.lists(st.lists(st.floats(-5, 5, width=32), max_size=7), max_size=6)
)
def test_mean_over_unequal_batches_is_the_mean_of_all(batches):
  mean = metrics.Mean.zero()
  for batch in batches:
    mean = mean.add(metrics.Mean.of(np.asarray(batch, np.float32)))
  values = [x for batch in batches for x in batch]
  if values:
    np.testing.assert_allclose(mean.value, np.mean(values), atol=1e-5)
  else:
    assert np.isnan(mean.value)


def test_mean_works_with_python_numbers():
  mean = metrics.Mean(3.0, 2).add(metrics.Mean(1.0, 2))
  assert float(mean.value) == 1.0
  assert np.isnan(metrics.Mean(0, 0).value)


def _plain_bootstrap(seed, scores, reference, num_samples):
  """Resampled means and gains, one example at a time."""
  size = len(reference)
  draws = np.random.default_rng(seed).integers(size, size=(num_samples, size))
  means = [[np.mean([s[i] for i in row]) for s in scores] for row in draws]
  bases = [np.mean([reference[i] for i in row]) for row in draws]
  return np.asarray(means), np.asarray(means) - np.asarray(bases)[:, None]


_PROBS = np.full((4, 3), 1 / 3, np.float32)


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda: metrics.accuracy(_PROBS, np.zeros(5, int)),
      r"labels must be int\[N\] where probs is \[N, K\].*\(5,\) .*\(4, 3\)",
    ),
    (
      lambda: metrics.brier_score(_PROBS[0], np.zeros(4, int)),
      r"got shapes \(3,\) and \(4,\)",
    ),
    (
      lambda: metrics.accuracy(
        _PROBS, np.zeros(4, int), where=np.ones(3, bool)
      ),
      r"where .* \(4,\); got \(3,\)",
    ),
    (
      lambda: metrics.calibration_error(
        _PROBS, np.zeros(4, int), where=np.ones(3, bool)
      ),
      r"where .* \(4,\); got \(3,\)",
    ),
    (
      lambda: metrics.top_k_accuracy(_PROBS, np.zeros(4, int), k=4),
      r"k must lie in 1..3 \(K\); got 4",
    ),
    (
      lambda: metrics.calibration_error(_PROBS, np.zeros(4, int), num_bins=0),
      "num_bins must be at least 1 and whole; got 0",
    ),
    (
      lambda: metrics.disagreement(_PROBS, _PROBS[:2]),
      r"probs_a and probs_b .* \(4, 3\) and \(2, 3\)",
    ),
  ],
)
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call()
