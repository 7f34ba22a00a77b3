"""Predicted training of linear networks against training them."""

import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from kfkd_jax import forgetting
from kfkd_jax.theory import deep_linear


def _binary_problem(num=400, num_features=10, flipped=0.3, seed=0):
  """Returns inputs, labels of -1 and 1, some of them flipped."""
  rng = np.random.default_rng(seed)
  inputs = rng.standard_normal((num, num_features))
  inputs = inputs * np.linspace(2, 0.3, num_features)
  labels = np.sign(inputs @ rng.standard_normal(num_features))
  return inputs, np.where(rng.random(num) < flipped, -labels, labels)


def _trained(layers, inputs, targets, learning_rate, num_steps):
  train = jax.jit(deep_linear.train, static_argnames="num_steps")
  weights = train(
    layers,
    np.float32(inputs),
    np.float32(targets),
    learning_rate=learning_rate,
    num_steps=num_steps,
  )
  return np.asarray(weights, np.float64)


@pytest.mark.parametrize(
  "num, num_features, num_outputs", [(1, 1, 1), (9, 4, 1), (9, 4, 3), (3, 5, 2)]
)
def test_one_layer_is_exact(num, num_features, num_outputs):
  """Also where features outnumber examples and inputs are not centred."""
  rng = np.random.default_rng(0)
  inputs = rng.standard_normal((num, num_features)) + 0.5
  targets = rng.standard_normal((num, num_outputs))
  initial = rng.standard_normal((num_features, num_outputs))
  problem = deep_linear.principal_problem(inputs, targets)
  steps = [0, 1, 2, 50, 400]
  rate = 0.9 / problem.variances[0]
  options = {"learning_rate": rate}
  predicted = deep_linear.weights_at(problem, initial, steps, **options)
  scores = deep_linear.scores_at(problem, inputs, initial, steps, **options)
  weights, at = initial, {0: initial}
  for step in range(1, 401):
    weights = weights - rate * inputs.T @ (inputs @ weights - targets) / num
    at[step] = weights
  for row, step in enumerate(steps):
    np.testing.assert_allclose(
      problem.axes @ predicted[row], at[step], atol=1e-10
    )
    np.testing.assert_allclose(scores[row], inputs @ at[step], atol=1e-10)


def test_the_end_is_least_squares():
  inputs, labels = _binary_problem(30, 4)
  problem = deep_linear.principal_problem(inputs, labels[:, None])
  solution = np.linalg.lstsq(inputs, labels[:, None])[0]
  np.testing.assert_allclose(problem.axes @ problem.optimum, solution)
  end = deep_linear.weights_at(
    problem, np.ones((4, 1)), [np.inf], learning_rate=0.1
  )
  np.testing.assert_allclose(end[0], problem.optimum)
  scores = deep_linear.component_scores(problem, inputs)
  np.testing.assert_allclose(scores[-1], inputs @ solution)


def test_first_step_of_margins_follows_the_leading_components():
  """F(1) - F(0) = -rate y L sum_j (w_j(0) - w_j_opt) s_j x_j."""
  inputs, labels = _binary_problem(20, 3)
  problem = deep_linear.principal_problem(inputs, labels[:, None])
  initial = np.asarray([[0.3], [-1.0], [2.0]])
  scores = deep_linear.scores_at(
    problem, inputs, initial, [0, 1], learning_rate=0.01, num_layers=4
  )
  margins = labels * scores[..., 0]
  rotated = inputs @ problem.axes
  for n in range(20):
    total = 0.0
    for j in range(3):
      start = problem.axes[:, j] @ initial[:, 0]
      gap = start - problem.optimum[j, 0]
      total += gap * problem.variances[j] * rotated[n, j]
    np.testing.assert_allclose(
      margins[1, n] - margins[0, n], -0.01 * labels[n] * 4 * total
    )


@pytest.mark.parametrize("num_components", [1, 2, 4])
def test_components_against_projected_weights(num_components):
  inputs, labels = _binary_problem(25, 4)
  problem = deep_linear.principal_problem(inputs, labels[:, None])
  axes = problem.axes[:, :num_components]
  weights = axes @ axes.T @ np.linalg.lstsq(inputs, labels)[0]
  scores = deep_linear.component_scores(problem, inputs)
  np.testing.assert_allclose(
    scores[num_components - 1, :, 0], inputs @ weights, atol=1e-12
  )


@pytest.mark.parametrize("num_features", [1, 2, 5])
def test_sides_change_at_most_once_per_feature(num_features):
  """All lam_j are positive and distinct; the grid is every step."""
  most = 0
  for seed in range(100):
    rng = np.random.default_rng(seed)
    inputs, labels = _binary_problem(60, num_features, seed=seed)
    problem = deep_linear.principal_problem(inputs, labels[:, None])
    scores = deep_linear.scores_at(
      problem,
      inputs,
      rng.standard_normal((num_features, 1)),
      [*range(300), np.inf],
      learning_rate=0.5 / problem.variances[0],
    )
    changes = deep_linear.side_changes(labels * scores[..., 0] > 0)
    most = max(most, changes.max())
  assert most <= num_features
  assert most >= min(num_features, 2)  # the bound says something


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_training_against_plain_gradient_descent(num_layers):
  inputs, labels = _binary_problem(20, 3)
  layers = deep_linear.init_layers(
    jax.random.key(0), 3, 2, width=5, num_layers=num_layers
  )
  targets = np.stack([labels, -2 * labels], axis=1)
  weights = _trained(layers, inputs, targets, 0.05, 30)
  plain = [np.asarray(layer, np.float64) for layer in layers]
  for step in range(31):
    product = functools.reduce(np.matmul, plain)
    np.testing.assert_allclose(weights[step], product, atol=2e-5)
    outer = inputs.T @ (inputs @ product - targets) / 20
    slopes = []
    for i in range(num_layers):
      before = functools.reduce(np.matmul, plain[:i], np.eye(3))
      after = functools.reduce(
        lambda right, layer: layer @ right, plain[:i:-1], np.eye(2)
      )
      slopes.append(before.T @ outer @ after.T)
    plain = [w - 0.05 * s for w, s in zip(plain, slopes)]


@pytest.mark.parametrize("num_layers", [2, 3])
def test_wide_networks_forget_when_predicted(num_layers):
  inputs, labels = _binary_problem()
  problem = deep_linear.principal_problem(inputs, labels[:, None])
  options = {"learning_rate": 0.05 / num_layers}
  errors = []
  for width in (32, 1024):
    layers = deep_linear.init_layers(
      jax.random.key(1), 10, 1, width=width, num_layers=num_layers
    )
    weights = _trained(
      layers, inputs, labels[:, None], num_steps=300, **options
    )
    scores = deep_linear.scores_at(
      problem,
      inputs,
      weights[0],
      range(301),
      num_layers=num_layers,
      **options,
    )
    real = inputs @ weights
    errors.append(np.abs(scores - real).max() / np.abs(real).max())
  assert errors[1] < min(0.12, errors[0] / 2)

  real_times = deep_linear.forget_times(labels * real[..., 0] > 0)
  times = deep_linear.forget_times(labels * scores[..., 0] > 0)
  agree = (real_times > 0) == (times > 0)
  assert (real_times > 0).sum() > 30
  assert agree.mean() > 0.98
  both = (real_times > 0) & (times > 0)
  ranks = [np.argsort(np.argsort(t[both])) for t in (real_times, times)]
  assert np.corrcoef(*ranks)[0, 1] > 0.9


def test_leading_components_are_forgotten_first():
  """A tendency, so over many problems: five standard errors below 0."""
  correlations = []
  for seed in range(60):
    inputs, labels = _binary_problem(200, seed=seed)
    problem = deep_linear.principal_problem(inputs, labels[:, None])
    initial = np.random.default_rng(seed + 1000).standard_normal((10, 1))
    scores = deep_linear.scores_at(
      problem, inputs, initial, [*range(600), np.inf], learning_rate=0.05
    )
    times = deep_linear.forget_times(labels * scores[..., 0] > 0)
    parts = np.square(inputs @ problem.axes)
    leading = parts[:, :3].sum(axis=1) / parts.sum(axis=1)
    kept = times > 0
    correlations.append(stats.spearmanr(times[kept], leading[kept])[0])
  assert np.mean(correlations) < -3 * np.std(correlations) / np.sqrt(60)


def _plain_times(correct):
  times = []
  for n in range(correct.shape[1]):
    rows = correct[:, n].tolist()
    gone = rows[0] and not rows[-1]
    times.append(rows.index(False) if gone else -1)
  return times


def _plain_lost(correct):
  lost = np.zeros_like(correct)
  for c in range(len(correct)):
    for n in range(correct.shape[1]):
      later = any(correct[e, n] for e in range(c + 1, len(correct)))
      lost[c, n] = later and not correct[-1, n]
  return lost


@given(hnp.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 5))))
def test_who_was_right_when_against_loops(correct):
  np.testing.assert_array_equal(
    deep_linear.forget_times(correct), _plain_times(correct)
  )
  np.testing.assert_array_equal(
    deep_linear.lost_later(correct), _plain_lost(correct)
  )
  changes = [
    sum(a != b for a, b in itertools.pairwise(column)) for column in correct.T
  ]
  np.testing.assert_array_equal(deep_linear.side_changes(correct), changes)


def _plain_overlap(components, epochs):
  best, found = -1.0, None
  for first in range(len(epochs)):
    for last in range(first, len(epochs)):
      slope = (last - first) / max(len(components) - 1, 1)
      rows = [int(np.rint(first + slope * k)) for k in range(len(components))]
      both = sum((s & epochs[r]).sum() for s, r in zip(components, rows))
      either = sum((s | epochs[r]).sum() for s, r in zip(components, rows))
      if both / max(either, 1) > best:
        best, found = both / max(either, 1), (slope, first, rows)
  return found


@pytest.mark.parametrize(
  "shape", [(1, 1, 4), (3, 6, 30), (5, 2, 30), (4, 4, 9)]
)
def test_overlap_against_loops(shape):
  rng = np.random.default_rng(0)
  components = rng.random((shape[0], shape[2])) < 0.4
  epochs = rng.random((shape[1], shape[2])) < 0.4
  overlap = deep_linear.matched_overlap(components, epochs)
  slope, first, rows = _plain_overlap(components, epochs)
  assert (overlap.slope, overlap.offset) == (slope, first)
  for k, row in enumerate(rows):
    ours, theirs = (
      set(np.flatnonzero(components[k])),
      set(np.flatnonzero(epochs[row])),
    )
    union = len(ours | theirs)
    assert overlap.shared[k] == (len(ours & theirs) / union if union else 0)
    by_chance = len(ours) * len(theirs) / shape[2]
    union = len(ours) + len(theirs) - by_chance
    np.testing.assert_allclose(
      overlap.chance[k], by_chance / union if union else 0
    )


def test_overlap_finds_the_line_of_equal_sets():
  rng = np.random.default_rng(0)
  epochs = rng.random((21, 50)) < 0.3
  overlap = deep_linear.matched_overlap(epochs[3:20:4], epochs)
  assert (overlap.slope, overlap.offset) == (4.0, 3.0)
  np.testing.assert_array_equal(overlap.shared, 1.0)
  assert overlap.chance.max() < 0.5


def test_overlap_of_nothing_is_nothing():
  nothing = np.zeros((2, 3), bool)
  overlap = deep_linear.matched_overlap(nothing, nothing)
  assert not overlap.shared.any() and not overlap.chance.any()


def test_the_linear_theory_meets_its_own_training():
  """S(k) of a noisy problem shares far more with M(n) than by chance."""
  inputs, labels = _binary_problem()
  problem = deep_linear.principal_problem(inputs, labels[:, None])
  components = (
    labels * deep_linear.component_scores(problem, inputs)[..., 0] > 0
  )
  scores = deep_linear.scores_at(
    problem, inputs, np.zeros((10, 1)), range(1, 400), learning_rate=0.05
  )
  epochs = labels * scores[..., 0] > 0
  overlap = deep_linear.matched_overlap(
    deep_linear.lost_later(components), deep_linear.lost_later(epochs)
  )
  assert overlap.shared[:5].mean() > 3 * overlap.chance[:5].mean()


def test_many_classes_read_by_correctness():
  rng = np.random.default_rng(0)
  labels = np.arange(30) % 3
  inputs = rng.standard_normal((30, 5)) + np.eye(5)[labels]
  problem = deep_linear.principal_problem(inputs, np.eye(3)[labels])
  correct = forgetting.correctness(
    deep_linear.component_scores(problem, inputs), labels
  )
  weights = np.linalg.lstsq(inputs, np.eye(3)[labels])[0]
  np.testing.assert_array_equal(
    correct[-1], (inputs @ weights).argmax(1) == labels
  )


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_drawn_layers(num_layers):
  layers = deep_linear.init_layers(
    jax.random.key(0), 3, 2, width=900, num_layers=num_layers
  )
  sizes = [3, *[900] * (num_layers - 1), 2]
  assert [x.shape for x in layers] == list(itertools.pairwise(sizes))
  if num_layers > 1:
    first, last = np.asarray(layers[0]), np.asarray(layers[-1])
    np.testing.assert_allclose(first @ first.T, np.eye(3), atol=0.15)
    np.testing.assert_allclose(last.T @ last, np.eye(2), atol=0.15)


_PROBLEM = deep_linear.principal_problem(np.eye(3), np.ones((3, 2)))


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda: deep_linear.principal_problem(np.ones((3, 2)), np.ones(3)),
      r"targets \[N, K\]; got shapes \(3, 2\) and \(3,\)",
    ),
    (
      lambda: deep_linear.train(
        [], np.ones((3, 2)), np.ones((2, 1)), learning_rate=1, num_steps=1
      ),
      r"\(3, 2\) and \(2, 1\)",
    ),
    (
      lambda: deep_linear.weights_at(
        _PROBLEM, np.ones((3, 1)), [0], learning_rate=0.1
      ),
      r"initial must be .*\(3, 2\); got shape \(3, 1\)",
    ),
    (
      lambda: deep_linear.weights_at(
        _PROBLEM, np.ones((3, 2)), [0], learning_rate=4, num_layers=2
      ),
      r"2 / \(2 \* 0.3333\); got 4",
    ),
    (
      lambda: deep_linear.component_scores(_PROBLEM, np.ones((5, 2))),
      r"inputs must be \[N, D\] with D = 3 .*\(5, 2\)",
    ),
    (lambda: deep_linear.forget_times([True]), r"correct must .*\(1,\)"),
    (
      lambda: deep_linear.lost_later(np.ones((0, 2))),
      r"neither of them 0; got shape \(0, 2\)",
    ),
    (
      lambda: deep_linear.matched_overlap(np.ones((2, 3)), np.ones((2, 4))),
      r"one N; got shapes \(2, 3\) and \(2, 4\)",
    ),
    (
      lambda: deep_linear.init_layers(
        jax.random.key(0), 2, 2, width=0, num_layers=1
      ),
      "got 0 and 1",
    ),
  ],
)
def test_errors_name_what_is_wrong(call, message):
  with pytest.raises(ValueError, match=message):
    call()
