"""Labels and their noise in the tangent kernel over epochs, and the figure."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from kfkd_jax import plots
from kfkd_jax.theory import ntk, spectral

CLASSES, NUM = 3, 24


def _apply(params, x):
  return jnp.tanh(x @ params["in"]) @ params["out"]


def _labels():
  rng = np.random.default_rng(0)
  clean = np.repeat(np.arange(CLASSES), NUM // CLASSES)
  given = np.where(rng.random(NUM) < 0.4, (clean + 1) % CLASSES, clean)
  x = 3 * np.eye(CLASSES)[clean] + rng.normal(0, 0.3, (NUM, CLASSES))
  return x.astype(np.float32), clean, given


def _history():
  """Kernels of a network before and after it learnt the clean classes."""
  x, clean, _ = _labels()
  keys = jax.random.split(jax.random.key(0))
  params = {
    "in": jax.random.normal(keys[0], (CLASSES, 8)),
    "out": jax.random.normal(keys[1], (8, CLASSES)) / 3,
  }
  y = np.eye(CLASSES)[clean]
  slope = jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(_apply(p, x) - y))))
  for _ in range(3):
    yield ntk.empirical_ntk(_apply, params, x)
    for _ in range(100):
      params = jax.tree.map(lambda p, g: p - 0.3 * g, params, slope(params))


def test_history_is_each_kernels_projections():
  _, clean, given = _labels()
  found = ntk.projection_history(_history(), clean, given, num_classes=CLASSES)
  assert found.clean.shape == found.noise.shape == (3, NUM)
  for epoch, gram in enumerate(_history()):
    values, vectors = np.linalg.eigh(np.asarray(gram, np.float64))
    vectors = vectors[:, np.argsort(-values)]
    for shares, signal in (
      (found.clean[epoch], np.eye(CLASSES)[clean] - 1 / CLASSES),
      (found.noise[epoch], np.eye(CLASSES)[given] - np.eye(CLASSES)[clean]),
    ):
      total, parts = (signal**2).sum(), 0.0
      for n in range(CLASSES):
        parts += sum((vectors[:, n] @ column) ** 2 for column in signal.T)
        assert shares[n] == pytest.approx(parts / total, abs=1e-3)
  assert found.clean[-1, CLASSES - 1] > 0.8 > 2 * found.noise[-1, CLASSES - 1]
  np.testing.assert_allclose(found.clean[:, -1], 1)


def test_history_of_one_kernel_and_of_none():
  one = ntk.projection_history([np.eye(2)], [0, 1], [1, 1], num_classes=2)
  single = ntk.label_projections(
    spectral.eigensystem(np.eye(2)), [0, 1], [1, 1], num_classes=2
  )
  np.testing.assert_array_equal(one.noise, single.noise[None])
  with pytest.raises(ValueError, match="at least one kernel"):
    ntk.projection_history([], [0, 1], [0, 1], num_classes=2)


def test_figure_holds_both_curves_and_says_what_even_would_be():
  rng = np.random.default_rng(1)
  clean, noise = np.sort(rng.random((2, 4, 10)), axis=-1)

  def draw():
    return plots.plot_projection_history(
      [1, 5, 9, 20], clean, noise, num_leading=3
    )

  fig = draw()
  even, first, second = fig.axes[0].lines
  np.testing.assert_allclose(even.get_ydata(), 0.3)
  np.testing.assert_array_equal(first.get_ydata(), clean[:, 2])
  np.testing.assert_array_equal(second.get_ydata(), noise[:, 2])
  svg = plots.to_svg(fig, label="shares")
  assert svg == plots.to_svg(draw(), label="shares")
  assert "clean labels" in svg


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda: plots.plot_projection_history(
        [1], np.ones((2, 3)), np.ones((2, 3)), num_leading=1
      ),
      r"got shapes \(2, 3\), \(2, 3\) and \(1,\)",
    ),
    (
      lambda: plots.plot_projection_history(
        [1], np.ones((1, 3)), np.ones((1, 3)), num_leading=4
      ),
      r"num_leading must be in 1\.\.3; got 4",
    ),
  ],
)
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call()
