"""Stacks of networks shared out over devices, and what has no room on them."""

import functools
import tempfile

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from etils import epath

from kfkd_jax import config as config_lib
from kfkd_jax import history, parallel
from kfkd_jax.history import predicting
from kfkd_jax.training import ensemble, evaluation, loop, objective, step
from kfkd_jax.training.state import init_state, put

NUM_TRAIN, NUM_TEST, CLASSES = 44, 13, 3
SHAPES = [(1, 1), (8, 1), (4, 2), (2, 4)]
VIEWS = step.Views(mean=(0.5,), std=(0.3,), pad=1, flip=True)


class TinyNet(nn.Module):
  num_classes: int = CLASSES

  @nn.compact
  def __call__(self, x, *, train=False):
    x = nn.Conv(3, (3, 3))(x)
    axis_name = parallel.DATA_AXIS if train else None
    x = nn.BatchNorm(use_running_average=not train, axis_name=axis_name)(x)
    return nn.Dense(self.num_classes)(nn.relu(x).mean((1, 2)))


def mesh_of(data, members):
  assert jax.device_count() == 8
  return parallel.data_mesh(jax.devices()[: data * members], ensemble=members)


def make_images(num, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (num, 6, 6, 1), np.uint8)


def make_stack(num):
  return history.stack_checkpoints([
    jax.tree.map(
      np.asarray, TinyNet().init(jax.random.key(m), np.zeros((1, 6, 6, 1)))
    )
    for m in range(num)
  ])  # fmt: skip


@functools.cache
def distilled(data, members, num_teachers=3):
  """Two epochs of a student of live teachers: its state and predictions."""
  frozen = dict(
    zip(
      ("stacked", "weights"),
      history.pad_members(
        make_stack(num_teachers),
        np.arange(1, num_teachers + 1, dtype=np.float32) / num_teachers,
        members,
      ),
    )
  )
  labels = np.random.default_rng(1).integers(0, CLASSES, NUM_TRAIN)
  training = {
    "image": make_images(NUM_TRAIN),
    "label": labels.astype(np.int32),
  }
  test = evaluation.Split(
    make_images(NUM_TEST, 1), labels[:NUM_TEST], np.arange(NUM_TEST)
  )
  recipe = loop.Recipe(
    TinyNet(), optax.sgd(0.5, 0.9), VIEWS, epochs=2, batch_size=16,
    evaluation_batch=8, average_decay=0.5,
  )  # fmt: skip
  reports = []
  with tempfile.TemporaryDirectory() as folder:
    trained = loop.train(
      epath.Path(folder) / "run",
      recipe,
      objective.live_distillation(
        step.eval_apply(TinyNet()),
        alpha=0.9,
        labels=objective.early_learning(1.0, 0.7),  # remembers each example
      ),
      training,
      {"test": test},
      seeds=loop.Seeds(1, 2, 3),
      mesh=mesh_of(data, members),
      frozen=frozen,
      observe=lambda report: reports.append(report.metrics),
    )
  return trained, reports


@pytest.mark.parametrize(
  ("data", "members"),
  [pytest.param(8, 1, marks=pytest.mark.slow), (4, 2), (2, 4)],
)
def test_a_student_learns_the_same_on_any_mesh(data, members):
  alone, alone_reports = distilled(*SHAPES[0])
  shared, reports = distilled(data, members)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), shared, alone
  )
  for a, b in zip(reports, alone_reports, strict=True):
    assert a == pytest.approx(b, abs=1e-5)


def test_the_students_of_other_teachers_differ():
  alone, _ = distilled(*SHAPES[0])
  other, _ = distilled(*SHAPES[0], num_teachers=2)
  parts = jax.tree.map(lambda a, b: abs(a - b).max(), alone, other)
  assert max(jax.tree.leaves(parts)) > 1e-3


@pytest.mark.parametrize(("data", "members"), SHAPES)
@pytest.mark.parametrize("num_checkpoints", [1, 5, 8])
def test_every_mesh_predicts_the_same(data, members, num_checkpoints):
  apply_fn = step.eval_apply(TinyNet())
  stacked = make_stack(num_checkpoints)
  inputs = np.asarray(VIEWS.clean(make_images(NUM_TEST)))
  mesh = mesh_of(data, members)
  probs = ensemble.predict_checkpoints(
    apply_fn, stacked, inputs, mesh, batch_size=8
  )
  expected = history.predict_checkpoints(apply_fn, stacked, inputs)
  assert probs.shape == (num_checkpoints, NUM_TEST, CLASSES)
  np.testing.assert_allclose(probs, expected, atol=1e-6)


@pytest.mark.parametrize(("data", "members"), SHAPES[1:])
def test_a_device_holds_its_members_alone(data, members):
  stacked, _ = history.pad_members(make_stack(3), np.ones(3), members)
  shared = parallel.shard(stacked, mesh_of(data, members), parallel.MEMBERS)
  whole = jax.tree.leaves(stacked)[0]
  part = jax.tree.leaves(shared)[0].addressable_shards[0].data
  assert part.nbytes == whole.nbytes // members


def test_replicas_stay_the_same_to_the_bit():
  lesson = objective.live_distillation(step.eval_apply(TinyNet()))
  mesh, module, optimizer = mesh_of(2, 4), TinyNet(), optax.sgd(0.5)
  fn = step.map_train_step(
    step.make_train_step(module, optimizer, lesson, VIEWS),
    mesh,
    frozen=lesson.frozen_spec,
  )
  state = step_state(module, optimizer, mesh)
  frozen = {"stacked": make_stack(4), "weights": np.full(4, 0.25, np.float32)}
  frozen = parallel.shard(frozen, mesh, lesson.frozen_spec)
  rows = {
    "index": np.arange(8, dtype=np.int32)[None],
    "weight": np.ones((1, 8), np.float32),
  }
  resident = {
    "image": make_images(8),
    "label": np.arange(8, dtype=np.int32) % 3,
  }
  resident, seed = (
    parallel.replicate(x, mesh) for x in (resident, np.uint32(0))
  )
  rows = parallel.shard(rows, mesh, parallel.BATCHES)
  for _ in range(3):
    state, _ = fn(state, frozen, resident, rows, seed)
  for leaf in jax.tree.leaves(state.params):
    first, *others = [np.asarray(s.data) for s in leaf.addressable_shards]
    for other in others:
      np.testing.assert_array_equal(first, other)


def step_state(module, optimizer, mesh):
  state = init_state(module, optimizer, jax.random.key(0), make_images(1))
  return put(jax.tree.map(np.asarray, state), mesh)


def test_members_are_filled_up_with_weight_nought():
  stacked, weights = history.pad_members(
    {"w": np.arange(3)}, [0.2, 0.3, 0.5], 4
  )
  np.testing.assert_array_equal(stacked["w"], [0, 1, 2, 2])
  np.testing.assert_array_equal(weights, [0.2, 0.3, 0.5, 0])
  same, _ = history.pad_members({"w": np.arange(4)}, np.ones(4), 4)
  np.testing.assert_array_equal(same["w"], np.arange(4))


def test_an_ensemble_axis_that_does_not_divide_is_named():
  with pytest.raises(ValueError, match=r"3 \(runtime.ensemble_axis\).* 8 dev"):
    parallel.data_mesh(ensemble=3)


def test_the_batch_divides_over_data_alone(tmp_path):
  recipe = loop.Recipe(TinyNet(), optax.sgd(0.5), VIEWS, epochs=1, batch_size=6)
  with pytest.raises(ValueError, match=r"batch_size 6 .* over 4 devices"):
    loop._check_batch(recipe, mesh_of(4, 2))
  loop._check_batch(recipe, mesh_of(2, 4))


def exhausted():
  return jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")


def test_what_has_no_room_is_tried_by_halves():
  tried, told = [], []

  def run(size):
    tried.append(size)
    if size > 3:
      raise exhausted()
    return size

  assert history.with_room(run, 13, smaller=told.append) == 3
  assert tried == [13, 6, 3]
  assert told == [6, 3]
  with pytest.raises(jax.errors.JaxRuntimeError, match="EXHAUSTED"):
    history.with_room(run, 13, least=4)


def test_other_errors_are_not_tried_again():
  tried = []

  def run(size):
    tried.append(size)
    raise jax.errors.JaxRuntimeError("INTERNAL: something else")

  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    history.with_room(run, 8)
  assert tried == [8]


def small_device(monkeypatch, room):
  """Devices on which chunk times rows must not be more than `room`."""
  tried = []
  whole, fused = predicting._predict_stacked, predicting._fused_predict

  def refuse(inputs, chunk):
    tried.append((chunk, len(inputs)))
    if chunk * len(inputs) > room:
      raise exhausted()

  def predict_stacked(apply_fn, stacked, inputs, chunk):
    refuse(inputs, chunk)
    return whole(apply_fn, stacked, inputs, chunk)

  def fused_predict(apply_fn, stacked, weights, inputs, chunk):
    refuse(inputs, chunk)
    with monkeypatch.context() as patch:  # it calls the other one inside
      patch.setattr(predicting, "_predict_stacked", whole)
      return fused(apply_fn, stacked, weights, inputs, chunk)

  monkeypatch.setattr(predicting, "_predict_stacked", predict_stacked)
  monkeypatch.setattr(predicting, "_fused_predict", fused_predict)
  return tried


def linear(variables, inputs):
  return inputs @ variables["w"]


def make_linear(num=6):
  rng = np.random.default_rng(0)
  stacked = {"w": rng.normal(size=(num, 4, CLASSES)).astype(np.float32)}
  return stacked, rng.normal(size=(10, 4)).astype(np.float32)


@pytest.mark.parametrize("batch_size", [None, 4, 100])
@pytest.mark.parametrize("room", [1000, 10, 3])
@pytest.mark.parametrize("fused", [False, True])
def test_chunks_then_batches_become_smaller(
  monkeypatch, fused, room, batch_size
):
  stacked, inputs = make_linear()
  weights = np.arange(1, 7) / 21
  probs = history.predict_checkpoints(linear, stacked, inputs)
  tried = small_device(monkeypatch, room)
  options = {"impl": "vmap", "batch_size": batch_size}
  if fused:
    expected = np.einsum("c,cnk->nk", weights, probs)
    actual = history.fused_predict(linear, stacked, weights, inputs, **options)
  else:
    expected = probs
    actual = history.predict_checkpoints(linear, stacked, inputs, **options)
  np.testing.assert_allclose(actual, expected, atol=1e-6)
  first = min(batch_size or 10, 10)
  if batch_size == 100:
    first = 100
  assert tried[0] == (6, first)
  if room == 10 and batch_size is None:
    assert tried == [(6, 10), (3, 10), (1, 10)]
  if room == 3:
    assert tried[-1][0] * tried[-1][1] <= 3


def test_no_room_at_all_is_an_error(monkeypatch):
  stacked, inputs = make_linear()
  small_device(monkeypatch, 0)
  with pytest.raises(jax.errors.JaxRuntimeError, match="EXHAUSTED"):
    history.predict_checkpoints(linear, stacked, inputs, batch_size=4)


class FakeDevice:
  """Tells how much memory it has."""

  def __init__(self, free):
    self.free = free

  def memory_stats(self):
    if self.free is None:
      return None
    return {"bytes_limit": 10**9, "bytes_in_use": 10**9 - self.free}


def test_chunks_are_as_large_as_memory_allows(monkeypatch):
  stacked, inputs = make_linear(11)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(predicting, "_bytes_for_one", lambda *_: (1000, 500))
  coming = stacked["w"].nbytes

  def chunk(free, **options):
    devices = [FakeDevice(free)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    options = {"batch_size": None, "impl": "auto", "chunk": None, **options}
    return predicting._chunk_size(linear, stacked, inputs, **options)

  def room_for(count):
    return int(count * 1000 / 0.8) + coming + 501

  assert chunk(None) == 1
  assert chunk(0) == 1
  assert chunk(room_for(1)) == 1
  assert chunk(room_for(3)) == 2
  assert chunk(room_for(9)) == 8
  assert chunk(room_for(11)) == chunk(10**9) == 11
  assert chunk(0, chunk=5) == 5
  assert chunk(10**9, impl="map") == 1


def test_a_checkpoint_s_bytes_are_those_of_its_temporaries():
  def wide(variables, inputs):
    return jax.numpy.tanh(inputs @ variables["wide"]) @ variables["out"]

  def bytes_at(count):
    shapes, structure = jax.tree.flatten(
      (
        {
          "wide": jax.ShapeDtypeStruct((3, 4, 1000), np.float32),
          "out": jax.ShapeDtypeStruct((3, 1000, 2), np.float32),
        },
        jax.ShapeDtypeStruct((count, 4), np.float32),
      )
    )
    return predicting._bytes_for_one(wide, tuple(shapes), structure)

  each, result = bytes_at(64)
  assert each >= 64 * 1000 * 4
  assert result == 3 * 64 * 2 * 4
  assert 1.8 < bytes_at(128)[0] / each < 2.2


def test_inside_jit_memory_is_not_asked_for(monkeypatch):
  stacked, inputs = make_linear()
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  expected = history.predict_checkpoints(linear, stacked, inputs)

  @jax.jit
  def inside(stacked, inputs):
    return history.predict_checkpoints(linear, stacked, inputs)

  np.testing.assert_allclose(inside(stacked, inputs), expected, atol=1e-6)


def test_evaluation_goes_on_with_smaller_batches(monkeypatch, capsys):
  mesh = mesh_of(2, 1)
  recipe = loop.Recipe(
    TinyNet(), optax.sgd(0.5), VIEWS, epochs=1, batch_size=8,
    evaluation_batch=12,
  )  # fmt: skip
  images = make_images(NUM_TEST)
  variables = jax.tree.map(lambda x: x[0], make_stack(1))
  variables = parallel.replicate(variables, mesh)
  predictor = evaluation.Predictor(recipe, mesh)
  resident = predictor.put(images)
  expected = predictor(variables, resident)
  predict, tried = predictor._predict, []

  def refuse(variables, resident, rows):
    tried.append(len(rows["index"]))
    if tried[-1] > 4:
      raise exhausted()
    return predict(variables, resident, rows)

  monkeypatch.setattr(predictor, "_predict", refuse)
  for _ in range(2):
    np.testing.assert_allclose(
      predictor(variables, resident), expected, atol=1e-6
    )
  assert tried[:2] == [12, 6]
  assert set(tried[2:]) == {4}  # three do not divide over two devices
  said = capsys.readouterr().out
  assert said.count("predictions.batch_size=6") == 1
  assert said.count("predictions.batch_size=3") == 1


def test_the_key_is_checked():
  key = "runtime.ensemble_axis"
  assert config_lib.read(None, [(key, "2")]).runtime.ensemble_axis == 2
  with pytest.raises(config_lib.ConfigError, match="ensemble_axis=0 is not"):
    config_lib.read(None, [(key, "0")])
