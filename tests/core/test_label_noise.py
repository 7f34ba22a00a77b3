"""Label noise: matrices by hand, draws within binomial bounds."""

import hypothesis
import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

from kfkd_jax import label_noise

# CIFAR-100's superclasses by name; a fine label is the name's alphabetic rank.
_SUPERCLASSES = """
beaver dolphin otter seal whale
aquarium_fish flatfish ray shark trout
orchid poppy rose sunflower tulip
bottle bowl can cup plate
apple mushroom orange pear sweet_pepper
clock keyboard lamp telephone television
bed chair couch table wardrobe
bee beetle butterfly caterpillar cockroach
bear leopard lion tiger wolf
bridge castle house road skyscraper
cloud forest mountain plain sea
camel cattle chimpanzee elephant kangaroo
fox porcupine possum raccoon skunk
crab lobster snail spider worm
baby boy girl man woman
crocodile dinosaur lizard snake turtle
hamster mouse rabbit shrew squirrel
maple_tree oak_tree palm_tree pine_tree willow_tree
bicycle bus motorcycle pickup_truck train
lawn_mower rocket streetcar tank tractor
"""


def _uniform_labels(num, num_classes):
  return np.random.default_rng(0).integers(0, num_classes, num)


def _plain_estimate(clean, given, num_classes):
  matrix = np.eye(num_classes)
  for i in range(num_classes):
    own = [given[n] for n in range(len(clean)) if clean[n] == i]
    for j in range(num_classes):
      if own:
        matrix[i, j] = sum(g == j for g in own) / len(own)
  return matrix


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_symmetric_by_loops(num_classes, rate):
  expected = np.zeros((num_classes, num_classes))
  for i in range(num_classes):
    for j in range(num_classes):
      expected[i, j] = 1 - rate if i == j else rate / (num_classes - 1)
  actual = label_noise.symmetric(num_classes, rate)
  assert actual.dtype == np.float32
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_pair_goes_to_the_next_class_and_around():
  np.testing.assert_allclose(
    label_noise.pair(3, 0.4),
    [[0.6, 0.4, 0], [0, 0.6, 0.4], [0.4, 0, 0.6]],
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    label_noise.pair(2, 0.3), [[0.7, 0.3], [0.3, 0.7]], rtol=1e-6
  )


def test_asymmetric_dict_equals_sequence():
  as_dict = label_noise.asymmetric({1: 0, 2: 3}, 0.3, num_classes=4)
  as_sequence = label_noise.asymmetric([0, 0, 3, 3], 0.3)
  np.testing.assert_array_equal(as_dict, as_sequence)
  np.testing.assert_allclose(
    as_dict,
    [[1, 0, 0, 0], [0.3, 0.7, 0, 0], [0, 0, 0.7, 0.3], [0, 0, 0, 1]],
    rtol=1e-6,
  )


def test_cifar10_pairs_by_name():
  names = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
  ]
  moved = {
    names[i]: names[j]
    for i, j in enumerate(label_noise.CIFAR10_PAIRS)
    if i != j
  }
  assert moved == {
    "truck": "automobile",
    "bird": "airplane",
    "deer": "horse",
    "cat": "dog",
    "dog": "cat",
  }


def test_cifar100_next_in_superclass_by_name():
  groups = [line.split() for line in _SUPERCLASSES.strip().splitlines()]
  index = {name: i for i, name in enumerate(sorted(_SUPERCLASSES.split()))}
  assert len(index) == 100
  for group in groups:
    members = sorted(index[name] for name in group)
    for i, j in zip(members, members[1:] + members[:1]):
      assert label_noise.CIFAR100_NEXT_IN_SUPERCLASS[i] == j


@hypothesis.given(st.integers(2, 30), st.floats(0, 1), st.data())
def test_rows_sum_to_one(num_classes, rate, data):
  mapping = data.draw(
    st.lists(
      st.integers(0, num_classes - 1),
      min_size=num_classes,
      max_size=num_classes,
    )
  )
  for matrix in (
    label_noise.symmetric(num_classes, rate),
    label_noise.pair(num_classes, rate),
    label_noise.asymmetric(mapping, rate),
  ):
    label_noise.check_transition(matrix, num_classes=num_classes)
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize(
  ("kind", "num_classes", "rate"),
  [("symmetric", 2, 0.1), ("symmetric", 10, 0.8), ("pair", 10, 0.4)],
)
def test_realised_rate_within_binomial_bound(kind, num_classes, rate):
  clean = _uniform_labels(20_000, num_classes)
  transition = getattr(label_noise, kind)(num_classes, rate)
  given = label_noise.corrupt_labels(jax.random.key(1), clean, transition)
  low, high = scipy.stats.binom.interval(1 - 1e-5, clean.size, rate)
  changed = float(label_noise.realised_rate(clean, given)) * clean.size
  assert low <= changed <= high


def test_corrupt_labels_draws_each_cell_at_its_rate():
  transition = np.asarray([[0.5, 0.5, 0], [0, 0.1, 0.9], [0.25, 0.25, 0.5]])
  clean = _uniform_labels(30_000, 3)
  given = label_noise.corrupt_labels(jax.random.key(2), clean, transition)
  estimate = label_noise.estimate_transition(clean, given, 3)
  # five standard deviations of a share of about 10,000 draws
  np.testing.assert_allclose(estimate, transition, atol=5 * 0.5 / 100)
  assert (np.asarray(estimate)[transition == 0] == 0).all()


def test_corrupt_labels_same_key_same_labels_also_in_jit():
  clean = _uniform_labels(1000, 5)
  transition = label_noise.symmetric(5, 0.5)
  once = label_noise.corrupt_labels(jax.random.key(3), clean, transition)
  jitted = jax.jit(label_noise.corrupt_labels)(
    jax.random.key(3), clean, transition
  )
  other = label_noise.corrupt_labels(jax.random.key(4), clean, transition)
  assert once.dtype == np.int32
  np.testing.assert_array_equal(once, jitted)
  assert (once != other).any()


def test_corrupt_labels_does_not_depend_on_the_chunk(monkeypatch):
  clean = _uniform_labels(103, 5)
  transition = label_noise.symmetric(5, 0.5)
  whole = label_noise.corrupt_labels(jax.random.key(3), clean, transition)
  monkeypatch.setattr(label_noise, "_CHUNK", 10)
  parts = label_noise.corrupt_labels(jax.random.key(3), clean, transition)
  np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize("num", [0, 1])
def test_corrupt_few_labels(num):
  clean = np.ones(num, int)
  given = label_noise.corrupt_labels(
    jax.random.key(0), clean, label_noise.pair(2, 1.0)
  )
  np.testing.assert_array_equal(given, np.zeros(num))


@pytest.mark.parametrize("num_classes, num", [(2, 1), (3, 40), (7, 20)])
def test_estimate_transition_by_loops(num_classes, num):
  rng = np.random.default_rng(num)
  clean = rng.integers(0, num_classes, num)
  given = rng.integers(0, num_classes, num)
  expected = _plain_estimate(clean, given, num_classes)
  np.testing.assert_allclose(
    label_noise.estimate_transition(clean, given, num_classes),
    expected,
    rtol=1e-6,
  )
  jitted = jax.jit(label_noise.estimate_transition, static_argnums=2)
  np.testing.assert_allclose(
    jitted(clean, given, num_classes), expected, rtol=1e-6
  )


def test_realised_rate_by_hand():
  assert float(label_noise.realised_rate([0, 1, 2, 3], [0, 1, 2, 0])) == 0.25


@pytest.mark.parametrize(
  ("num_classes", "rate"), [(2, 0.4), (5, 0.05), (5, 1.0)]
)
def test_instance_dependent_rate(num_classes, rate):
  inputs = np.random.default_rng(1).standard_normal((20_000, 3, 2))
  clean = _uniform_labels(20_000, num_classes)
  given = label_noise.instance_dependent(
    jax.random.key(0), inputs, clean, num_classes, rate
  )
  given = np.asarray(given)
  expected = scipy.stats.truncnorm.mean(
    (0 - rate) / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1
  )
  # five standard deviations of a share of 20,000 draws
  assert abs(np.mean(clean != given) - expected) < 5 * 0.5 / 20_000**0.5
  assert given.dtype == np.int32
  assert given.min() >= 0
  assert given.max() < num_classes


def test_instance_dependent_follows_the_input():
  """Far from the origin the softmax is sharp: an input has one wrong class."""
  inputs = 1000 * np.random.default_rng(2).standard_normal((30, 8))
  clean = _uniform_labels(30, 6)
  given = label_noise.instance_dependent(
    jax.random.key(0), np.repeat(inputs, 100, 0), np.repeat(clean, 100), 6, 0.5
  )
  wrong = [
    {int(g) for g in copies if g != label}
    for copies, label in zip(np.asarray(given).reshape(30, 100), clean)
  ]
  assert np.mean([len(targets) == 1 for targets in wrong]) > 0.9
  # and inputs of one class go to several
  assert (
    max(
      len(set.union(*[w for w, label in zip(wrong, clean) if label == c]))
      for c in range(6)
    )
    > 1
  )


def test_every_draw_takes_a_key_of_its_own():
  """Whether a label flips says nothing of where to, or of its rate."""
  inputs = np.random.default_rng(0).normal(size=(20, 4))
  with jax.debug_key_reuse(True):  # raises where a key serves twice
    given = label_noise.instance_dependent(
      jax.random.key(0), inputs, np.arange(20) % 3, 3, 0.4
    )
  assert set(np.asarray(given).tolist()) <= {0, 1, 2}


def test_parts_of_one_data_set_share_what_is_mistaken_for_what():
  """The same images in two parts, so large that a score decides alone."""
  inputs = 1000 * np.random.default_rng(0).normal(size=(200, 8))
  labels = np.arange(200) % 4
  first, second, apart = (
    np.asarray(
      label_noise.instance_dependent(
        jax.random.key(seed), inputs, labels, 4, 0.5, projections=shared
      )
    )
    for seed, shared in (
      (1, None), (2, jax.random.key(1)), (2, None)
    )
  )  # fmt: skip
  for other, alike in ((second, True), (apart, False)):
    both = (first != labels) & (other != labels)
    assert 20 < both.sum() < 100
    assert (first[both] == other[both]).all() == alike


def test_instance_dependent_rate_zero_changes_nothing():
  clean = _uniform_labels(50, 3)
  given = label_noise.instance_dependent(
    jax.random.key(0), np.ones((50, 2)), clean, 3, 0.0
  )
  np.testing.assert_array_equal(given, clean)


def _instance_with(inputs, labels):
  return label_noise.instance_dependent(
    jax.random.key(0), inputs, labels, 3, 0.1
  )


def _corrupt(labels, transition):
  return label_noise.corrupt_labels(jax.random.key(0), labels, transition)


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda: label_noise.symmetric(1, 0.1),
      "classes .* at least 2 and whole; got 1",
    ),
    (
      lambda: label_noise.pair(0, 0.1),
      "classes .* at least 2 and whole; got 0",
    ),
    (lambda: label_noise.pair(3, 1.5), r"rate .* \[0, 1\]; got 1.5"),
    (lambda: label_noise.symmetric(3, float("nan")), "rate .* got nan"),
    (lambda: label_noise.asymmetric({0: 1}, 0.1), "num_classes is needed"),
    (
      lambda: label_noise.asymmetric({0: 3}, 0.1, num_classes=3),
      "mapping must lie in 0..2; got 3",
    ),
    (
      lambda: label_noise.asymmetric([1, 2, 3], 0.1),
      "mapping must lie in 0..2; got 3",
    ),
    (
      lambda: label_noise.asymmetric([1, 0], 0.1, num_classes=3),
      r"each of the 3 classes; got shape \(2,\)",
    ),
    (
      lambda: label_noise.check_transition(np.ones((2, 3))),
      r"shape \(2, 2\); got \(2, 3\)",
    ),
    (
      lambda: label_noise.check_transition(np.eye(2), num_classes=3),
      r"shape \(3, 3\); got \(2, 2\)",
    ),
    (lambda: label_noise.check_transition(1.0), r"got \(\)"),
    (
      lambda: label_noise.check_transition([[1.5, -0.5], [0, 1]]),
      "negative entries: -0.5",
    ),
    (
      lambda: label_noise.check_transition([[1, 0], [0.5, 0.4]]),
      "row 1 sums to 0.9",
    ),
    (lambda: _corrupt([0, 2], np.eye(2)), "labels must lie in 0..1; got 2"),
    (lambda: _corrupt([[0]], np.eye(2)), r"shape \[N\]; got \(1, 1\)"),
    (
      lambda: _instance_with(np.ones((2, 4)), [0]),
      r"got shapes \(2, 4\) and \(1,\)",
    ),
    (lambda: _instance_with(np.ones((1, 4)), [3]), "0..2; got 3"),
    (
      lambda: label_noise.realised_rate([0, 1], [0]),
      r"got \(2,\) and \(1,\)",
    ),
    (
      lambda: label_noise.estimate_transition([0, 1], [0, 5], 2),
      "given_labels must lie in 0..1; got 5",
    ),
  ],
)
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call()
