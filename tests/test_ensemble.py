"""Stacks of networks shared out over devices, and what has no room on them."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from etils import epath

from kfkd_jax import history, parallel
from kfkd_jax.training import ensemble, loop, objective, step

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
  test = loop.Split(
    make_images(NUM_TEST, 1), labels[:NUM_TEST], np.arange(NUM_TEST)
  )
  recipe = loop.Recipe(
    TinyNet(), optax.sgd(0.5, 0.9), VIEWS, epochs=2, batch_size=16,
    evaluation_batch=8, average_decay=0.5,
  )  # fmt: skip
  reports = []
  import tempfile

  with tempfile.TemporaryDirectory() as folder:
    trained = loop.train(
      epath.Path(folder) / "run",
      recipe,
      objective.live_distillation(step.eval_apply(TinyNet()), alpha=0.9),
      training,
      {"test": test},
      seeds=loop.Seeds(1, 2, 3),
      mesh=mesh_of(data, members),
      frozen=frozen,
      observe=lambda report: reports.append(report.metrics),
    )
  return trained, reports


@pytest.mark.parametrize(("data", "members"), SHAPES[1:])
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
    "index": np.arange(8, dtype=np.int32),
    "weight": np.ones(8, np.float32),
    "position": np.arange(8, dtype=np.int32),
  }
  resident = {"image": make_images(8), "label": np.arange(8, dtype=np.int32) % 3}
  resident, seed = (parallel.replicate(x, mesh) for x in (resident, np.uint32(0)))
  for _ in range(3):
    state, _ = fn(state, frozen, resident, parallel.shard(rows, mesh), seed)
  for leaf in jax.tree.leaves(state.params):
    first, *others = [np.asarray(s.data) for s in leaf.addressable_shards]
    for other in others:
      np.testing.assert_array_equal(first, other)


def step_state(module, optimizer, mesh):
  from kfkd_jax.training.state import init_state, put

  state = init_state(module, optimizer, jax.random.key(0), make_images(1))
  return put(jax.tree.map(np.asarray, state), mesh)


def test_members_are_filled_up_with_weight_nought():
  stacked, weights = history.pad_members({"w": np.arange(3)}, [0.2, 0.3, 0.5], 4)
  np.testing.assert_array_equal(stacked["w"], [0, 1, 2, 2])
  np.testing.assert_array_equal(weights, [0.2, 0.3, 0.5, 0])
  same, _ = history.pad_members({"w": np.arange(4)}, np.ones(4), 4)
  np.testing.assert_array_equal(same["w"], np.arange(4))


def test_an_ensemble_axis_that_does_not_divide_is_named():
  with pytest.raises(ValueError, match=r"3 \(runtime.ensemble_axis\).* 8 dev"):
    parallel.data_mesh(ensemble=3)


def test_the_batch_divides_over_data_alone(tmp_path):
  recipe = loop.Recipe(
    TinyNet(), optax.sgd(0.5), VIEWS, epochs=1, batch_size=6
  )
  with pytest.raises(ValueError, match="batch_size 6 .* over 4 devices"):
    loop._check_batch(recipe, mesh_of(4, 2))
  loop._check_batch(recipe, mesh_of(2, 4))
