"""Audits of labels against plain loops, and what they find in histories."""

import itertools

import jax
import numpy as np
import pytest
from scipy import special

import kfkd_jax as kfkd
from kfkd_jax import auditing, label_noise, stacks


def history(given, clean, num_classes, *, num_epochs=12, seed=0, habit=None):
  """Probabilities of a network that learns classes, then what it was given.

  With a transition as its habit it also learns how labels go wrong.
  """
  rng = np.random.default_rng(seed)
  num = len(given)
  evidence = rng.gamma(4, 0.7, num)[:, None]
  fixed = rng.normal(0, 0.6, (num, num_classes))
  probs = []
  for c in range(num_epochs):
    share = (c + 1) / num_epochs
    logits = 2 * share * evidence * np.eye(num_classes)[clean]
    logits = logits + 2.5 * share**2 * np.eye(num_classes)[given]
    logits += fixed + rng.normal(0, 0.4, (num, num_classes))
    told = special.softmax(logits, axis=1)
    probs.append(told if habit is None else told @ habit)
  return np.asarray(probs, np.float32)


def noisy(kind, rate, *, num=600, num_classes=5, seed=0):
  rng = np.random.default_rng(seed)
  clean = rng.integers(num_classes, size=num)
  transition = getattr(label_noise, kind)(num_classes, rate)
  given = np.asarray(
    label_noise.corrupt_labels(jax.random.key(seed), clean, transition)
  )
  habit = transition if kind == "pair" else None
  probs = history(given, clean, num_classes, seed=seed, habit=habit)
  return probs, given, clean


def ranked(scores, wrong):
  return auditing.judge(scores, wrong).auroc


def plain_scores(probs, labels):
  """Every score of others, an example and an epoch at a time."""
  num_epochs, num, num_classes = probs.shape
  least = 2.0**-24
  mean = probs.mean(0)
  levels = np.full(num_classes, np.nan)
  for k in set(labels.tolist()):
    levels[k] = np.mean([mean[n, k] for n in range(num) if labels[n] == k])
  levels = np.where(np.isnan(levels), np.nanmax(levels), levels)
  rows = []
  for n, label in enumerate(labels):
    others = [k for k in range(num_classes) if k != label]
    own = [float(probs[c, n, label]) for c in range(num_epochs)]
    best = [
      max(float(probs[c, n, k]) for k in others) for c in range(num_epochs)
    ]
    losses = [-np.log(max(p, least)) for p in own]
    right = [int(probs[c, n].argmax()) == label for c in range(num_epochs)]
    errors = [
      np.linalg.norm(probs[c, n] - np.eye(num_classes)[label])
      for c in range(min(num_epochs, 10))
    ]
    lost = sum(a and not b for a, b in itertools.pairwise(right))
    rows.append({
      "last_loss": losses[-1],
      "loss": np.mean(losses),
      "aum": np.mean([np.log(max(q, least)) for q in best] + np.array(losses)),
      "margin": np.mean(np.subtract(best, own)),
      "confidence": -np.mean(own),
      "variability": np.std(own) if num_epochs > 1 else np.nan,
      "mean_margin": np.log(max(max(mean[n, k] for k in others), least))
      - np.log(max(mean[n, label], least)),
      "class_margin": max(mean[n, k] - levels[k] for k in others)
      - (mean[n, label] - levels[label]),
      "first_learnt": right.index(True) + 1 if any(right) else num_epochs + 1,
      "forgotten": lost if any(right) else num_epochs,
      "el2n": np.mean(errors),
    })  # fmt: skip
    if num_epochs == 1:
      rows[-1] |= dict.fromkeys(("first_learnt", "forgotten"), np.nan)
  return rows


def plain_confident_joint(probs, labels):
  mean = probs.mean(0)
  num_classes = mean.shape[1]
  counts = np.zeros((num_classes, num_classes))
  for n, given in enumerate(labels):
    reached = {}
    for k in range(num_classes):
      level = np.mean(
        [mean[m, k] for m in range(len(labels)) if labels[m] == k]
      )
      if mean[n, k] >= level - 1e-7:
        reached[k] = mean[n, k]
    if reached:
      counts[max(reached, key=reached.get), given] += 1
  for k in range(num_classes):
    counts[:, k] *= (labels == k).sum() / counts[:, k].sum()
  return counts / counts.sum()


@pytest.mark.parametrize("shape", [(1, 4, 2), (2, 1, 2), (13, 30, 4)])
def test_scores_of_others_against_loops(shape):
  rng = np.random.default_rng(sum(shape))
  probs = rng.dirichlet(np.ones(shape[2]), shape[:2]).astype(np.float32)
  probs[0, 0] = np.eye(shape[2])[0]  # a zero, of which the log is bounded
  labels = rng.integers(shape[2], size=shape[1])
  found = kfkd.audit(probs, labels).scores
  for n, row in enumerate(plain_scores(probs, labels)):
    for name, value in row.items():
      np.testing.assert_allclose(
        getattr(found, name)[n], value, rtol=2e-5, atol=2e-6, err_msg=name
      )


@pytest.mark.parametrize("levels", [3, 1000])
def test_scores_are_judged_as_by_loops(levels):
  rng = np.random.default_rng(levels)
  scores, wrong = rng.integers(levels, size=40) / 7, rng.random(40) < 0.3
  above = [
    (a > b) + (a == b) / 2 for a in scores[wrong] for b in scores[~wrong]
  ]
  precisions = [wrong[scores >= a].mean() for a in scores[wrong]]
  found = auditing.judge(scores, wrong)
  assert found.auroc == pytest.approx(np.mean(above))
  assert found.average_precision == pytest.approx(np.mean(precisions))
  if levels > 40:
    named = np.sort(scores)[::-1][: wrong.sum()]
    assert found.missed == pytest.approx(1 - wrong[scores >= named[-1]].mean())
  assert np.isnan(auditing.judge(scores, np.zeros(40, bool)).auroc)


def test_ties_are_broken_as_by_argmax():
  probs = np.full((3, 2, 2), 0.5, np.float32)
  assert kfkd.audit(probs, [0, 1]).num_right.tolist() == [3, 0]


def test_the_score_of_a_tiny_history_by_hand():
  probs = [[[0.8, 0.2], [0.6, 0.4], [0.1, 0.9], [0.7, 0.3]]]
  found = kfkd.audit(np.asarray(probs), [0, 0, 1, 1])
  # Levels .7 and .6: .7/.7 > .3/.6, so the last point belongs to class 0, of
  # whose three points it is the median: a fourth of all differs, and a third of
  # the surer ones.
  np.testing.assert_array_equal(found.noise_matrix, [[2 / 3, 1 / 3], [0, 1]])
  # One wrong of 4, and one of each class both right and wrong before: counts
  # that two cells spread by 1/2 (0 and 1; their variance is 1/4) are chance.
  noise = np.array([[5 / 8, 3 / 8], [3 / 8, 5 / 8]])
  beliefs = np.asarray(probs[0]) / [0.7, 0.6]
  own, other = [0, 0, 1, 1], [1, 1, 0, 0]
  expected = [
    np.log(beliefs[n, k] * noise[k, j]) - np.log(beliefs[n, j] * noise[j, j])
    for n, (j, k) in enumerate(zip(own, other))
  ]
  np.testing.assert_allclose(found.score, expected, rtol=1e-5)
  assert found.accused.tolist() == [False, False, False, True]
  assert found.suggested.tolist() == [0, 0, 1, 0]


def test_confident_joint_against_loops():
  probs, given, _ = noisy("pair", 0.3, num=80, num_classes=3)
  np.testing.assert_allclose(
    kfkd.audit(probs, given).confident_joint,
    plain_confident_joint(probs.astype(np.float64), given),
    atol=1e-9,
  )


def same(found, expected):
  for name, ours, theirs in zip(found._fields, found, expected, strict=True):
    if name == "scores":
      same(ours, theirs)
    else:
      np.testing.assert_allclose(
        ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name
      )


class Store:
  def __init__(self, probs):
    self._probs, self.shape = probs, probs.shape

  def __getitem__(self, c):
    return self._probs[c]


@pytest.mark.parametrize("form", [list, Store, jax.numpy.asarray])
def test_any_form_of_a_history_says_the_same(form, monkeypatch):
  probs, given, _ = noisy("symmetric", 0.3, num=90)
  whole = kfkd.audit(probs, given)
  monkeypatch.setattr(stacks, "CHUNK", 35)  # 7 rows at a time
  same(kfkd.audit(form(probs), given), whole)


@pytest.mark.parametrize(
  "update", [kfkd.audit_update, jax.jit(kfkd.audit_update)]
)
def test_epoch_by_epoch_is_all_at_once(update):
  probs, given, _ = noisy("symmetric", 0.3, num=90)
  sums = kfkd.audit_init(given, 5)
  for part in probs:
    before, kept = sums, np.array(sums.probs)
    sums = update(sums, part)
    np.testing.assert_array_equal(before.probs, kept)
  same(kfkd.audit_finish(sums), kfkd.audit(probs, given))


def test_half_precision_finds_the_same():
  probs, given, _ = noisy("pair", 0.3)
  half = kfkd.audit(probs.astype(np.float16), given)
  whole = kfkd.audit(probs, given)
  np.testing.assert_allclose(half.score, whole.score, atol=0.05)


def test_order_of_points_and_classes_means_nothing():
  probs, given, _ = noisy("pair", 0.3, num=200)
  rng = np.random.default_rng(1)
  rows, classes = rng.permutation(200), rng.permutation(5)
  found = kfkd.audit(probs, given)
  moved = kfkd.audit(
    probs[:, rows][:, :, classes], np.argsort(classes)[given[rows]]
  )
  np.testing.assert_allclose(moved.score, found.score[rows], atol=1e-4)
  np.testing.assert_array_equal(classes[moved.suggested], found.suggested[rows])
  np.testing.assert_allclose(
    moved.noise_matrix, found.noise_matrix[classes][:, classes]
  )


def test_an_epoch_weighs_what_it_learnt_and_has_not_memorised():
  told = [0.5, 0.7, 0.9, 1.0]  # the mean probability of the labels
  sums = kfkd.audit_init([0, 1], 2)
  for p in told:
    sums = kfkd.audit_update(sums, np.asarray([[p, 1 - p], [1 - p, p]]))
  learnt = np.array([1e-3, 0.2, 0.4, 0.5])
  left = np.array([0.499, 0.3, 0.1, 1e-4])
  weights = learnt * left / (0.02 + np.cumsum(learnt))
  np.testing.assert_allclose(sums.weight, weights.sum(), rtol=1e-5)
  np.testing.assert_allclose(sums.early[0, 0], weights @ told, rtol=1e-5)


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
def test_wrong_labels_are_found_named_and_counted(kind):
  probs, given, clean = noisy(kind, 0.3)
  found = kfkd.audit(probs, given)
  wrong = given != clean
  assert ranked(found.score, wrong) > 0.97
  assert wrong[found.accused].mean() > 0.8
  assert found.accused.sum() == pytest.approx(wrong.sum(), rel=0.2)
  hit = found.accused & wrong
  assert np.mean(found.suggested[hit] == clean[hit]) > 0.9
  np.testing.assert_array_equal(
    found.suggested[~found.accused], given[~found.accused]
  )
  truth = getattr(label_noise, kind)(5, 0.3)
  assert np.abs(found.noise_matrix - truth).max() < 0.15
  assert (found.kind > 0).tolist() == found.accused.tolist()


def test_noise_that_has_a_pattern_is_found_better_than_by_margins():
  probs, given, clean = noisy("pair", 0.4)
  found, wrong = kfkd.audit(probs, given), given != clean
  ours = ranked(found.score, wrong)
  assert all(
    ours > ranked(x, wrong) + 0.01
    for x in (found.scores.aum, found.scores.mean_margin)
  )


def test_labels_of_one_class_mean_nothing_about_each_other():
  """Wrong marks dealt out anew within each class are not found."""
  probs, given, clean = noisy("symmetric", 0.3, num=2000)
  score = kfkd.audit(probs, given).score
  wrong, rng = given != clean, np.random.default_rng(0)
  dealt = wrong.copy()
  for k in range(5):
    dealt[given == k] = rng.permutation(wrong[given == k])
  assert abs(ranked(score, dealt) - 0.5) < 0.03


def test_where_nothing_is_wrong_few_are_accused():
  clean = np.random.default_rng(0).integers(5, size=600)
  found = kfkd.audit(history(clean, clean, 5), clean)
  assert found.accused.mean() < 0.02
  assert np.isfinite(found.score).all()


def memorised(given, clean, num_classes, *, seed=0):
  """A long history that ends in what it was given, whatever that is."""
  shares = np.geomspace(0.05, 6, 40)
  rng = np.random.default_rng(seed)
  num, classes = len(given), np.eye(num_classes)
  # Points that are hard to tell are told with little certainty, not wrongly.
  evidence = rng.gamma(2, 2, num)[:, None]
  fixed = rng.normal(0, 1, (num, num_classes))
  probs = [
    special.softmax(
      min(share, 1) * (evidence * classes[clean] + fixed)
      + share**2 * classes[given]
      + rng.normal(0, 0.3, (num, num_classes)),
      axis=1,
    )
    for share in shares
  ]
  return np.asarray(probs, np.float32)


@pytest.mark.parametrize("rate", [0, 0.2, 0.4])
def test_wrong_labels_that_were_memorised_are_counted(rate):
  rng = np.random.default_rng(0)
  clean = rng.integers(5, size=2000)
  given = np.where(rng.random(2000) < rate, (clean + 1) % 5, clean)
  probs = memorised(given, clean, 5)
  assert (probs[-1].argmax(1) == given).all()
  found = kfkd.audit(probs, given)
  plain = (probs.mean(0).argmax(1) != given).mean()
  assert plain < 0.6 * rate + 0.01
  assert found.accused.mean() == pytest.approx(rate, rel=0.3, abs=0.02)


def test_a_class_that_is_never_given_is_no_hindrance():
  probs, given, clean = noisy("pair", 0.3, num=200)
  kept = (given != 4) & (clean != 4)
  found = kfkd.audit(probs[:, kept], given[kept])
  assert np.isfinite(found.score).all()
  assert ranked(found.score, (given != clean)[kept]) > 0.9


def test_how_a_label_stands_out():
  stories = {
    "never learnt": [0.1, 0.2, 0.2, 0.1],
    "learnt late": [0.1, 0.1, 0.2, 0.9],
    "forgotten": [0.1, 0.6, 0.1, 0.1],
    "contested": [0.1, 0.55, 0.55, 0.55],
  }
  own = np.array([*stories.values(), *[[0.9] * 4] * 12]).T
  told = np.stack([own, 1 - own], axis=-1)
  other = np.broadcast_to([0.05, 0.95], (4, 12, 2))
  found = kfkd.audit(np.concatenate([told, other], 1), [0] * 16 + [1] * 12)
  assert found.accused[:4].all() and not found.accused[4:].any()
  assert [auditing.KINDS[k] for k in found.kind[:4]] == list(stories)
  assert (found.kind[4:] == 0).all()


@pytest.mark.parametrize("kind", ["pair", "symmetric"])
def test_the_noise_is_told_from_the_history(kind):
  probs, given, _ = noisy(kind, 0.3, num=2000)
  made = getattr(label_noise, kind)(5, 0.3)
  found = auditing.estimated_noise(probs, given)
  np.testing.assert_allclose(found.sum(1), 1)
  assert np.abs(found - made).max() < 0.08
  assert np.abs(np.eye(5) - made).max() > 0.25  # what is told without it


def test_counts_by_chance_are_taken_for_even_noise():
  rng = np.random.default_rng(0)
  counts = np.diag([80] * 6) + rng.poisson(4, (6, 6)) * (
    1 - np.eye(6, dtype=int)
  )
  noise = auditing.noise_of(counts)
  apart = noise[~np.eye(6, dtype=bool)]
  assert np.ptp(apart) < 0.6 * np.ptp(counts[~np.eye(6, dtype=bool)] / 100)
  pairs = auditing.noise_of(
    np.diag([60] * 6) + 40 * np.eye(6)[[1, 2, 3, 4, 5, 0]]
  )
  assert pairs[0, 1] > 0.35 and pairs[0, 2] < 0.01
  for found in (noise, pairs, auditing.noise_of(np.diag([3, 0]))):
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found > 0).all()


@pytest.mark.parametrize(
  "probs, labels, message",
  [
    (np.full((2, 3, 2), 0.5), [0, 1, 2], r"labels must lie in 0\.\.1"),
    (np.full((2, 3, 2), 0.5), [0, 1], r"labels must be int\[N\]"),
    (np.full((2, 2, 2), np.nan), [0, 1], r"probs\[0\] .* holds nan"),
    (np.full((2, 2, 2), 3.0), [0, 1], "softmax"),
    (np.full((2, 2, 1), 1.0), [0, 0], "at least 2 classes"),
    (np.full((2, 2), 0.5), [0, 1], r"\[C, N, K\]"),
  ],
)
def test_what_does_not_fit_is_said_in_a_line(probs, labels, message):
  with pytest.raises(ValueError, match=message):
    kfkd.audit(probs, labels)


def test_one_late_nan_is_found():
  probs, given, _ = noisy("pair", 0.3, num=50)
  probs[3, 49, 2] = np.nan
  with pytest.raises(ValueError, match=r"probs\[3\] .* nan"):
    kfkd.audit(probs, given)


def test_an_audit_of_nothing_is_refused():
  with pytest.raises(ValueError, match="audit_update"):
    kfkd.audit_finish(kfkd.audit_init([0, 1], 2))
  with pytest.raises(ValueError, match=r"as at the start, \(2, 2\)"):
    kfkd.audit_update(kfkd.audit_init([0, 1], 2), np.ones((3, 2)) / 2)


def test_one_epoch_counts_what_it_is_sure_of():
  # A network that errs on a tenth of the points, unsurely.
  rng = np.random.default_rng(0)
  right = rng.integers(4, size=2000)
  logits = rng.normal(size=(2000, 4))
  logits[np.arange(2000), right] += rng.normal(3, 1, size=2000)
  probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  given = np.where(rng.random(2000) < 0.2, (right + 1) % 4, right)
  found = auditing.audit(probs[None], given)
  assert np.mean(probs.argmax(1) != given) > 0.25
  assert found.accused.mean() == pytest.approx(0.2, abs=0.03)
  assert np.mean((given != right)[found.accused]) > 0.85
