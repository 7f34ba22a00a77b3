"""Forgetting against plain loops, its identities, and lazily read stacks."""

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import numpy as jnp

from kfkd_jax import forgetting, stacks

_SHAPES = [(1, 1), (1, 7), (2, 1), (5, 9), (12, 40)]


def _random_correct(shape, seed=0):
  return np.random.default_rng(seed).random(shape) < 0.6


def _random_probs(num_checkpoints, num, num_classes, seed=0):
  """Probabilities of few distinct values, so that ties happen."""
  rng = np.random.default_rng(seed)
  probs = rng.integers(1, 4, (num_checkpoints, num, num_classes)).astype(float)
  return (probs / probs.sum(2, keepdims=True)).astype(np.float32)


def _plain_classes(probs):
  classes = np.zeros(probs.shape[:2], int)
  for c, rows in enumerate(probs):
    for n, row in enumerate(rows):
      best = 0
      for k, value in enumerate(row):
        if value > row[best]:
          best = k
      classes[c, n] = -1 if any(v != v for v in row) else best
  return classes


def _plain_curves(correct, reference):
  size = len(reference)
  rows = []
  for row in correct:
    accuracy = sum(bool(r) for r in row) / size
    forget = sum(bool(r and not ref) for r, ref in zip(row, reference)) / size
    learn = sum(bool(ref and not r) for r, ref in zip(row, reference)) / size
    wrong = sum(not ref for ref in reference) / size
    rows.append((accuracy, forget, learn, accuracy * wrong))
  return np.asarray(rows).T


class _Lazy:
  """A stack that only says its shape and hands out one checkpoint."""

  def __init__(self, probs):
    self.shape = probs.shape
    self._probs = probs
    self.reads = []

  def __getitem__(self, index):
    assert isinstance(index, int)
    self.reads.append(index)
    return self._probs[index]


@pytest.mark.parametrize(
  "num_checkpoints, num, num_classes",
  [(1, 1, 2), (3, 1, 2), (1, 20, 5), (4, 30, 3)],
)
@pytest.mark.parametrize("with_nan", [False, True])
def test_correctness_against_loops(num_checkpoints, num, num_classes, with_nan):
  probs = _random_probs(num_checkpoints, num, num_classes)
  labels = np.random.default_rng(1).integers(0, num_classes, num)
  if with_nan:  # where it would make the label the argmax
    probs[0, 0, labels[0]] = np.nan
  classes = _plain_classes(probs)
  np.testing.assert_array_equal(forgetting.predicted_classes(probs), classes)
  expected = classes == labels
  for given in (
    probs,
    jnp.asarray(probs),
    list(probs),
    _Lazy(probs),
    probs.astype(np.float64),
  ):
    actual = forgetting.correctness(given, labels)
    np.testing.assert_array_equal(actual, expected)
    assert isinstance(actual, jax.Array) == isinstance(given, jax.Array)
  jitted = jax.jit(forgetting.correctness)(probs, labels)
  np.testing.assert_array_equal(jitted, expected)


def test_lazy_stack_is_read_once_in_order_and_in_chunks(monkeypatch):
  monkeypatch.setattr(stacks, "CHUNK", 12)  # 4 rows of 3 classes
  probs = _random_probs(3, 21, 3)
  lazy = _Lazy(probs)
  np.testing.assert_array_equal(
    forgetting.predicted_classes(lazy), _plain_classes(probs)
  )
  assert lazy.reads == [0, 1, 2]


def test_half_precision_memory_map(tmp_path):
  probs = _random_probs(3, 50, 4).astype(np.float16)
  stored = np.memmap(
    tmp_path / "probs", np.float16, mode="w+", shape=probs.shape
  )
  stored[:] = probs
  actual = forgetting.predicted_classes(stored)
  assert type(actual) is np.ndarray
  np.testing.assert_array_equal(actual, _plain_classes(probs))


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("own_reference", [False, True])
def test_curves_against_loops(shape, own_reference):
  correct = _random_correct(shape)
  reference = _random_correct(shape, seed=9)[0] if own_reference else None
  expected = _plain_curves(
    correct, correct[-1] if reference is None else reference
  )
  actual = forgetting.forgetting_curves(correct, reference)
  for got, wanted in zip(actual, expected):
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, atol=1e-6)
  jitted = jax.jit(forgetting.forgetting_curves)(correct, reference)
  np.testing.assert_allclose(jitted, expected, atol=1e-6)
  np.testing.assert_array_equal(
    forgetting.forget_fractions(correct, reference), actual.forget
  )
  np.testing.assert_array_equal(
    forgetting.learn_fractions(correct, reference), actual.learn
  )


@hypothesis.given(shape=st.sampled_from(_SHAPES), seed=st.integers(0, 10_000))
def test_identities(shape, seed):
  correct = _random_correct(shape, seed)
  accuracy, forget, learn, null = map(
    np.asarray, forgetting.forgetting_curves(correct)
  )
  end = correct[-1]
  # acc_E = acc_e + L_e - F_e
  np.testing.assert_allclose(accuracy + learn - forget, end.mean(), atol=1e-6)
  assert forget[-1] == learn[-1] == 0
  tiny = 1e-6
  assert (forget <= np.minimum(accuracy, 1 - end.mean()) + tiny).all()
  assert (learn <= np.minimum(end.mean(), 1 - accuracy) + tiny).all()
  np.testing.assert_allclose(
    forget + learn, (correct != end).mean(1), atol=1e-6
  )
  cover = (correct | end).mean(1)
  np.testing.assert_allclose(forget, cover - end.mean(), atol=1e-6)
  assert (null <= accuracy + tiny).all()


@hypothesis.given(
  shape=st.sampled_from(_SHAPES[1:]), seed=st.integers(0, 10_000)
)
def test_order_and_copies_of_examples_change_nothing(shape, seed):
  correct = _random_correct(shape, seed)
  order = np.random.default_rng(seed).permutation(shape[1])
  expected = forgetting.forgetting_curves(correct)
  for other in (correct[:, order], np.concatenate([correct, correct], 1)):
    np.testing.assert_allclose(
      forgetting.forgetting_curves(other), expected, atol=1e-6
    )


def test_relabelling_classes_changes_nothing():
  rng = np.random.default_rng(3)
  probs, labels = rng.random((3, 20, 4)), rng.integers(0, 4, 20)
  classes = rng.permutation(4)
  np.testing.assert_array_equal(
    forgetting.correctness(probs[:, :, classes], np.argsort(classes)[labels]),
    forgetting.correctness(probs, labels),
  )


def test_nothing_wrong_at_the_end_is_nothing_forgotten():
  correct = np.asarray([[0, 1, 1], [1, 1, 1]], bool)
  assert forgetting.forget_fractions(correct).tolist() == [0, 0]
  assert forgetting.time_to_forget(correct).tolist() == [0, 0]


def test_null_is_what_independence_gives():
  rng = np.random.default_rng(0)
  correct = rng.random((5, 100_000)) < np.linspace(0.2, 0.8, 5)[:, None]
  curves = forgetting.forgetting_curves(correct)
  # five standard deviations of a share of 100,000
  np.testing.assert_allclose(
    curves.forget[:-1], curves.null[:-1], atol=5 * 0.5 / 100_000**0.5
  )


@pytest.mark.parametrize("shape", _SHAPES)
def test_last_right_and_time_to_forget_against_loops(shape):
  correct = _random_correct(shape, seed=2)
  correct[:, 0] = False  # never right
  last = [max([-1, *np.flatnonzero(column)]) for column in correct.T]
  counts = np.zeros(shape[0], int)
  for column, when in zip(correct.T, last):
    if when >= 0 and not column[-1]:
      counts[when] += 1
  np.testing.assert_array_equal(forgetting.last_right(correct), last)
  np.testing.assert_array_equal(forgetting.time_to_forget(correct), counts)
  np.testing.assert_array_equal(jax.jit(forgetting.last_right)(correct), last)
  np.testing.assert_array_equal(
    jax.jit(forgetting.time_to_forget)(correct), counts
  )


@hypothesis.given(shape=st.sampled_from(_SHAPES), seed=st.integers(0, 10_000))
def test_forgotten_never_right_and_known_are_everything(shape, seed):
  correct = _random_correct(shape, seed)
  forgotten = int(forgetting.time_to_forget(correct).sum())
  never = int((forgetting.last_right(correct) == -1).sum())
  assert forgotten + never + correct[-1].sum() == shape[1]


@pytest.mark.parametrize("own_reference", [False, True])
def test_curves_by_class_are_the_curves_of_each_class(own_reference):
  correct = _random_correct((4, 30))
  labels = np.random.default_rng(1).choice([0, 2, 3], 30)  # no class 1
  reference = _random_correct((1, 30), seed=5)[0] if own_reference else None
  by_class = jax.jit(forgetting.forgetting_curves_by_class, static_argnums=2)
  actual = by_class(correct, labels, 4, reference)
  for k in (0, 2, 3):
    own = labels == k
    expected = _plain_curves(
      correct[:, own], (correct[-1] if reference is None else reference)[own]
    )
    np.testing.assert_allclose(
      [values[:, k] for values in actual], expected, atol=1e-6
    )
  for values in actual:
    assert values.shape == (4, 4)
    assert np.isnan(values[:, 1]).all()
  sizes = np.bincount(labels, minlength=4)
  whole = forgetting.forgetting_curves(correct, reference)
  np.testing.assert_allclose(
    np.nansum(np.asarray(actual.forget) * sizes, 1) / 30,
    whole.forget,
    atol=1e-6,
  )


def _plain_memorisation(classes, given, clean):
  rows = []
  for row in classes:
    flipped = [n for n in range(len(given)) if given[n] != clean[n]]
    others = [n for n in range(len(given)) if given[n] == clean[n]]
    memorised = [row[n] == given[n] for n in flipped]
    right = [row[n] == clean[n] for n in flipped]
    wrong = [not a and not b for a, b in zip(memorised, right)]
    hit = [row[n] == clean[n] for n in others]
    rows.append(
      [np.mean(x) if x else np.nan for x in (memorised, right, wrong, hit)]
    )
  return np.asarray(rows).T


@pytest.mark.parametrize(
  "num_checkpoints, num, num_classes", [(1, 1, 2), (3, 20, 2), (4, 30, 5)]
)
@pytest.mark.parametrize("noise", ["none", "some", "all"])
def test_memorisation_against_loops(num_checkpoints, num, num_classes, noise):
  rng = np.random.default_rng(num)
  classes = rng.integers(0, num_classes, (num_checkpoints, num))
  clean = rng.integers(0, num_classes, num)
  share = {"none": 0, "some": 0.5, "all": 1}[noise]
  given = (clean + (rng.random(num) < share)) % num_classes
  expected = _plain_memorisation(classes, given, clean)
  actual = forgetting.memorisation(classes, given, clean)
  np.testing.assert_allclose(actual, expected, atol=1e-6)
  jitted = jax.jit(forgetting.memorisation)(classes, given, clean)
  np.testing.assert_allclose(jitted, expected, atol=1e-6)


_CORRECT = np.ones((3, 4), bool)


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda: forgetting.correctness(np.ones((2, 3, 4)), np.zeros(2, int)),
      r"labels must be int\[N\] .* shape \(2,\) .* \(2, 3, 4\)",
    ),
    (
      lambda: forgetting.correctness(np.ones((3, 4)), np.zeros(4)),
      r"probs must be \[C, N, K\].* got shape \(3, 4\)",
    ),
    (
      lambda: forgetting.correctness(np.ones((0, 3, 4)), np.zeros(3)),
      r"got shape \(0, 3, 4\)",
    ),
    (lambda: forgetting.correctness([], np.zeros(3)), r"got shape \(0,\)"),
    (
      lambda: forgetting.correctness(jnp.ones((2, 0, 4)), np.zeros(0)),
      r"got shape \(2, 0, 4\)",
    ),
    (
      lambda: forgetting.correctness(
        [np.ones((3, 2)), np.ones((3, 4))], np.zeros(3, int)
      ),
      r"first one's shape, \(3, 2\); got \(3, 4\)",
    ),
    (
      lambda: forgetting.forget_fractions(_CORRECT, np.ones(3)),
      r"reference .* got shapes \(3,\) and \(3, 4\)",
    ),
    (
      lambda: forgetting.forget_fractions(np.ones(3)),
      r"correct must be \[C, N\].* got \(3,\)",
    ),
    (
      lambda: forgetting.last_right(np.ones((3, 0))),
      r"correct must be \[C, N\].* got \(3, 0\)",
    ),
    (
      lambda: forgetting.forgetting_curves_by_class(_CORRECT, np.ones(3), 2),
      r"got shapes \(3, 4\) and \(3,\)",
    ),
    (
      lambda: forgetting.memorisation(_CORRECT, np.ones(4), np.ones(3)),
      r"got shapes \(3, 4\), \(4,\) and \(3,\)",
    ),
  ],
)
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call()
