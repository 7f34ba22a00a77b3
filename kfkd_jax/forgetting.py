"""What a network knew during training and no longer knows at the end.

Letters: C checkpoints in time order, N examples, K classes. Everything after
`predicted_classes` works on small arrays [C, N] of booleans or classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.typing import ArrayLike

from kfkd_jax import stacks


def predicted_classes(probs: Any) -> jax.Array | np.ndarray:
  """Returns the most probable classes, and -1 for rows that hold a nan.

  A JAX array is handled at once, also inside `jit`. Anything else is read one
  checkpoint and some rows at a time, so that a stack larger than memory (a
  memory map, a list, an object with `shape` and `[c]`) will do.

  Args:
    probs: [C, N, K], or a sequence of C arrays [N, K].

  Returns:
    i32[C, N], a JAX array for a JAX array and a NumPy array otherwise.
  """
  shape = stacks.checked_shape(probs)
  if isinstance(probs, jax.Array):
    classes = jnp.argmax(probs, axis=2).astype(jnp.int32)
    return jnp.where(jnp.isnan(probs).any(axis=2), -1, classes)
  return np.stack(
    [_classes_on_host(probs[c], shape[1:]) for c in range(shape[0])]
  )


def _classes_on_host(probs: Any, shape: tuple[int, ...]) -> np.ndarray:
  """Returns i32[N] classes of probs[N, K], some rows at a time."""
  if np.shape(probs) != shape:
    raise ValueError(
      f"every checkpoint of probs must have the first one's shape, {shape}; "
      f"got {np.shape(probs)}."
    )
  classes = np.empty(shape[0], np.int32)
  for rows in stacks.row_slices(*shape):
    part = stacks.as_float32(probs[rows])
    best = part.argmax(axis=1)
    # argmax stops at a nan, so the value it picks tells of any in the row.
    is_number = ~np.isnan(np.take_along_axis(part, best[:, None], axis=1)[:, 0])
    classes[rows] = np.where(is_number, best, -1)
  return classes


def correctness(probs: Any, labels: ArrayLike) -> jax.Array | np.ndarray:
  """Says which checkpoint was right on which example.

  Args:
    probs: [C, N, K], read as `predicted_classes` does; nan is never right.
      Logits do as well: only the largest of a row counts.
    labels: int[N].

  Returns:
    bool[C, N], a JAX array for a JAX array and a NumPy array otherwise.

  >>> correctness(np.asarray([[[0.9, 0.1]], [[0.3, 0.7]]]), [0]).tolist()
  [[True], [False]]
  """
  if not isinstance(labels, jax.Array):
    labels = np.asarray(labels)
  shape = stacks.checked_shape(probs)
  stacks.check_labels(labels, shape)
  stacks.check_classes(labels, shape[2])
  classes = predicted_classes(probs)
  if isinstance(classes, np.ndarray):
    labels = np.asarray(labels)
  return classes == labels[None]


class ForgettingCurves(NamedTuple):
  """What each checkpoint knows beside the reference.

  Attributes:
    accuracy: f32[C] share right at the checkpoint.
    forget: f32[C] right at the checkpoint, wrong in the reference.
    learn: f32[C] wrong at the checkpoint, right in the reference.
    null: f32[C] `forget` if both were right independently of each other.
  """

  accuracy: jax.Array
  forget: jax.Array
  learn: jax.Array
  null: jax.Array


def forget_fractions(
  correct: ArrayLike, reference: ArrayLike | None = None
) -> jax.Array:
  """Returns F_c: the share right at c and wrong in the reference.

  Stern et al. 2025, "On Local Overfitting and Forgetting in Deep Neural
  Networks". Nothing wrong in the reference makes it 0.

  Args:
    correct: bool[C, N].
    reference: bool[N]; the last checkpoint by default.

  Returns:
    f32[C].

  >>> forget_fractions([[True, True], [False, True]]).tolist()
  [0.5, 0.0]
  """
  return forgetting_curves(correct, reference).forget


def learn_fractions(
  correct: ArrayLike, reference: ArrayLike | None = None
) -> jax.Array:
  """Returns L_c: the share wrong at c and right in the reference.

  Args:
    correct: bool[C, N].
    reference: bool[N]; the last checkpoint by default.

  Returns:
    f32[C].

  >>> learn_fractions([[True, False], [True, True]]).tolist()
  [0.5, 0.0]
  """
  return forgetting_curves(correct, reference).learn


def forgetting_curves(
  correct: ArrayLike, reference: ArrayLike | None = None
) -> ForgettingCurves:
  """Returns accuracy, forget and learn fractions and the null model.

  The reference's accuracy is accuracy + learn - forget at every checkpoint.
  A forget fraction no larger than `null` is no evidence of forgetting.

  Args:
    correct: bool[C, N].
    reference: bool[N]; the last checkpoint by default.

  Returns:
    ForgettingCurves of f32[C].

  >>> curves = forgetting_curves([[True, True], [False, True]])
  >>> curves.forget.tolist(), curves.null.tolist()
  ([0.5, 0.0], [0.5, 0.25])
  """
  return _curves(correct, reference, lambda x: jnp.mean(x, axis=1))


def forgetting_curves_by_class(
  correct: ArrayLike,
  labels: ArrayLike,
  num_classes: int,
  reference: ArrayLike | None = None,
) -> ForgettingCurves:
  """Returns forgetting curves of each class's own examples.

  Args:
    correct: bool[C, N].
    labels: int[N].
    num_classes: K.
    reference: bool[N]; the last checkpoint by default.

  Returns:
    ForgettingCurves of f32[C, K]; nan for a class without examples.
  """
  labels = jnp.asarray(labels)
  if labels.shape != np.shape(correct)[1:]:
    raise ValueError(
      f"correct must be [C, N] and labels [N]; got shapes {np.shape(correct)} "
      f"and {labels.shape}."
    )

  def class_sums(values):  # [..., N] -> [..., K]
    sums = jax.ops.segment_sum(jnp.moveaxis(values, -1, 0), labels, num_classes)
    return jnp.moveaxis(sums, 0, -1)

  sizes = class_sums(jnp.ones((1, labels.size)))
  return _curves(correct, reference, lambda x: class_sums(x) / sizes)


def _curves(
  correct: ArrayLike,
  reference: ArrayLike | None,
  mean: Callable[[jax.Array], jax.Array],
) -> ForgettingCurves:
  """Builds the curves with a mean over examples, [C, N] -> [C, ...]."""
  correct, reference = _with_reference(correct, reference)
  right, known = correct.astype(jnp.float32), reference.astype(jnp.float32)
  accuracy = mean(right)
  return ForgettingCurves(
    accuracy=accuracy,
    forget=mean(right * (1 - known)),
    learn=mean((1 - right) * known),
    null=accuracy * (1 - mean(known)),
  )


def last_right(correct: ArrayLike) -> jax.Array:
  """Returns the last checkpoint that was right on each example.

  Args:
    correct: bool[C, N].

  Returns:
    i32[N]; -1 where none was.

  >>> last_right([[True, True, False], [False, True, False]]).tolist()
  [0, 1, -1]
  """
  correct, _ = _with_reference(correct, None)
  order = jnp.arange(len(correct), dtype=jnp.int32)[:, None]
  return jnp.max(jnp.where(correct, order, -1), axis=0)


def time_to_forget(correct: ArrayLike) -> jax.Array:
  """Counts the forgotten examples by when they were last right.

  Forgotten is wrong at the last checkpoint and right at an earlier one. Which
  examples these are is told by `last_right`.

  Args:
    correct: bool[C, N].

  Returns:
    i32[C]: examples that were right at c for the last time; 0 at the end.

  >>> time_to_forget([[1, 1, 0], [0, 1, 0], [0, 0, 1]]).tolist()
  [1, 1, 0]
  """
  last = last_right(correct)
  num_checkpoints = np.shape(correct)[0]
  forgotten = (last >= 0) & (last < num_checkpoints - 1)
  counts = jnp.zeros(num_checkpoints, jnp.int32)
  return counts.at[last].add(forgotten.astype(jnp.int32))


def forgotten(correct: ArrayLike) -> jax.Array:
  """Says which examples were right once and are wrong at the end.

  Their share is the temporal forgetting score of Li et al. 2025, arXiv
  2505.20196.

  Args:
    correct: bool[C, N].

  Returns:
    bool[N].

  >>> forgotten([[True, True, False], [False, True, False]]).tolist()
  [True, False, False]
  """
  correct, reference = _with_reference(correct, None)
  return correct.any(axis=0) & ~reference[0]


def pass_at_k(correct: ArrayLike, k: int) -> np.ndarray:
  """Returns how likely one of k different checkpoints at random is right.

  Chen et al. 2021, arXiv 2107.03374, with checkpoints for samples.

  Args:
    correct: bool[C, N].
    k: how many are drawn, 1..C.

  Returns:
    f32[N], a NumPy array.

  >>> pass_at_k([[True, False], [False, False]], 1).tolist()
  [0.5, 0.0]
  """
  right = np.asarray(_with_reference(correct, None)[0])
  size = len(right)
  if not 1 <= k <= size or k % 1:
    raise ValueError(f"k must lie in 1..{size} (C); got {k}.")
  wrong, drawn = np.arange(size + 1)[:, None], np.arange(k)
  # Factor i: the next draw is wrong too, after i wrong ones.
  all_wrong = np.prod(np.maximum(wrong - drawn, 0) / (size - drawn), axis=1)
  return (1 - all_wrong[(~right).sum(axis=0)]).astype(np.float32)


def majority_vote(answers: ArrayLike) -> np.ndarray:
  """Returns what most checkpoints answer; of equally many, the newest answer.

  Args:
    answers: [C, N] integers or strings.

  Returns:
    [N] of the same type, a NumPy array.

  >>> majority_vote([["a", "b"], ["a", "c"], ["b", "d"]]).tolist()
  ['a', 'd']
  """
  answers = np.asarray(answers)
  if answers.ndim != 2 or answers.size == 0 or answers.dtype.kind not in "iuU":
    raise ValueError(
      "answers must be [C, N] integers or strings, neither of them 0; got "
      f"{answers.dtype} of shape {answers.shape}."
    )
  size, num = answers.shape
  columns = np.ascontiguousarray(answers.T)
  # Equal answers of an example side by side, in time order among themselves.
  order = np.argsort(columns, axis=1, kind="stable")
  ordered = np.take_along_axis(columns, order, axis=1)
  begins = np.ones((num, size), bool)
  begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
  starts = np.flatnonzero(begins)
  counts = np.diff(starts, append=begins.size)
  newest = order.reshape(-1)[starts + counts - 1]
  rank = counts * size + newest  # the count first, then the time
  best = np.maximum.reduceat(
    rank, np.searchsorted(starts, np.arange(num) * size)
  )
  return answers[best % size, np.arange(num)]


class Memorisation(NamedTuple):
  """What becomes of wrong labels, checkpoint by checkpoint.

  The first three sum to 1; each is nan where there is nothing to count.

  Attributes:
    memorised: f32[C] share of wrongly labelled examples predicted as given.
    right: f32[C] share of them predicted as their clean class.
    wrong: f32[C] share of them predicted as a third class.
    clean_accuracy: f32[C] accuracy on the rightly labelled examples.
  """

  memorised: jax.Array
  right: jax.Array
  wrong: jax.Array
  clean_accuracy: jax.Array


def memorisation(
  classes: ArrayLike, given_labels: ArrayLike, clean_labels: ArrayLike
) -> Memorisation:
  """Returns how much of the label noise each checkpoint has memorised.

  Args:
    classes: int[C, N] predicted classes (see `predicted_classes`).
    given_labels: int[N].
    clean_labels: int[N].

  Returns:
    Memorisation of f32[C].
  """
  shapes = [np.shape(x) for x in (classes, given_labels, clean_labels)]
  if len(shapes[0]) != 2 or shapes[1:] != [shapes[0][1:]] * 2:
    raise ValueError(
      f"classes must be [C, N], given_labels and clean_labels [N]; got shapes "
      f"{shapes[0]}, {shapes[1]} and {shapes[2]}."
    )
  classes = jnp.asarray(classes)
  given = jnp.asarray(given_labels)[None]
  clean = jnp.asarray(clean_labels)[None]
  flipped = given != clean

  def fraction(hit, among):
    count = jnp.sum(among, dtype=jnp.float32)
    return jnp.sum(hit & among, axis=1, dtype=jnp.float32) / count

  return Memorisation(
    memorised=fraction(classes == given, flipped),
    right=fraction(classes == clean, flipped),
    wrong=fraction((classes != given) & (classes != clean), flipped),
    clean_accuracy=fraction(classes == clean, ~flipped),
  )


def _with_reference(
  correct: ArrayLike, reference: ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
  """Returns correct as bool[C, N] and the reference as bool[1, N]."""
  correct = jnp.asarray(stacks.as_booleans("correct", correct))
  if correct.ndim != 2 or correct.size == 0:
    raise ValueError(
      f"correct must be [C, N], neither of them 0; got {correct.shape}."
    )
  if reference is None:
    return correct, correct[-1:]
  reference = jnp.asarray(stacks.as_booleans("reference", reference))
  if reference.shape != correct.shape[1:]:
    raise ValueError(
      f"reference must be [N] where correct is [C, N]; got shapes "
      f"{reference.shape} and {correct.shape}."
    )
  return correct, reference[None]
