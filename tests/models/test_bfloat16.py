"""Computing in bfloat16 leaves whatever is kept or summed up in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_models import SMALL

from kfkd_jax import models, parallel
from kfkd_jax.training import objective, step
from kfkd_jax.training.state import TrainState, init_state, put

VIEWS = step.Views(mean=(0.5,) * 3, std=(0.3,) * 3, pad=1, flip=True)
CLASSES, BATCH = 5, 4
SIDES = {"maxvit_tiny": 224}
OPTIONS = {"vit_tiny": {"patch": 4}, "vit_small": {"patch": 4}}


def traced(module, side, seen):
  """The step's program, and the shapes of the new state and its metrics.

  What type of logits the loss is given is added to `seen`.
  """
  lesson = objective.cached_distillation(temperature=2.0)

  def loss(logits, batch):
    seen.append(logits.dtype)
    return lesson.loss(logits, batch)

  mesh = parallel.data_mesh(jax.devices()[:2])
  optimizer = optax.adamw(1e-3)
  mapped = step.map_train_step(
    step.make_train_step(
      module,
      optimizer,
      lesson._replace(loss=loss),
      VIEWS,
      average_decay=0.9,
    ),
    mesh,
  )
  state = jax.eval_shape(
    lambda: init_state(
      module,
      optimizer,
      jax.random.key(0),
      np.zeros((1, side, side, 3)),
      keep_average=True,
    )
  )
  resident = {
    "image": jax.ShapeDtypeStruct((9, side, side, 3), np.uint8),
    "label": jax.ShapeDtypeStruct((9,), np.int32),
    "teacher_probs": jax.ShapeDtypeStruct((9, CLASSES), np.float32),
  }
  rows = {
    "index": jax.ShapeDtypeStruct((1, BATCH), np.int32),
    "weight": jax.ShapeDtypeStruct((1, BATCH), np.float32),
  }
  program, shapes = jax.make_jaxpr(mapped, return_shape=True)(
    state, None, resident, rows, jax.ShapeDtypeStruct((), np.uint32)
  )
  return state, program, shapes


def equations(jaxpr):
  """Those of a program, also inside others."""
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      for part in value if isinstance(value, (tuple, list)) else (value,):
        inner = getattr(part, "jaxpr", part)
        if hasattr(inner, "eqns"):
          yield from equations(inner)


def check_float32(module, side):
  """What is kept, summed over devices and given to the loss; the products of
  the network are in bfloat16."""
  seen = []
  before, program, (after, metrics) = traced(module, side, seen)
  assert set(seen) == {jnp.dtype(jnp.float32)}
  for tree in (before, after, metrics):
    for leaf in jax.tree.leaves(tree):
      assert leaf.dtype in (jnp.float32, jnp.int32), leaf
  assert jax.tree.map(lambda x: x.dtype, before) == jax.tree.map(
    lambda x: x.dtype, after
  )
  summed, multiplied = [], []
  for equation in equations(program.jaxpr):
    kinds = {v.aval.dtype for v in equation.invars}
    if "psum" in equation.primitive.name:
      summed.append(kinds)
    if equation.primitive.name in ("dot_general", "conv_general_dilated"):
      multiplied.append(kinds)
  assert summed
  assert all(jnp.dtype(jnp.bfloat16) not in kinds for kinds in summed)
  assert {jnp.dtype(jnp.bfloat16)} in multiplied


@pytest.mark.parametrize("family", SMALL)
def test_state_and_sums_over_devices_are_float32(family):
  name, settings, side = SMALL[family]
  module = models.create(
    name,
    CLASSES,
    **settings,
    dtype=jnp.bfloat16,
    axis_name=parallel.DATA_AXIS,
  )
  check_float32(module, side)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_the_whole_zoo_keeps_float32(name):
  module = models.create(
    name,
    CLASSES,
    **OPTIONS.get(name, {}),
    dtype=jnp.bfloat16,
    axis_name=parallel.DATA_AXIS,
  )
  check_float32(module, SIDES.get(name, 32))


@pytest.mark.parametrize(
  "dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"]
)
def test_a_network_learns(dtype):
  """Bright squares left or right, told apart after a few steps."""
  rng = np.random.default_rng(0)
  labels = rng.integers(2, size=32).astype(np.int32)
  images = rng.integers(0, 100, (32, 8, 8, 3), np.uint8)
  for image, label in zip(images, labels, strict=True):
    image[2:6, 4 * label : 4 * label + 4] += 150
  mesh = parallel.data_mesh(jax.devices()[:2])
  module = models.create(
    "cnn", 2, width=4, dtype=jnp.dtype(dtype), axis_name=parallel.DATA_AXIS
  )
  optimizer = optax.sgd(0.1, 0.9)
  fn = step.map_train_step(
    step.make_train_step(
      module,
      optimizer,
      objective.supervised(),
      VIEWS._replace(pad=0, flip=False),
    ),
    mesh,
  )
  start = init_state(module, optimizer, jax.random.key(0), images[:1])
  state: TrainState = put(jax.tree.map(np.asarray, start), mesh)
  resident, seed = (
    parallel.replicate(x, mesh)
    for x in ({"image": images, "label": labels}, np.uint32(0))
  )
  rows = {
    "index": np.arange(32, dtype=np.int32)[None],
    "weight": np.ones((1, 32), np.float32),
  }
  seen = []
  rows = parallel.shard(rows, mesh, parallel.BATCHES)
  for _ in range(25):
    state, metrics = fn(state, None, resident, rows, seed)
    seen.append(step.StepMetrics(*parallel.to_host(metrics)))
  assert seen[0].loss / 32 > 0.4
  assert seen[-1].loss / 32 < 0.1
  assert seen[-1].correct == 32
