"""DKD, DIST, standardised and relational distillation against plain loops."""

import jax
import numpy as np
import pytest
from jax.test_util import check_grads

from kfkd_jax import losses

_SHAPES = [(1, 2), (6, 3)]


def _random(shape, seed=0):
  rng = np.random.default_rng(seed)
  probs = rng.dirichlet(np.ones(shape[1]), shape[0]).astype(np.float32)
  logits = 2 * rng.standard_normal(shape).astype(np.float32)
  return logits, probs, rng.integers(0, shape[1], shape[0])


def _softmax(row, temperature=1.0):
  powers = [np.exp(float(z) / temperature) for z in row]
  return [p / sum(powers) for p in powers]


def _tempered(row, temperature):
  return _softmax([np.log(float(p)) for p in row], temperature)


def _kl(a, b):
  return sum(x * np.log(x / y) for x, y in zip(a, b, strict=True))


def _without(row, k):
  rest = [x for j, x in enumerate(row) if j != k]
  return [x / sum(rest) for x in rest]


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_distillation_against_loops(shape, temperature):
  logits, teacher, labels = _random(shape)
  expected = []
  for z, t, y in zip(logits, teacher, labels, strict=True):
    s, t = _softmax(z, temperature), _tempered(t, temperature)
    two_way = _kl([t[y], 1 - t[y]], [s[y], 1 - s[y]])
    others = _kl(_without(t, y), _without(s, y))
    expected.append(temperature**2 * (1.5 * two_way + 3 * others))
  options = {
    "label_weight": 1.5,
    "other_weight": 3.0,
    "temperature": temperature,
  }
  for given in (labels, np.eye(shape[1], dtype=np.float32)[labels]):
    actual = losses.decoupled_distillation(logits, teacher, given, **options)
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=1e-5)


def test_decoupled_terms_add_up_to_distillation():
  logits, teacher, labels = _random((6, 4))
  rest = 1 - np.asarray(losses.temper(teacher, 2.0))[np.arange(6), labels]
  parts = [
    losses.decoupled_distillation(
      logits, teacher, labels, label_weight=a, other_weight=b, temperature=2.0
    )
    for a, b in ((1, 0), (0, 1))
  ]
  np.testing.assert_allclose(
    parts[0] + rest * parts[1],
    losses.distillation(logits, teacher, temperature=2.0),
    rtol=1e-4,
  )


@pytest.mark.parametrize("shape", _SHAPES)
def test_standardized_distillation_against_loops(shape):
  logits, teacher, _ = _random(shape)

  def standard(row):
    mean = sum(row) / len(row)
    deviation = np.sqrt(sum((x - mean) ** 2 for x in row) / (len(row) - 1))
    return [(x - mean) / deviation for x in row]

  expected = [
    4 * _kl(_softmax(standard(np.log(t)), 2.0), _softmax(standard(z), 2.0))
    for z, t in zip(logits, teacher, strict=True)
  ]
  actual = losses.standardized_distillation(logits, teacher)
  np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-6)


def test_standardized_distillation_hears_a_very_confident_teacher_whole():
  logits = np.random.default_rng(0).standard_normal((1, 4)).astype(np.float32)
  own = jax.nn.softmax(60 * logits)  # down to 1e-20
  assert own.min() < 1e-12
  found = losses.standardized_distillation(logits, own)
  np.testing.assert_allclose(found, 0, atol=1e-6)


def test_standardized_distillation_minds_neither_size_nor_shift():
  logits, teacher, _ = _random((5, 4))
  plain = losses.standardized_distillation(logits, teacher)
  changed = losses.standardized_distillation(7 * logits - 3, teacher)
  np.testing.assert_allclose(changed, plain, rtol=1e-3, atol=1e-5)
  own = jax.nn.softmax(logits)
  same = losses.standardized_distillation(logits, own)
  np.testing.assert_allclose(same, 0, atol=1e-5)


def _pearson(a, b):
  a, b = np.asarray(a, float), np.asarray(b, float)
  a, b = a - a.mean(), b - b.mean()
  norms = np.sqrt((a * a).sum()) * np.sqrt((b * b).sum())
  return (a * b).sum() / norms if norms > 1e-7 else 0.0


@pytest.mark.parametrize("shape", _SHAPES)
def test_correlation_distance_against_loops(shape):
  logits, teacher, _ = _random(shape)
  s = np.asarray([_softmax(z, 4.0) for z in logits])
  t = np.asarray([_tempered(row, 4.0) for row in teacher])
  columns = np.mean([1 - _pearson(a, b) for a, b in zip(s.T, t.T)])
  expected = [
    16 * (2 * (1 - _pearson(a, b)) + 3 * columns)
    for a, b in zip(s, t, strict=True)
  ]
  actual = losses.correlation_distance(
    logits, teacher, np.ones(shape[0]), between_examples=3.0
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-4)


def _plain_distances(features, keep):
  found = {}
  for i in keep:
    for j in keep:
      gap = features[i].astype(float) - features[j]
      found[i, j] = np.sqrt((gap * gap).sum())
  positive = [d for d in found.values() if d > 0]
  mean = sum(positive) / len(positive) if positive else 1.0
  return {pair: d / mean for pair, d in found.items()}


def _huber(x):
  return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def _plain_cosine(features, i, j, k):
  a, b = features[i] - features[j], features[k] - features[j]
  norms = np.linalg.norm(a) * np.linalg.norm(b)
  return a @ b / norms if norms > 0 else 0.0


_KEPT = [([0], 1), ([0, 1], 2), ([0, 2, 3], 5)]


@pytest.mark.parametrize("keep, num", _KEPT)
def test_relations_against_loops(keep, num):
  rng = np.random.default_rng(1)
  student = rng.standard_normal((num, 3)).astype(np.float32)
  teacher = rng.standard_normal((num, 6)).astype(np.float32)
  weight = np.isin(np.arange(num), keep).astype(np.float32)
  distances = jax.jit(losses.relational_distances)(student, teacher, weight)
  angles = jax.jit(losses.relational_angles)(student, teacher, weight)
  a, b = _plain_distances(student, keep), _plain_distances(teacher, keep)
  for j in keep:
    expected = np.mean([_huber(a[j, i] - b[j, i]) for i in keep])
    np.testing.assert_allclose(distances[j], expected, rtol=1e-4, atol=1e-6)
    expected = np.mean([
      _huber(_plain_cosine(student, i, j, k) - _plain_cosine(teacher, i, j, k))
      for i in keep
      for k in keep
    ])  # fmt: skip
    np.testing.assert_allclose(angles[j], expected, rtol=1e-4, atol=1e-6)


def test_relations_mind_neither_turning_nor_size():
  rng = np.random.default_rng(2)
  features = rng.standard_normal((5, 3)).astype(np.float32)
  turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
  other = (4 * features @ turn + 1).astype(np.float32)
  for relation in (losses.relational_distances, losses.relational_angles):
    np.testing.assert_allclose(
      relation(features, other, np.ones(5)), 0, atol=1e-6
    )


def _of_logits(name):
  _, teacher, labels = _random((4, 3))
  ones = np.ones(4)
  calls = {
    "decoupled": lambda z: losses.decoupled_distillation(z, teacher, labels),
    "standardized": lambda z: losses.standardized_distillation(z, teacher),
    "correlation": lambda z: losses.correlation_distance(z, teacher, ones),
    "distances": lambda z: losses.relational_distances(z, teacher, ones),
    "angles": lambda z: losses.relational_angles(z, teacher, ones),
  }
  return calls[name]


_NAMES = ["decoupled", "standardized", "correlation", "distances", "angles"]


@pytest.mark.parametrize("name", _NAMES)
def test_gradients(name):
  logits, _, _ = _random((4, 3))
  # Compiled, as it is used: it is the quicker way as well.
  jitted = jax.jit(_of_logits(name))
  check_grads(jitted, (logits,), 1, modes=("fwd", "rev"), atol=0.03, rtol=0.03)
  np.testing.assert_allclose(
    jitted(logits), _of_logits(name)(logits), rtol=1e-5
  )


@pytest.mark.parametrize("name", _NAMES)
def test_equal_logits_give_finite_gradients(name):
  with jax.debug_nans(True):
    gradient = jax.grad(lambda z: _of_logits(name)(z).sum())(np.zeros((4, 3)))
  assert np.abs(gradient).max() < 100


@pytest.mark.parametrize("name", _NAMES[:3])
def test_a_teacher_with_zeros_gives_finite_losses(name):
  logits, _, labels = _random((4, 3))
  teacher = np.eye(3, dtype=np.float32)[labels]
  calls = {
    "decoupled": lambda: losses.decoupled_distillation(logits, teacher, labels),
    "standardized": lambda: losses.standardized_distillation(logits, teacher),
    "correlation": lambda: losses.correlation_distance(
      logits, teacher, np.ones(4)
    ),
  }
  with jax.debug_nans(True):
    assert np.isfinite(calls[name]()).all()


@pytest.mark.parametrize(
  "loss", [losses.correlation_distance, losses.relational_distances,
           losses.relational_angles],
)  # fmt: skip
def test_rows_that_do_not_count_change_nothing(loss):
  logits, teacher, _ = _random((6, 3))
  weight = np.array([1, 1, 0, 1, 1, 0], np.float32)
  keep = np.flatnonzero(weight)
  np.testing.assert_allclose(
    loss(logits, teacher, weight)[keep],
    loss(logits[keep], teacher[keep], np.ones(4)),
    rtol=1e-4, atol=1e-6,
  )  # fmt: skip
