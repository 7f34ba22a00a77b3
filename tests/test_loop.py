"""One run: an exact pass an epoch, resumable anywhere to the same bits."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from etils import epath

from kfkd_jax import checkpoints, files, parallel
from kfkd_jax.predictions import PredictionStore
from kfkd_jax.training import loop, objective, step

NUM_TRAIN, NUM_TEST, EPOCHS = 21, 9, 5


class TinyNet(nn.Module):
  num_classes: int = 3

  @nn.compact
  def __call__(self, x, *, train=False):
    x = x.reshape(len(x), -1)
    axis_name = parallel.DATA_AXIS if train else None
    x = nn.BatchNorm(use_running_average=not train, axis_name=axis_name)(x)
    return nn.Dense(self.num_classes)(x)


def make_recipe(**changes):
  recipe = loop.Recipe(
    module=TinyNet(),
    optimizer=optax.sgd(0.1, 0.9),
    views=step.Views(mean=(0.5,), std=(0.3,), flip=True),
    epochs=EPOCHS,
    batch_size=8,
    average_decay=0.5,
    resume_every=2,
    evaluation_batch=4,
  )
  return recipe._replace(**changes)


def make_data():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (NUM_TRAIN + NUM_TEST, 4, 4, 1), np.uint8)
  labels = rng.integers(0, 3, len(images)).astype(np.int32)
  training = {"image": images[:NUM_TRAIN], "label": labels[:NUM_TRAIN]}
  test = loop.Split(images[NUM_TRAIN:], labels[NUM_TRAIN:], np.arange(NUM_TEST))
  return training, {"test": test}


class StopError(Exception):
  pass


def train(run, recipe=None, *, stop_at=None, num_devices=1, seeds=(1, 2, 3)):
  def observe(report):
    if report.epoch == stop_at:
      raise StopError

  training, splits = make_data()
  return loop.train(
    epath.Path(run),
    recipe or make_recipe(),
    objective.supervised(),
    training,
    splits,
    seeds=loop.Seeds(*seeds),
    mesh=parallel.data_mesh(jax.devices()[:num_devices]),
    observe=observe,
  )


def contents(run):
  """Everything a run leaves, as arrays and text."""
  run = epath.Path(run)
  store = PredictionStore(run / "predictions" / "test")
  with checkpoints.Checkpoints(run / "history") as history:
    steps = history.steps()
  return {
    "probs": np.stack([store[c] for c in range(len(store))]),
    "metrics": files.read_json_lines(run / "metrics.jsonl"),
    "steps": steps,
  }


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  run = tmp_path_factory.mktemp("whole")
  return train(run), contents(run)


def test_keeps_a_checkpoint_and_predictions_of_every_epoch(whole):
  _, found = whole
  assert found["steps"] == list(range(1, EPOCHS + 1))
  assert found["probs"].shape == (EPOCHS, NUM_TEST, 3)
  np.testing.assert_allclose(found["probs"].sum(-1), 1, atol=1e-6)
  assert [row["epoch"] for row in found["metrics"]] == found["steps"]


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_stopped_and_continued_ends_with_the_same_bits(
  whole, tmp_path, stop_at
):
  with pytest.raises(StopError):
    train(tmp_path, stop_at=stop_at)
  trained = train(tmp_path)
  assert_same(trained, whole[0])
  assert contents(tmp_path)["metrics"] == whole[1]["metrics"]
  assert_same(contents(tmp_path)["probs"], whole[1]["probs"])


def test_finished_run_is_read_not_trained_again(whole, tmp_path):
  first = train(tmp_path)

  def refuse(report):
    raise AssertionError("an epoch was trained")

  training, splits = make_data()
  again = loop.train(
    epath.Path(tmp_path), make_recipe(), objective.supervised(), training,
    splits, seeds=loop.Seeds(1, 2, 3),
    mesh=parallel.data_mesh(jax.devices()[:1]), observe=refuse,
  )  # fmt: skip
  assert_same(first, again)


def test_history_holds_the_network_that_was_returned(whole, tmp_path):
  trained = train(tmp_path)
  with checkpoints.Checkpoints(epath.Path(tmp_path) / "history") as history:
    last = history.restore(EPOCHS, trained.variables)
    before = history.restore(EPOCHS - 1, trained.variables)
  assert_same(last, trained.variables)
  with pytest.raises(AssertionError):
    assert_same(before, trained.variables)


def test_predictions_are_those_of_the_kept_checkpoint(whole, tmp_path):
  trained = train(tmp_path)
  _, splits = make_data()
  views = make_recipe().views
  logits = TinyNet().apply(
    trained.variables, views.clean(splits["test"].images)
  )
  store = PredictionStore(epath.Path(tmp_path) / "predictions" / "test")
  np.testing.assert_allclose(
    store[EPOCHS - 1], jax.nn.softmax(logits), atol=1e-6
  )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_newest_state_falls_back_to_the_older(whole, tmp_path, capsys):
  with pytest.raises(StopError):
    train(tmp_path, make_recipe(resume_every=1), stop_at=4)
  folder = tmp_path / "resume" / "4"
  for file in (folder / "tree" / "d").iterdir():
    file.write_bytes(b"")
  trained = train(tmp_path, make_recipe(resume_every=1))
  assert "going back to an older one" in capsys.readouterr().out
  assert_same(trained, whole[0])


def test_eight_devices_end_where_one_does(whole, tmp_path):
  trained = train(tmp_path, num_devices=8)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    trained,
    whole[0],
  )


@pytest.mark.parametrize("stream", range(3))
def test_streams_are_separate(whole, tmp_path, stream):
  seeds = [1, 2, 3]
  seeds[stream] = 9
  trained = train(tmp_path, make_recipe(epochs=1), seeds=tuple(seeds))
  same = train(tmp_path / "same", make_recipe(epochs=1))
  with pytest.raises(AssertionError):
    assert_same(trained, same)


def test_sparse_history_always_keeps_the_last(tmp_path):
  train(tmp_path, make_recipe(history_every=2))
  assert contents(tmp_path)["steps"] == [2, 4, 5]
  assert len(contents(tmp_path)["probs"]) == 3


def test_batch_that_does_not_divide_is_refused(tmp_path):
  with pytest.raises(ValueError, match="batch_size 9 does not divide over 2"):
    train(tmp_path, make_recipe(batch_size=9), num_devices=2)
