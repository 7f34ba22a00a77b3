"""Label noise: transition matrices, and the labels drawn from them.

`transition[i, j]` is the probability that clean class i is given label j; every
row sums to 1. Letters: N examples, D features, K classes.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax import numpy as jnp
from jax.typing import ArrayLike

# Truck to automobile, bird to airplane, deer to horse, cat to dog and back.
CIFAR10_PAIRS = (0, 1, 0, 5, 7, 3, 6, 7, 8, 1)

_CIFAR100_SUPERCLASSES = (
  (4, 30, 55, 72, 95),  # aquatic mammals
  (1, 32, 67, 73, 91),  # fish
  (54, 62, 70, 82, 92),  # flowers
  (9, 10, 16, 28, 61),  # food containers
  (0, 51, 53, 57, 83),  # fruit and vegetables
  (22, 39, 40, 86, 87),  # household electrical devices
  (5, 20, 25, 84, 94),  # household furniture
  (6, 7, 14, 18, 24),  # insects
  (3, 42, 43, 88, 97),  # large carnivores
  (12, 17, 37, 68, 76),  # large man-made outdoor things
  (23, 33, 49, 60, 71),  # large natural outdoor scenes
  (15, 19, 21, 31, 38),  # large omnivores and herbivores
  (34, 63, 64, 66, 75),  # medium-sized mammals
  (26, 45, 77, 79, 99),  # non-insect invertebrates
  (2, 11, 35, 46, 98),  # people
  (27, 29, 44, 78, 93),  # reptiles
  (36, 50, 65, 74, 80),  # small mammals
  (47, 52, 56, 59, 96),  # trees
  (8, 13, 48, 58, 90),  # vehicles 1
  (41, 69, 81, 85, 89),  # vehicles 2
)


def _next_in_group(groups: Sequence[Sequence[int]]) -> tuple[int, ...]:
  """Returns target[K]: each class's successor in its group, cyclically."""
  target = {
    group[i]: group[(i + 1) % len(group)]
    for group in groups
    for i in range(len(group))
  }
  return tuple(target[i] for i in range(len(target)))


CIFAR100_NEXT_IN_SUPERCLASS = _next_in_group(_CIFAR100_SUPERCLASSES)

# Examples drawn at once: bounds the memory of the [chunk, K] random numbers.
_CHUNK = 1 << 15


def symmetric(num_classes: int, rate: float) -> np.ndarray:
  """Noise that gives another class, each of them equally often.

  Args:
    num_classes: K, at least 2.
    rate: probability that a label really changes.

  Returns:
    f32[K, K] transition matrix.

  >>> symmetric(3, 0.5).tolist()
  [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]
  """
  _check_classes_and_rate(num_classes, rate)
  transition = np.full((num_classes, num_classes), rate / (num_classes - 1))
  np.fill_diagonal(transition, 1 - rate)
  return transition.astype(np.float32)


def pair(num_classes: int, rate: float) -> np.ndarray:
  """Noise that gives the next class, the last class becoming the first.

  Args:
    num_classes: K, at least 2.
    rate: probability that a label changes.

  Returns:
    f32[K, K] transition matrix.

  >>> pair(3, 0.25).tolist()
  [[0.75, 0.25, 0.0], [0.0, 0.75, 0.25], [0.25, 0.0, 0.75]]
  """
  _check_classes_and_rate(num_classes, rate)
  return asymmetric((np.arange(num_classes) + 1) % num_classes, rate)


def asymmetric(
  mapping: Sequence[int] | Mapping[int, int] | np.ndarray,
  rate: float,
  *,
  num_classes: int | None = None,
) -> np.ndarray:
  """Noise that gives one fixed other class.

  A class that maps to itself never changes, so over all examples the rate of
  changed labels is `rate` times the share of classes that map elsewhere.

  Args:
    mapping: target[K] for every class, or {class: target} for some of them.
    rate: probability that a label of a mapped class changes.
    num_classes: K; needed with a dict only.

  Returns:
    f32[K, K] transition matrix.

  >>> asymmetric({0: 2}, 0.25, num_classes=3).tolist()
  [[0.75, 0.0, 0.25], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
  """
  target = _targets(mapping, num_classes)
  _check_classes_and_rate(len(target), rate)
  transition = (1 - rate) * np.eye(len(target))
  transition[np.arange(len(target)), target] += rate
  return transition.astype(np.float32)


def _targets(
  mapping: Sequence[int] | Mapping[int, int] | np.ndarray,
  num_classes: int | None,
) -> np.ndarray:
  """Returns target[K] from either form of a mapping."""
  if isinstance(mapping, Mapping):
    if num_classes is None:
      raise ValueError("num_classes is needed when mapping is a dict.")
    classes = np.asarray([*mapping.keys(), *mapping.values()])
    _check_range("mapping", classes, num_classes)
    target = np.arange(num_classes)
    target[list(mapping)] = list(mapping.values())
    return target
  target = np.asarray(mapping)
  if target.ndim != 1 or num_classes not in (None, len(target)):
    raise ValueError(
      f"mapping must hold one target for each of the {num_classes or 'K'} "
      f"classes; got shape {target.shape}."
    )
  _check_range("mapping", target, len(target))
  return target


def check_transition(
  transition: ArrayLike, *, num_classes: int | None = None
) -> None:
  """Raises ValueError unless `transition` is a row-stochastic [K, K] matrix.

  Inside `jit` only the shape is checked.

  Args:
    transition: [K, K], P(given j | clean i).
    num_classes: K, where the caller knows it.
  """
  shape = np.shape(transition)
  size = shape[0] if num_classes is None and shape else num_classes
  if shape != (size, size) or not size:
    raise ValueError(
      f"transition must have shape ({size or 'K'}, {size or 'K'}); got {shape}."
    )
  if isinstance(transition, jax.core.Tracer):
    return
  values = np.asarray(transition, np.float64)
  if not (values >= 0).all():
    raise ValueError(f"transition has negative entries: {values.min()}.")
  worst = np.argmax(np.abs(values.sum(1) - 1))
  total = values[worst].sum()
  if abs(total - 1) > 1e-4:  # float32 rows of 1,000 classes round by less
    raise ValueError(
      f"transition's rows must sum to 1; row {worst} sums to {total:.6g}."
    )


def corrupt_labels(
  key: jax.Array, labels: ArrayLike, transition: ArrayLike
) -> jax.Array:
  """Draws a given label for every clean one.

  Args:
    key: random key.
    labels: int[N] clean labels.
    transition: [K, K] row-stochastic, P(given j | clean i).

  Returns:
    i32[N] given labels.

  >>> corrupt_labels(jax.random.key(0), [0, 1, 2], pair(3, 1.0)).tolist()
  [1, 2, 0]
  """
  check_transition(transition)
  _check_labels("labels", labels, np.shape(transition)[0])
  labels = jnp.asarray(labels, jnp.int32)
  return _draw(key, labels, jnp.asarray(transition, jnp.float32), _CHUNK)


@functools.partial(jax.jit, static_argnums=3)
def _draw(
  key: jax.Array, labels: jax.Array, transition: jax.Array, chunk: int
) -> jax.Array:
  """Draws i32[N] given labels, `chunk` examples at a time."""
  # log 0 = -inf, so a transition of probability 0 is never drawn.
  log_transition = jnp.log(transition)

  def draw(example):
    key, label = example
    return jax.random.categorical(key, log_transition[label])

  keys = jax.random.split(key, labels.size)
  given = jax.lax.map(draw, (keys, labels), batch_size=chunk)
  return given.astype(jnp.int32)


def instance_dependent(
  key: jax.Array,
  inputs: ArrayLike,
  labels: ArrayLike,
  num_classes: int,
  rate: float,
  *,
  projections: jax.Array | None = None,
) -> jax.Array:
  """Draws given labels that depend on the input, as in Xia et al. 2020.

  Each example has its own flip rate, from a normal of mean `rate` and standard
  deviation 0.1 cut to [0, 1]. Where a flipped label goes is drawn from the
  softmax of the input times a random projection of its clean class. The cut
  moves the mean rate for rates near 0 and 1; a rate of exactly 0 changes no
  label. Not for use inside `jit`.

  The scale of the inputs decides how sharp that softmax is: with bytes 0..255
  the largest score takes all, with pixels 0..1 nearly so.

  Args:
    key: random key.
    inputs: [N, D], or [N, ...] which is flattened.
    labels: int[N] clean labels.
    num_classes: K.
    rate: mean flip rate.
    projections: the key of other examples whose projections these share, as
      parts of one data set do; None: `key`.

  Returns:
    i32[N] given labels.
  """
  _check_classes_and_rate(num_classes, rate)
  _check_labels("labels", labels, num_classes)
  inputs, labels = np.asarray(inputs), np.asarray(labels)
  if inputs.ndim < 2 or len(inputs) != len(labels):
    raise ValueError(
      f"inputs must be [N, ...] and labels [N]; got shapes {inputs.shape} and "
      f"{labels.shape}."
    )
  if rate == 0:
    return jnp.asarray(labels, jnp.int32)
  projection_key, rate_key, flip_key, target_key = jax.random.split(key, 4)
  if projections is not None:
    projection_key = jax.random.split(projections, 4)[0]
  scores = _projected(projection_key, inputs, labels, num_classes)
  low, high = (0 - rate) / 0.1, (1 - rate) / 0.1
  rates = rate + 0.1 * jax.random.truncated_normal(
    rate_key, low, high, labels.shape
  )
  target = jax.random.categorical(target_key, jnp.asarray(scores))
  flips = jax.random.uniform(flip_key, labels.shape) < rates
  return jnp.where(flips, target, jnp.asarray(labels)).astype(jnp.int32)


def _projected(
  key: jax.Array, inputs: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
  """Returns scores f32[N, K] of the other classes, -inf for the clean one."""
  inputs = inputs.reshape(len(inputs), -1)
  scores = np.empty((len(inputs), num_classes), np.float32)
  # One projection [D, K] at a time: all K of them would not fit in memory.
  for label in np.unique(labels):
    rows = np.flatnonzero(labels == label)
    class_key = jax.random.fold_in(key, int(label))
    projection = jax.random.normal(class_key, (inputs.shape[1], num_classes))
    scores[rows] = inputs[rows].astype(np.float32) @ np.asarray(projection)
  scores[np.arange(len(labels)), labels] = -np.inf
  return scores


def realised_rate(
  clean_labels: ArrayLike, given_labels: ArrayLike
) -> jax.Array:
  """Returns the share of labels that changed, f32[]; nan if there are none.

  Args:
    clean_labels: int[N].
    given_labels: int[N].
  """
  _check_same_shape(clean_labels, given_labels)
  changed = jnp.asarray(clean_labels) != jnp.asarray(given_labels)
  return jnp.mean(changed, dtype=jnp.float32)


def estimate_transition(
  clean_labels: ArrayLike, given_labels: ArrayLike, num_classes: int
) -> jax.Array:
  """Returns the transition matrix that was realised, f32[K, K].

  The row of a class without examples says that it keeps its label.

  Args:
    clean_labels: int[N].
    given_labels: int[N].
    num_classes: K.
  """
  _check_same_shape(clean_labels, given_labels)
  _check_labels("clean_labels", clean_labels, num_classes)
  _check_labels("given_labels", given_labels, num_classes)
  counts = jnp.zeros((num_classes, num_classes), jnp.float32)
  counts = counts.at[jnp.asarray(clean_labels), jnp.asarray(given_labels)].add(
    1
  )
  totals = counts.sum(axis=1, keepdims=True)
  rows = counts / jnp.maximum(totals, 1)
  return jnp.where(totals > 0, rows, jnp.eye(num_classes))


def _check_classes_and_rate(num_classes: int, rate: float) -> None:
  if num_classes < 2 or num_classes % 1:
    raise ValueError(
      f"num_classes must be at least 2 and whole; got {num_classes}."
    )
  if not 0 <= rate <= 1:
    raise ValueError(f"rate must lie in [0, 1]; got {rate}.")


def _check_labels(name: str, labels: ArrayLike, num_classes: int) -> None:
  """Raises ValueError unless labels are int[N] in range (if not traced)."""
  if np.ndim(labels) != 1:
    raise ValueError(f"{name} must have shape [N]; got {np.shape(labels)}.")
  if not isinstance(labels, jax.core.Tracer):
    _check_range(name, np.asarray(labels), num_classes)


def _check_range(name: str, classes: np.ndarray, num_classes: int) -> None:
  if classes.size and not np.issubdtype(classes.dtype, np.integer):
    raise ValueError(f"{name} must hold whole numbers; got {classes.dtype}.")
  outside = (classes < 0) | (classes >= num_classes)
  if outside.any():
    raise ValueError(
      f"{name} must lie in 0..{num_classes - 1}; got {classes[outside][0]}."
    )


def _check_same_shape(clean_labels: ArrayLike, given_labels: ArrayLike) -> None:
  if np.shape(clean_labels) != np.shape(given_labels):
    raise ValueError(
      f"clean_labels and given_labels must have one shape; got "
      f"{np.shape(clean_labels)} and {np.shape(given_labels)}."
    )
