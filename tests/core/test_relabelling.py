"""Small losses, neighbours and propagated labels against plain loops."""

import numpy as np
import pytest

from kfkd_jax import relabelling


def test_two_heaps_of_losses_are_told_apart_at_any_rate():
  rng = np.random.default_rng(0)
  for rate in (0.1, 0.4, 0.7):
    noisy = rng.random(400) < rate
    values = np.where(noisy, rng.normal(3, 0.3, 400), rng.gamma(1, 0.2, 400))
    found = relabelling.clean_probabilities(values)
    assert np.mean((found < 0.5) == noisy) > 0.97
    assert found.shape == (400,)
    assert (found >= 0).all() and (found <= 1).all()


def test_smaller_losses_are_never_less_clean():
  values = np.sort(np.random.default_rng(1).gamma(1, 1.0, 300))
  found = relabelling.clean_probabilities(values)
  assert (np.diff(found) <= 1e-9).all()


def test_losses_all_the_same_are_all_clean():
  for num in (1, 5):
    np.testing.assert_array_equal(
      relabelling.clean_probabilities(np.full(num, 0.3)), 1
    )


def _plain_graph(features, count, power):
  num = len(features)
  edges = np.zeros((num, num))
  for i in range(num):
    cosines = {
      j: features[i]
      @ features[j]
      / (np.linalg.norm(features[i]) * np.linalg.norm(features[j]))
      for j in range(num)
      if j != i
    }
    for j in sorted(cosines, key=lambda j: -cosines[j])[:count]:
      edges[i, j] = max(cosines[j], 0.0) ** power
  both = edges + edges.T
  degrees = both.sum(1)
  for i in range(num):
    for j in range(num):
      if both[i, j]:
        both[i, j] /= np.sqrt(degrees[i] * degrees[j])
  return both


@pytest.mark.parametrize("num, count", [(2, 1), (7, 3), (7, 20)])
def test_graph_against_loops(num, count):
  features = np.random.default_rng(2).normal(0.5, 1, (num, 4))
  graph = relabelling.neighbour_graph(features, num_neighbours=count, power=2.0)
  np.testing.assert_allclose(
    graph.toarray(), _plain_graph(features, count, 2.0), atol=1e-6
  )


def test_lonely_examples_keep_what_they_have():
  graph = relabelling.neighbour_graph(np.ones((1, 3)))
  found = relabelling.propagate(graph, np.array([[0.0, 1.0]]))
  np.testing.assert_array_equal(found, [[0, 1]])
  apart = relabelling.neighbour_graph(np.eye(3))  # cosines of 0
  found = relabelling.propagate(apart, np.array([[1.0, 0], [0, 1], [0, 0]]))
  np.testing.assert_allclose(found, [[1, 0], [0, 1], [0.5, 0.5]])


def test_propagation_solves_the_system():
  rng = np.random.default_rng(3)
  graph = relabelling.neighbour_graph(rng.normal(1, 1, (9, 3)))
  seeds = np.eye(3)[rng.integers(0, 3, 9)]
  seeds[4:] = 0
  exact = np.linalg.solve(np.eye(9) - 0.9 * graph.toarray(), seeds)
  expected = exact / exact.sum(1, keepdims=True)
  found = relabelling.propagate(graph, seeds, decay=0.9)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert found.dtype == np.float32
  alone = relabelling.propagate(
    graph, np.eye(3)[rng.integers(0, 3, 9)], decay=0
  )
  assert set(np.unique(alone)) == {0, 1}


def test_neighbours_correct_wrong_labels():
  """Two clouds, one label in three wrong, half of the labels believed."""
  rng = np.random.default_rng(4)
  clean = np.repeat([0, 1], 60)
  features = rng.normal(0, 0.6, (120, 2)) + np.array([[3, 0], [0, 3]])[clean]
  given = np.where(rng.random(120) < 1 / 3, 1 - clean, clean)
  seeds = np.eye(2)[given] * (rng.random(120) < 0.5)[:, None]
  graph = relabelling.neighbour_graph(features, num_neighbours=20)
  found = relabelling.propagate(graph, seeds)
  assert np.mean(found.argmax(1) == clean) > 0.95 > np.mean(given == clean)


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: relabelling.clean_probabilities([[1.0]]), r"values .*\(1, 1\)"),
    (lambda: relabelling.clean_probabilities([np.nan]), "values must be"),
    (lambda: relabelling.neighbour_graph(np.ones(3)), r"features .*\(3,\)"),
    (
      lambda: relabelling.neighbour_graph(np.ones((3, 2)), num_neighbours=0),
      "num_neighbours must be at least 1; got 0",
    ),
    (
      lambda: relabelling.propagate(
        relabelling.neighbour_graph(np.ones((3, 2))), np.ones((2, 2))
      ),
      r"got shapes \(3, 3\) and \(2, 2\)",
    ),
    (
      lambda: relabelling.propagate(
        relabelling.neighbour_graph(np.ones((3, 2))), np.ones((3, 2)), decay=1
      ),
      "decay must be .* got 1",
    ),
  ],
)
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call()
