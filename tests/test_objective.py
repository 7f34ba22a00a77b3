"""What a step learns from: live against cached targets, mixing, averages."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfkd_jax import fusion, history, losses, parallel
from kfkd_jax.training import objective, step
from kfkd_jax.training.state import init_state

BATCH, CLASSES = 8, 3
SPECS = (
  parallel.REPLICATED,
  parallel.REPLICATED,
  parallel.REPLICATED,
  parallel.SHARDED,
  parallel.REPLICATED,
)
PLAIN = step.Views(mean=(0.5,), std=(0.3,))


class TinyNet(nn.Module):
  num_classes: int = CLASSES

  @nn.compact
  def __call__(self, x, *, train=False):
    x = x.reshape(len(x), -1)
    axis_name = parallel.DATA_AXIS if train else None
    x = nn.BatchNorm(use_running_average=not train, axis_name=axis_name)(x)
    return nn.Dense(self.num_classes)(x)


def make_data():
  rng = np.random.default_rng(0)
  resident = {
    "image": rng.integers(0, 256, (BATCH, 4, 4, 1), np.uint8),
    "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
  }
  rows = {
    "index": np.arange(BATCH, dtype=np.int32),
    "weight": np.ones(BATCH, np.float32),
    "position": np.arange(BATCH, dtype=np.int32),
  }
  return resident, rows


def make_teachers(num=3):
  images = make_data()[0]["image"]
  keys = jax.random.split(jax.random.key(5), num)
  stacked = history.stack_checkpoints([
    jax.tree.map(np.asarray, TinyNet().init(k, PLAIN.clean(images)))
    for k in keys
  ])  # fmt: skip
  return stacked, np.array([0.5, 0.2, 0.3], np.float32)


def run(lesson, views, resident, frozen=None, num_steps=3, decay=None):
  mesh = parallel.data_mesh(jax.devices()[:2])
  optimizer = optax.sgd(0.2)
  state = init_state(
    TinyNet(), optimizer, jax.random.key(1), resident["image"][:1],
    keep_average=decay is not None,
  )  # fmt: skip
  fn = parallel.pmapped(
    step.make_train_step(
      TinyNet(), optimizer, lesson, views, average_decay=decay
    ),
    mesh,
    in_specs=SPECS,
    out_specs=(parallel.REPLICATED, parallel.REPLICATED),
  )
  state, resident, frozen, seed = (
    parallel.replicate(x, mesh) for x in (state, resident, frozen, np.uint32(3))
  )
  states = []
  for _ in range(num_steps):
    rows = parallel.shard(make_data()[1], mesh)
    state, metrics = fn(state, frozen, resident, rows, seed)
    states.append(parallel.to_host(state))
  return states, parallel.to_host(metrics)


def assert_close(a, b, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@pytest.mark.parametrize("hard", [False, True])
def test_live_targets_on_a_clean_view_are_the_cached_ones(hard):
  resident, _ = make_data()
  stacked, weights = make_teachers()
  options = {"alpha": 0.8, "temperature": 1.0 if hard else 2.0}
  apply_fn = step.eval_apply(TinyNet())
  probs = fusion.fuse(
    history.predict_checkpoints(
      apply_fn, stacked, PLAIN.clean(resident["image"])
    ),
    weights,
  )
  if hard:
    probs = losses.hard_targets(probs)
  cached = {**resident, "teacher_probs": np.asarray(probs)}
  live, _ = run(
    objective.live_distillation(apply_fn, hard=hard, **options),
    PLAIN,
    resident,
    {"stacked": stacked, "weights": weights},
  )
  kept, _ = run(objective.cached_distillation(**options), PLAIN, cached)
  assert_close(live[-1].params, kept[-1].params)


def test_live_targets_are_of_the_images_given_not_of_the_stored():
  resident, _ = make_data()
  stacked, weights = make_teachers()
  apply_fn = step.eval_apply(TinyNet())
  lesson = objective.live_distillation(apply_fn)
  images = PLAIN.clean(resident["image"]) + 1
  frozen = {"stacked": stacked, "weights": weights}
  batch = lesson.targets(frozen, images, resident)
  expected = history.fused_predict(apply_fn, stacked, weights, images)
  np.testing.assert_allclose(batch["teacher_probs"], expected, atol=1e-6)


def test_mixing_takes_the_next_row_of_the_global_batch():
  """With alpha huge the coefficient is one half: plain averages of rows."""
  resident, _ = make_data()

  def targets(frozen, images, batch):
    del frozen
    return {**batch, "seen": images}

  def loss(logits, batch):
    # The step returns sums of the loss: let them carry what was seen.
    weights = jnp.arange(1, CLASSES + 1, dtype=jnp.float32)
    return (
      jnp.sum(batch["seen"], (1, 2, 3)) * (1 + batch["position"])
      + batch["label"] @ weights
      + 0 * jnp.sum(logits, 1)
    )

  lesson = objective.Objective(loss, targets)
  views = PLAIN._replace(mixup=1e6)
  _, metrics = run(lesson, views, resident, num_steps=1)
  clean = np.asarray(PLAIN.clean(resident["image"]))
  labels = np.eye(CLASSES)[resident["label"]]
  expected = 0.0
  for row in range(BATCH):
    partner = (row + 1) % BATCH
    image = (clean[row] + clean[partner]) / 2
    label = (labels[row] + labels[partner]) / 2
    expected += image.sum() * (1 + row) + label @ np.arange(1, CLASSES + 1)
  assert metrics.loss == pytest.approx(expected, rel=2e-3)


def test_average_follows_parameters_and_statistics():
  resident, _ = make_data()
  states, _ = run(objective.supervised(), PLAIN, resident, decay=0.75)
  first = init_state(
    TinyNet(), optax.sgd(0.2), jax.random.key(1), resident["image"][:1]
  )
  average = first.variables
  for state in states:
    average = jax.tree.map(
      lambda a, b: 0.75 * a + 0.25 * b, average, state.variables
    )
  assert_close(states[-1].average, average)
