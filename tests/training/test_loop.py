"""One run: an exact pass an epoch, resumable anywhere to the same bits."""

import errno
import os
import pathlib
import shutil
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath

from kfkd_jax import checkpoints, files, fusion, losses, parallel
from kfkd_jax.data import order
from kfkd_jax.predictions import PredictionStore
from kfkd_jax.training import evaluation, loop, objective, step, termination

NUM_TRAIN, NUM_TEST, EPOCHS = 21, 9, 5


class TinyNet(nn.Module):
  num_classes: int = 3

  @nn.compact
  def __call__(self, x, *, train=False):
    x = x.reshape(len(x), -1)
    axis_name = parallel.DATA_AXIS if train else None
    x = nn.BatchNorm(use_running_average=not train, axis_name=axis_name)(x)
    return nn.Dense(self.num_classes)(x)


class Still(nn.Module):
  """Without BatchNorm: the same in training and evaluation."""

  num_classes: int = 3

  @nn.compact
  def __call__(self, x, *, train=False):
    del train
    return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


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
  test = evaluation.Split(
    images[NUM_TRAIN:], labels[NUM_TRAIN:], np.arange(NUM_TEST)
  )
  return training, {"test": test}


class StopError(Exception):
  pass


def train(
  run,
  recipe=None,
  *,
  stop_at=None,
  num_devices=1,
  seeds=(1, 2, 3),
  num_train=NUM_TRAIN,
  lesson=objective.supervised(),  # noqa: B008
  review=None,
  trust=None,
):
  def observe(report):
    if report.epoch == stop_at:
      raise StopError

  training, splits = make_data()
  training = {name: values[:num_train] for name, values in training.items()}
  if trust is not None:
    training["trust"] = trust
  return loop.train(
    epath.Path(run),
    recipe or make_recipe(),
    lesson,
    training,
    splits,
    seeds=loop.Seeds(*seeds),
    mesh=parallel.data_mesh(jax.devices()[:num_devices]),
    review=review,
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
  return train(run), contents(run), run


def checkpoint(run, epoch, template):
  with checkpoints.Checkpoints(epath.Path(run) / "history") as history:
    return history.restore(epoch, template)


def test_keeps_a_checkpoint_and_predictions_of_every_epoch(whole):
  _, found, _ = whole
  assert found["steps"] == list(range(1, EPOCHS + 1))
  assert found["probs"].shape == (EPOCHS, NUM_TEST, 3)
  np.testing.assert_allclose(found["probs"].sum(-1), 1, atol=1e-6)
  assert [row["epoch"] for row in found["metrics"]] == found["steps"]


def test_scores_are_those_of_the_stored_predictions(whole):
  """Also of a run that was stopped: its metrics are compared with these."""
  labels = make_data()[1]["test"].labels
  right = []
  for row, probs in zip(whole[1]["metrics"], whole[1]["probs"], strict=True):
    hits = [bool(p.argmax() == y) for p, y in zip(probs, labels, strict=True)]
    nll = [-np.log(p[y]) for p, y in zip(probs, labels, strict=True)]
    assert row["test/accuracy"] == pytest.approx(sum(hits) / NUM_TEST)
    assert row["test/nll"] == pytest.approx(sum(nll) / NUM_TEST, rel=1e-5)
    forgotten = [
      sum(b and not h for b, h in zip(before, hits, strict=True)) / NUM_TEST
      for before in right
    ]
    assert row.get("test/max_forget") == pytest.approx(
      max(forgotten) if forgotten else None
    )
    right.append(hits)
  assert max(row.get("test/max_forget", 0) for row in whole[1]["metrics"]) > 0


def test_fit_is_of_the_real_rows(tmp_path):
  """A network that stays as it is; the last of 3 batches is half empty."""
  views = step.Views(mean=(0.5,), std=(0.3,))
  recipe = make_recipe(
    module=Still(), optimizer=optax.sgd(0.0), epochs=1, views=views
  )
  trained = train(tmp_path, recipe)
  training, _ = make_data()
  logits = Still().apply(trained.variables, views.clean(training["image"]))
  loss = losses.cross_entropy(logits, training["label"])
  (row,) = contents(tmp_path)["metrics"]
  assert row["fit/loss"] == pytest.approx(float(loss.mean()), rel=1e-5)
  right = logits.argmax(-1) == training["label"]
  assert row["fit/accuracy"] == pytest.approx(float(right.mean()))


def test_who_was_right_is_judged_as_a_resumed_run_will_read_it(tmp_path):
  """In float16 these two tie, and the first class is said."""
  split = evaluation.Split(np.zeros((1, 4, 4, 1), "u1"), np.array([1]), [0])
  store = PredictionStore.create(
    epath.Path(tmp_path), split.labels, split.ids, num_classes=2,
    dtype="float16",
  )  # fmt: skip
  recipe, mesh = make_recipe(), parallel.data_mesh(jax.devices()[:1])
  scored = evaluation.Evaluation(
    recipe, loop.make_clock(recipe, 8), {"test": split}, {"test": store}, mesh
  )
  close = np.array([[0.49999, 0.50001]], np.float32)
  first = scored.score(1, {"test": close}, keep=True)
  assert first["test/accuracy"] == 1
  wrong = np.array([[0.9, 0.1]], np.float32)
  assert scored.score(2, {"test": wrong}, keep=True)["test/max_forget"] == 0


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_stopped_and_continued_ends_with_the_same_bits(
  whole, tmp_path, stop_at
):
  with pytest.raises(StopError):
    train(tmp_path, stop_at=stop_at)
  trained = train(tmp_path)
  assert_same(trained, whole[0])
  assert contents(tmp_path)["metrics"] == whole[1]["metrics"]
  assert_same(contents(tmp_path)["probs"], whole[1]["probs"])


def test_rows_that_count_less_resume_to_the_same_bits(whole, tmp_path):
  trust = np.linspace(0, 1, NUM_TRAIN, dtype=np.float32)
  expected = train(tmp_path / "whole", trust=trust)
  with pytest.raises(StopError):
    train(tmp_path / "parts", trust=trust, stop_at=3)
  assert_same(train(tmp_path / "parts", trust=trust), expected)
  plain = contents(whole[2])["probs"]
  assert not np.array_equal(contents(tmp_path / "parts")["probs"], plain)


def test_finished_run_is_read_not_trained_again(whole):
  def refuse(report):
    raise AssertionError("an epoch was trained")

  training, splits = make_data()
  again = loop.train(
    epath.Path(whole[2]), make_recipe(), objective.supervised(), training,
    splits, seeds=loop.Seeds(1, 2, 3),
    mesh=parallel.data_mesh(jax.devices()[:1]), observe=refuse,
  )  # fmt: skip
  assert_same(again, whole[0])


def test_history_holds_the_network_that_was_returned(whole):
  variables = whole[0].variables
  assert_same(checkpoint(whole[2], EPOCHS, variables), variables)
  with pytest.raises(AssertionError):
    assert_same(checkpoint(whole[2], EPOCHS - 1, variables), variables)


def test_history_holds_each_epoch_while_the_next_ones_train(tmp_path, whole):
  # Its steps are done long before a save has fetched what they take over.
  seen = {}

  def note(step):
    def noted(state, *rest):
      seen[len(seen)] = jax.tree.map(np.array, state.variables)
      return step(state, *rest)

    return noted

  training, splits = make_data()
  loop.train(
    epath.Path(tmp_path),
    make_recipe(resume_every=1),
    objective.supervised(),
    training,
    splits,
    seeds=loop.Seeds(1, 2, 3),
    mesh=parallel.data_mesh(jax.devices()[:1]),
    wrap_step=note,
  )
  for epoch in range(1, EPOCHS):
    kept = checkpoint(tmp_path, epoch, whole[0].variables)
    assert_same(kept, seen[epoch * STEPS])


def refuse_to_save(monkeypatch, name):
  """A full disk, of which only the thread that saves hears."""
  save = ocp.CheckpointManager.save

  def refuse(self, *arguments, **options):
    if pathlib.Path(self.directory).name == name:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return save(self, *arguments, **options)

  monkeypatch.setattr(ocp.CheckpointManager, "save", refuse)


@pytest.mark.parametrize("name", ["history", "resume"])
def test_a_save_that_fails_in_the_background_ends_the_run(
  tmp_path, monkeypatch, name
):
  refuse_to_save(monkeypatch, name)
  message = f"checkpoint cannot be written .*No space.*{name}'"
  with pytest.raises(OSError, match=message) as raised:
    train(tmp_path)
  assert raised.value.errno == errno.ENOSPC
  assert not (tmp_path / "resume" / "6").exists()


def test_predictions_are_those_of_the_kept_checkpoint(whole):
  _, splits = make_data()
  views = make_recipe().views
  logits = TinyNet().apply(
    whole[0].variables, views.clean(splits["test"].images)
  )
  np.testing.assert_allclose(
    whole[1]["probs"][EPOCHS - 1], jax.nn.softmax(logits), atol=1e-6
  )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_newest_state_falls_back_to_the_older(whole, tmp_path, capsys):
  with pytest.raises(StopError):
    train(tmp_path, make_recipe(resume_every=1), stop_at=4)
  folder = tmp_path / "resume" / "12"
  for file in (folder / "tree" / "d").iterdir():
    file.write_bytes(b"")
  trained = train(tmp_path, make_recipe(resume_every=1))
  assert "going back to an older one" in capsys.readouterr().out
  assert_same(trained, whole[0])


@pytest.mark.parametrize("stream", range(3))
def test_streams_are_separate(whole, tmp_path, stream):
  seeds = [1, 2, 3]
  seeds[stream] = 9
  trained = train(tmp_path, make_recipe(epochs=1), seeds=tuple(seeds)).variables
  with pytest.raises(AssertionError):
    assert_same(trained, checkpoint(whole[2], 1, trained))


def test_sparse_history_always_keeps_the_last(tmp_path):
  train(tmp_path, make_recipe(history_every=2))
  assert contents(tmp_path)["steps"] == [2, 4, 5]
  assert len(contents(tmp_path)["probs"]) == 3


@pytest.mark.parametrize(
  "every, unit, epochs",
  [
    (0.5, "epoch", [2 / 3, 1, 5 / 3, 2]),
    (2, "step", [2 / 3, 4 / 3, 2]),
  ],
)
def test_history_within_epochs_is_on_the_way_and_resumes(
  tmp_path, every, unit, epochs
):
  plain = train(tmp_path / "plain", make_recipe(epochs=2))
  recipe = make_recipe(
    epochs=2, history_every=every, history_unit=unit, resume_every=1
  )
  seen = []
  for stop_at in (pytest.approx(epochs[1], abs=1e-3), None):
    try:
      trained = train(tmp_path / "run", recipe, stop_at=stop_at)
    except StopError:
      seen.append(stop_at)
  assert len(seen) == 1
  assert_same(trained, plain)  # looking more often changes nothing
  found = contents(tmp_path / "run")
  assert found["steps"] == list(range(1, len(epochs) + 1))
  assert [row["epoch"] for row in found["metrics"]] == pytest.approx(
    epochs, abs=1e-3
  )
  whole = train(tmp_path / "whole", recipe)
  assert_same(whole, trained)
  assert_same(contents(tmp_path / "whole")["probs"], found["probs"])


def remembering():
  """Learns towards the mean of what the network said of the example before."""

  def init(labels, num_classes):
    return np.eye(num_classes, dtype="f")[labels]

  def update(rows, logits, batch):
    del batch
    return 0.5 * rows + 0.5 * jax.nn.softmax(logits)

  def loss(logits, batch):
    return losses.cross_entropy(logits, batch["memory"])

  return objective.Objective(loss, memory=objective.Memory(init, update))


@pytest.fixture(scope="module")
def remembered(tmp_path_factory):
  return train(tmp_path_factory.mktemp("remembered"), lesson=remembering())


@pytest.mark.parametrize("stop_at", [1, 3])
def test_memory_is_in_the_saved_state(remembered, tmp_path, stop_at):
  lesson = remembering()
  with pytest.raises(StopError):
    train(tmp_path, lesson=lesson, stop_at=stop_at)
  assert_same(train(tmp_path, lesson=lesson), remembered)


def test_memory_moves_to_another_number_of_devices(remembered, tmp_path):
  lesson = remembering()
  with pytest.raises(StopError):
    train(tmp_path, lesson=lesson, stop_at=3, num_devices=8)
  trained = train(tmp_path, lesson=lesson)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    trained,
    remembered,
  )


def test_review_teaches_from_what_was_predicted(tmp_path):
  """Targets follow the stored predictions, and a resumed run's are the same."""
  calls = []

  def review(finished, stores):
    assert len(stores["test"]) == finished
    calls.append(finished)
    targets = np.full((NUM_TRAIN, 3), 1 / 3, np.float32)
    if finished:
      targets += stores["test"][finished - 1].mean(0)
    return {"target": (targets / targets.sum(1, keepdims=True)).astype("f")}

  lesson = objective.Objective(
    lambda logits, batch: losses.cross_entropy(logits, batch["target"])
  )
  whole = train(tmp_path / "whole", lesson=lesson, review=review)
  assert calls == list(range(EPOCHS))
  with pytest.raises(StopError):
    train(tmp_path / "run", lesson=lesson, review=review, stop_at=3)
  assert_same(train(tmp_path / "run", lesson=lesson, review=review), whole)

  def forgetful(finished, stores):
    del finished, stores
    return review(0, {"test": []})

  blind = train(tmp_path / "blind", lesson=lesson, review=forgetful)
  with pytest.raises(AssertionError):
    assert_same(blind, whole)


def test_batch_that_does_not_divide_is_refused(tmp_path):
  with pytest.raises(ValueError, match="batch_size 9 does not divide over 2"):
    train(tmp_path, make_recipe(batch_size=9), num_devices=2)


@pytest.fixture
def sigterm_at(monkeypatch):
  """Sends SIGTERM to this process when the n-th step has been dispatched."""

  def arm(number):
    class Counting(parallel.InFlight):
      count = 0

      def add(self, results):
        Counting.count += results.shape == (len(step.StepMetrics._fields),)
        if Counting.count == number:
          os.kill(os.getpid(), signal.SIGTERM)
          Counting.count += 1
        super().add(results)

    monkeypatch.setattr(parallel, "InFlight", Counting)

  yield arm
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


STEPS = 3  # of an epoch


@pytest.mark.parametrize("number", [1, STEPS, STEPS + 2, EPOCHS * STEPS])
def test_sigterm_saves_within_the_epoch_and_continues_to_the_same_bits(
  whole, tmp_path, sigterm_at, number
):
  sigterm_at(number)
  with pytest.raises(termination.Terminated) as stopped:
    train(tmp_path)
  assert stopped.value.code == 143
  assert str(number) in {p.name for p in (tmp_path / "resume").iterdir()}
  sigterm_at(None)
  assert_same(train(tmp_path), whole[0])
  found = contents(tmp_path)
  assert found["metrics"] == whole[1]["metrics"]
  assert_same(found["probs"], whole[1]["probs"])
  sigterm_at(1)  # nothing is left to do
  assert_same(train(tmp_path), whole[0])


def test_sigterm_during_the_last_report_is_not_lost():
  def asked(then):
    with termination.Termination(parallel.data_mesh()) as stop:
      os.kill(os.getpid(), signal.SIGTERM)
      then(stop.requested())

  seen = []
  with pytest.raises(termination.Terminated):
    asked(seen.append)
  assert seen == [True]
  with pytest.raises(ZeroDivisionError):  # the block's own error goes first
    asked(lambda requested: 1 // (not requested))


def test_sigterm_says_that_nothing_could_be_saved(
  tmp_path, sigterm_at, monkeypatch, capsys
):
  refuse_to_save(monkeypatch, "resume")
  sigterm_at(1)
  with pytest.raises(OSError, match="checkpoint cannot be written"):
    train(tmp_path)
  assert "run again" not in capsys.readouterr().out


VICTIM = 5  # its loss breaks


def nan(loss, hit):
  return loss * jnp.where(hit, np.nan, 1.0)


def infinite(loss, hit):
  return loss + jnp.where(hit, np.inf, 0.0)


def steep(loss, hit):
  """A finite loss whose gradient is not."""
  return loss + jnp.sqrt(jnp.where(hit, loss - loss, 1.0))


def breaking(how):
  fine = objective.supervised()

  def loss(logits, batch):
    return how(fine.loss(logits, batch), batch["index"] == VICTIM)

  return objective.Objective(loss, fine.targets)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
  run = tmp_path_factory.mktemp("stopped")
  with pytest.raises(StopError):
    train(run, make_recipe(resume_every=1), stop_at=2)
  return run


@pytest.mark.parametrize("how", [nan, infinite, steep])
def test_numbers_that_break_name_epoch_and_step(whole, stopped, tmp_path, how):
  shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
  before = contents(tmp_path)
  batches, _ = order.epoch_batches(order.epoch_order(2, 2, NUM_TRAIN), 8)
  place = 1 + int(np.argmax((batches == VICTIM).any(1)))
  message = f"not finite after epoch 3, step {place} of 3.*learning rate"
  with pytest.raises(evaluation.DivergedError, match=message):
    train(tmp_path, make_recipe(resume_every=1), lesson=breaking(how))
  after = contents(tmp_path)
  assert after["steps"] == [1, 2]
  assert after["metrics"] == before["metrics"]
  assert_same(after["probs"], before["probs"])
  assert_same(train(tmp_path), whole[0])  # what was kept can be continued


def test_predictions_that_break_are_not_kept(tmp_path):
  huge = make_recipe(optimizer=optax.sgd(1e38))
  with pytest.raises(evaluation.DivergedError, match="epoch 1"):
    train(tmp_path, huge)
  assert not list((tmp_path / "history").glob("[0-9]*"))
  assert not list((tmp_path / "predictions" / "test").glob("[0-9]*"))


def test_fewer_examples_than_devices_or_than_a_batch(tmp_path):
  few = {"num_train": 3, "recipe": make_recipe(epochs=2)}
  one = train(tmp_path / "one", **few)
  eight = train(tmp_path / "eight", num_devices=8, **few)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    eight,
    one,
  )


def test_same_seed_twice_is_the_same_bits(whole, tmp_path):
  assert_same(train(tmp_path), whole[0])
  assert_same(contents(tmp_path)["probs"], whole[1]["probs"])


@pytest.mark.parametrize("num_devices", [2, 8])
def test_devices_agree_and_fuse_alike(whole, tmp_path, num_devices):
  trained = train(tmp_path, num_devices=num_devices)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    trained,
    whole[0],
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
    *(checkpoint(run, 1, trained.variables) for run in (tmp_path, whole[2])),
  )
  labels = make_data()[1]["test"].labels
  weights = [
    fusion.knowledge_fusion(probs, labels).weights
    for probs in (contents(tmp_path)["probs"], whole[1]["probs"])
  ]
  np.testing.assert_array_equal(*weights)
