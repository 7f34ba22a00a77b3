"""Distillation that weighs, correlates or relates more than probabilities.

The teacher is a constant in all of them. Losses over a batch take `weight[B]`,
0 for rows that do not count, and return for each row its part: their mean over
the rows that count is the loss of the paper.
"""

import jax
from jax import numpy as jnp
from jax.typing import ArrayLike

from kfkd_jax.losses.basic import temper
from kfkd_jax.losses.targets import as_probs

_TINY = 1e-7


def decoupled_distillation(
  logits: ArrayLike,
  teacher_probs: ArrayLike,
  labels: ArrayLike,
  *,
  label_weight: float = 1.0,
  other_weight: float = 8.0,
  temperature: float = 4.0,
) -> jax.Array:
  """Returns DKD of Zhao et al. 2022, per example.

  Distillation is the sum of two terms: how much the label's class gets, and
  how the rest is spread over the other classes. The second is scaled down by
  what the teacher leaves to them; here both have weights of their own. With
  weights 1 and 1 - t_y it is T^2 KL(teacher_T || student_T) again.

  Args:
    logits: [B, K] of the student.
    teacher_probs: [B, K].
    labels: int[B], or [B, K] whose largest entry counts.
    label_weight: of the first term, called alpha.
    other_weight: of the second, called beta.
    temperature: T > 0.

  Returns:
    f32[B].
  """
  student = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32) / temperature)
  # Floored, or KL would meet the logarithm of 0.
  tempered = jnp.maximum(temper(teacher_probs, temperature), _TINY)
  teacher = jax.lax.stop_gradient(jnp.log(tempered))
  is_label = jax.nn.one_hot(
    jnp.argmax(as_probs(labels, student.shape[-1]), -1),
    student.shape[-1],
    dtype=jnp.bool_,
  )
  return jnp.square(temperature) * (
    label_weight * _kl(_two_way(teacher, is_label), _two_way(student, is_label))
    + other_weight * _kl(_others(teacher, is_label), _others(student, is_label))
  )


def standardized_distillation(
  logits: ArrayLike,
  teacher_probs: ArrayLike,
  *,
  temperature: float = 2.0,
) -> jax.Array:
  """Returns T^2 KL after both rows of logits have mean 0 and deviation 1.

  Logit standardisation of Sun et al. 2024: the student has to match the order
  and the proportions of the teacher's logits, not their size. The teacher's
  probabilities suffice, as their logarithms are logits; those of 0 count as the
  smallest number of float32. The deviation is that of the authors' code, over
  K - 1.

  Args:
    logits: [B, K] of the student.
    teacher_probs: [B, K].
    temperature: T > 0.

  Returns:
    f32[B].
  """
  student = jax.nn.log_softmax(_standard(logits) / temperature)
  probs = jnp.asarray(teacher_probs, jnp.float32)
  logs = jnp.log(jnp.maximum(probs, jnp.finfo(jnp.float32).tiny))
  given = _standard(jax.lax.stop_gradient(logs))
  teacher = jax.nn.log_softmax(given / temperature)
  return jnp.square(temperature) * _kl(teacher, student)


def correlation_distance(
  logits: ArrayLike,
  teacher_probs: ArrayLike,
  weight: ArrayLike,
  *,
  between_classes: float = 2.0,
  between_examples: float = 2.0,
  temperature: float = 4.0,
) -> jax.Array:
  """Returns DIST of Huang et al. 2022, row by row.

  One minus the correlation of student and teacher along each row, and one
  minus that along each class's column, times T^2. The second is a loss of the
  batch, the same for every row.

  Args:
    logits: [B, K] of the student, the whole batch.
    teacher_probs: [B, K].
    weight: [B], 0 for rows that do not count.
    between_classes: weight of the rows' term.
    between_examples: weight of the columns' term.
    temperature: T > 0, softens teacher and student.

  Returns:
    f32[B].
  """
  student = jax.nn.softmax(jnp.asarray(logits, jnp.float32) / temperature)
  teacher = jax.lax.stop_gradient(temper(teacher_probs, temperature))
  weight = jnp.asarray(weight, jnp.float32)
  along_rows = 1 - _correlation(student, teacher, jnp.ones_like(student))
  mask = jnp.broadcast_to(weight, student.T.shape)
  along_columns = jnp.mean(1 - _correlation(student.T, teacher.T, mask))
  loss = between_classes * along_rows + between_examples * along_columns
  return jnp.square(temperature) * loss


def relational_distances(
  features: ArrayLike, teacher_features: ArrayLike, weight: ArrayLike
) -> jax.Array:
  """Returns RKD's distance term of Park et al. 2019, row by row.

  Compares the distances between examples, each network's divided by their
  mean, by the Huber loss. The two may have features of different sizes.

  Args:
    features: [B, F] of the student.
    teacher_features: [B, G].
    weight: [B], 0 for rows that do not count.

  Returns:
    f32[B], the mean over the partners of each row.
  """
  weight = jnp.asarray(weight, jnp.float32)
  pairs = weight[:, None] * weight[None, :]
  teacher = jax.lax.stop_gradient(_distances(teacher_features, pairs))
  loss = _huber(_distances(features, pairs) - teacher)
  return loss @ weight / jnp.maximum(weight.sum(), 1)


def relational_angles(
  features: ArrayLike, teacher_features: ArrayLike, weight: ArrayLike
) -> jax.Array:
  """Returns RKD's angle term of Park et al. 2019, row by row.

  Compares the cosines of the angles that all pairs of examples make at each
  example, by the Huber loss. Takes B^3 numbers.

  Args:
    features: [B, F] of the student.
    teacher_features: [B, G].
    weight: [B], 0 for rows that do not count.

  Returns:
    f32[B], the mean over the pairs seen from each row.
  """
  weight = jnp.asarray(weight, jnp.float32)
  teacher = jax.lax.stop_gradient(_cosines(teacher_features))
  loss = _huber(_cosines(features) - teacher)
  sums = jnp.einsum("jik,i,k->j", loss, weight, weight)
  return sums / jnp.maximum(jnp.square(weight.sum()), 1)


def _kl(log_teacher: jax.Array, log_student: jax.Array) -> jax.Array:
  # Where `_others` wrote -1e9 this is 0 times a finite number.
  probs = jnp.exp(log_teacher)
  return jnp.sum(probs * (log_teacher - log_student), axis=-1)


def _two_way(log_probs: jax.Array, is_label: jax.Array) -> jax.Array:
  """Log probabilities of the label's class and of all others, `[B, 2]`."""
  label = jnp.sum(log_probs, axis=-1, where=is_label)
  rest = jax.nn.logsumexp(jnp.where(is_label, -1e9, log_probs), axis=-1)
  return jax.nn.log_softmax(jnp.stack([label, rest], axis=-1))


def _others(log_probs: jax.Array, is_label: jax.Array) -> jax.Array:
  """Log probabilities among the other classes; the label's class gets 0."""
  # Not -inf, which KL would turn into 0 times infinity.
  return jax.nn.log_softmax(jnp.where(is_label, -1e9, log_probs))


def _standard(values: ArrayLike) -> jax.Array:
  """Rows with mean 0 and deviation 1; rows of one value become 0."""
  values = jnp.asarray(values, jnp.float32)
  centred = values - values.mean(axis=-1, keepdims=True)
  others = max(values.shape[-1] - 1, 1)
  deviation = _root(jnp.square(centred).sum(axis=-1, keepdims=True) / others)
  return _ratio(centred, deviation)


def _correlation(a: jax.Array, b: jax.Array, mask: jax.Array) -> jax.Array:
  """Pearson correlation along the last axis of `[R, S]`, where counted."""
  count = jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)

  def centred(x):
    return mask * (x - jnp.sum(x * mask, -1, keepdims=True) / count)

  a, b = centred(a), centred(b)
  norms = _root(jnp.square(a).sum(-1)) * _root(jnp.square(b).sum(-1))
  return _ratio(jnp.sum(a * b, axis=-1), norms)


def _distances(features: ArrayLike, pairs: jax.Array) -> jax.Array:
  """Distances `[B, B]` between rows over the mean of those above 0."""
  features = jnp.asarray(features, jnp.float32)
  gaps = features[:, None, :] - features[None, :, :]
  distances = _root(jnp.square(gaps).sum(axis=-1))
  # As in the authors' code: an example is no partner of itself, nor of its
  # copy.
  counted = pairs * (distances > 0)
  mean = jnp.sum(distances * counted) / jnp.maximum(counted.sum(), 1)
  return distances / jnp.where(mean > 0, mean, 1)


def _cosines(features: ArrayLike) -> jax.Array:
  """`[B, B, B]`: at j, of the angle between the ways to i and to k."""
  features = jnp.asarray(features, jnp.float32)
  ways = features[None, :, :] - features[:, None, :]
  lengths = _root(jnp.square(ways).sum(axis=-1, keepdims=True))
  # Two rows alike have no direction; 0 gives an angle without a gradient.
  ways = _ratio(ways, lengths)
  # Near 1 a cosine hardly moves with its angle: rounding would be all of it.
  return jnp.einsum("jif,jkf->jik", ways, ways, precision="highest")


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
  """The ratio; 0 with a gradient of 0 where b is next to nothing."""
  positive = b > _TINY
  return jnp.where(positive, a / jnp.where(positive, b, 1), 0)


def _huber(gap: jax.Array) -> jax.Array:
  size = jnp.abs(gap)
  return jnp.where(size < 1, jnp.square(gap) / 2, size - 0.5)


def _root(x: jax.Array) -> jax.Array:
  """The square root, whose gradient at 0 is 0."""
  positive = x > 0
  # The inner `where` matters: the branch not taken has a gradient as well, and
  # infinity times 0 is NaN.
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)
