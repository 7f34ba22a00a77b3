"""The functional door: its names, their documentation and their errors."""

import doctest
import inspect
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from jax import numpy as jnp

import kfkd_jax as kfkd

MODULES = [
  name
  for name in kfkd.__all__
  if isinstance(getattr(kfkd, name), types.ModuleType)
]
NAMES = sorted(set(kfkd.__all__) - set(MODULES))
FUNCTIONS = [n for n in NAMES if not inspect.isclass(getattr(kfkd, n))]


def test_the_names_are_those_that_are_documented():
  documented = {
    name
    for name in re.findall(r"`(\w+)`", kfkd.__doc__)
    if name not in ("theory",)
  }
  assert documented == set(NAMES)
  assert len(kfkd.__all__) == len(set(kfkd.__all__))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_says_what_goes_in_and_comes_out(name):
  function = getattr(kfkd, name)
  assert function.__name__ == name
  arguments, _, results = function.__doc__.partition("Args:")[2].partition(
    "Returns:"
  )
  for parameter in inspect.signature(function).parameters:
    assert re.search(rf"^ +{parameter}: \S", arguments, re.M), parameter
  assert re.search(r"\[.*\]|Fusion|pytree", results)
  tests = doctest.DocTestFinder(recurse=False).find(
    function, globs=vars(sys.modules[function.__module__])
  )
  assert sum(len(test.examples) for test in tests) >= 1


def test_importing_brings_no_more_than_jax_and_numpy():
  code = (
    "import sys, kfkd_jax\n"
    "heavy = {'flax', 'optax', 'orbax', 'chex', 'scipy', 'sklearn',\n"
    "  'matplotlib', 'tensorflow_datasets', 'ml_collections', 'PIL'}\n"
    "print(*sorted(heavy & set(sys.modules)))\n"
  )
  found = subprocess.run(
    [sys.executable, "-c", code], check=True, capture_output=True, text=True
  )
  assert found.stdout.split() == []


# What a user gets wrong first.

PROBS = np.full((3, 5, 4), 0.25, np.float32)
LABELS = np.asarray([0, 1, 2, 3, 0])
LOGITS = np.random.default_rng(0).normal(size=PROBS.shape) * 3
RULES = [kfkd.correctness, kfkd.knowledge_fusion, kfkd.mixture_fusion]
SCORES = [
  kfkd.negative_log_likelihood,
  kfkd.brier_score,
  kfkd.calibration_error,
]


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
@pytest.mark.parametrize(
  "call",
  [lambda x, f=f: f(x, LABELS) for f in RULES[1:]]
  + [lambda x, f=f: f(x[0], LABELS) for f in SCORES]
  + [
    lambda x: kfkd.fuse(x, [0.5, 0.5, 0]),
    lambda x: kfkd.distillation(x[0], x[1]),
    lambda x: kfkd.cross_entropy(x[0], x[1]),
  ],
)
def test_logits_are_told_from_probabilities(call, asarray):
  with pytest.raises(
    ValueError, match=r"(probs|labels).* must hold class prob.*jax.nn.softmax"
  ):
    call(asarray(LOGITS))
  call(asarray(jax.nn.softmax(LOGITS)))


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_positive_numbers_that_sum_to_more_than_1_are_no_probabilities(asarray):
  with pytest.raises(ValueError, match="a row sums to 2 and"):
    kfkd.fuse(asarray(2 * PROBS), kfkd.final_only(3))


def test_values_are_not_looked_at_inside_jit():
  """What is refused outside, logits say, gives numbers of the right shape."""
  shapes = [
    jax.jit(kfkd.fuse)(LOGITS, kfkd.final_only(3)).shape,
    jax.jit(kfkd.negative_log_likelihood)(LOGITS[0], LABELS).shape,
    jax.jit(kfkd.distillation)(LOGITS[0], LOGITS[1]).shape,
    jax.jit(kfkd.correctness)(LOGITS, LABELS + 9).shape,
  ]
  assert shapes == [LOGITS.shape[1:], (), LABELS.shape, LOGITS.shape[:2]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("num_classes", [2, 1000])
def test_rounded_probabilities_are_probabilities(num_classes, dtype):
  rng = np.random.default_rng(0)
  probs = jnp.asarray(rng.dirichlet(np.full(num_classes, 0.3), (2, 100)), dtype)
  fused = kfkd.fuse(probs, kfkd.final_only(2))
  np.testing.assert_array_equal(fused, np.asarray(probs[1], np.float32))
  labels = rng.integers(num_classes, size=100)
  chosen = kfkd.knowledge_fusion(np.asarray(probs), labels)
  assert chosen.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("rule", RULES + SCORES + [kfkd.accuracy])
def test_labels_of_another_kind_are_told(rule, asarray):
  probs = asarray(PROBS if rule in RULES else PROBS[0])
  with pytest.raises(ValueError, match=r"one-hot, pass labels.argmax\(-1\)"):
    rule(probs, asarray(np.eye(4)[LABELS]))
  with pytest.raises(ValueError, match=r"float32.*pass labels.astype\(int\)"):
    rule(probs, asarray(LABELS.astype("float32")))
  with pytest.raises(ValueError, match=r"labels must be int\[N\].*\(3, 1\)"):
    rule(probs, asarray(np.zeros((3, 1), int)))


@pytest.mark.parametrize("rule", RULES + SCORES)
def test_labels_that_are_no_classes_are_told(rule):
  probs = PROBS if rule in RULES else PROBS[0]
  with pytest.raises(ValueError, match=r"labels must lie in 0\.\.3 .*1\.\.4"):
    rule(probs, LABELS + 1)


@pytest.mark.parametrize("rule", RULES)
def test_axes_in_another_order_are_told(rule):
  with pytest.raises(ValueError, match=r"pass np.swapaxes\(probs, 0, 1\)"):
    rule(np.swapaxes(PROBS, 0, 1), LABELS)
  with pytest.raises(ValueError, match=r"pass np.swapaxes\(probs, -1, -2\)"):
    rule(np.swapaxes(PROBS, 1, 2), LABELS)


def test_checkpoints_of_another_number_of_classes_are_told():
  rows = np.full((5, 2), 0.5)
  for rule in RULES:
    with pytest.raises(ValueError, match=r"\(5, 4\).*\(5, 2\)"):
      rule([PROBS[0], PROBS[1], rows], LABELS)
  with pytest.raises(ValueError, match=r"\(5, 4\) and \(5, 2\)"):
    kfkd.distillation(LOGITS[0], rows)


@pytest.mark.parametrize(
  "checkpoints, message",
  [
    (
      [{"a": {"w": np.ones(2)}}, {"a": {"w": np.ones(2, "float16")}}],
      r"'a/w' has .*\(2,\) and dtype float64 .* 0 and .*float16 in .* 1\.",
    ),
    ([(np.ones(2),), [np.ones(2)]], "same containers; checkpoint 1 is"),
    ({"w": np.ones(2)}, "must be a list of pytrees.* got one dict"),
  ],
)
def test_checkpoints_that_differ_are_told(checkpoints, message):
  with pytest.raises(ValueError, match=message):
    kfkd.stack_checkpoints(checkpoints)


@pytest.mark.parametrize(
  "weights, message",
  [
    ([1.0, 1.0, 1.0], "sum of 3; divide them by it"),
    ([0.0, 0.0, 0.0], r"sum of 0\."),
    ([-0.5, 0.5, 1.0], "a minimum of -0.5 and a sum of 1"),
    ([np.nan, 0.5, 0.5], "sum of nan"),
    ([np.inf, 0.0, 0.0], r"sum of inf\."),
  ],
)
def test_weights_that_are_not_convex_are_refused(weights, message):
  weights, stacked = np.array(weights), np.ones((3, 5, 2), np.float32)
  probs = np.full((3, 4, 2), 0.5)
  calls = [
    lambda w: kfkd.fuse(probs, w),
    lambda w: kfkd.fuse(jnp.asarray(probs), jnp.asarray(w)),
    lambda w: kfkd.fused_predict(
      lambda v, x: x @ v, stacked, w, np.ones((1, 5), np.float32)
    ),
    lambda w: kfkd.averaging.weighted_average(stacked, w),
    lambda w: kfkd.fusion.mixture_gap(probs[:, :, 0], w),
  ]
  for call in calls:
    with pytest.raises(ValueError, match=message) as caught:
      call(weights)
    assert "\n" not in str(caught.value)
  traced = jax.jit(calls[0])(weights)  # their values are not known
  assert traced.shape == (4, 2)


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: kfkd.accuracy(np.eye(2), [0, 2]), "labels must lie in 0..1"),
    (lambda: kfkd.accuracy(np.eye(2), [0, -1]), "labels must lie in 0..1"),
    (
      lambda: kfkd.brier_score(np.eye(2), [0, 2], where=[False, True]),
      "labels must lie in 0..1",
    ),
    (
      lambda: kfkd.calibration_error(5 * np.eye(2), [0, 1], where=[True, True]),
      "If these are logits",
    ),
    (lambda: kfkd.accuracy(np.eye(3), [0, 1, 2], where=[0, 1, 2]), "booleans"),
    (
      lambda: kfkd.accuracy(np.zeros((2, 0)), [0, 0]),
      r"probs must be \[N, K\]",
    ),
    (lambda: kfkd.cross_entropy(np.eye(2), [0, 2]), "labels must lie in 0..1"),
    (
      lambda: kfkd.cross_entropy(np.eye(2), [0, 1], label_smoothing=2.0),
      "label_smoothing must be in 0..1; got 2.0",
    ),
    (
      lambda: kfkd.distillation(np.eye(2), np.eye(2), [0, 1], alpha=np.ones(3)),
      r"alpha must be a scalar or \[B\]",
    ),
    (
      lambda: kfkd.forgetting_curves([[0, 2], [1, 1]]),
      "correct must hold bool",
    ),
    (lambda: kfkd.last_right([[0.5, 1], [1, 1]]), "correct must hold booleans"),
    (
      lambda: kfkd.learn_fractions([[0, 1], [1, 1]], [3, 1]),
      "reference must hold booleans",
    ),
    (lambda: kfkd.asymmetric({0: 1.5}, 0.2, num_classes=3), "whole numbers"),
    (
      lambda: kfkd.corrupt_labels(jax.random.key(0), [0.5, 1], np.eye(2)),
      "labels must hold whole numbers; got float64",
    ),
    (lambda: kfkd.symmetric(2.5, 0.2), "at least 2 and whole; got 2.5"),
    (lambda: kfkd.horizontal(3, 1.5), "num_members must .* got 1.5"),
    (lambda: kfkd.final_only(2.5), "num_checkpoints must be a whole number"),
    (
      lambda: kfkd.knowledge_fusion(np.full((1, 1, 2), 0.5), [0], window=0.5),
      "window must be a whole number; got 0.5",
    ),
  ],
)
def test_plain_misuse_is_told_in_one_line(call, message):
  with pytest.raises(ValueError, match=message) as caught:
    call()
  assert "\n" not in str(caught.value)


def test_what_a_mask_leaves_out_may_hold_anything():
  probs, where = np.array([[0.5, 0.5], [9.0, np.nan]]), [True, False]
  assert kfkd.accuracy(probs, [0, 7], where=where) == 1
  assert kfkd.brier_score(probs, [0, 7], where=where) == 0.5


def test_a_teacher_that_is_not_a_number_is_no_loss_of_zero():
  teacher = np.array([[np.nan, np.nan], [0.5, 0.5]])
  found = kfkd.distillation(np.zeros((2, 2)), teacher)
  assert np.isnan(found).tolist() == [True, False]
