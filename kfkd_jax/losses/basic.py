"""Cross entropy and distillation."""

import jax
import numpy as np
from jax import numpy as jnp
from jax.typing import ArrayLike

from kfkd_jax import stacks


def cross_entropy(
  logits: ArrayLike, labels: ArrayLike, *, label_smoothing: float = 0.0
) -> jax.Array:
  """Returns the cross entropy of softmax(logits) with each label.

  Args:
    logits: [B, K].
    labels: int[B] classes, or [B, K] probabilities.
    label_smoothing: share of each label that is spread over all K classes.

  Returns:
    f32[B].

  >>> [round(float(x), 4) for x in cross_entropy([[0.0, 0.0]], [1])]
  [0.6931]
  """
  log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), axis=-1)
  labels = jnp.asarray(labels)
  is_known = not isinstance(label_smoothing, jax.core.Tracer)
  if is_known and not 0 <= label_smoothing <= 1:
    raise ValueError(f"label_smoothing must be in 0..1; got {label_smoothing}.")
  if labels.shape == log_probs.shape:
    stacks.check_rows("labels", labels)
    loss = -jnp.sum(labels.astype(jnp.float32) * log_probs, axis=-1)
  elif labels.shape == log_probs.shape[:-1] and jnp.issubdtype(
    labels.dtype, jnp.integer
  ):
    stacks.check_classes(labels, log_probs.shape[-1])
    loss = -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
  else:
    raise ValueError(
      f"labels must be int[B] or probabilities [B, K] where logits is [B, K]; "
      f"got {labels.dtype}{list(labels.shape)} for {list(log_probs.shape)}."
    )
  # Smoothed labels are (1 - s) y + s / K, in which cross entropy is linear.
  return loss + label_smoothing * (-log_probs.mean(axis=-1) - loss)


def distillation(
  logits: ArrayLike,
  teacher_probs: ArrayLike,
  labels: ArrayLike | None = None,
  *,
  alpha: float | jax.Array = 1.0,
  temperature: float | jax.Array = 1.0,
) -> jax.Array:
  """Returns (1 - alpha) CE(labels) + alpha T^2 KL(teacher_T || student_T).

  The teacher is a constant: no gradient flows into it. An alpha above 1 turns
  the label term negative on purpose (Das and Sanghavi 2023).

  Args:
    logits: [B, K] of the student.
    teacher_probs: [B, K].
    labels: int[B] or probabilities [B, K]; optional where alpha is 1. Without
      labels a traced alpha scales the teacher's term alone.
    alpha: weight of the teacher, a scalar or [B].
    temperature: T > 0, softens teacher and student.

  Returns:
    f32[B].

  >>> distillation([[0.0, 0.0]], [[0.5, 0.5]]).tolist()
  [0.0]
  """
  logits = jnp.asarray(logits, jnp.float32)
  if np.shape(teacher_probs) != logits.shape:
    raise ValueError(
      f"logits and teacher_probs must be [B, K] both; got shapes "
      f"{logits.shape} and {np.shape(teacher_probs)}."
    )
  if np.shape(alpha) not in ((), logits.shape[:-1]):
    raise ValueError(
      f"alpha must be a scalar or [B] where logits is [B, K]; got shapes "
      f"{np.shape(alpha)} and {logits.shape}."
    )
  stacks.check_rows("teacher_probs", teacher_probs)
  teacher = jax.lax.stop_gradient(temper(teacher_probs, temperature))
  log_student = jax.nn.log_softmax(logits / temperature, axis=-1)
  positive = ~(teacher <= 0)  # 0 log 0 = 0, but a nan stays one
  log_teacher = jnp.log(jnp.where(positive, teacher, 1))
  terms = jnp.where(positive, teacher * (log_teacher - log_student), 0)
  # T^2, for softening shrinks gradients by as much (Hinton et al. 2015).
  soft_loss = jnp.square(temperature) * terms.sum(axis=-1)
  if labels is not None:
    return (1 - alpha) * cross_entropy(logits, labels) + alpha * soft_loss
  if not isinstance(alpha, jax.core.Tracer) and np.any(np.asarray(alpha) != 1):
    raise ValueError(f"labels are needed where alpha is not 1; got {alpha}.")
  return alpha * soft_loss


def generalised_cross_entropy(
  logits: ArrayLike, labels: ArrayLike, *, q: float = 0.7
) -> jax.Array:
  """Returns (1 - p_y^q) / q (Zhang and Sabuncu 2018).

  Between cross entropy (q to 0) and mean absolute error (q = 1): the larger q,
  the less a label counts that the network finds unlikely.

  Args:
    logits: [B, K].
    labels: int[B] or probabilities [B, K], whose p_y is the expected one.
    q: 0 to 1; at 0 this is cross entropy.

  Returns:
    f32[B].

  >>> [
  ...   round(float(x), 4)
  ...   for x in generalised_cross_entropy([[0, 0]], [1], q=1)
  ... ]
  [0.5]
  """
  if q == 0:
    return cross_entropy(logits, labels)
  if np.ndim(labels) == np.ndim(logits):
    labels = jnp.asarray(labels, jnp.float32)
    log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), axis=-1)
    return jnp.sum(labels * -jnp.expm1(q * log_probs), axis=-1) / q
  # expm1 of the log probability: 1 - p^q cancels where p is near 1.
  return -jnp.expm1(-q * cross_entropy(logits, labels)) / q


def symmetric_cross_entropy(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  weights: tuple[float, float] = (0.1, 1.0),
) -> jax.Array:
  """Returns a CE + b RCE, labels and prediction in both roles (Wang 2019).

  The reverse term, -sum_k p_k log y_k with log 0 read as -4, is 4 (1 - p_y).
  That is the paper's A = -4; the authors' code has log 1e-4 = -9.21 in its
  place, which a b 2.303 times as large gives.

  Args:
    logits: [B, K].
    labels: int[B] or probabilities [B, K].
    weights: a and b.

  Returns:
    f32[B].
  """
  forward, reverse = weights
  wrong = generalised_cross_entropy(logits, labels, q=1.0)
  return forward * cross_entropy(logits, labels) + reverse * 4 * wrong


def early_learning(
  logits: ArrayLike, labels: ArrayLike, targets: ArrayLike, *, weight: float
) -> jax.Array:
  """Returns CE + weight log(1 - <p, t>), ELR (Liu et al. 2020).

  The second term pulls towards what was learnt early, the targets t: a moving
  average of the network's own predictions, to which no gradient flows.

  Args:
    logits: [B, K].
    labels: int[B] or probabilities [B, K].
    targets: [B, K].
    weight: of the second term.

  Returns:
    f32[B].
  """
  probs = jax.nn.softmax(jnp.asarray(logits, jnp.float32), axis=-1)
  # As in the authors' code, which clips and does not renormalise.
  probs = jnp.clip(probs, 1e-4, 1 - 1e-4)
  agreement = jnp.sum(probs * jax.lax.stop_gradient(targets), axis=-1)
  # Rounding may take the sum to 1, whose logarithm has no end.
  pull = jnp.log(jnp.maximum(1 - agreement, 1e-4))
  return cross_entropy(logits, labels) + weight * pull


def temper(probs: ArrayLike, temperature: float | jax.Array) -> jax.Array:
  """Returns p^(1/T), renormalised: softmax(logits / T) without the logits.

  Zeros stay zero, with a gradient of 0; a row of zeros stays as it is.

  Args:
    probs: [..., K].
    temperature: T > 0.

  Returns:
    f32[..., K].

  >>> [round(float(p), 4) for p in temper([0.8, 0.2, 0.0], 2.0)]
  [0.6667, 0.3333, 0.0]
  """
  if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
    raise ValueError(f"temperature must be above 0; got {temperature}.")
  probs = jnp.asarray(probs, jnp.float32)
  positive = ~(probs <= 0)  # a nan stays one
  # The largest becomes 1, or low temperatures would underflow every class.
  logs = jnp.log(jnp.where(positive, probs, 1))
  peak = jnp.max(logs, axis=-1, keepdims=True, where=positive, initial=-jnp.inf)
  peak = jax.lax.stop_gradient(jnp.where(jnp.isfinite(peak), peak, 0))
  powers = jnp.where(positive, jnp.exp((logs - peak) / temperature), 0)
  total = powers.sum(axis=-1, keepdims=True)
  return powers / jnp.where(total <= 0, 1, total)


def hard_targets(probs: ArrayLike) -> jax.Array:
  """Returns the most probable class as a one-hot row, f32[..., K].

  Args:
    probs: [..., K].
  """
  probs = jnp.asarray(probs)
  return jax.nn.one_hot(jnp.argmax(probs, axis=-1), probs.shape[-1])
