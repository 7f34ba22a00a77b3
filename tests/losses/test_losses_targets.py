"""Targets of the strategies against plain loops, and their limits."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.test_util import check_grads

from kfkd_jax import losses

_SHAPES = [(1, 2), (6, 3)]


def _random(shape, seed=0):
  rng = np.random.default_rng(seed)
  probs = rng.dirichlet(np.ones(shape[1]), shape[0]).astype(np.float32)
  logits = 2 * rng.standard_normal(shape).astype(np.float32)
  return logits, probs, rng.integers(0, shape[1], shape[0])


def _plain_blend(labels, probs, shares):
  rows = []
  for label, row, share in zip(labels, probs, shares, strict=True):
    rows.append([
      (1 - share) * (k == label) + share * float(p) for k, p in enumerate(row)
    ])  # fmt: skip
  return np.asarray(rows)


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_blended_targets_against_loops(shape, share):
  _, probs, labels = _random(shape)
  expected = _plain_blend(labels, probs, [share] * shape[0])
  for given in (labels, np.eye(shape[1], dtype=np.float32)[labels]):
    actual = jax.jit(losses.blended_targets)(given, probs, share)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
  shares = np.linspace(0, 1, shape[0])
  np.testing.assert_allclose(
    losses.blended_targets(labels, probs, shares),
    _plain_blend(labels, probs, shares),
    atol=1e-6,
  )


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.distillation])
def test_gradient_towards_a_blend_in_closed_form(shape, hard, loss):
  """dLoss/dz = p - (1 - l) y - l h, and (1 - l) (p - y) where h is p."""
  logits, _, labels = _random(shape)
  share = 0.3

  def total(z):
    own = jax.nn.softmax(z)
    own = losses.hard_targets(own) if hard else own
    return loss(z, losses.blended_targets(labels, own, share)).sum()

  p, y = np.asarray(jax.nn.softmax(logits)), np.eye(shape[1])[labels]
  h = np.eye(shape[1])[logits.argmax(-1)] if hard else p
  actual = jax.grad(total)(logits)
  np.testing.assert_allclose(actual, p - 0.7 * y - 0.3 * h, atol=1e-5)
  if not hard:
    np.testing.assert_allclose(actual, 0.7 * (p - y), atol=1e-5)


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("share", [0.5, 1.0, 1.5, 4.0])
def test_extrapolated_targets_against_loops(shape, share):
  _, probs, labels = _random(shape)
  expected = []
  for row in _plain_blend(labels, probs, [share] * shape[0]):
    kept = [max(x, 0.0) for x in row]
    expected.append([x / sum(kept) for x in kept])
  actual = losses.extrapolated_targets(labels, probs, share)
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  np.testing.assert_allclose(np.sum(actual, -1), 1, atol=1e-5)
  assert (np.asarray(actual) >= 0).all()


def test_extrapolated_targets_where_nothing_is_left_are_the_teacher():
  # The teacher is sure of the label: xi t + (1 - xi) y is the label again.
  actual = losses.extrapolated_targets([1], np.array([[0.0, 1.0]]), 3.0)
  np.testing.assert_allclose(actual, [[0, 1]], atol=1e-6)
  empty = losses.extrapolated_targets([1], np.array([[0.0, 0.0]]), 3.0)
  assert np.isfinite(np.asarray(empty)).all()


@pytest.mark.parametrize("shape", _SHAPES)
def test_agreement_targets_against_loops(shape):
  _, probs, labels = _random(shape)
  shares = [1 - probs[b, label] for b, label in enumerate(labels)]
  np.testing.assert_allclose(
    losses.agreement_targets(labels, probs),
    _plain_blend(labels, probs, shares),
    atol=1e-6,
  )


def test_agreement_keeps_what_is_believed_and_replaces_what_is_not():
  teacher = np.eye(3, dtype=np.float32)[[0, 1]]
  np.testing.assert_allclose(losses.agreement_targets([0, 2], teacher), teacher)


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("count", [1, 2])
def test_partial_targets_against_loops(shape, count):
  _, probs, _ = _random(shape)
  expected = np.zeros(shape)
  for b, row in enumerate(probs):
    for k in sorted(range(shape[1]), key=lambda k: -row[k])[:count]:
      expected[b, k] = 1 / count
  actual = jax.jit(losses.partial_targets, static_argnames="count")(
    probs, count=count
  )
  np.testing.assert_allclose(actual, expected)


def test_partial_targets_of_ties_go_to_the_first():
  actual = losses.partial_targets(np.full((2, 4), 0.25))
  np.testing.assert_allclose(actual, [[0.5, 0.5, 0, 0]] * 2)


@pytest.mark.parametrize(
  "target",
  [
    lambda y, p: losses.blended_targets(y, p, 0.4),
    lambda y, p: losses.extrapolated_targets(y, p, 1.5),
    losses.agreement_targets,
    lambda y, p: losses.partial_targets(p),
  ],
)
def test_no_gradient_flows_through_a_target(target):
  logits, probs, labels = _random((4, 3))
  gradient = jax.grad(
    lambda p: losses.cross_entropy(logits, target(labels, p)).sum()
  )(probs)
  assert (np.asarray(gradient) == 0).all()
  check_grads(
    lambda z: losses.cross_entropy(z, target(labels, probs)),
    (logits,),
    order=1,
    modes=("fwd", "rev"),
    atol=0.02,
    rtol=0.02,
  )
  np.testing.assert_allclose(
    jax.vmap(lambda y, p: target(y, p))(labels, probs),
    target(labels, probs),
    atol=1e-6,
  )


def test_labels_may_be_classes_or_probabilities():
  np.testing.assert_array_equal(
    losses.as_probs(np.array([2, 0]), 3), [[0, 0, 1], [1, 0, 0]]
  )
  soft = np.array([[0.5, 0.5]], np.float16)
  assert losses.as_probs(soft, 2).dtype == jnp.float32


_PROBS = np.full((4, 3), 1 / 3, np.float32)


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: losses.as_probs(_PROBS, 4), r"labels .* K = 4; got float32\[4, 3"),
    (
      lambda: losses.blended_targets(np.zeros(4, int), _PROBS, np.zeros(3)),
      r"share .* got shapes \(3,\) and \(4, 3\)",
    ),
    (lambda: losses.partial_targets(_PROBS, count=4), "count .* K = 3.*got 4"),
  ],
)
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call()
