"""Tangent kernels against finite sums, and AIR against early stopping."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from kfkd_jax.theory import ntk, spectral


def _linear(params, inputs):
  return inputs @ params["kernel"] + params["bias"][None]


def _mlp(params, inputs):
  flat = inputs["a"].reshape(len(inputs["a"]), -1)
  hidden = jnp.tanh(flat @ params[0]) * inputs["b"][:, None]
  return hidden @ params[1]


def _mlp_case(num, num_classes=3, width=6, seed=0):
  rng = np.random.default_rng(seed)
  params = [
    rng.standard_normal((4, width)).astype(np.float32),
    rng.standard_normal((width, num_classes)).astype(np.float32),
  ]
  inputs = {
    "a": rng.standard_normal((num, 2, 2)).astype(np.float32),
    "b": rng.standard_normal(num).astype(np.float32),
  }
  return params, inputs


def _plain_ntk(params, inputs):
  """By hand for `_mlp`: the gradients of each logit, in float64."""
  first, last = (np.asarray(p, np.float64) for p in params)
  flat = inputs["a"].reshape(len(inputs["a"]), -1).astype(np.float64)
  hidden = np.tanh(flat @ first)
  gram = np.zeros((len(flat), len(flat)))
  for k in range(last.shape[1]):
    rows = []
    for x, h, b in zip(flat, hidden, inputs["b"]):
      by_last = np.zeros_like(last)
      by_last[:, k] = h * b
      by_first = np.outer(x, (1 - h**2) * b * last[:, k])
      rows.append(np.concatenate([by_first.ravel(), by_last.ravel()]))
    gram += np.asarray(rows) @ np.asarray(rows).T
  return gram / last.shape[1]


@pytest.mark.parametrize("num, num_classes", [(1, 1), (1, 3), (7, 2)])
@pytest.mark.parametrize("batch_size", [None, 1, 3, 7, 50])
def test_kernel_against_gradients_by_hand(num, num_classes, batch_size):
  params, inputs = _mlp_case(num, num_classes)
  gram = ntk.empirical_ntk(_mlp, params, inputs, batch_size=batch_size)
  assert gram.shape == (num, num) and gram.dtype == np.float32
  np.testing.assert_array_equal(gram, gram.T)
  np.testing.assert_allclose(
    gram, _plain_ntk(params, inputs), rtol=2e-5, atol=1e-5
  )
  assert spectral.eigensystem(gram).values.min() >= 0


def test_kernel_of_a_linear_model_is_that_of_its_inputs():
  inputs = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
  params = {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}
  gram = ntk.empirical_ntk(_linear, params, inputs, batch_size=4)
  np.testing.assert_allclose(gram, inputs @ inputs.T + 1, rtol=1e-5)
  half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
  rough = ntk.empirical_ntk(_linear, half, jnp.asarray(inputs, jnp.bfloat16))
  np.testing.assert_allclose(rough, inputs @ inputs.T + 1, atol=0.1)


def test_a_small_step_moves_outputs_by_the_kernel():
  """With one logit, f - rate G (f - y) is the step to first order."""
  params, inputs = _mlp_case(5, 1)
  targets = jnp.arange(5.0)
  rate = 1e-4

  def loss(params):
    return jnp.sum(jnp.square(_mlp(params, inputs)[:, 0] - targets)) / 2

  slopes = jax.grad(loss)(params)
  moved = [p - rate * s for p, s in zip(params, slopes)]
  before, after = _mlp(params, inputs)[:, 0], _mlp(moved, inputs)[:, 0]
  gram = ntk.empirical_ntk(_mlp, params, inputs)
  expected = -gram @ np.asarray(before - targets)
  change = np.asarray(after - before) / rate
  np.testing.assert_allclose(change, expected, atol=0.03 * abs(expected).max())


def test_the_same_function_compiles_once():
  params, inputs = _mlp_case(7)
  calls = []

  def apply_fn(params, inputs):
    calls.append(1)
    return _mlp(params, inputs)

  ntk.empirical_ntk(apply_fn, params, inputs, batch_size=3)
  # The shape, and a program each for a batch with itself and with another.
  assert len(calls) <= 4
  calls.clear()
  ntk.empirical_ntk(apply_fn, params, inputs, batch_size=3)
  assert len(calls) <= 1


@pytest.mark.parametrize("num, num_classes", [(1, 2), (8, 3)])
def test_projections_against_loops(num, num_classes):
  rng = np.random.default_rng(0)
  features = rng.standard_normal((num, num))
  system = spectral.eigensystem(features @ features.T)
  clean = rng.integers(0, num_classes, num)
  given = (clean + (rng.random(num) < 0.5)) % num_classes
  given[0] = (clean[0] + 1) % num_classes
  found = ntk.label_projections(system, clean, given, num_classes=num_classes)
  for name, kept in (("clean", False), ("noise", True)):
    parts = []
    for j in range(num):
      part = 0.0
      for k in range(num_classes):
        total = 0.0
        for n in range(num):
          value = (clean[n] == k) - 1 / num_classes
          if kept:
            value = float(given[n] == k) - float(clean[n] == k)
          total += system.vectors[n, j] * value
        part += total**2
      parts.append(part)
    expected = np.cumsum(parts) / np.sum(parts)
    np.testing.assert_allclose(getattr(found, name), expected, atol=1e-12)
  np.testing.assert_allclose(found.clean[-1], 1)


def test_clean_labels_lead_and_noise_does_not():
  """The anisotropy: a wide network on three clusters, 40 % wrong labels."""
  rng = np.random.default_rng(0)
  clean = np.arange(90) % 3
  flipped = rng.random(90) < 0.4
  given = np.where(flipped, (clean + rng.integers(1, 3, 90)) % 3, clean)
  centres = 2 * rng.standard_normal((3, 4))
  params, _ = _mlp_case(1, 3, width=200)
  inputs = {
    "a": np.float32(centres[clean] + 0.5 * rng.standard_normal((90, 4))),
    "b": np.ones(90, np.float32),
  }
  system = spectral.eigensystem(ntk.empirical_ntk(_mlp, params, inputs))
  found = ntk.label_projections(system, clean, given, num_classes=3)
  assert found.clean[2] > 0.6
  assert found.noise[2] < found.clean[2] / 3
  # So stopping early fits clean labels, and going on fits noise.
  early, late = ntk.flow_filters(system.values, [1e-3, 1e9])
  targets = np.eye(3)[given] - 1 / 3
  predicted = spectral.fitted(system, early, targets).argmax(axis=1)
  assert (predicted == clean).mean() > (given == clean).mean() + 0.2
  predicted = spectral.fitted(system, late, targets).argmax(axis=1)
  assert (predicted == given).mean() > 0.95


def test_without_noise_there_is_nothing_to_project():
  system = spectral.eigensystem(np.eye(3))
  found = ntk.label_projections(system, [0, 1, 1], [0, 1, 1], num_classes=2)
  assert np.isnan(found.noise).all() and not np.isnan(found.clean).any()


def _random_kernels(num=6):
  rng = np.random.default_rng(0)
  for _ in range(100):
    features = rng.standard_normal((num, rng.integers(1, 2 * num)))
    gram = features @ features.T
    yield gram / np.linalg.norm(gram, 2), rng.standard_normal(num), rng


def test_air_is_gradient_descent_with_a_shorter_step():
  for gram, targets, rng in _random_kernels():
    weights = rng.random(12)
    actual = ntk.air_trajectory(gram, targets, weights, learning_rate=1.5)
    outputs = np.zeros(6)
    for t, weight in enumerate(weights):
      np.testing.assert_allclose(actual[t], outputs, atol=1e-12)
      outputs = outputs - 1.5 * weight * gram @ (outputs - targets)
    np.testing.assert_allclose(actual[-1], outputs, atol=1e-12)


def test_closed_form_of_air():
  for gram, targets, rng in _random_kernels():
    weights = rng.random(12)
    system = spectral.eigensystem(gram)
    filters = ntk.air_filters(system.values, weights, learning_rate=1.5)
    np.testing.assert_allclose(
      spectral.fitted(system, filters, targets),
      ntk.air_trajectory(gram, targets, weights, learning_rate=1.5),
      atol=1e-12,
    )
  # Several outputs at once.
  both = np.stack([targets, -targets], axis=1)
  actual = ntk.air_trajectory(gram, both, weights, learning_rate=1.5)
  np.testing.assert_allclose(actual[..., 0], -actual[..., 1])
  np.testing.assert_allclose(
    spectral.fitted(system, filters, both), actual, atol=1e-12
  )


def test_air_is_early_stopping():
  """Half the sum of x^2 apart, by 1 - x <= exp(-x) <= 1 - x + x^2 / 2."""
  for gram, _, rng in _random_kernels():
    values = spectral.eigensystem(gram).values
    weights = rng.random(20)
    for rate in (1.0, 0.01):
      filters = ntk.air_filters(values, weights, learning_rate=rate)
      times = ntk.early_stopping_times(weights, learning_rate=rate)
      flow = ntk.flow_filters(values, times)
      steps = rate * weights[:, None] * values
      gap = np.concatenate([np.zeros((1, 6)), np.cumsum(steps**2, 0) / 2])
      assert np.all(filters >= flow - 1e-12)
      assert np.all(filters - flow <= gap + 1e-12)
  # And the more so the shorter the steps are, at one time.
  coarse = ntk.air_filters(values, [0.5] * 4, learning_rate=1.0)[-1]
  fine = ntk.air_filters(values, [0.5] * 4000, learning_rate=0.001)[-1]
  flow = ntk.flow_filters(values, 2.0)
  assert abs(coarse - flow).max() > 0.05
  assert abs(fine - flow).max() < 1e-3


def test_weights_of_finite_sum_never_memorise():
  values = np.asarray([1.0, 0.1])
  filters = ntk.air_filters(values, 0.5 ** np.arange(1, 200), learning_rate=0.9)
  # prod (1 - x_s) >= 1 - sum x_s, and the weights sum to 1.
  assert np.all(filters[-1] <= 0.9 * values + 1e-12)
  always = ntk.air_filters(values, np.ones(200), learning_rate=0.9)
  assert np.all(always[-1] > 0.99999)


def test_no_step_fits_nothing():
  assert ntk.air_filters([1.0, 2], [], learning_rate=1).tolist() == [[0, 0]]
  assert ntk.early_stopping_times([], learning_rate=1).tolist() == [0]


_EYE = spectral.eigensystem(np.eye(2))


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda: ntk.empirical_ntk(_linear, {}, np.ones((2, 3)), batch_size=0),
      "batch_size must be at least 1; got 0",
    ),
    (
      lambda: ntk.empirical_ntk(_linear, {}, np.ones((0, 3))),
      r"N above 0; got shapes \[\(0, 3\)\]",
    ),
    (
      lambda: ntk.empirical_ntk(_linear, {}, [np.ones(2), np.ones(3)]),
      r"one N above 0; got shapes \[\(2,\), \(3,\)\]",
    ),
    (
      lambda: ntk.empirical_ntk(lambda p, x: x[:, 0], {}, np.ones((2, 3))),
      r"logits \[B, K\]; got shape \(1,\)",
    ),
    (
      lambda: ntk.label_projections(_EYE, [0, 1], [0], num_classes=2),
      r"N = 2 .* \(2,\) and \(1,\)",
    ),
    (
      lambda: ntk.label_projections(_EYE, [0, 1], [0, 2], num_classes=2),
      r"0\.\.1; got 0\.\.2",
    ),
    (
      lambda: ntk.air_trajectory(np.eye(2), np.ones(3), [1.0], learning_rate=1),
      r"\(2, 2\) and \(3,\)",
    ),
    (
      lambda: ntk.air_filters([1.0], [0.5, 1.5], learning_rate=1),
      r"label_weights .* \(2,\), 0.5\.\.1.5",
    ),
  ],
)
def test_errors_name_what_is_wrong(call, message):
  with pytest.raises(ValueError, match=message):
    call()
