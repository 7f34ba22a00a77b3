"""GCE, SCE and ELR against plain loops, by gradient, and at their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from kfkd_jax import losses

ROWS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32) * 2
LABELS = np.array([0, 1, 2, 3, 1, 1])


def softmax(row):
  values = np.exp(row - row.max())
  return values / values.sum()


@pytest.mark.parametrize("q", [0.1, 0.7, 1.0])
def test_generalised_cross_entropy_against_the_formula(q):
  expected = [
    (1 - softmax(row)[y] ** q) / q for row, y in zip(ROWS, LABELS, strict=True)
  ]
  actual = losses.generalised_cross_entropy(ROWS, LABELS, q=q)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_generalised_cross_entropy_at_its_ends():
  plain = losses.cross_entropy(ROWS, LABELS)
  zero = losses.generalised_cross_entropy(ROWS, LABELS, q=0)
  np.testing.assert_array_equal(zero, plain)
  small = losses.generalised_cross_entropy(ROWS, LABELS, q=1e-4)
  np.testing.assert_allclose(small, plain, rtol=2e-3)
  two = losses.generalised_cross_entropy([[0.0, np.log(3)]], [1], q=1)
  np.testing.assert_allclose(two, [0.25], rtol=1e-6)


def test_generalised_cross_entropy_weighs_gradients_by_how_likely_they_are():
  """dL/dz = p_y^q (p - y): an unlikely label hardly counts."""
  q = 0.7
  grads = jax.grad(
    lambda z: losses.generalised_cross_entropy(z, LABELS, q=q).sum()
  )(ROWS)
  for row, y, grad in zip(ROWS, LABELS, grads, strict=True):
    p = softmax(row)
    np.testing.assert_allclose(
      grad, p[y] ** q * (p - np.eye(4)[y]), rtol=1e-4, atol=1e-6
    )


def test_symmetric_cross_entropy_against_the_definition():
  expected = []
  for row, y in zip(ROWS, LABELS, strict=True):
    p = softmax(row)
    logs = np.where(np.eye(4)[y] > 0, 0.0, -4.0)  # log of the label
    expected.append(-0.3 * np.log(p[y]) - 0.7 * (p * logs).sum())
  actual = losses.symmetric_cross_entropy(ROWS, LABELS, weights=(0.3, 0.7))
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_early_learning_against_the_formula_and_by_gradient():
  targets = np.random.default_rng(1).dirichlet(np.ones(4), 6)
  expected, gradients = [], []
  for row, y, t in zip(ROWS, LABELS, targets, strict=True):
    p = softmax(row)
    expected.append(-np.log(p[y]) + 3 * np.log(1 - p @ t))
    inner = p * (t - p @ t) / (1 - p @ t)  # of -log(1 - <p, t>)
    gradients.append(p - np.eye(4)[y] - 3 * inner)
  actual = losses.early_learning(ROWS, LABELS, targets, weight=3.0)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
  grad = jax.grad(
    lambda z: losses.early_learning(z, LABELS, targets, weight=3.0).sum()
  )(ROWS)
  np.testing.assert_allclose(grad, gradients, rtol=1e-3, atol=1e-4)


def test_early_learning_sends_no_gradient_into_its_targets():
  grad = jax.grad(
    lambda t: losses.early_learning(ROWS, LABELS, t, weight=3.0).sum()
  )(jnp.full((6, 4), 0.25))
  np.testing.assert_array_equal(grad, 0)


def test_early_learning_stays_finite_where_all_agree():
  sure = np.array([[60.0, 0.0, 0.0, 0.0]], np.float32)
  targets = np.array([[1.0, 0.0, 0.0, 0.0]])

  def loss(z):
    return losses.early_learning(z, [0], targets, weight=3.0).sum()

  value, grad = jax.jit(jax.value_and_grad(loss))(sure)
  assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize("doubt", [2e-4, 5e-4, 0.01])
def test_early_learning_is_exact_down_to_its_clip(doubt):
  """1e-4, as in the authors' code: nearer to 1 it changes no more."""
  targets = np.array([[1.0, 0.0]])

  def pull(doubt):
    logits = [[np.log1p(-doubt), np.log(doubt)]]
    loss = losses.early_learning(logits, [0], targets, weight=3.0)
    return (loss - losses.cross_entropy(logits, [0])) / 3

  np.testing.assert_allclose(pull(doubt), np.log(doubt), rtol=1e-3)
  np.testing.assert_allclose(pull(1e-6), np.log(1e-4), rtol=1e-3)


@pytest.mark.parametrize(
  "loss",
  [
    lambda z, y: losses.generalised_cross_entropy(z, y, q=0.7),
    losses.symmetric_cross_entropy,
  ],
)
def test_labels_as_probabilities_one_example_and_gradients(loss):
  one_hot = np.eye(4, dtype=np.float32)[LABELS]
  np.testing.assert_allclose(loss(ROWS, one_hot), loss(ROWS, LABELS), rtol=1e-5)
  np.testing.assert_allclose(
    loss(ROWS[:1], LABELS[:1]), loss(ROWS, LABELS)[:1], rtol=1e-6
  )
  jitted = jax.jit(lambda z: loss(z, LABELS))
  check_grads(jitted, (ROWS,), order=1, modes=["rev"])
