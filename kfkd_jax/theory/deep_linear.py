"""What a deep linear network forgets while it trains, and when.

Stern, Yaacoby and Weinshall, AAAI 2025, "On Local Overfitting and Forgetting
in Deep Neural Networks". Gradient descent on the squared loss moves the product
of the layers along each principal direction of the data at its own rate:
exactly so for one layer, nearly so for wide ones. Points that lean on the
leading directions are forgotten first. NumPy in float64, `train` apart.

Letters: N examples, D input features, K outputs, S steps, L layers. A binary
problem has one output and labels of -1 and 1; it is right where label times
score is above 0. With more outputs `forgetting.correctness` reads the scores.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.typing import ArrayLike

from kfkd_jax.theory import spectral


class PrincipalProblem(NamedTuple):
  """A least squares problem on the principal axes of its inputs.

  Attributes:
    axes: f64[D, D], one direction per column, the leading one first.
    variances: f64[D] s_j, the eigenvalues of X^T X / N, falling.
    optimum: f64[D, K] the best weights on these axes; 0 where the inputs do not
      vary.
  """

  axes: np.ndarray
  variances: np.ndarray
  optimum: np.ndarray


def principal_problem(
  inputs: ArrayLike, targets: ArrayLike
) -> PrincipalProblem:
  """Rotates a least squares problem to the principal axes of its inputs.

  Args:
    inputs: [N, D], centred or not, as the network sees them.
    targets: [N, K].
  """
  inputs = np.asarray(inputs, np.float64)
  targets = np.asarray(targets, np.float64)
  _check_shapes(inputs.shape, targets.shape)
  variances, axes = spectral.eigensystem(inputs.T @ inputs / len(inputs))
  moments = axes.T @ (inputs.T @ targets) / len(inputs)
  varies = (variances > 0)[:, None]
  scale = np.where(varies, variances[:, None], 1)
  return PrincipalProblem(
    axes, variances, np.where(varies, moments / scale, 0.0)
  )


def weights_at(
  problem: PrincipalProblem,
  initial: ArrayLike,
  steps: ArrayLike,
  *,
  learning_rate: float,
  num_layers: int = 1,
) -> np.ndarray:
  """Predicts the product of the layers after some steps of gradient descent.

  w_j(n) = lam_j^n w_j(0) + (1 - lam_j^n) w_j_opt with lam_j = 1 - learning_rate
  s_j L. Exact for one layer and the gradient X^T (X w - y) / N; for more, right
  as far as the layers stay near orthogonal (see `init_layers`).

  Args:
    problem: of D features and K outputs.
    initial: [D, K] product of the layers at the start, as inputs meet it.
    steps: [S], not negative; infinity asks for the end.
    learning_rate: of each layer.
    num_layers: L.

  Returns:
    f64[S, D, K] on the principal axes; `axes @ w` turns it back.
  """
  initial = np.asarray(initial, np.float64)
  if initial.shape != problem.optimum.shape:
    raise ValueError(
      f"initial must be [D, K] as in problem, {problem.optimum.shape}; got "
      f"shape {initial.shape}."
    )
  top = float(problem.variances[0])
  if not 0 < learning_rate * num_layers * top < 2:
    raise ValueError(
      f"learning_rate must be above 0 and below 2 / (num_layers * largest "
      f"variance) = 2 / ({num_layers} * {top:.4g}); got {learning_rate}."
    )
  steps = np.asarray(steps, np.float64)[:, None]
  rates = 1 - learning_rate * num_layers * problem.variances
  left = np.power(rates, steps)[..., None]
  return left * (problem.axes.T @ initial) + (1 - left) * problem.optimum


def scores_at(
  problem: PrincipalProblem,
  inputs: ArrayLike,
  initial: ArrayLike,
  steps: ArrayLike,
  *,
  learning_rate: float,
  num_layers: int = 1,
) -> np.ndarray:
  """Predicts the outputs after some steps of gradient descent.

  A score is a constant and D exponentials in the step. So with lam_j above 0 a
  point changes sides at most D times.

  Args:
    problem: of the training data.
    inputs: [N, D], these or others.
    initial: [D, K].
    steps: [S].
    learning_rate: see `weights_at`.
    num_layers: L.

  Returns:
    f64[S, N, K].
  """
  weights = weights_at(
    problem,
    initial,
    steps,
    learning_rate=learning_rate,
    num_layers=num_layers,
  )
  return _on_axes(problem, inputs) @ weights


def component_scores(
  problem: PrincipalProblem, inputs: ArrayLike
) -> np.ndarray:
  """Returns the outputs of the optimum on the first 1, 2, ... D components.

  Args:
    problem: of the training data.
    inputs: [N, D], these or others.

  Returns:
    f64[D, N, K]; the last row is the optimum's own.
  """
  parts = _on_axes(problem, inputs).T[:, :, None] * problem.optimum[:, None]
  return np.cumsum(parts, axis=0)


def forget_times(correct: ArrayLike) -> np.ndarray:
  """Returns when each forgotten point was first wrong.

  Forgotten is right in the first row and wrong in the last.

  Args:
    correct: bool[S, N], in time order.

  Returns:
    int[N] rows; -1 for points that were not forgotten.

  >>> forget_times([[1, 1, 0], [0, 1, 1], [0, 1, 0]]).tolist()
  [1, -1, -1]
  """
  correct = _checked_correct("correct", correct)
  forgotten = correct[0] & ~correct[-1]
  return np.where(forgotten, np.argmin(correct, axis=0), -1)


def side_changes(correct: ArrayLike) -> np.ndarray:
  """Counts how often each point turned from right to wrong or back, int[N].

  Args:
    correct: bool[S, N], in time order.
  """
  correct = _checked_correct("correct", correct)
  return (correct[1:] != correct[:-1]).sum(axis=0)


def lost_later(correct: ArrayLike) -> np.ndarray:
  """Returns, per row, the points right in a later row and wrong in the last.

  On rows of `component_scores` these are the paper's sets S(k), on the epochs
  of a network its sets M(n).

  Args:
    correct: bool[C, N], in order.

  Returns:
    bool[C, N].

  >>> lost_later([[1, 0], [0, 1], [0, 0]]).astype(int).tolist()
  [[0, 1], [0, 0], [0, 0]]
  """
  correct = _checked_correct("correct", correct)
  lost = correct & ~correct[-1]
  since = np.logical_or.accumulate(lost[::-1], axis=0)[::-1]
  return np.concatenate([since[1:], np.zeros_like(since[:1])])


class Overlap(NamedTuple):
  """How far forgotten points are those that components explain.

  Attributes:
    slope: epochs per component, alpha in n = alpha k + beta.
    offset: beta.
    shared: f64[D] size of the intersection over that of the union of S(k) and
      the M(n) matched with it; 0 where both are empty.
    chance: f64[D] the same for sets of these sizes that are independent.
  """

  slope: float
  offset: float
  shared: np.ndarray
  chance: np.ndarray


def matched_overlap(components: ArrayLike, epochs: ArrayLike) -> Overlap:
  """Matches sets S(k) with sets M(n) along the line on which they agree best.

  Lines run from an epoch at the first component to the same or a later one at
  the last; the line with the largest total intersection over total union is
  taken. The choice favours agreement by a little: shuffle the examples of one
  side to see how much.

  Args:
    components: bool[D, N] of `lost_later`.
    epochs: bool[C, N] of `lost_later`.
  """
  components = _checked_correct("components", components)
  epochs = _checked_correct("epochs", epochs)
  if components.shape[1] != epochs.shape[1]:
    raise ValueError(
      f"components [D, N] and epochs [C, N] must have one N; got shapes "
      f"{components.shape} and {epochs.shape}."
    )
  sizes = components.sum(axis=1)[:, None], epochs.sum(axis=1)[None]
  both = components.astype(np.float64) @ epochs.T.astype(np.float64)
  either = sizes[0] + sizes[1] - both
  by_chance = sizes[0] * sizes[1] / components.shape[1]

  first, last = np.triu_indices(len(epochs))
  order = np.arange(len(components))
  slopes = (last - first) / max(len(components) - 1, 1)
  lines = np.rint(first[:, None] + slopes[:, None] * order).astype(int)
  total = np.maximum(either[order, lines].sum(axis=1), 1)
  best = int(np.argmax(both[order, lines].sum(axis=1) / total))

  def on_line(matrix):
    return matrix[order, lines[best]]

  expected = on_line(by_chance)
  either_by_chance = on_line(sizes[0] + sizes[1]) - expected
  return Overlap(
    float(slopes[best]),
    float(first[best]),
    on_line(both) / np.maximum(on_line(either), 1),
    expected / np.where(either_by_chance > 0, either_by_chance, 1),
  )


def init_layers(
  key: jax.Array,
  num_inputs: int,
  num_outputs: int,
  *,
  width: int,
  num_layers: int,
) -> list[jax.Array]:
  """Draws layers whose products are near orthogonal when they are wide.

  Entries have variance 1 / width: then the layers above and below each one
  hardly stretch its gradient, which is what `weights_at` counts on.

  Args:
    key: random key.
    num_inputs: D.
    num_outputs: K.
    width: of every hidden layer; of one layer alone only the scale.
    num_layers: L, at least 1.

  Returns:
    L arrays [in, out]; the network is inputs @ layers[0] @ layers[1] ...
  """
  if width < 1 or num_layers < 1:
    raise ValueError(
      f"width and num_layers must be at least 1; got {width} and {num_layers}."
    )
  sizes = [num_inputs, *[width] * (num_layers - 1), num_outputs]
  return [
    jax.random.normal(subkey, shape) / jnp.sqrt(width)
    for subkey, shape in zip(
      jax.random.split(key, num_layers), itertools.pairwise(sizes)
    )
  ]


def train(
  layers: Sequence[ArrayLike],
  inputs: ArrayLike,
  targets: ArrayLike,
  *,
  learning_rate: float,
  num_steps: int,
) -> jax.Array:
  """Trains a deep linear network by full gradient descent, the real thing.

  The loss is the sum of squared errors over 2 N. Works under `jit`.

  Args:
    layers: L arrays [in, out], see `init_layers`.
    inputs: [N, D].
    targets: [N, K].
    learning_rate: of each layer.
    num_steps: S.

  Returns:
    f32[S + 1, D, K] the product of the layers, from before the first step on.
  """
  inputs, targets = jnp.asarray(inputs), jnp.asarray(targets)
  _check_shapes(inputs.shape, targets.shape)
  # Accelerators round products to fewer bits, which adds up over the steps.
  with jax.default_matmul_precision("highest"):
    gram = inputs.T @ inputs / len(inputs)
    moments = inputs.T @ targets / len(inputs)

    def product(layers):
      return layers[0] if len(layers) == 1 else jnp.linalg.multi_dot(layers)

    def loss(layers):
      weights = product(layers)
      # The squared error up to a constant, from moments: a step costs no N.
      return jnp.vdot(weights, gram @ weights / 2 - moments)

    def step(layers, _):
      slopes = jax.grad(loss)(layers)
      moved = [w - learning_rate * s for w, s in zip(layers, slopes)]
      return moved, product(moved)

    start = [jnp.asarray(layer) for layer in layers]
    _, weights = jax.lax.scan(step, start, length=num_steps)
    return jnp.concatenate([product(start)[None], weights])


def _on_axes(problem: PrincipalProblem, inputs: ArrayLike) -> np.ndarray:
  """Returns inputs[N, D] in the coordinates of the principal axes."""
  inputs = np.asarray(inputs, np.float64)
  if inputs.ndim != 2 or inputs.shape[1] != len(problem.axes):
    raise ValueError(
      f"inputs must be [N, D] with D = {len(problem.axes)} as in problem; got "
      f"shape {inputs.shape}."
    )
  return inputs @ problem.axes


def _check_shapes(inputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
  if len(inputs) != 2 or len(targets) != 2 or inputs[0] != targets[0]:
    raise ValueError(
      f"inputs must be [N, D] and targets [N, K]; got shapes {inputs} and "
      f"{targets}."
    )


def _checked_correct(name: str, correct: ArrayLike) -> np.ndarray:
  correct = np.asarray(correct, bool)
  if correct.ndim != 2 or not correct.size:
    raise ValueError(
      f"{name} must be two axes, rows and examples, neither of them 0; got "
      f"shape {correct.shape}."
    )
  return correct
