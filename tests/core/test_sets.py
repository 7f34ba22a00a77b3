"""Prediction sets keep their promise; refusals cost what they say."""

import itertools

import numpy as np
import pytest

from kfkd_jax import sets


def made(size=2000, classes=8, seed=0, sharpness=2.0):
  """Probabilities of an overconfident network, and labels."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(size, classes)) * 1.5
  true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  labels = (true.cumsum(1) > rng.random((size, 1))).argmax(1)
  said = np.exp(sharpness * logits)
  return said / said.sum(1, keepdims=True), labels


def scores_by_loops(probs, uniforms, penalty, num_free):
  found = np.empty(probs.shape)
  for n, row in enumerate(probs):
    order = sorted(range(len(row)), key=lambda k: (-row[k], k))
    for place, k in enumerate(order):
      mass = sum(row[j] for j in order[:place])
      extra = penalty * max(place + 1 - num_free, 0)
      found[n, k] = mass + uniforms[n] * row[k] + extra
  return found


@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize(("penalty", "num_free"), [(0, 0), (0.1, 0), (0.3, 2)])
def test_scores_are_those_of_plain_loops(classes, penalty, num_free):
  probs, _ = made(size=30, classes=classes)
  probs[::3] = 1 / classes  # ties
  uniforms = np.random.default_rng(1).random(30)
  for given, used in ((uniforms, uniforms), (None, np.ones(30))):
    np.testing.assert_allclose(
      sets.set_scores(
        probs, uniforms=given, penalty=penalty, num_free=num_free
      ),
      scores_by_loops(probs, used, penalty, num_free),
      atol=1e-12,
    )


def test_unlikely_classes_of_a_sure_network_do_not_tie():
  probs = np.array([[1 - 3e-10, 2e-10, 1e-10]])
  assert len(np.unique(sets.set_scores(probs))) == 3


# At 0.55 of 99, (n + 1) level is more than 55 by a rounding.
@pytest.mark.parametrize(
  ("num", "level", "place"),
  [(9, 0.9, 9), (19, 0.9, 18), (20, 0.9, 19), (99, 0.55, 55), (1, 0.5, 1)],
)
def test_threshold_is_the_score_of_that_rank(num, level, place):
  scores = np.random.default_rng(num).permutation(num)[:, None] + 1.0
  labels = np.zeros(num, int)
  assert sets.set_threshold(scores, labels, level=level) == place


def test_too_few_examples_let_every_class_in():
  scores = np.zeros((8, 3))
  assert sets.set_threshold(scores, np.zeros(8, int), level=0.9) == np.inf


@pytest.mark.parametrize("options", [{}, {"penalty": 0.1, "num_free": 2}])
@pytest.mark.parametrize("num", [49, 200])
def test_coverage_is_exact_over_a_thousand_resplits(num, options):
  """Within [level, level + 1/(n + 1)], but for the error of the mean."""
  probs, labels = made()
  level, rng = 0.88, np.random.default_rng(3)
  scores = sets.set_scores(probs, uniforms=rng.random(len(labels)), **options)
  own = scores[np.arange(len(labels)), labels]
  coverage = []
  for _ in range(1000):
    order = rng.permutation(len(labels))
    here, rest = order[:num], order[num:]
    threshold = sets.set_threshold(scores[here], labels[here], level=level)
    coverage.append(np.mean(own[rest] <= threshold))
  error = 3 * np.std(coverage) / np.sqrt(1000)
  assert level - error <= np.mean(coverage) <= level + 1 / (num + 1) + error
  assert error < 0.005


def test_without_chance_sets_only_cover_more():
  probs, labels = made()
  rng = np.random.default_rng(4)
  scores = sets.set_scores(probs)
  coverage = []
  for _ in range(200):
    order = rng.permutation(len(labels))
    here, rest = order[:100], order[100:]
    inside = scores[rest] <= sets.set_threshold(scores[here], labels[here])
    coverage.append(np.mean(inside[np.arange(len(rest)), labels[rest]]))
  assert np.mean(coverage) >= 0.9


@pytest.mark.parametrize("randomised", [False, True])
def test_sets_are_the_most_probable_and_within_the_bound(randomised):
  probs, labels = made(classes=30)
  rng = np.random.default_rng(5)
  uniforms = rng.random(len(labels)) if randomised else None
  penalty, num_free = 0.1, 3
  scores = sets.set_scores(
    probs, uniforms=uniforms, penalty=penalty, num_free=num_free
  )
  threshold = sets.set_threshold(scores[:500], labels[:500])
  inside = scores <= threshold
  size = inside.sum(1)
  most = num_free + threshold / penalty
  assert size.max() <= most < 30  # a bound that binds
  ranked = np.take_along_axis(inside, np.argsort(-probs, axis=1), 1)
  assert (np.diff(ranked.astype(int), axis=1) <= 0).all()
  plain = sets.set_scores(probs, uniforms=uniforms)
  larger = plain <= sets.set_threshold(plain[:500], labels[:500])
  assert larger.sum(1).max() > most


def test_halves_calibrate_each_other():
  probs, labels = made(size=400)
  found = sets.halved_sets(probs, labels, level=0.8, num_splits=50)
  assert found.coverage == pytest.approx(0.8, abs=0.02)
  rng = np.random.default_rng(0)
  scores = sets.set_scores(probs, uniforms=rng.random(400))
  size = []
  for _ in range(50):
    order = rng.permutation(400)
    for here, rest in (
      (order[:200], order[200:]),
      (order[200:], order[:200]),
    ):
      threshold = sets.set_threshold(scores[here], labels[here], level=0.8)
      size.append((scores[rest] <= threshold).sum(1).mean())
  assert found.size == pytest.approx(np.mean(size))
  assert sets.halved_sets(probs[:3], labels[:3]) == (1, 8)  # too few


def test_risk_and_coverage_by_hand():
  """Two of the four are wrong; the second and third are equally sure."""
  probs = [[0.9, 0.1], [0.2, 0.8], [0.8, 0.2], [0.4, 0.6]]
  curve = sets.risk_coverage(probs, [0, 0, 0, 0])
  np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 0.75, 1])
  np.testing.assert_allclose(curve.risk, [0, 0.25, 1 / 3, 0.5])
  assert curve.area == pytest.approx((0.25 + 1 / 3 + 0.5) / 4)
  np.testing.assert_allclose(curve.at([0.1, 0.25, 0.3, 1]), [0, 0, 0.25, 0.5])
  other = sets.risk_coverage(probs, [0, 0, 0, 0], confidence=[1, 2, 3, 4])
  np.testing.assert_allclose(other.risk, [1, 0.5, 2 / 3, 0.5])


def test_ties_are_the_mean_over_all_orders():
  probs = np.array([[0.7, 0.3]] * 3 + [[0.6, 0.4]] * 2)
  wrong = np.array([1, 0, 0, 1, 0])
  risks = [
    np.cumsum(np.concatenate([first, second])) / np.arange(1, 6)
    for first in itertools.permutations(wrong[:3])
    for second in itertools.permutations(wrong[3:])
  ]
  curve = sets.risk_coverage(probs, wrong)
  np.testing.assert_allclose(curve.risk, np.mean(risks, axis=0))


HALF = [[0.5, 0.5]]


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: sets.set_scores([[3.0, -1.0]]), "class probabilities"),
    (lambda: sets.set_scores([[np.nan, 1.0]]), "some are nan"),
    (lambda: sets.set_scores([0.5, 0.5]), r"must be \[N, K\]"),
    (lambda: sets.set_scores(HALF, penalty=-1), "penalty .* got -1"),
    (lambda: sets.set_scores(HALF, uniforms=[2.0]), "0 to 1; got .* 2..2"),
    (lambda: sets.set_scores(HALF, uniforms=[]), r"uniforms must be \[N\]"),
    (lambda: sets.set_threshold(HALF, [0], level=1), "level .* got 1"),
    (lambda: sets.set_threshold(HALF, [2]), "0..1 for K = 2 .* got 2..2"),
    (lambda: sets.set_threshold(HALF, [0, 1]), r"labels must be int\[N\]"),
    (lambda: sets.set_threshold([0.5], [0]), r"scores must be \[n, K\]"),
    (lambda: sets.halved_sets(HALF, [0], level=0), "level .* got 0"),
    (lambda: sets.halved_sets(HALF, [0], num_splits=0), "num_splits .* got 0"),
    (lambda: sets.halved_sets(HALF, [-1]), "got -1..-1"),
    (lambda: sets.risk_coverage(HALF, [2]), "0..1 for K = 2 .* got 2..2"),
    (lambda: sets.risk_coverage([[3.0, -1.0]], [0]), "class probabilities"),
    (
      lambda: sets.risk_coverage(HALF, [0], confidence=[np.nan]),
      "confidence must be",
    ),
  ],
)
def test_what_does_not_fit_is_one_line(call, message):
  with pytest.raises(ValueError, match=message) as error:
    call()
  assert "\n" not in str(error.value)
