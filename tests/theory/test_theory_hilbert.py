"""Kernel self-distillation against solved systems, and its exact identities."""

import numpy as np
import pytest
from scipy import optimize

from kfkd_jax.theory import hilbert, ridge, spectral

_TRIALS, _N, _ROUNDS = 100, 8, 12
_TOLERANCE = 0.01


def _random_problems(seed=0):
  """100 spectra over four decades, the largest first, and targets."""
  rng = np.random.default_rng(seed)
  values = np.sort(10 ** rng.uniform(-3, 1, (_TRIALS, _N)))[:, ::-1]
  return values, rng.standard_normal((_TRIALS, _N))


def _random_kernel(num, seed=0):
  """Returns inputs' Gram matrix, that of 5 other inputs with them, targets."""
  rng = np.random.default_rng(seed)
  points = rng.standard_normal((num + 5, 3))
  gaps = np.square(points[:, None] - points[None]).sum(-1)
  gram = np.exp(-gaps) / num
  return gram[:num, :num], gram[num:, :num], rng.standard_normal(num)


def _sine():
  """The example of section 9.6: 11 points, 101 where risk is measured."""
  points, grid = np.linspace(0, 1, 11), np.linspace(0, 1, 101)

  def kernel(a, b):
    return np.exp(-80 * np.square(a[:, None] - b[None]))

  return (
    spectral.eigensystem(kernel(points, points)),
    kernel(grid, points),
    np.sin(2 * np.pi * points),
    np.sin(2 * np.pi * grid),
  )


def _plain_constant(values, coefficients, tolerance):
  def excess(log_c):
    c = np.exp(log_c)
    total = sum((c * z / (c + d)) ** 2 for d, z in zip(values, coefficients))
    return total - len(values) * tolerance

  return np.exp(optimize.brentq(excess, -40, 40, xtol=1e-13, rtol=1e-14))


@pytest.mark.parametrize("num", [1, 2, 7])
def test_rounds_against_solved_systems(num):
  gram, cross, targets = _random_kernel(num)
  system = spectral.eigensystem(gram)
  start = spectral.coefficients(system, targets)
  rounds = hilbert.distil_rounds(system.values, start, 0.02, num_rounds=4)
  fits = spectral.fitted(system, rounds.filters, targets)
  elsewhere = spectral.predict(system, rounds.filters, cross, targets)
  last = targets
  for t in range(4):
    if np.linalg.norm(last) <= np.sqrt(num * 0.02):
      assert rounds.regularisers[t] == np.inf
      weights = np.zeros(num)
    else:
      values, vectors = np.linalg.eigh(gram)
      c = _plain_constant(values, vectors.T @ last, 0.02)
      np.testing.assert_allclose(rounds.regularisers[t], c, rtol=1e-9)
      weights = np.linalg.solve(gram + c * np.eye(num), last)
    last = gram @ weights
    np.testing.assert_allclose(fits[t + 1], last, atol=1e-9)
    np.testing.assert_allclose(elsewhere[t + 1], cross @ weights, atol=1e-9)


def test_several_outputs_share_the_constraint():
  gram, cross, _ = _random_kernel(6)
  targets = np.random.default_rng(3).standard_normal((6, 4))
  system = spectral.eigensystem(gram)
  start = spectral.coefficients(system, targets)
  norms = np.linalg.norm(start, axis=1)
  rounds = hilbert.distil_rounds(system.values, norms, 0.1, num_rounds=2)
  fits = spectral.fitted(system, rounds.filters, targets)
  assert fits.shape == (3, 6, 4)
  moved = np.square(fits[1:] - fits[:-1]).sum((1, 2))
  np.testing.assert_allclose(moved, 6 * 0.1, rtol=1e-12)
  for k in range(4):
    np.testing.assert_allclose(
      fits[..., k], spectral.fitted(system, rounds.filters, targets[:, k])
    )
    np.testing.assert_allclose(
      spectral.predict(system, rounds.filters, cross, targets)[..., k],
      spectral.predict(system, rounds.filters, cross, targets[:, k]),
    )


def test_identities_of_rounds_over_random_spectra():
  values, start = _random_problems()
  rounds = hilbert.distil_rounds(values, start, _TOLERANCE, num_rounds=_ROUNDS)
  fits = rounds.filters * start[:, None]
  alive = np.isfinite(rounds.regularisers)
  assert alive[:, 0].all()
  radius = np.sqrt(_N * _TOLERANCE)

  for t in range(_ROUNDS):
    low, high = hilbert.regulariser_bounds(values, fits[:, t], _TOLERANCE)
    c = rounds.regularisers[:, t]
    assert np.all((low <= c * (1 + 1e-12)) & (c <= high * (1 + 1e-12)))
    assert np.array_equal(np.isfinite(high), alive[:, t])
  later = rounds.regularisers[:, 1:]
  assert np.all(later >= rounds.regularisers[:, :-1])

  moved = np.linalg.norm(np.diff(fits, axis=1), axis=2)
  np.testing.assert_allclose(moved[alive], radius, rtol=1e-12)
  norms = np.linalg.norm(fits, axis=2)
  steps = np.arange(_ROUNDS + 1)
  assert np.all((norms >= norms[:, :1] - steps * radius - 1e-12)[:, :-1][alive])
  assert np.all(fits[:, 1:][~alive] == 0)

  ratios = hilbert.sparsity_ratios(rounds.filters)
  grew = np.diff(ratios, axis=1)
  assert np.all(grew[alive] >= 0)


def test_bounds_on_the_number_of_rounds():
  values, start = _random_problems(1)
  rounds = hilbert.distil_rounds(values, start, _TOLERANCE, num_rounds=60)
  counts = np.isfinite(rounds.regularisers).sum(axis=1)
  assert counts.max() < 60
  bounds = hilbert.round_bounds(values, start, _TOLERANCE)
  assert np.all(counts >= bounds.simple)
  condition = values.max(1) / values.min(1)
  np.testing.assert_allclose(bounds.quoted * condition, bounds.simple)
  # Not vacuous: the simple bound is within a few rounds somewhere.
  assert (counts - bounds.simple).min() < 5


def test_one_fit_of_another_kernel_does_all_rounds():
  values, start = _random_problems(2)
  rounds = hilbert.distil_rounds(values, start, _TOLERANCE, num_rounds=5)
  single = hilbert.single_fit_values(values, rounds.regularisers)
  np.testing.assert_allclose(
    single / (single + 1), rounds.filters[:, -1], rtol=1e-12, atol=1e-300
  )
  # The formula as written, where it does not lose its digits.
  product = np.ones_like(values)
  for t in range(5):
    c = rounds.regularisers[:, t, None]
    product *= np.where(np.isfinite(c), (values + c) / values, np.inf)
  np.testing.assert_allclose(single, 1 / (product - 1), rtol=1e-6)


def test_one_fit_also_predicts_elsewhere():
  gram, cross, targets = _random_kernel(7)
  system = spectral.eigensystem(gram)
  start = spectral.coefficients(system, targets)
  rounds = hilbert.distil_rounds(system.values, start, 0.02, num_rounds=3)
  single = hilbert.single_fit_values(system.values, rounds.regularisers)
  inverse = system.vectors @ np.diag(1 / system.values) @ system.vectors.T
  new_gram = system.vectors @ np.diag(single) @ system.vectors.T
  new_cross = cross @ inverse @ new_gram
  expected = new_cross @ np.linalg.solve(np.eye(7) + new_gram, targets)
  actual = spectral.predict(system, rounds.filters, cross, targets)[-1]
  np.testing.assert_allclose(actual, expected, atol=1e-10)


@pytest.mark.parametrize("size", [0.0, 0.5, 1.0])
def test_collapse_when_zero_is_near_enough(size):
  targets = size * np.sqrt(4 * 0.25) * np.asarray([1.0, 0, 0, 0])
  values = np.asarray([3.0, 2.0, 1.0, 0.0])
  rounds = hilbert.distil_rounds(values, targets, 0.25, num_rounds=2)
  assert np.all(rounds.regularisers == np.inf)
  assert np.all(rounds.filters[1:] == 0)
  assert np.all(hilbert.single_fit_values(values, rounds.regularisers) == 0)


@pytest.mark.parametrize("excess", [1e-14, 1e-9, 1e-3, 1e9])
@pytest.mark.parametrize("smallest", [1e-12, 1e-3, 1.0])
def test_root_where_it_is_hard(excess, smallest):
  """Near collapse, near interpolation, and spectra of twelve decades."""
  values = np.asarray([1.0, smallest])
  start = np.asarray([1.0, 1.0]) / np.sqrt(2) * (1 + excess)
  c = hilbert.regulariser(values, start, 0.5)
  assert np.isfinite(c) and c > 0
  error = np.linalg.norm(c * start / (c + values))
  np.testing.assert_allclose(error, 1.0, rtol=1e-12)


def test_directions_without_kernel():
  c = hilbert.regulariser([1.0, 0.0], [1.0, 0.1], 0.1)
  np.testing.assert_allclose((c / (c + 1)) ** 2 + 0.01, 0.2)
  with pytest.raises(ValueError, match=r"tolerance must be above .* 0.5; got"):
    hilbert.regulariser([1.0, 0.0], [1.0, 1.0], 0.1)


def test_risk_over_rounds_is_u_shaped():
  system, cross, clean, true_values = _sine()
  filters = ridge.ridge_filters(system.values, ridge=0.2, num_rounds=7)[1:]
  risk = spectral.expected_risk(
    system, filters, cross, clean, true_values, noise_variance=0.25
  )
  # The numbers are means of 400 draws; these are their expectations.
  reported = [0.150, 0.119, 0.112, 0.117, 0.129, 0.146, 0.166]
  np.testing.assert_allclose(risk, reported, atol=2e-3)
  assert risk.argmin() == 2


def test_expected_risk_against_draws():
  system, cross, clean, true_values = _sine()
  filters = ridge.ridge_filters(system.values, ridge=0.2, num_rounds=3)[1:]
  noise = 0.5 * np.random.default_rng(0).standard_normal((11, 4000))
  drawn = spectral.predict(system, filters, cross, clean[:, None] + noise)
  errors = np.square(drawn - true_values[:, None]).mean(axis=1)
  expected = spectral.expected_risk(
    system, filters, cross, clean, true_values, noise_variance=0.25
  )
  error = errors.std(axis=1) / np.sqrt(4000)
  assert np.all(np.abs(errors.mean(axis=1) - expected) < 4 * error)


def test_without_labels_all_is_forgotten():
  system, cross, clean, true_values = _sine()
  filters = ridge.ridge_filters(system.values, ridge=0.2, num_rounds=4000)
  limit = spectral.predict(system, filters[-1], cross, clean)
  error = np.square(limit - true_values).mean()
  assert round(error, 5) == 0.49505  # the third party's value, and 50 / 101
  np.testing.assert_allclose(error, 50 / 101, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.35, 1.0, -0.5])
@pytest.mark.parametrize("num", [1, 6])
def test_ridge_rounds_against_solved_systems(alpha, num):
  gram, _, targets = _random_kernel(num)
  system = spectral.eigensystem(gram)
  filters = ridge.ridge_filters(
    system.values, ridge=0.03, num_rounds=4, alpha=alpha
  )
  actual = spectral.fitted(system, filters, targets)
  last = targets
  for t in range(4):
    mixed = alpha * targets + (1 - alpha) * last
    last = gram @ np.linalg.solve(gram + 0.03 * np.eye(num), mixed)
    np.testing.assert_allclose(actual[t + 1], last, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.35, 1.0])
def test_rounds_contract_to_ridge_with_more_of_it(alpha):
  values, _ = _random_problems()
  filters = ridge.ridge_filters(values, ridge=0.2, num_rounds=9, alpha=alpha)
  end = ridge.fixed_point_filter(values, ridge=0.2, alpha=alpha)
  expected = values / (values + 0.2 / alpha) if alpha else np.zeros_like(values)
  np.testing.assert_allclose(end, expected, rtol=1e-12)
  contraction = (1 - alpha) * values / (values + 0.2)
  closed = end + contraction**9 * (1 - end)
  np.testing.assert_allclose(filters[:, -1], closed, rtol=1e-11, atol=1e-14)


def test_alpha_per_round_chosen_on_held_out_points():
  system, cross, clean, true_values = _sine()
  targets = clean + 0.5 * np.random.default_rng(1).standard_normal(11)
  plain = ridge.ridge_filters(system.values, ridge=0.2, num_rounds=2)
  first, refit = spectral.predict(system, plain[1:], cross, targets)
  alpha = ridge.best_alpha(first, refit, true_values)

  def error(share):
    filters = ridge.ridge_filters(
      system.values, ridge=0.2, num_rounds=2, alpha=[0.7, share]
    )
    fit = spectral.predict(system, filters[-1], cross, targets)
    return np.square(fit - true_values).mean()

  best = optimize.minimize_scalar(error, bracket=(-1, 2)).x
  np.testing.assert_allclose(alpha, best, atol=1e-6)
  assert ridge.best_alpha(first, first, true_values) == 1


@pytest.mark.parametrize(
  "noise_variance, xi", [(0.01, -1.431), (1, 1.314), (100, 1.620)]
)
def test_best_weight_of_the_teacher(noise_variance, xi):
  values = np.asarray([4, 1, 0.3, 0.1])
  signal = np.asarray([1, 0.7, 0.4, 0.2])
  actual = ridge.best_xi(
    values, signal, noise_variance=noise_variance, ridge=0.5
  )
  assert round(actual, 3) == xi

  def error(share):
    student = ridge.ridge_filters(
      values, ridge=0.5, num_rounds=2, alpha=1 - share
    )[-1]
    bias = np.square((student - 1) * signal)
    return (bias + student**2 * noise_variance / values).sum()

  best = optimize.minimize_scalar(error, bracket=(-2, 2)).x
  np.testing.assert_allclose(actual, best, atol=1e-6)


@pytest.mark.parametrize(
  "num_classes, class_size, within, across, strength, wrong_each",
  [
    (2, 10, 0.4, 0.1, 0.5, 4),
    (3, 10, 0.4, 0.1, 0.5, 1),
    (4, 10, 0.4, 0.1, 5.0, 2),
    (4, 30, 0.2, 0.0, 20.0, 7),
    (5, 20, 0.3, 0.1, 0.01, 3),
    (3, 9, 0.9, 0.8, 0.05, 2),
  ],
)
def test_rounds_that_correct_every_label(
  num_classes, class_size, within, across, strength, wrong_each
):
  """Symmetric noise that hits each wrong class `wrong_each` times."""
  given = []
  for own in range(num_classes):
    labels = np.full(class_size, own)
    others = [k for k in range(num_classes) if k != own]
    labels[: len(others) * wrong_each] = np.repeat(others, wrong_each)
    given.extend(labels)
  clean = np.repeat(np.arange(num_classes), class_size)
  right = class_size - (num_classes - 1) * wrong_each
  expected = ridge.rounds_to_correct(
    class_size,
    within=within,
    across=across,
    ridge=strength,
    margin=(right - wrong_each) / class_size,
  )
  gram = ridge.class_gram(num_classes, class_size, within=within, across=across)
  probs = np.eye(num_classes)[given]
  rounds = 0
  while (probs.argmax(axis=1) != clean).any() and rounds < 200:
    probs = gram @ np.linalg.solve(gram + strength * np.eye(len(gram)), probs)
    rounds += 1
  assert rounds == expected


def test_eigenvalues_of_a_class_gram():
  values = spectral.eigensystem(
    ridge.class_gram(3, 4, within=0.5, across=0.2)
  ).values
  between = 0.5 + 4 * 0.3
  expected = [between + 12 * 0.2, between, between, *[0.5] * 9]
  np.testing.assert_allclose(values, expected)


def test_choosing_a_round():
  losses = np.asarray([[3.0, 1.0], [1.5, 1.5], [1.6, 1.6], [1.0, 1.0]])
  choose = hilbert.choose_round
  assert choose(losses[:1]) == (0, False)
  assert choose(losses[:2]) == (1, False)
  assert choose(losses[:3]) == (1, True)
  assert choose(losses) == (1, True)  # stopped before the last one
  assert choose(losses[:3], patience=2) == (1, False)
  assert choose(losses, patience=2) == (3, False)
  # The gain of 0.5 has a standard error of 1 / sqrt 2.
  assert choose(losses[:2], num_errors=0.7) == (1, False)
  assert choose(losses[:2], num_errors=0.71) == (0, True)
  assert choose([[1.0], [1.0]]) == (0, True)  # a tie is no gain


def test_eigensystem_of_less_than_full_rank():
  features = np.random.default_rng(0).standard_normal((5, 2))
  for dtype in (np.float32, np.float64):
    system = spectral.eigensystem((features @ features.T).astype(dtype))
    assert np.all(system.values[2:] == 0) and np.all(system.values[:2] > 0)
  assert np.all(np.diff(system.values) <= 0)
  rebuilt = system.vectors @ np.diag(system.values) @ system.vectors.T
  np.testing.assert_allclose(rebuilt, features @ features.T, atol=1e-12)


_SYSTEM = spectral.eigensystem(np.eye(3))


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: spectral.eigensystem(np.ones((2, 3))), r"gram .* \(2, 3\)"),
    (lambda: spectral.eigensystem([[np.nan]]), "gram must be finite"),
    (lambda: spectral.eigensystem([[1.0, 0], [1, 1]]), "symmetric.* 1"),
    (lambda: spectral.eigensystem([[-1.0]]), "no eigenvalue below 0; got -1"),
    (
      lambda: spectral.fitted(_SYSTEM, np.ones(2), np.ones(3)),
      r"filters .* N = 3 .* \(2,\)",
    ),
    (
      lambda: spectral.coefficients(_SYSTEM, np.ones(4)),
      r"targets .* N = 3 .* \(4,\)",
    ),
    (
      lambda: spectral.predict(
        _SYSTEM, np.ones(3), np.ones((2, 2)), np.ones(3)
      ),
      r"cross_gram .* N = 3 .* \(2, 2\)",
    ),
    (lambda: hilbert.regulariser([1.0], [1.0, 2], 1), r"\(1,\) and \(2,\)"),
    (lambda: hilbert.regulariser([-1.0], [1.0], 1), "negative; got -1"),
    (lambda: hilbert.regulariser([1.0], [1.0], 0), "tolerance .* got 0"),
    (
      lambda: hilbert.distil_rounds([1.0], [1.0], 1, num_rounds=0),
      "num_rounds must be at least 1; got 0",
    ),
    (lambda: hilbert.choose_round([1.0]), r"losses must be \[T, N\].*\(1,\)"),
    (lambda: hilbert.choose_round([[np.nan]]), "with 1 nan"),
    (lambda: hilbert.choose_round([[1.0]], patience=0), "patience .* got 0"),
    (
      lambda: hilbert.choose_round([[1.0]], num_errors=-1),
      "num_errors .* got -1",
    ),
    (
      lambda: ridge.ridge_filters([1.0], ridge=0, num_rounds=1),
      "ridge must be above 0; got 0",
    ),
    (
      lambda: ridge.ridge_filters([-1.0], ridge=1, num_rounds=1),
      "values must be",
    ),
    (
      lambda: ridge.ridge_filters([1.0], ridge=1, num_rounds=-1),
      "num_rounds must be at least 0; got -1",
    ),
    (
      lambda: ridge.ridge_filters([1.0], ridge=1, num_rounds=2, alpha=[1] * 3),
      r"T = num_rounds = 2; got shape \(3,\)",
    ),
    (
      lambda: ridge.fixed_point_filter([1.0], ridge=1, alpha=1.5),
      r"alpha must lie in 0\.\.1; got 1.5",
    ),
    (
      lambda: ridge.best_alpha([1.0], [1.0, 2], [1.0]),
      r"\(1,\), \(2,\), \(1,\)",
    ),
    (
      lambda: ridge.best_xi([0.0], [1.0], noise_variance=1, ridge=1),
      "smallest value 0",
    ),
    (
      lambda: ridge.rounds_to_correct(
        2, within=0.1, across=0.2, ridge=1, margin=1
      ),
      "got 0.2 and 0.1",
    ),
    (
      lambda: ridge.rounds_to_correct(
        2, within=0.2, across=0.1, ridge=1, margin=0
      ),
      "margin .* got 0",
    ),
  ],
)
def test_errors_name_what_is_wrong(call, message):
  with pytest.raises(ValueError, match=message):
    call()
