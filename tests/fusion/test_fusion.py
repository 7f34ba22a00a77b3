"""Rules that choose weights over checkpoints, against plain loops."""

import itertools
from fractions import Fraction

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import numpy as jnp
from jax.test_util import check_grads
from scipy import optimize

from kfkd_jax import forgetting, fusion, stacks
from kfkd_jax.fusion import knowledge
from kfkd_jax.fusion import mixture as mixture_lib

SHAPES = [(1, 1, 2), (1, 5, 3), (2, 1, 2), (4, 30, 2), (7, 25, 5), (5, 40, 10)]


def history(seed, shape, *, sharpness=1.0):
  """A run that learns and forgets, its errors shared between checkpoints."""
  rng = np.random.default_rng(seed)
  C, N, K = shape
  labels = rng.integers(K, size=N)
  logits = rng.normal(size=(1, N, K)) + 0.9 * rng.normal(size=shape)
  time = np.linspace(0.2, 1, C)[:, None]
  logits[:, np.arange(N), labels] += rng.normal(1.5, 1, N)[None] * time
  mistake = rng.integers(K, size=N)
  logits[:, np.arange(N), mistake] += rng.normal(1, 2, N)[None] * time**3
  odds = np.exp(sharpness * logits)
  return (odds / odds.sum(-1, keepdims=True)).astype(np.float32), labels


def dyadic_history(seed, shape):
  """Rows on a coarse binary grid: many ties, and exact arithmetic."""
  rng = np.random.default_rng(seed)
  return (rng.integers(0, 9, size=shape) / 8).astype(np.float32)


def tied_history(seed, shape):
  """Probabilities in eighths: many ties."""
  rng = np.random.default_rng(seed)
  even = np.full(shape[-1], 1 / shape[-1])
  return (rng.multinomial(8, even, size=shape[:-1]) / 8).astype(np.float32)


def reference_counts(fused, candidate, labels, epsilons):
  counts = []
  for epsilon in np.asarray(epsilons, np.float32):
    mixed = epsilon * candidate + (np.float32(1) - epsilon) * fused
    counts.append(int((mixed.argmax(1) == labels).sum()))
  return counts


def reference_fusion(probs, labels, *, window, num_epsilons, max_members):
  """Section by section as the paper says it, in loops over everything."""
  C, N, _ = probs.shape
  grid = np.linspace(0, 1, num_epsilons).astype(np.float32)
  fused, members, epsilons = probs[-1].copy(), [], []
  while len(members) < max_members:
    best_c, best_f = None, 0
    for c in range(C):
      f = 0
      for n in range(N):
        right = probs[c, n].argmax() == labels[n]
        f += right and fused[n].argmax() != labels[n]
      if f >= best_f and f > 0:
        best_c, best_f = c, f
    if best_c is None:
      break
    covered = range(max(0, best_c - window), min(C - 1, best_c + window) + 1)
    candidate = np.mean([probs[c] for c in covered], axis=0, dtype=np.float32)
    counts = reference_counts(fused, candidate, labels, grid)
    best = counts.index(max(counts))
    if counts[best] <= (fused.argmax(1) == labels).sum():
      break
    members.append(best_c)
    epsilons.append(grid[best])
    fused = grid[best] * candidate + (np.float32(1) - grid[best]) * fused
  return members, epsilons, fused


def accuracy(probs, labels):
  return np.mean(np.asarray(probs).argmax(-1) == labels)


class Lazy:
  """Anything with a shape that hands out one checkpoint at a time."""

  def __init__(self, probs):
    self._probs = probs
    self.shape = probs.shape
    self.read = []

  def __len__(self):
    return self.shape[0]

  def __getitem__(self, c):
    self.read.append(c)
    return self._probs[c]


# Knowledge Fusion.


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [0, 1, 9])
@pytest.mark.parametrize("kind", ["smooth", "ties"])
def test_knowledge_fusion_equals_loops(shape, window, kind):
  for seed in range(3):
    probs, labels = history(seed, shape)
    if kind == "ties":
      probs = tied_history(seed, shape)
    result = fusion.knowledge_fusion(
      probs, labels, window=window, num_epsilons=33, max_members=4
    )
    members, epsilons, fused = reference_fusion(
      probs, labels, window=window, num_epsilons=33, max_members=4
    )
    assert result.members.tolist() == members
    assert result.epsilons.tolist() == epsilons
    assert result.window == window
    # Sums in another order; probabilities are at most 1.
    np.testing.assert_allclose(
      fusion.fuse(probs, result.weights), fused, atol=1e-6
    )


def test_the_loops_above_see_fusions_of_several_members():
  probs, labels = history(1, (12, 400, 8))
  result = fusion.knowledge_fusion(probs, labels)
  assert len(result.members) >= 2
  assert len(set(result.members.tolist())) >= 2
  assert result.members.dtype == np.int32
  assert result.epsilons.dtype == result.weights.dtype == np.float32


@pytest.mark.parametrize("kind", ["smooth", "near", "dyadic", "repeated"])
def test_right_counts_equals_brute_force_on_thousands(kind):
  for seed in range(600):
    rng = np.random.default_rng(seed)
    K = int(rng.integers(2, 7))
    probs, labels = history(seed, (2, 12, K), sharpness=3)
    if kind == "near":  # ends everywhere, decided by rounding alone
      noise = rng.integers(-2, 3, size=probs[0].shape) * 2.0**-24
      probs[1] = probs[0] + noise.astype(np.float32)
      probs[:, :, 1] = probs[:, :, 0]
    if kind == "dyadic":
      probs = dyadic_history(seed, probs.shape)
    if kind == "repeated":
      probs = np.repeat(probs[:, :3], 4, axis=1)
      probs[:, :, -1] = probs[:, :, 0]
      labels = np.repeat(labels[:3], 4)
    epsilons = np.linspace(0, 1, int(rng.integers(2, 130)))
    counts = fusion.right_counts(*probs, labels, epsilons)
    assert counts.tolist() == reference_counts(*probs, labels, epsilons)


def test_right_counts_mixes_only_what_rounding_leaves_open(monkeypatch):
  probs, labels = history(3, (2, 3000, 4))
  mixed = []
  plain = knowledge._mix
  monkeypatch.setattr(
    knowledge, "_mix", lambda *args: mixed.append(len(args[0])) or plain(*args)
  )
  fusion.right_counts(*probs, labels, np.linspace(0, 1, 101))
  # Of 3000 * 101; an interval's end is near a grid value once in thousands.
  assert sum(mixed) < 20


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e-44])
def test_right_counts_of_any_scale(scale):
  probs, labels = history(3, (2, 200, 4))
  probs = (probs * scale).astype(np.float32)
  epsilons = np.linspace(0, 1, 101)
  counts = fusion.right_counts(*probs, labels, epsilons)
  assert counts.tolist() == reference_counts(*probs, labels, epsilons)


def test_right_counts_in_several_chunks(monkeypatch):
  probs, labels = history(3, (2, 57, 4))
  epsilons = np.linspace(0, 1, 11)
  monkeypatch.setattr(stacks, "CHUNK", 50)
  counts = fusion.right_counts(*probs, labels, epsilons)
  assert counts.tolist() == reference_counts(*probs, labels, epsilons)


def exact_accuracy(fused, candidate, labels, epsilon):
  """In rational numbers, without any rounding."""
  right = 0
  for before, after, y in zip(fused, candidate, labels, strict=True):
    mixed = [
      (1 - epsilon) * Fraction(float(p)) + epsilon * Fraction(float(q))
      for p, q in zip(before, after, strict=True)
    ]
    right += mixed.index(max(mixed)) == y
  return right / len(labels)


def exact_crossings(fused, candidate, labels):
  found = {Fraction(0), Fraction(1)}
  for before, after, y in zip(fused, candidate, labels, strict=True):
    for j in range(len(before)):
      at0 = Fraction(float(before[y])) - Fraction(float(before[j]))
      at1 = Fraction(float(after[y])) - Fraction(float(after[j]))
      if at0 * at1 < 0:
        found.add(at0 / (at0 - at1))
  return sorted(found)


@pytest.mark.parametrize("kind", ["smooth", "dyadic"])
def test_best_epsilon_exact_is_reached_and_bounds_the_grid(kind):
  better = 0
  for seed in range(60):
    probs, labels = history(seed, (2, 8, 2 + seed % 4), sharpness=2)
    if kind == "dyadic":  # float32 is exact here, ties and all
      probs = dyadic_history(seed, probs.shape)
    best = fusion.best_epsilon_exact(*probs, labels)
    ends = exact_crossings(*probs, labels)
    middles = [(a + b) / 2 for a, b in itertools.pairwise(ends)]
    assert best.accuracy == max(
      exact_accuracy(*probs, labels, epsilon) for epsilon in [*ends, *middles]
    )
    # A single point like 1/3 is no float.
    if kind == "smooth" or best.epsilon not in map(float, ends):
      reached = exact_accuracy(*probs, labels, Fraction(best.epsilon))
      assert reached == best.accuracy
    grid = fusion.right_counts(*probs, labels, np.linspace(0, 1, 9))
    assert grid.max() / 8 <= best.accuracy
    better += grid.max() / 8 < best.accuracy
  assert better > 0


def test_best_epsilon_exact_at_a_single_point():
  # Class 0 wins nowhere but by the tie of all three at 1/2 ...
  fused = np.asarray([[0.25, 0.5, 0.0]], np.float32)
  candidate = np.asarray([[0.25, 0.0, 0.5]], np.float32)
  best = fusion.best_epsilon_exact(fused, candidate, np.asarray([0]))
  assert best == (0.5, 1.0)
  # ... which a later class loses.
  moved = fused[:, [1, 0, 2]], candidate[:, [1, 0, 2]]
  lost = fusion.best_epsilon_exact(*moved, np.asarray([1]))
  assert lost.accuracy == 0.0


@hypothesis.given(st.integers(0, 10**6), st.sampled_from(SHAPES))
def test_validation_accuracy_rises_with_every_member(seed, shape):
  probs, labels = history(seed, shape)
  previous = accuracy(probs[-1], labels)
  full = fusion.knowledge_fusion(probs, labels, max_members=5)
  for k in range(1, len(full.members) + 1):
    result = fusion.knowledge_fusion(probs, labels, max_members=k)
    assert result.members.tolist() == full.members[:k].tolist()
    fused = fusion.fuse(probs, result.weights)
    assert accuracy(fused, labels) > previous
    previous = accuracy(fused, labels)


@hypothesis.given(
  st.integers(1, 12).flatmap(
    lambda C: st.tuples(
      st.just(C),
      st.lists(
        st.tuples(st.integers(0, C - 1), st.floats(0, 1, width=32)), max_size=6
      ),
    )
  ),
  st.integers(0, 4),
)
def test_equivalent_weights_follow_the_products(drawn, window):
  C, steps = drawn
  members = [m for m, _ in steps]
  epsilons = [e for _, e in steps]
  weights = fusion.equivalent_weights(
    members, epsilons, window=window, num_checkpoints=C
  )
  expected = np.zeros(C)
  expected[-1] = np.prod([1 - e for e in epsilons])
  for i, (m, e) in enumerate(steps):
    covered = [c for c in range(C) if abs(c - m) <= window]
    later = np.prod([1 - x for x in epsilons[i + 1 :]])
    for c in covered:
      expected[c] += e * later / len(covered)
  np.testing.assert_allclose(weights, expected, atol=1e-6)
  assert weights.min() >= 0
  assert weights.sum() == pytest.approx(1, abs=1e-6)


@hypothesis.given(st.integers(0, 10**6))
def test_a_point_right_under_both_stays_right(seed):
  probs, labels = history(seed, (2, 40, 4))
  both = (probs.argmax(-1) == labels[None]).all(0)
  epsilons = np.linspace(0, 1, 23)
  counts = fusion.right_counts(*probs[:, both], labels[both], epsilons)
  assert (counts == both.sum()).all()


@hypothesis.given(st.integers(0, 10**6))
def test_relabelling_permuting_and_duplicating_change_nothing(seed):
  probs, labels = history(seed, (6, 30, 4))
  expected = fusion.knowledge_fusion(probs, labels)
  rng = np.random.default_rng(seed)
  order, classes = rng.permutation(30), rng.permutation(4)
  relabelled = np.empty_like(probs)
  relabelled[:, :, classes] = probs
  others = [
    (probs[:, order], labels[order]),
    (relabelled, classes[labels]),
    (np.repeat(probs, 3, axis=1), np.repeat(labels, 3)),
  ]
  for other in others:
    for got, wanted in zip(
      fusion.knowledge_fusion(*other), expected, strict=True
    ):
      np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("rule", ["knowledge", "perfect", "single"])
def test_nothing_to_gain_keeps_the_last_network(rule):
  probs, labels = history(1, (5, 30, 3))
  if rule == "knowledge":
    probs = np.repeat(probs[:1], 5, axis=0)
  if rule == "perfect":
    labels = probs[-1].argmax(1)
  if rule == "single":
    probs = probs[:1]
  result = fusion.knowledge_fusion(probs, labels)
  assert result.members.shape == result.epsilons.shape == (0,)
  np.testing.assert_array_equal(result.weights, fusion.final_only(len(probs)))


def test_ties_go_to_the_latest_checkpoint_and_the_smallest_epsilon():
  right, wrong = [[0.75, 0.25]], [[0.25, 0.75]]
  probs = np.asarray([right, right, wrong, wrong], np.float32)
  result = fusion.knowledge_fusion(probs, [0], window=0, num_epsilons=5)
  assert result.members.tolist() == [1]
  assert result.epsilons.tolist() == [0.5]  # 0.5 ties, and class 0 is first


def test_one_member_at_most_is_the_one_step_variant():
  probs, labels = history(1, (12, 400, 8))
  full = fusion.knowledge_fusion(probs, labels)
  one = fusion.knowledge_fusion(probs, labels, max_members=1)
  assert len(full.members) > 1
  assert one.members.tolist() == full.members[:1].tolist()
  assert one.epsilons.tolist() == full.epsilons[:1].tolist()


# Inputs of every kind.


def as_memory_map(probs, path):
  stored = np.lib.format.open_memmap(
    path, mode="w+", dtype=probs.dtype, shape=probs.shape
  )
  stored[:] = probs
  stored.flush()
  return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("kind", ["jax", "list", "jax_list", "lazy", "memmap"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_kind_of_input_gives_the_same(kind, dtype, tmp_path, monkeypatch):
  monkeypatch.setattr(stacks, "CHUNK", 64)
  probs, labels = history(2, (6, 50, 4))
  probs = probs.astype(dtype)
  given = {
    "jax": jnp.asarray,
    "list": list,
    "jax_list": lambda x: [jnp.asarray(p) for p in x],
    "lazy": Lazy,
    "memmap": lambda x: as_memory_map(x, tmp_path / "probs.npy"),
  }[kind](probs)
  exact = probs.astype(np.float32)
  wanted = fusion.knowledge_fusion(exact, labels)
  result = fusion.knowledge_fusion(given, jnp.asarray(labels))
  for a, b in zip(result, wanted, strict=True):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(
    fusion.mixture_fusion(given, labels), fusion.mixture_fusion(exact, labels)
  )
  np.testing.assert_allclose(
    fusion.fuse(given, wanted.weights),
    np.tensordot(wanted.weights, exact, axes=1),
    atol=1e-6,
  )


def test_only_what_is_needed_is_read():
  probs, labels = history(0, (9, 80, 4))
  store = Lazy(probs)
  result = fusion.knowledge_fusion(store, labels, max_members=1)
  # Each once for its classes, the last and the window for their numbers.
  member = int(result.members[0])
  window = range(max(0, member - 1), min(8, member + 1) + 1)
  # The first one is asked for its shape.
  assert sorted(store.read) == sorted([*range(9), 8, *window])
  store.read.clear()
  fusion.fuse(store, result.weights)
  assert sorted(store.read) == np.flatnonzero(result.weights).tolist()


# Mixture fusion.


def objective(likelihoods, weights):
  """J, less what all weights share: each example scaled to at most 1."""
  q = np.asarray(likelihoods, np.float64)
  q = q[:, q.max(0) > 0]
  return np.log(np.asarray(weights, np.float64) @ (q / q.max(0))).mean()


def gap(likelihoods, weights):
  q = np.asarray(likelihoods, np.float64)
  q = q[:, q.max(0) > 0]
  return (q / (np.asarray(weights, np.float64) @ q)).mean(1).max() - 1


def random_likelihoods(seed, C, N):
  probs, labels = history(seed, (C, N, 4), sharpness=3)
  return probs[:, np.arange(N), labels]


KINDS = {  # none changes the shape, which saves compilations
  "plain": lambda q: q,
  "twins": lambda q: q[np.arange(len(q)) // 2],
  "tiny": lambda q: np.maximum(q.astype(np.float64) ** 20, 1e-30),
  "zeros": lambda q: np.where(q < np.median(q), 0, q),
  "dead_checkpoint": lambda q: q * (np.arange(len(q)) > 0)[:, None],
  "dead_example": lambda q: q * (np.arange(q.shape[1]) > 0)[None],
  "scaled_columns": lambda q: q * np.logspace(-30, 8, q.shape[1])[None],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 7), (4, 1), (3, 50), (30, 20)])
def test_mixture_weights_meet_their_certificate(kind, size):
  for seed in range(3):
    q = KINDS[kind](random_likelihoods(seed, *size)).astype(np.float32)
    weights = np.asarray(fusion.mixture_weights(q, tolerance=1e-3))
    assert weights.dtype == np.float32
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    if not q.any():
      continue
    assert gap(q, weights) <= 1e-3
    assert float(fusion.mixture_gap(q, weights)) == pytest.approx(
      gap(q, weights), abs=1e-5
    )
    # g is 1 where there is weight; the certificate bounds the rest.
    kept = q[:, q.max(0) > 0].astype(np.float64)
    g = (kept / (weights @ kept)[None]).mean(1)
    assert weights @ g == pytest.approx(1, abs=1e-5)
    assert (weights * np.abs(g - 1)).sum() <= 2.1e-3


def test_all_zero_likelihoods_leave_the_weights_even():
  weights = fusion.mixture_weights(np.zeros((4, 3)))
  np.testing.assert_array_equal(weights, np.full(4, 0.25))


@pytest.mark.parametrize("kind", ["plain", "tiny", "zeros"])
@pytest.mark.parametrize("size", [(12, 60), (5, 8)])
@pytest.mark.parametrize("tolerance", [1e-5, 0.1])
def test_mixture_objective_never_falls(kind, size, tolerance):
  for seed in range(3):
    q = KINDS[kind](random_likelihoods(seed, *size)).astype(np.float32)
    values = [
      objective(q, fusion.mixture_weights(q, max_steps=k, tolerance=tolerance))
      for k in range(12)
    ]
    # Gains are computed in float32, to about 1e-7.
    assert (np.diff(values) >= -1e-6).all()
    assert values[-1] > values[0]


@pytest.mark.parametrize("kind", ["plain", "tiny", "dead_checkpoint"])
def test_no_part_of_the_solver_loses_likelihood_from_anywhere(kind):
  @jax.jit
  def parts(q, weights):
    mixture = mixture_lib._Mixture.of(q)
    point = mixture.at(weights)
    return (
      mixture_lib._better_step(mixture, point),
      mixture_lib._without_crumbs(mixture, point, 0.5),
    )

  for seed in range(60):
    q = KINDS[kind](random_likelihoods(seed, 5, 8)).astype(np.float32)
    rng = np.random.default_rng(seed)
    start = np.maximum(rng.dirichlet(np.full(5, 0.1)), 1e-7)
    start = (start / start.sum()).astype(np.float32)
    if seed % 2:  # also from points that certify, where crumbs are dropped
      start = fusion.mixture_weights(q, max_steps=3, tolerance=1e-5)
    before = objective(q, start)
    for after in parts(q, start):
      # A gain is known to about 1e-7 of the log-likelihood's size.
      assert objective(q, after) >= before - 2e-6 * max(1, -before)


@pytest.mark.parametrize("size", [(2, 5), (4, 30), (6, 12)])
def test_mixture_agrees_with_a_general_optimiser(size):
  for seed in range(4):
    q = random_likelihoods(seed, *size).astype(np.float64)
    found = optimize.minimize(
      lambda w, q=q: -objective(q, w),
      np.full(size[0], 1 / size[0]),
      jac=lambda w, q=q: -(q / (w @ q)[None]).mean(1),
      bounds=[(0, 1)] * size[0],
      constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
      method="SLSQP",
      options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.success
    weights = fusion.mixture_weights(q, tolerance=1e-5)
    # The certificate promises 1e-5.
    assert objective(q, weights) == pytest.approx(-found.fun, abs=1e-5)
    bound = objective(q, np.full(size[0], 1 / size[0]))
    coarse = fusion.mixture_gap(q, np.full(size[0], 1 / size[0]))
    assert -found.fun - bound <= float(coarse) + 1e-6


def test_mixture_beats_every_single_checkpoint_and_drops_crumbs():
  q = random_likelihoods(0, 40, 100)
  weights = fusion.mixture_weights(q)
  singles = [objective(q, row) for row in np.eye(40)]
  assert objective(q, weights) > max(singles)
  assert np.count_nonzero(weights) < 20
  assert np.asarray(weights)[np.asarray(weights) > 0].min() > 1e-3


def test_mixture_weights_under_jit_and_vmap():
  qs = np.stack([random_likelihoods(s, 6, 40) for s in range(3)])
  traces = []

  @jax.jit
  def solve(q, max_steps, tolerance):
    traces.append(1)
    return fusion.mixture_weights(q, max_steps=max_steps, tolerance=tolerance)

  plain = np.stack([fusion.mixture_weights(q) for q in qs])
  # One program fuses other operations than another: rounding, amplified by
  # the flat top of J.
  jitted = np.stack([solve(q, 200, 1e-3) for q in qs])
  np.testing.assert_allclose(jitted, plain, atol=1e-4)
  assert len(traces) == 1
  mapped = jax.vmap(fusion.mixture_weights)(qs)
  np.testing.assert_allclose(mapped, plain, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 20, 2), (5, 40, 6)])
def test_transition_equals_the_explicit_product(shape, monkeypatch):
  monkeypatch.setattr(stacks, "CHUNK", 32)
  probs, labels = history(4, shape)
  K = shape[-1]
  transition = np.random.default_rng(0).dirichlet(np.ones(K), size=K)
  q = fusion.label_likelihoods(probs, labels, transition=transition)
  expected = np.empty(shape[:2])
  for c in range(shape[0]):
    for n in range(shape[1]):
      expected[c, n] = (probs[c, n] @ transition)[labels[n]]
  np.testing.assert_allclose(q, expected, rtol=1e-5)
  noisy = (probs @ transition).astype(np.float32)
  with_transition = fusion.mixture_fusion(probs, labels, transition=transition)
  explicit = fusion.mixture_fusion(noisy, labels)
  assert objective(q, with_transition) == pytest.approx(
    objective(q, explicit), abs=1e-3
  )
  assert gap(expected, with_transition) <= 1e-3
  np.testing.assert_array_equal(
    fusion.mixture_fusion(probs, labels, transition=np.eye(K)),
    fusion.mixture_fusion(probs, labels),
  )


def test_transition_undoes_known_noise():
  # The first network is right; the second repeats the noise of the labels.
  clean = np.arange(300) % 3
  given = np.where(np.arange(300) % 5 < 2, (clean + 1) % 3, clean)
  sure = np.full((2, 300, 3), 0.02, np.float32)
  sure[0, np.arange(300), clean] = 0.96
  sure[1, np.arange(300), given] = 0.5
  sure[1] += 0.46 / 3
  sure /= sure.sum(-1, keepdims=True)
  pair = 0.6 * np.eye(3) + 0.4 * np.eye(3)[[1, 2, 0]]
  told = fusion.mixture_fusion(sure, given, transition=pair)
  untold = fusion.mixture_fusion(sure, given)
  assert told[0] > untold[0] + 0.2


@pytest.mark.parametrize("scale", [1e-40, 1e-30])
def test_tiny_likelihoods_count_as_much_as_others(scale):
  probs = np.ones((2, 4, 2), np.float32)
  probs[0, :, 0], probs[1, :, 0] = scale, 3 * scale
  weights = fusion.mixture_fusion(probs, np.zeros(4, int))
  np.testing.assert_array_equal(weights, [0, 1])


def test_an_example_without_likelihood_changes_nothing():
  probs, labels = history(5, (4, 30, 3))
  dead = np.zeros((4, 1, 3), np.float32)
  dead[:, :, 1] = 1
  np.testing.assert_allclose(
    fusion.mixture_fusion(
      np.concatenate([probs, dead], axis=1), np.append(labels, 0)
    ),
    fusion.mixture_fusion(probs, labels),
    atol=1e-6,
  )


def test_gap_is_infinite_where_an_example_is_impossible():
  q = np.asarray([[0.5, 0.0], [0.5, 0.5]])
  assert np.isinf(fusion.mixture_gap(q, [1.0, 0.0]))
  assert np.isfinite(fusion.mixture_gap(q, [0.5, 0.5]))


# The simple rules and fuse.


@pytest.mark.parametrize("C", [1, 2, 5, 12])
def test_simple_rules(C):
  assert fusion.final_only(C).tolist() == [0.0] * (C - 1) + [1.0]
  for M in range(1, C + 1):
    tail = np.flatnonzero(fusion.horizontal(C, M))
    assert tail.tolist() == list(range(C - M, C))
    jumps = np.flatnonzero(fusion.fixed_jumps(C, M))
    assert len(jumps) == M
    assert jumps[-1] == C - 1
    steps = np.diff([-1, *jumps])
    assert steps.max() - steps.min() <= 1
    for weights in (fusion.horizontal(C, M), fusion.fixed_jumps(C, M)):
      check_even_weights(weights, M)


def check_even_weights(weights, M):
  assert weights.dtype == np.float32
  assert np.count_nonzero(weights) == M
  assert weights.max() == np.float32(1 / M)
  assert weights.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("C, M", [(1, 1), (5, 1), (5, 3), (5, 5)])
def test_random_checkpoints_are_even_weights(C, M):
  weights = fusion.random_checkpoints(jax.random.key(M), C, M)
  check_even_weights(np.asarray(weights), M)


def test_random_checkpoints_draw_all_and_depend_on_the_key():
  draw = jax.jit(fusion.random_checkpoints, static_argnums=(1, 2))
  draws = np.stack(
    [draw(k, 6, 2) for k in jax.random.split(jax.random.key(0), 60)]
  )
  assert (draws > 0).any(0).all()
  assert len(np.unique(draws, axis=0)) > 5


def test_coverage_of_two_is_accuracy_and_forget_fraction():
  rng = np.random.default_rng(0)
  correct = np.stack([rng.random(400) < 0.4, rng.random(400) < 0.8])
  covered = correct.any(axis=0).mean()
  forgotten = forgetting.forget_fractions(correct)[0]
  np.testing.assert_allclose(
    fusion.coverage(correct) * covered,
    [forgotten, correct[1].mean()],
    rtol=1e-6,
  )


def test_coverage_takes_nobody_for_what_others_have():
  twice = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]
  np.testing.assert_allclose(fusion.coverage(twice), [0, 2 / 3, 1 / 3])
  np.testing.assert_array_equal(fusion.coverage(np.zeros((3, 4))), [0, 0, 1])
  with pytest.raises(ValueError, match=r"\[C, S\].*shape \(4,\)"):
    fusion.coverage(np.zeros(4))


def test_best_checkpoint_takes_the_latest_of_equals():
  weights = fusion.best_checkpoint(jnp.asarray([0.2, 0.9, 0.9, 0.1]))
  assert weights.tolist() == [0, 0, 1, 0]
  assert weights.dtype == np.float32
  assert fusion.best_checkpoint([0.5]).tolist() == [1]


@pytest.mark.parametrize("shape", [(1, 2), (3, 2), (4, 5, 3), (2, 3, 4, 2)])
def test_fuse_equals_loop(shape):
  rng = np.random.default_rng(0)
  probs = rng.dirichlet(np.ones(shape[-1]), size=shape[:-1]).astype(np.float32)
  # The first checkpoint is left out, where there are others.
  others = rng.dirichlet(np.ones(max(shape[0] - 1, 1))).astype(np.float32)
  weights = np.pad(others, (shape[0] - len(others), 0))
  expected = np.zeros(shape[1:])
  for c in range(shape[0]):
    expected += weights[c].astype(np.float64) * probs[c]
  on_host = fusion.fuse(probs, weights)
  on_device = fusion.fuse(jnp.asarray(probs), weights)
  assert isinstance(on_host, np.ndarray)
  assert isinstance(on_device, jax.Array)
  assert on_host.dtype == on_device.dtype == np.float32
  for got in (on_host, on_device, jax.jit(fusion.fuse)(probs, weights)):
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_fuse_under_grad_and_vmap():
  probs, labels = history(0, (4, 6, 3))
  weights = fusion.horizontal(4, 4)

  def loss(weights, probs):
    return -jnp.log(fusion.fuse(probs, weights)[np.arange(6), labels]).mean()

  check_grads(
    loss, (weights, jnp.asarray(probs)), order=1, modes=["rev"], rtol=2e-2
  )
  jax.grad(loss)(weights, probs)  # traced weights over a NumPy stack
  mapped = jax.vmap(fusion.fuse, in_axes=(1, None))(jnp.asarray(probs), weights)
  np.testing.assert_allclose(mapped, fusion.fuse(probs, weights), atol=1e-6)


# The benchmark.


@pytest.fixture(name="bench")
def fixture_bench():
  # Not above: the rules are tested without what the pipeline needs.
  from kfkd_jax.lab.bench import fusion as bench

  return bench


def test_the_benchmark_has_something_to_fuse(bench, tmp_path):
  path = tmp_path / "probs.npy"
  labels = bench.write_history(path, (40, 500, 10), "float16")
  probs = np.load(path)
  assert probs.shape == (40, 500, 10)
  np.testing.assert_allclose(probs.sum(-1, dtype=float), 1, atol=1e-2)
  assert len(fusion.knowledge_fusion(probs, labels).members) >= 2


@pytest.mark.slow
def test_fusion_benchmarks_measure_both_rules(bench, tmp_path):
  rows = bench.benchmarks("tiny", directory=str(tmp_path))
  assert [r["name"] for r in rows] == ["knowledge_fusion", "mixture_fusion"]
  for row in rows:
    assert row["seconds"] > 0
    assert row["gain"] > 0
  assert rows[0]["num_windows"] >= 2
  assert rows[1]["seconds"] < rows[1]["first_seconds"]  # which compiled
  assert rows[1]["gap"] <= 1e-3
  assert not list(tmp_path.iterdir())


def test_fusion_benchmarks_know_their_scales(bench):
  with pytest.raises(ValueError, match=r"scale must be one of .*; got huge"):
    bench.benchmarks("huge")


# Errors.

PROBS, LABELS = history(0, (3, 5, 2))
BROKEN = PROBS.copy()
BROKEN[2, 1, 0] = np.nan


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda f: f(PROBS[0], LABELS), r"probs must be \[C, N, K\].*\(5, 2\)"),
    (lambda f: f([], LABELS), r"probs must be \[C, N, K\].*\(0,\)"),
    (lambda f: f(PROBS[:, :0], LABELS[:0]), r"none of them 0.*\(3, 0, 2\)"),
    (lambda f: f(PROBS, LABELS[:4]), r"labels .*\(4,\).*\(3, 5, 2\)"),
    (lambda f: f(PROBS, LABELS * 1.0), r"labels must be int\[N\].*float64"),
    (lambda f: f(PROBS, LABELS + 1), r"labels must lie in 0\.\.1 .*2"),
    (lambda f: f(BROKEN, LABELS), r"probs\[2\] holds values in nan"),
    (lambda f: f(PROBS * 9, LABELS), r"probabilities; a row sums to 9"),
    (lambda f: f([PROBS[0], PROBS[1][:4]], LABELS), r"\(4, 2\)"),
  ],
)
@pytest.mark.parametrize(
  "rule", [fusion.knowledge_fusion, fusion.mixture_fusion]
)
def test_errors_of_both_rules(rule, call, message):
  if rule is fusion.mixture_fusion and "nan" in message:
    BROKEN[2, 1, 1] = np.nan  # it reads the labels' entries only
  with pytest.raises(ValueError, match=message):
    call(rule)


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda: fusion.knowledge_fusion(PROBS, LABELS, window=-1),
      "window must be at least 0; got -1",
    ),
    (
      lambda: fusion.knowledge_fusion(PROBS, LABELS, num_epsilons=1),
      "num_epsilons must be at least 2; got 1",
    ),
    (
      lambda: fusion.knowledge_fusion(PROBS, LABELS, max_members=0),
      "max_members must be at least 1; got 0",
    ),
    (
      lambda: fusion.equivalent_weights(
        [0, 1], [0.5], window=1, num_checkpoints=3
      ),
      r"members and epsilons .*\(2,\) and \(1,\)",
    ),
    (
      lambda: fusion.equivalent_weights(
        [3], [0.5], window=1, num_checkpoints=3
      ),
      r"members must lie in 0\.\.2 .*\[3\]",
    ),
    (
      lambda: fusion.right_counts(PROBS[0], PROBS[1][:4], LABELS, [0.5]),
      r"candidate .*\(5, 2\); got \(4, 2\)",
    ),
    (
      lambda: fusion.mixture_fusion(PROBS, LABELS, transition=np.eye(3)),
      r"transition must be \[K, K\] with K = 2 .*\(3, 3\)",
    ),
    (
      lambda: fusion.mixture_fusion(
        PROBS, LABELS, transition=np.asarray([[0.5, 0.4], [0, 1]])
      ),
      r"transition .*sums 0\.9\.\.1",
    ),
    (
      lambda: fusion.mixture_fusion(PROBS, LABELS, max_steps=0, tolerance=1e-4),
      "max_steps = 0 steps ended at a gap of .*tolerance = 0.0001",
    ),
    (
      lambda: fusion.mixture_fusion(
        np.eye(2)[None, [0, 0]], np.asarray([1, 1])
      ),
      "every checkpoint gives 0 to all 2 labels",
    ),
    (
      lambda: fusion.mixture_weights(PROBS),
      r"likelihoods must be \[C, N\].*\(3, 5, 2\)",
    ),
    (
      lambda: fusion.mixture_weights(PROBS[0], tolerance=0.0),
      "tolerance must be above 0; got 0.0",
    ),
    (
      lambda: fusion.mixture_weights(PROBS[0], max_steps=-1),
      "max_steps must be at least 0; got -1",
    ),
    (
      lambda: fusion.mixture_gap(PROBS[0], [1.0, 0.0]),
      r"weights .*\(2,\) and \(5, 2\)",
    ),
    (
      lambda: fusion.fuse(PROBS, [1.0, 0.0]),
      r"weights .*\(2,\) and \(3, 5, 2\)",
    ),
    (
      lambda: fusion.fuse(PROBS[:, 0, 0], [1, 0, 0]),
      r"probs is \[C, \.\.\., K\]",
    ),
    (lambda: fusion.final_only(0), "num_checkpoints must be at least 1; got 0"),
    (lambda: fusion.best_checkpoint([]), r"accuracy must be \[C\]"),
    (lambda: fusion.best_checkpoint([0.5, np.nan]), "without nan"),
    (
      lambda: fusion.horizontal(3, 0),
      r"num_members must lie in 1\.\.3 .*got 0",
    ),
    (
      lambda: fusion.fixed_jumps(3, 4),
      r"num_members must lie in 1\.\.3 .*got 4",
    ),
    (
      lambda: fusion.random_checkpoints(jax.random.key(0), 2, 3),
      r"num_members must lie in 1\.\.2 .*got 3",
    ),
  ],
)
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()
