"""The same global batch gives the same step on any number of devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from jax import lax

from kfkd_jax import config as config_lib
from kfkd_jax import models, parallel, stages
from kfkd_jax.training import objective, step
from kfkd_jax.training.state import init_state

BATCH = 16


class TinyNet(nn.Module):
  """One convolution, synchronised BatchNorm, one dense layer."""

  num_classes: int = 10

  @nn.compact
  def __call__(self, x, *, train=False):
    x = nn.Conv(4, (3, 3))(x)
    axis_name = parallel.DATA_AXIS if train else None
    x = nn.BatchNorm(use_running_average=not train, axis_name=axis_name)(x)
    return nn.Dense(self.num_classes)(nn.relu(x).mean((1, 2)))


def mesh_of(num_devices):
  assert len(jax.devices()) >= 8, "the tests need eight fake devices"
  return parallel.data_mesh(jax.devices()[:num_devices])


def make_batch(seed=0):
  rng = np.random.default_rng(seed)
  resident = {
    "image": rng.integers(0, 256, (40, 8, 8, 1), np.uint8),
    "label": rng.integers(0, 10, 40).astype(np.int32),
  }
  weight = np.ones(BATCH, np.float32)
  weight[-3:] = 0
  rows = {
    "index": rng.permutation(40)[None, :BATCH].astype(np.int32),
    "weight": weight[None],
  }
  return resident, rows


@functools.cache
def two_steps(num_devices, views):
  mesh = mesh_of(num_devices)
  module = TinyNet()
  optimizer = optax.sgd(0.1, 0.9)
  state = init_state(
    module, optimizer, jax.random.key(1), np.zeros((1, 8, 8, 1)),
    keep_average=True,
  )  # fmt: skip
  fn = step.map_train_step(
    step.make_train_step(
      module, optimizer, objective.supervised(), views, average_decay=0.9
    ),
    mesh,
  )
  resident, rows = make_batch()
  state = parallel.replicate(state, mesh)
  resident = parallel.replicate(resident, mesh)
  seed = parallel.replicate(np.uint32(3), mesh)
  rows = parallel.shard(rows, mesh, parallel.BATCHES)
  for _ in range(2):
    state, metrics = fn(state, None, resident, rows, seed)
    jax.block_until_ready(metrics)
  return parallel.to_host(state), step.StepMetrics(*parallel.to_host(metrics))


PLAIN = step.Views(mean=(0.5,), std=(0.25,))
EVERYTHING = PLAIN._replace(pad=1, flip=True, cutout=2, mixup=0.5)


@pytest.mark.parametrize("views", [PLAIN, EVERYTHING], ids=["plain", "all"])
@pytest.mark.parametrize("num_devices", [2, 4, 8])
def test_devices_take_the_same_step(num_devices, views):
  alone, alone_metrics = two_steps(1, views)
  together, metrics = two_steps(num_devices, views)
  # Sums over devices add up in another order: a few units in the last place.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
    alone,
    together,
  )
  np.testing.assert_allclose(metrics.loss, alone_metrics.loss, rtol=1e-5)
  assert metrics.count == alone_metrics.count == BATCH - 3


@pytest.mark.parametrize("num_devices", [1, 4])
def test_steps_take_one_batch_after_the_other(num_devices):
  """The third of two batches is the first again."""
  mesh = mesh_of(num_devices)
  resident, one = make_batch(0)
  _, other = make_batch(1)
  both = {name: np.concatenate([one[name], other[name]]) for name in one}
  seen = []

  def record(state, frozen, resident, rows, seed):
    del frozen, seed
    batch = step._gather(resident, step._rows_of(state, rows))
    return state + 1, {k: batch[k] for k in ("index", "position", "label")}

  fn = parallel.pmapped(
    record,
    mesh,
    in_specs=(*(parallel.REPLICATED,) * 3, parallel.BATCHES, None),
    out_specs=(parallel.REPLICATED, parallel.SHARDED),
  )
  number = parallel.replicate(np.int32(0), mesh)
  rows = parallel.shard(both, mesh, parallel.BATCHES)
  for _ in range(3):
    number, batch = fn(
      number, None, parallel.replicate(resident, mesh), rows, None
    )
    seen.append(parallel.to_host(batch))
  for batch, expected in zip(seen, (one, other, one), strict=True):
    index = expected["index"][0]
    np.testing.assert_array_equal(batch["index"], index)
    np.testing.assert_array_equal(batch["label"], resident["label"][index])
    np.testing.assert_array_equal(batch["position"], np.arange(BATCH))


@pytest.mark.parametrize(("num_devices", "asks"), [(1, False), (2, True)])
def test_a_device_alone_normalises_without_asking(num_devices, asks):
  module = models.create("cnn", 3, width=2, axis_name=parallel.DATA_AXIS)
  images = np.zeros((4, 8, 8, 1), np.float32)
  variables = models.init(module, jax.random.key(0), images[:1])

  def forward(variables, images):
    _, updates = module.apply(
      variables, images, train=True, mutable=["batch_stats"]
    )
    return updates

  mapped = parallel.pmapped(
    forward,
    mesh_of(num_devices),
    in_specs=(parallel.REPLICATED, parallel.SHARDED),
    out_specs=parallel.REPLICATED,
  )
  program = str(jax.make_jaxpr(mapped)(variables, images))
  assert ("psum" in program) == asks


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
def test_sharded_gradient_is_the_gradient_of_the_whole_batch(num_devices):
  """A loss with normalisation over the mesh, against plain `jax.grad`."""
  mesh = mesh_of(num_devices)
  inputs = np.random.default_rng(0).normal(size=(BATCH, 6)).astype(np.float32)

  def network(axis_name):
    return nn.Sequential([
      nn.Dense(5),
      nn.BatchNorm(use_running_average=False, axis_name=axis_name),
      nn.Dense(1),
    ])  # fmt: skip

  variables = network(None).init(jax.random.key(0), inputs)

  def loss(params, x, axis_name):
    out, _ = network(axis_name).apply(
      {**variables, "params": params}, x, mutable=["batch_stats"]
    )
    return jnp.mean(out**2 + jnp.sin(out))

  def per_device(params, x):
    grads = jax.grad(loss)(params, x, parallel.DATA_AXIS)
    return lax.pmean(grads, parallel.DATA_AXIS)

  mapped = parallel.pmapped(
    per_device,
    mesh,
    in_specs=(parallel.REPLICATED, parallel.SHARDED),
    out_specs=parallel.REPLICATED,
  )
  params = parallel.replicate(variables["params"], mesh)
  actual = parallel.to_host(mapped(params, parallel.shard(inputs, mesh)))
  expected = jax.grad(loss)(variables["params"], inputs, None)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    actual,
    expected,
  )


def test_second_step_compiles_nothing():
  mesh = mesh_of(2)
  compiled = []

  def body(x):
    compiled.append(1)
    return lax.pmean(jnp.sum(x), parallel.DATA_AXIS)

  fn = parallel.pmapped(
    body, mesh, in_specs=parallel.SHARDED, out_specs=parallel.REPLICATED
  )
  for value in (1.0, 2.0):
    fn(parallel.shard(np.full(4, value, np.float32), mesh))
  assert len(compiled) == 1


def test_a_run_compiles_a_step_once_and_a_prediction_once_a_shape(
  tmp_path, caplog
):
  """Splits of 80, 60 and 500 examples in batches of at most 64."""
  overrides = {
    "data.num_train": "80", "selection.num": "60", "model.name": "mlp",
    "predictions.batch_size": "64", "train.epochs": "3", "model.width": "4",
    "train.batch_size": "32",
  }  # fmt: skip
  config = config_lib.read(None, list(overrides.items()))
  with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
    stages.run_stage(
      config, epath.Path(tmp_path), "train", say=lambda line: None
    )
  lines = [r.getMessage() for r in caplog.records]
  compiled = [
    line.split()[1] for line in lines if line.startswith("Compiling ")
  ]
  assert compiled.count("jit(step)") == 1
  # Train and test take 64 rows at once, but from images of their own shape.
  assert compiled.count("jit(predict)") == 3


def test_replicate_owns_its_memory_and_shard_keeps_order():
  mesh = mesh_of(4)
  values = np.arange(8.0)
  fn = parallel.pmapped(
    lambda x: x + 1,
    mesh,
    in_specs=parallel.REPLICATED,
    out_specs=parallel.REPLICATED,
    donate=(0,),
  )
  fn(parallel.replicate(values, mesh))
  np.testing.assert_array_equal(values, np.arange(8.0))
  np.testing.assert_array_equal(
    parallel.to_host(parallel.shard(values, mesh)), values
  )


def test_shard_names_what_does_not_divide():
  message = r"axis 0 of \(6,\) does not divide over 4"
  with pytest.raises(ValueError, match=message):
    parallel.shard(np.zeros(6), mesh_of(4))


def test_in_flight_waits_for_the_oldest():
  waiting = parallel.InFlight(2)
  for value in range(5):
    waiting.add(jnp.float32(value))
    assert len(waiting._waiting) <= 2
  waiting.drain()
  assert not waiting._waiting
