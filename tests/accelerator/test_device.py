"""The first accelerator against this machine's CPU, in one process.

`pytest -m accelerator`; where there is none, the CPU stands in for it, which
tries the tests but proves nothing.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfkd_jax import checkpoints, fusion, history, models, parallel
from kfkd_jax.history import predicting
from kfkd_jax.training import objective, step
from kfkd_jax.training.state import init_state, put

pytestmark = pytest.mark.accelerator

CLASSES, BATCH, SIDE = 5, 16, 16
VIEWS = step.Views(mean=(0.5,) * 3, std=(0.25,) * 3, pad=1, flip=True, cutout=2)
# One small network of every family.
NETWORKS = {
  "mlp": {"width": 8},
  "cnn": {"width": 8},
  "resnet18": {"stage_sizes": (1, 1), "width": 8},
  "resnet50": {"stage_sizes": (1, 1), "width": 8, "stem": "imagenet"},
  "wide_resnet28_10": {"depth": 1, "width": 16},
  "convnext_tiny": {"stage_sizes": (1, 1), "width": 8, "stem": "cifar"},
  "vit_tiny": {"depth": 2, "width": 8, "head_width": 4, "patch": 4},
  "maxvit_tiny": {
    "stage_sizes": (2,), "width": 8, "head_width": 4, "stem": "cifar"
  },
}  # fmt: skip
# The norm of a difference as a share of the norm; products of float32 are asked
# for in full, which accelerators leave out by default.
CLOSE = {"float32": 2e-4, "bfloat16": 3e-2}


@pytest.fixture(autouse=True)
def full_precision():
  with jax.default_matmul_precision("highest"):
    yield


def both():
  """The CPU's first device, and the accelerator's."""
  return jax.devices("cpu")[:1], jax.devices()[:1]


def difference(found, expected):
  found, expected = (
    np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in leaves])
    for leaves in map(jax.tree.leaves, (found, expected))
  )
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@functools.cache
def made(name, dtype="float32"):
  """A network in NumPy, and the module."""
  module = models.create(
    name,
    CLASSES,
    **NETWORKS[name],
    dtype=jnp.dtype(dtype),
    axis_name=parallel.DATA_AXIS,
  )
  with jax.default_device(jax.devices("cpu")[0]):
    key = jax.random.key(1)
    variables = models.init(module, key, np.zeros((1, SIDE, SIDE, 3)))
  return module, jax.tree.map(np.asarray, variables)


def pictures(count, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def stacked_of(name, count):
  """`count` networks `[C, ...]` that differ, all from one."""
  rng = np.random.default_rng(5)
  _, variables = made(name)
  return history.stack_checkpoints([
    jax.tree.map(lambda x: x * rng.uniform(0.8, 1.2), variables)
    for _ in range(count)
  ])  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_forward_passes_agree(name, dtype):
  module, variables = made(name, dtype)
  exact, _ = made(name)
  images = VIEWS.clean(pictures(BATCH))
  logits = []
  for device, own in zip(both(), (exact, module), strict=True):
    at = functools.partial(jax.device_put, device=device[0])
    apply_fn = jax.jit(step.eval_apply(own))
    logits.append(np.asarray(apply_fn(at(variables), at(images)), np.float32))
  assert difference(logits[1], logits[0]) < CLOSE[dtype]


def steps_on(devices, name, lesson, frozen=None, extra=None, dtype="float32"):
  """The state after three steps, and their sums."""
  mesh = parallel.data_mesh(devices)
  module, variables = made(name, dtype)
  optimizer = optax.sgd(0.05, momentum=0.9)
  rng = np.random.default_rng(2)
  resident = {
    "image": pictures(3 * BATCH),
    "label": rng.integers(0, CLASSES, 3 * BATCH).astype(np.int32),
    **(extra or {}),
  }
  with jax.default_device(devices[0]):
    state = init_state(
      module, optimizer, jax.random.key(1), resident["image"][:1]
    )
    state = put(jax.tree.map(np.asarray, state._replace(**variables)), mesh)
    fn = step.map_train_step(
      step.make_train_step(module, optimizer, lesson, VIEWS), mesh
    )
    rows = {
      "index": np.arange(3 * BATCH, dtype=np.int32).reshape(3, BATCH),
      # Two rows that only fill the last batch.
      "weight": np.ones((3, BATCH), np.float32),
    }
    rows["weight"][-1, -2:] = 0
    resident, frozen, seed = (
      parallel.replicate(x, mesh) for x in (resident, frozen, np.uint32(3))
    )
    rows = parallel.shard(rows, mesh, parallel.BATCHES)
    sums = []
    for _ in range(3):
      before = state
      state, metrics = fn(state, frozen, resident, rows, seed)
      sums.append(parallel.to_host(metrics))
  return before, parallel.to_host(state), np.stack(sums)


@pytest.mark.parametrize("name", ["cnn", "resnet18", "convnext_tiny"])
def test_training_steps_agree(name):
  (_, here, sums), (_, there, found) = (
    steps_on(devices, name, objective.supervised()) for devices in both()
  )
  assert difference(there.params, here.params) < CLOSE["float32"]
  if here.batch_stats:
    assert difference(there.batch_stats, here.batch_stats) < CLOSE["float32"]
  assert difference(there.opt_state, here.opt_state) < 10 * CLOSE["float32"]
  np.testing.assert_allclose(found, sums, rtol=1e-3)


def test_training_steps_in_bfloat16_stay_near():
  (_, here, sums), _ = (
    steps_on(devices, "resnet18", objective.supervised()) for devices in both()
  )
  _, there, found = steps_on(
    jax.devices()[:1], "resnet18", objective.supervised(), dtype="bfloat16"
  )
  assert jax.tree.leaves(there.params)[0].dtype == np.float32
  assert difference(there.params, here.params) < CLOSE["bfloat16"]
  loss = step.StepMetrics(*found.T).loss
  expected = step.StepMetrics(*sums.T).loss
  np.testing.assert_allclose(loss, expected, rtol=CLOSE["bfloat16"])


def test_an_old_state_is_given_up():
  before, _, _ = steps_on(jax.devices()[:1], "cnn", objective.supervised())
  assert all(x.is_deleted() for x in jax.tree.leaves(before))


def test_distillation_agrees_cached_and_live():
  module, _ = made("cnn")
  stacked, weights = stacked_of("cnn", 3), np.array([0.5, 0.3, 0.2], "f")
  live = objective.live_distillation(step.eval_apply(module))
  frozen = {"stacked": stacked, "weights": weights}
  probs = np.random.default_rng(4).dirichlet(np.ones(CLASSES), 3 * BATCH)
  extra = {"teacher_probs": probs.astype(np.float32)}
  for lesson, given in (
    (live, {"frozen": frozen}),
    (objective.cached_distillation(), {"extra": extra}),
  ):
    (_, here, sums), (_, there, found) = (
      steps_on(devices, "cnn", lesson, **given) for devices in both()
    )
    assert difference(there.params, here.params) < CLOSE["float32"]
    np.testing.assert_allclose(found, sums, rtol=1e-3)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny"])
def test_stacked_predictions_agree_in_every_way(name):
  module, _ = made(name)
  apply_fn = step.eval_apply(module)
  stacked, weights = stacked_of(name, 5), np.array([0.1, 0.2, 0.3, 0.4, 0.0])
  images = VIEWS.clean(pictures(BATCH))
  with jax.default_device(jax.devices("cpu")[0]):
    expected = np.asarray(
      history.predict_checkpoints(apply_fn, stacked, images, impl="loop")
    )
  ways = [{"impl": "auto"}, {"impl": "map"}, {"impl": "loop"}]
  ways += [{"impl": "vmap", "chunk": chunk} for chunk in (1, 2, 5)]
  ways += [{"batch_size": 6}]
  for way in ways:
    found = history.predict_checkpoints(apply_fn, stacked, images, **way)
    assert difference(found, expected) < CLOSE["float32"], way
    assert isinstance(found, jax.Array) == ("batch_size" not in way)
  fused = history.fused_predict(apply_fn, stacked, weights, images)
  assert difference(fused, fusion.fuse(expected, weights)) < CLOSE["float32"]


def test_what_has_no_room_is_done_by_halves():
  """Asks for four times what is free, for one batch."""
  device = jax.local_devices()[0]
  limit = (device.memory_stats() or {}).get("bytes_limit")
  if limit is None:
    pytest.skip("this device does not tell its memory")
  rows = 512
  wide = -(-4 * limit // (4 * rows))
  asked = []

  def work(size):
    asked.append(size)
    x = jnp.ones((size, 8)) @ jnp.ones((8, wide))
    return np.asarray(jnp.sin(x)[:, ::wide])

  found = predicting.with_room(work, rows)
  assert len(asked) > 1
  assert asked == [rows >> n for n in range(len(asked))]
  assert found.shape[0] == asked[-1]


def test_a_checkpoint_travels(tmp_path):
  """Saved from the accelerator, read and run on the CPU."""
  module, variables = made("resnet18")
  apply_fn = step.eval_apply(module)
  mesh = parallel.data_mesh(jax.devices()[:1])
  with checkpoints.Checkpoints(tmp_path / "history") as store:
    store.save(1, parallel.replicate(variables, mesh))
    store.wait()
    back = store.restore(1, variables)
  for found, expected in zip(
    jax.tree.leaves(back), jax.tree.leaves(variables), strict=True
  ):
    np.testing.assert_array_equal(found, expected)
  images = VIEWS.clean(pictures(BATCH))
  with jax.default_device(jax.devices("cpu")[0]):
    assert np.isfinite(np.asarray(apply_fn(back, images))).all()
