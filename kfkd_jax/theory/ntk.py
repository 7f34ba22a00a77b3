"""Which directions a network fits first, and where label noise lies in them.

Dong, Hou, Lu and Zhang 2019, "Distillation = Early Stopping?": a wide network
is near linear in its parameters, so it fits the directions of large eigenvalues
of its tangent kernel first (anisotropic information retrieval, AIR). Clean
labels lie in those, label noise in all. `empirical_ntk` runs on JAX; the rest
is NumPy in float64. Letters: N examples, B batch, K classes, T steps.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from numpy.typing import ArrayLike

from kfkd_jax.theory import spectral

ApplyFn = Callable[[Any, Any], jax.Array]


def empirical_ntk(
  apply_fn: ApplyFn,
  params: Any,
  inputs: Any,
  *,
  batch_size: int | None = None,
) -> np.ndarray:
  """Returns the tangent kernel of a network on some examples.

  Entry [i, j] is the inner product of the gradients of a logit at the examples
  i and j, averaged over the K logits; gradients are computed in the type of
  the parameters, inner products in float32. Two batches of gradients of one
  logit are held at once. `spectral.eigensystem` takes the result.

  Args:
    apply_fn: (params, inputs[B, ...]) -> logits [B, K], each example on its
      own. It must close over what is not trained, such as batch statistics.
      What is compiled is kept per function object.
    params: the floating-point leaves to differentiate by.
    inputs: array or pytree with leaves [N, ...].
    batch_size: examples whose gradients are held at once; smaller ones are
      computed again for each pair of batches. None takes all at once.

  Returns:
    f32[N, N], symmetric, a NumPy array.
  """
  num = _num_examples(inputs)
  size = num if batch_size is None else min(batch_size, num)
  if size < 1:
    raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
  num_classes = _num_classes(apply_fn, params, inputs)
  starts = range(0, num, size)
  gram = np.zeros((num, num), np.float32)
  for row in starts:
    rows = _take(inputs, row, size)
    for column in starts[: row // size + 1]:
      columns = None if column == row else _take(inputs, column, size)
      block = np.zeros((size, size), np.float32)
      # A loop of convolutions would be slow on the CPU inside the program.
      for k in range(num_classes):
        block += np.asarray(_inner(apply_fn, params, rows, columns, k))
      part = block[: num - row, : num - column] / num_classes
      gram[row : row + size, column : column + size] = part
      gram[column : column + size, row : row + size] = part.T
  # Blocks on the diagonal are symmetric only up to rounding.
  return (gram + gram.T) / 2


@functools.partial(jax.jit, static_argnums=0)
def _inner(
  apply_fn: ApplyFn,
  params: Any,
  rows: Any,
  columns: Any | None,
  k: int,
) -> jax.Array:
  """Returns f32[B, B] for logit k; of rows with themselves without columns."""

  def logit(params, example):
    single = jax.tree.map(lambda x: x[None], example)
    return apply_fn(params, single)[0, k]

  def slopes(examples):
    tree = jax.vmap(jax.grad(logit), (None, 0))(params, examples)
    return [
      jnp.reshape(leaf, (len(leaf), -1)).astype(jnp.float32)
      for leaf in jax.tree.leaves(tree)
    ]

  left = slopes(rows)
  right = left if columns is None else slopes(columns)
  products = [
    jnp.matmul(a, b.T, precision="highest") for a, b in zip(left, right)
  ]
  return sum(products[1:], products[0])


def _take(inputs: Any, start: int, size: int) -> Any:
  """Returns rows start .. start + size, the last one again past the end."""
  index = np.arange(start, start + size)
  return jax.tree.map(lambda x: x[np.minimum(index, len(x) - 1)], inputs)


def _num_examples(inputs: Any) -> int:
  shapes = [np.shape(leaf) for leaf in jax.tree.leaves(inputs)]
  sizes = {shape[:1] for shape in shapes}
  if len(sizes) != 1 or sizes & {(), (0,)}:
    raise ValueError(
      f"inputs must hold leaves [N, ...] of one N above 0; got shapes {shapes}."
    )
  return shapes[0][0]


def _num_classes(apply_fn: ApplyFn, params: Any, inputs: Any) -> int:
  shape = jax.eval_shape(apply_fn, params, _take(inputs, 0, 1)).shape
  if len(shape) != 2 or shape[0] != 1:
    raise ValueError(
      f"apply_fn must return logits [B, K]; got shape {shape} for B = 1."
    )
  return shape[1]


def projection_shares(
  system: spectral.Eigensystem, signal: ArrayLike
) -> np.ndarray:
  """Returns how a signal's square is spread over the eigenvectors.

  Args:
    system: of N examples.
    signal: [N] or [N, K].

  Returns:
    f64[N], sums to 1; nan for a signal of zeros.
  """
  squares = np.square(spectral.coefficients(system, signal))
  squares = squares.reshape(len(squares), -1).sum(axis=1)
  with np.errstate(invalid="ignore"):
    return squares / squares.sum()


class LabelProjections(NamedTuple):
  """How much of the labels the leading eigenvectors hold.

  Attributes:
    clean: f64[N] share of the clean labels in the first 1, 2, ... N of them.
    noise: f64[N] the same of given minus clean labels; nan without noise.
  """

  clean: np.ndarray
  noise: np.ndarray


def label_projections(
  system: spectral.Eigensystem,
  clean_labels: ArrayLike,
  given_labels: ArrayLike,
  *,
  num_classes: int,
) -> LabelProjections:
  """Projects clean labels and label noise on the leading eigenvectors.

  Labels are one-hot less 1 / K, so that what all classes share, which a kernel
  tends to hold in its first eigenvector, does not count. A curve of clean
  labels above that of noise is the anisotropy that early stopping lives on;
  noise spread evenly follows n / N.

  Args:
    system: of N examples.
    clean_labels: int[N].
    given_labels: int[N].
    num_classes: K.
  """
  clean, given = np.asarray(clean_labels), np.asarray(given_labels)
  if clean.shape != given.shape or clean.shape != system.values.shape:
    raise ValueError(
      f"clean_labels and given_labels must be [N] with N = "
      f"{system.values.size} as in system; got shapes {clean.shape} and "
      f"{given.shape}."
    )
  highest = max(clean.max(), given.max())
  if min(clean.min(), given.min()) < 0 or highest >= num_classes:
    raise ValueError(
      f"labels must lie in 0..{num_classes - 1}; got "
      f"{min(clean.min(), given.min())}..{highest}."
    )
  one_hot = np.eye(num_classes)
  signal = one_hot[clean] - 1 / num_classes
  noise = one_hot[given] - one_hot[clean]
  return LabelProjections(
    np.cumsum(projection_shares(system, signal)),
    np.cumsum(projection_shares(system, noise)),
  )


def projection_history(
  grams: Iterable[ArrayLike],
  clean_labels: ArrayLike,
  given_labels: ArrayLike,
  *,
  num_classes: int,
) -> LabelProjections:
  """Projects labels and noise on the kernel's eigenvectors, epoch by epoch.

  The kernel of a network moves while it trains; a clean curve that rises over
  the epochs is a network whose leading directions turn to the classes, a noise
  curve that rises one that makes room for what is wrong. Kernels are taken one
  at a time, so that a generator over checkpoints holds a single one.

  Args:
    grams: T kernels [N, N], such as `empirical_ntk` of each checkpoint.
    clean_labels: int[N].
    given_labels: int[N].
    num_classes: K.

  Returns:
    `LabelProjections` whose arrays are f64[T, N].
  """
  found = [
    label_projections(
      spectral.eigensystem(gram),
      clean_labels,
      given_labels,
      num_classes=num_classes,
    )
    for gram in grams
  ]
  if not found:
    raise ValueError("grams must hold at least one kernel; got none.")
  return LabelProjections(
    *(np.stack(part) for part in zip(*found, strict=True))
  )


def air_trajectory(
  gram: ArrayLike,
  targets: ArrayLike,
  label_weights: ArrayLike,
  *,
  learning_rate: float,
) -> np.ndarray:
  """Trains a linear model from 0 on targets mixed with its own outputs.

  Step t has the targets a_t y + (1 - a_t) f_t and the squared loss. That is
  f_{t+1} = f_t - learning_rate a_t G (f_t - y): gradient descent on the labels
  alone with the step a_t times as long. So in the linear case what
  distillation adds is a schedule, and `air_filters` is its closed form.

  Args:
    gram: [N, N].
    targets: [N] or [N, K].
    label_weights: [T] a_t.
    learning_rate: below 2 over the largest eigenvalue, or it diverges.

  Returns:
    f64[T + 1, N] or f64[T + 1, N, K] outputs, from before the first step on.
  """
  gram = np.asarray(gram, np.float64)
  targets = np.asarray(targets, np.float64)
  if gram.shape != targets.shape[:1] * 2:
    raise ValueError(
      f"gram must be [N, N] where targets is [N] or [N, K]; got shapes "
      f"{gram.shape} and {targets.shape}."
    )
  outputs = [np.zeros_like(targets)]
  for weight in _checked_weights(label_weights):
    mixed = weight * targets + (1 - weight) * outputs[-1]
    outputs.append(outputs[-1] - learning_rate * gram @ (outputs[-1] - mixed))
  return np.stack(outputs)


def air_filters(
  values: ArrayLike, label_weights: ArrayLike, *, learning_rate: float
) -> np.ndarray:
  """Returns 1 - prod_s (1 - learning_rate a_s d), the share fitted by then.

  Args:
    values: [N] eigenvalues d.
    label_weights: [T] a_t.
    learning_rate: see `air_trajectory`.

  Returns:
    f64[T + 1, N] for `spectral.fitted` and `spectral.predict`.
  """
  values = np.asarray(values, np.float64)
  weights = _checked_weights(label_weights)[:, None]
  left = np.cumprod(1 - learning_rate * weights * values[None], axis=0)
  return np.concatenate([np.zeros((1, values.size)), 1 - left])


def early_stopping_times(
  label_weights: ArrayLike, *, learning_rate: float
) -> np.ndarray:
  """Returns when plain training has fitted as much: learning_rate sum a_s.

  Exact for gradient flow (`flow_filters`), for steps up to half the sum of
  (learning_rate a_s d)^2. If the weights of the labels have a finite sum, that
  time never comes and noise is never memorised, however long training runs.

  Args:
    label_weights: [T] a_t.
    learning_rate: see `air_trajectory`.

  Returns:
    f64[T + 1].
  """
  total = np.cumsum(_checked_weights(label_weights))
  return learning_rate * np.concatenate([[0.0], total])


def flow_filters(values: ArrayLike, times: ArrayLike) -> np.ndarray:
  """Returns 1 - exp(-time d), the share that gradient flow has fitted by then.

  Args:
    values: [N] eigenvalues d.
    times: [...].

  Returns:
    f64[..., N].
  """
  times = np.asarray(times, np.float64)[..., None]
  return -np.expm1(-times * np.asarray(values, np.float64))


def _checked_weights(label_weights: ArrayLike) -> np.ndarray:
  weights = np.asarray(label_weights, np.float64)
  if weights.ndim != 1 or not ((weights >= 0) & (weights <= 1)).all():
    raise ValueError(
      f"label_weights must be [T] numbers in 0..1; got shape {weights.shape}"
      + (f", {weights.min()}..{weights.max()}." if weights.size else ".")
    )
  return weights
