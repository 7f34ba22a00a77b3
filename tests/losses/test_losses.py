"""Losses against plain loops, their gradients and their limits."""

import functools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import numpy as jnp
from jax.test_util import check_grads

from kfkd_jax import losses

_SHAPES = [(1, 2), (6, 3)]


def _random(shape, seed=0, zeros=False):
  rng = np.random.default_rng(seed)
  logits = 2 * rng.standard_normal(shape).astype(np.float32)
  teacher = rng.dirichlet(np.ones(shape[1]), shape[0])
  if zeros:
    teacher[:, 0] = 0
    teacher /= teacher.sum(1, keepdims=True)
  return logits, teacher.astype(np.float32), rng.integers(0, shape[1], shape[0])


def _plain_softmax(row, temperature=1.0):
  powers = [np.exp(float(z) / temperature) for z in row]
  return [p / sum(powers) for p in powers]


def _plain_temper(row, temperature):
  powers = [float(p) ** (1 / temperature) if p > 0 else 0.0 for p in row]
  return [p / sum(powers) for p in powers]


def _plain_cross_entropy(logits, targets):
  return [
    -sum(t * np.log(p) for t, p in zip(target, _plain_softmax(row)))
    for row, target in zip(logits, targets)
  ]


def _plain_distillation(logits, teacher, labels, alpha, temperature):
  label_loss = _plain_cross_entropy(logits, np.eye(logits.shape[1])[labels])
  result = []
  for b, row in enumerate(logits):
    student = _plain_softmax(row, temperature)
    target = _plain_temper(teacher[b], temperature)
    kl = sum(t * np.log(t / s) for t, s in zip(target, student) if t > 0)
    result.append((1 - alpha) * label_loss[b] + alpha * temperature**2 * kl)
  return result


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_against_loops(shape, smoothing):
  logits, teacher, labels = _random(shape)
  one_hot = np.eye(shape[1])[labels]
  for given, probs in ((labels, one_hot), (teacher, teacher)):
    smooth = (1 - smoothing) * probs + smoothing / shape[1]
    expected = _plain_cross_entropy(logits, smooth)
    actual = losses.cross_entropy(logits, given, label_smoothing=smoothing)
    assert actual.shape == shape[:1]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    jitted = jax.jit(losses.cross_entropy)(
      logits, given, label_smoothing=smoothing
    )
    np.testing.assert_allclose(jitted, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize(
  ("alpha", "temperature"), [(0.0, 4.0), (0.5, 1.0), (1.0, 0.5), (1.5, 4.0)]
)
@pytest.mark.parametrize("zeros", [False, True])
def test_distillation_against_loops(shape, alpha, temperature, zeros):
  logits, teacher, labels = _random(shape, zeros=zeros)
  expected = _plain_distillation(logits, teacher, labels, alpha, temperature)
  actual = losses.distillation(
    logits, teacher, labels, alpha=alpha, temperature=temperature
  )
  assert actual.shape == shape[:1]
  np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)
  jitted = jax.jit(losses.distillation)(
    logits, teacher, labels, alpha=alpha, temperature=temperature
  )
  np.testing.assert_allclose(jitted, expected, rtol=2e-5, atol=2e-6)


def test_distillation_takes_soft_labels_and_an_alpha_per_example():
  logits, teacher, labels = _random((3, 4))
  soft = np.eye(4, dtype=np.float32)[labels]
  alpha = jnp.asarray([0.0, 0.5, 2.0])
  actual = losses.distillation(logits, teacher, soft, alpha=alpha)
  expected = [
    _plain_distillation(logits, teacher, labels, a, 1.0)[b]
    for b, a in enumerate(alpha.tolist())
  ]
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("shape", "temperature"), [((1, 2), 3.0), ((3, 5), 1.0), ((3, 5), 3.0)]
)
def test_gradients(shape, temperature):
  logits, teacher, labels = _random(shape, zeros=True)
  check = {"order": 1, "modes": ("fwd", "rev"), "atol": 0.02, "rtol": 0.02}
  for loss in (
    lambda z: losses.cross_entropy(z, labels),
    lambda z: losses.cross_entropy(z, teacher),
    lambda z: losses.distillation(
      z, teacher, labels, alpha=0.7, temperature=temperature
    ),
  ):
    check_grads(jax.jit(loss), (logits,), **check)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_teacher_gradient_in_closed_form(temperature):
  """The gradient of T^2 KL is T (student_T - teacher_T)."""
  logits, teacher, _ = _random((5, 4), zeros=True)
  actual = jax.grad(
    lambda z: losses.distillation(z, teacher, temperature=temperature).sum()
  )(logits)
  expected = [
    [
      temperature * (s - t)
      for s, t in zip(
        _plain_softmax(row, temperature), _plain_temper(target, temperature)
      )
    ]
    for row, target in zip(logits, teacher)
  ]
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_no_gradient_flows_into_the_teacher():
  logits, teacher, _ = _random((3, 4), zeros=True)
  gradient = jax.grad(lambda t: losses.distillation(logits, t).sum())(teacher)
  assert (np.asarray(gradient) == 0).all()


@hypothesis.given(
  seed=st.integers(0, 10_000),
  shape=st.sampled_from(_SHAPES),
  temperature=st.floats(0.5, 10),
)
def test_distillation_is_least_at_the_teacher(seed, shape, temperature):
  logits, teacher, _ = _random(shape, seed)
  loss = losses.distillation(logits, teacher, temperature=temperature)
  assert (loss >= -1e-4).all()  # T^2 = 100 times rounding
  own = np.asarray(jax.nn.softmax(logits))
  same = losses.distillation(logits, own, temperature=temperature)
  np.testing.assert_allclose(same, 0, atol=1e-3)


def test_distillation_at_t_1_is_soft_cross_entropy_less_entropy():
  logits, teacher, _ = _random((6, 3))
  entropy = -np.sum(teacher * np.log(teacher), axis=1)
  np.testing.assert_allclose(
    losses.distillation(logits, teacher),
    losses.cross_entropy(logits, teacher) - entropy,
    rtol=1e-4,
    atol=1e-6,
  )


def test_traced_alpha_needs_no_labels():
  logits, teacher, _ = _random((3, 4))
  jitted = jax.jit(losses.distillation)
  np.testing.assert_allclose(
    jitted(logits, teacher, alpha=0.5),
    0.5 * losses.distillation(logits, teacher),
    rtol=1e-6,
  )


def test_vmap_over_single_examples_equals_the_batch():
  logits, teacher, labels = _random((4, 3))
  np.testing.assert_allclose(
    jax.vmap(losses.cross_entropy)(logits, labels),
    losses.cross_entropy(logits, labels),
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    jax.vmap(losses.distillation)(logits, teacher, labels),
    losses.distillation(logits, teacher, labels),
    rtol=1e-6,
  )


def test_half_precision_logits_give_float32():
  logits, teacher, labels = _random((3, 4))
  rounded = jnp.asarray(logits, jnp.bfloat16)
  exact = rounded.astype(jnp.float32)
  for fn in (
    lambda z: losses.cross_entropy(z, labels),
    lambda z: losses.distillation(z, teacher, labels, alpha=0.5),
  ):
    assert fn(rounded).dtype == jnp.float32
    np.testing.assert_array_equal(fn(rounded), fn(exact))


@pytest.mark.parametrize("temperature", [0.01, 0.5, 1.0, 4.0, 100.0])
def test_temper_is_softmax_of_divided_logits(temperature):
  logits, _, _ = _random((6, 30))
  actual = losses.temper(jax.nn.softmax(logits), temperature)
  expected = jax.nn.softmax(logits / temperature)
  # at T = .01 the rounding of log p is multiplied by 100
  np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=1e-6)


def test_temper_keeps_zeros_with_finite_gradients():
  probs = jnp.asarray([[0.75, 0.25, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
  for temperature in (0.01, 1.0, 4.0):
    actual = losses.temper(probs, temperature)
    assert (np.asarray(actual)[probs == 0] == 0).all()
    np.testing.assert_allclose(actual.sum(1), [1, 0, 1], atol=1e-6)
    gradient = jax.grad(
      lambda p, t=temperature: losses.temper(p, t)[:, 0].sum()
    )
    assert np.isfinite(gradient(probs)).all()


def test_temper_gradient():
  probs = jnp.asarray([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]])
  temper = jax.jit(lambda p: losses.temper(p, 3.0))
  check_grads(temper, (probs,), 1, atol=0.02, rtol=0.02)


def test_zeros_make_no_nan_on_the_way():
  logits, teacher, _ = _random((3, 4), zeros=True)
  with jax.debug_nans(True):
    values = losses.distillation(logits, teacher, temperature=2.0)
  assert np.isfinite(values).all()


def test_padding_rows_of_zeros_give_finite_losses_and_gradients():
  loss, gradient = jax.value_and_grad(
    lambda z: losses.distillation(z, np.zeros((2, 3)), temperature=2.0).sum()
  )(jnp.zeros((2, 3)))
  assert loss == 0
  assert (gradient == 0).all()


def test_hard_targets_are_one_hot_and_ties_go_to_the_first():
  probs = np.asarray([[0.2, 0.8], [0.5, 0.5]])
  actual = losses.hard_targets(probs)
  assert actual.dtype == jnp.float32
  np.testing.assert_array_equal(actual, [[0, 1], [1, 0]])


def test_no_float32_overflow_at_large_logits():
  logits = jnp.asarray([[1e4, -1e4], [-1e4, 1e4]])
  np.testing.assert_allclose(losses.cross_entropy(logits, [0, 0]), [0, 2e4])
  loss = losses.distillation(logits, np.asarray([[1.0, 0.0], [1.0, 0.0]]))
  np.testing.assert_allclose(loss, [0, 2e4])


_LOGITS = np.zeros((4, 3), np.float32)


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda: losses.cross_entropy(_LOGITS, np.zeros(3, int)),
      r"labels .* got int32\[3\] for \[4, 3\]",
    ),
    (
      lambda: losses.cross_entropy(_LOGITS, np.zeros((4, 2), np.float32)),
      r"labels .* got float32\[4, 2\] for \[4, 3\]",
    ),
    (
      lambda: losses.cross_entropy(_LOGITS, np.zeros(4, np.float32)),
      r"labels .* got float32\[4\] for \[4, 3\]",
    ),
    (
      lambda: losses.distillation(_LOGITS, _LOGITS[:2]),
      r"got shapes \(4, 3\) and \(2, 3\)",
    ),
    (
      lambda: losses.distillation(_LOGITS, _LOGITS, alpha=0.5),
      "labels are needed where alpha is not 1; got 0.5",
    ),
    (
      lambda: losses.distillation(_LOGITS, _LOGITS, temperature=0.0),
      "temperature must be above 0; got 0.0",
    ),
    (lambda: losses.temper(_LOGITS, -1.0), "temperature .* got -1.0"),
  ],
)
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize(
  ("name", "inputs", "settings"),
  [
    ("generalised_cross_entropy", "y", {"q": 0.7}),
    ("symmetric_cross_entropy", "y", {"weights": (0.1, 1.0)}),
    (
      "decoupled_distillation",
      "ty",
      {"label_weight": 1.0, "other_weight": 8.0, "temperature": 4.0},
    ),
    ("standardized_distillation", "t", {"temperature": 2.0}),
    (
      "correlation_distance",
      "tw",
      {"between_classes": 2.0, "between_examples": 2.0, "temperature": 4.0},
    ),
  ],
)
def test_defaults_are_the_published_settings(name, inputs, settings):
  logits, teacher, labels = _random((6, 3))
  arrays = {"t": teacher, "y": labels, "w": np.ones(6, np.float32)}
  loss = functools.partial(
    getattr(losses, name), logits, *(arrays[x] for x in inputs)
  )
  np.testing.assert_array_equal(loss(), loss(**settings))
