"""Which checkpoints are kept: in bfloat16, or only those that remember most.

Stopped anywhere, damaged or not, the same ones and the same bits are left.
"""

import pathlib
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from tiny import tiny_config

from kfkd_jax import checkpoints, files, fusion, parallel, stages
from kfkd_jax import config as config_lib
from kfkd_jax.predictions import PredictionStore
from kfkd_jax.run import results, students, tasks
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.training import evaluation, loop, objective, retention, step

EPOCHS, KEEP = 9, 3


class TinyNet(nn.Module):
  num_classes: int = 3

  @nn.compact
  def __call__(self, x, *, train=False):
    x = x.reshape(len(x), -1)
    axis_name = parallel.DATA_AXIS if train else None
    x = nn.BatchNorm(use_running_average=not train, axis_name=axis_name)(x)
    return nn.Dense(self.num_classes)(x)


class StopError(Exception):
  pass


def make_recipe(**changes):
  return loop.Recipe(
    module=TinyNet(),
    optimizer=optax.sgd(0.5),
    views=step.Views(mean=(0.5,), std=(0.3,)),
    epochs=EPOCHS,
    batch_size=8,
    resume_every=2,
    history_dtype="bfloat16",
    history_keep=KEEP,
  )._replace(**changes)


def make_data():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (50, 3, 3, 1), np.uint8)
  labels = rng.integers(0, 3, len(images)).astype(np.int32)
  splits = {
    name: evaluation.Split(
      images[rows], labels[rows], np.arange(len(labels[rows]))
    )
    for name, rows in (("select", slice(20, 39)), ("test", slice(39, 50)))
  }
  return {"image": images[:20], "label": labels[:20]}, splits


def train(run, recipe=None, *, stop_at=None):
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
    seeds=loop.Seeds(1, 2, 3),
    mesh=parallel.data_mesh(jax.devices()[:1]),
    observe=observe,
  )


def contents(run):
  """Everything that the history and the stores hold."""
  found = {}
  for split in ("select", "test"):
    store = PredictionStore(epath.Path(run) / "predictions" / split)
    found |= {f"{split}/{e}": store.read(e) for e in store.epochs}
  with checkpoints.Checkpoints(epath.Path(run) / "history") as history:
    for epoch in history.steps():
      found[f"history/{epoch}"] = history.restore(epoch, template())
  return found


def template():
  x = jnp.zeros((1, 3, 3, 1))
  return jax.eval_shape(lambda: TinyNet().init(jax.random.key(0), x))


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def kept_by_hand(right, most):
  """The rule as plain loops over `bool[C, N]`."""
  kept = []
  for newest in range(len(right)):
    kept.append(newest)
    if len(kept) > most:
      scores = {}
      for c in kept[:-1]:
        scores[c] = sum(
          bool(right[c, n]) and not right[newest, n]
          for n in range(right.shape[1])
        )
      worst = min(scores.values())
      kept.remove(min(c for c in scores if scores[c] == worst))
  return kept


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  run = tmp_path_factory.mktemp("whole")
  return run, train(run)


@pytest.mark.parametrize("num_examples", [1, 8, 13])
def test_bits_count_as_booleans_do(num_examples):
  rng = np.random.default_rng(num_examples)
  right = rng.random((6, num_examples)) < 0.5
  bits = retention.RightBits(num_examples, len(right))
  for c, row in enumerate(right):
    assert len(bits) == c
    expected = [np.sum(before & ~row) for before in right[:c]]
    np.testing.assert_array_equal(bits.remembered(row), expected)
    bits.add(row)
    np.testing.assert_array_equal(bits.newest, row)


def test_keeps_what_remembers_most_and_the_newest(whole):
  run, _ = whole
  store = PredictionStore(epath.Path(run) / "predictions" / "select")
  assert store.epochs == list(range(1, EPOCHS + 1))  # all can be diagnosed
  right = np.stack([store[c].argmax(-1) == store.labels for c in range(EPOCHS)])
  kept = [1 + c for c in kept_by_hand(right, KEEP)]
  assert kept[-1] == EPOCHS
  assert kept != list(range(EPOCHS - KEEP + 1, EPOCHS + 1))
  with checkpoints.Checkpoints(epath.Path(run) / "history") as history:
    assert history.steps() == kept


def test_predictions_are_those_of_the_checkpoints_that_are_kept(whole):
  run, trained = whole
  recipe, found = make_recipe(), contents(run)
  mesh = parallel.data_mesh(jax.devices()[:1])
  predictor = evaluation.Predictor(recipe, mesh)
  _, splits = make_data()
  images = predictor.put(splits["test"].images)
  for name, variables in found.items():
    if name.startswith("history/"):
      epoch = name.removeprefix("history/")
      kernel = variables["params"]["Dense_0"]["kernel"]
      assert kernel.dtype == np.float32
      short = kernel.astype(jnp.bfloat16).astype(np.float32)
      assert np.array_equal(short, kernel) == (int(epoch) < EPOCHS)
      probs = predictor(parallel.replicate(variables, mesh), images)
      np.testing.assert_array_equal(probs, found[f"test/{epoch}"])
  assert_same(found[f"history/{EPOCHS}"], trained.variables)


def test_training_does_not_depend_on_what_is_kept(whole, tmp_path):
  everything = train(
    tmp_path, make_recipe(history_dtype="float32", history_keep=None)
  )
  assert_same(everything, whole[1])


@pytest.mark.parametrize("stop_at", [1, 5, 8])
def test_stopped_and_continued_keeps_the_same(whole, tmp_path, stop_at):
  with pytest.raises(StopError):
    train(tmp_path, stop_at=stop_at)
  assert_same(train(tmp_path), whole[1])
  assert_same(contents(tmp_path), contents(whole[0]))


@pytest.mark.parametrize("stop_at", [5, 8])
def test_killed_between_noting_and_deleting(
  whole, tmp_path, monkeypatch, stop_at
):
  def die(self, step):
    self.wait()
    steps = self.steps()
    if self.path.name == "history" and max(steps) == stop_at:
      assert len(steps) > KEEP
      raise StopError
    kind(self, step)

  kind = checkpoints.Checkpoints.delete
  monkeypatch.setattr(checkpoints.Checkpoints, "delete", die)
  with pytest.raises(StopError):
    train(tmp_path)
  monkeypatch.undo()
  assert_same(train(tmp_path), whole[1])
  assert_same(contents(tmp_path), contents(whole[0]))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("victim", ["kept", "dropped", "checkpoint", "note"])
def test_what_is_lost_is_made_again(whole, tmp_path, capsys, victim):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
  kept = sorted(int(p.name) for p in (tmp_path / "history").iterdir())
  dropped = files.read_json(epath.Path(tmp_path) / "dropped.json", list)
  assert sorted(kept + dropped) == list(range(1, EPOCHS + 1))
  store = tmp_path / "predictions" / "test"
  if victim == "kept":
    (store / f"{kept[0]:05d}.npz").unlink()
  elif victim == "dropped":
    (store / f"{dropped[0]:05d}.npz").write_bytes(b"")
  elif victim == "note":
    (tmp_path / "dropped.json").unlink()
  else:
    shutil.rmtree(tmp_path / "history" / str(kept[0]))
  assert_same(train(tmp_path), whole[1])
  assert_same(contents(tmp_path), contents(whole[0]))
  again = "starting again" in capsys.readouterr().out
  assert again == (victim != "kept")


def config_of(**changes):
  small = {
    "train.epochs": "8", "history.keep": "4", "history.dtype": "bfloat16",
    "compare.independent": "1", "distill.teachers": "kf",
  }  # fmt: skip
  return tiny_config(**{**small, **changes})


@pytest.mark.slow
def test_every_method_uses_only_what_is_kept(tmp_path):
  workdir, config = epath.Path(tmp_path), config_of()
  assert stages.run(config, workdir, say=lambda line: None)
  kept = results.kept_checkpoints(workdir, "teacher")
  assert len(kept) == 4
  assert files.read_json(workdir / "diagnosis.json")["epochs"] == [*range(1, 9)]
  fused = files.read_json(workdir / "fusion.json")
  assert fused["epochs"] == [*range(1, 9)]
  for name, method in fused["folds"][0]["methods"].items():
    assert set(np.flatnonzero(method["weights"])) <= set(kept), name
    assert set(method.get("members", [])) <= set(kept), name
  store = results.predictions(workdir, "teacher", "select")
  fresh = fusion.knowledge_fusion(
    np.stack([store[c] for c in kept]), store.labels
  )
  chosen = fused["folds"][0]["methods"]["kf"]
  np.testing.assert_allclose(
    np.take(chosen["weights"], kept), fresh.weights, atol=1e-7
  )
  rows = files.read_json_lines(workdir / "results.jsonl")
  assert {"fixed_jumps", "random_epochs", "kf_soup", "kf_kd"} <= {
    row["method"] for row in rows
  }
  weights = np.zeros(8, np.float32)
  weights[kept] = 1 / 4
  stacked, used = results.read_members(Workspace(config, workdir), weights)
  images = tasks.load_task(config).images
  np.testing.assert_allclose(
    students.teacher_probs(Workspace(config), stacked, used, images),
    fusion.fuse(results.predictions(workdir, "teacher", "train"), weights),
    atol=1e-6,
  )
  lost = np.setdiff1d(np.arange(8), kept)
  weights[lost[0]] = 1
  with pytest.raises(ValueError, match="holds 4 checkpoints of 8 epochs"):
    results.read_members(Workspace(config, workdir), weights)
  assert not stages.run(config, workdir, say=lambda line: None)


@pytest.mark.parametrize(
  "key", [{"history.keep": "3"}, {"history.dtype": "float32"}]
)
def test_a_change_trains_again(key):
  before, after = config_of(), config_of(**key)
  for stage in stages.STAGES:
    old, new = (stages.inputs_of(c, stage) for c in (before, after))
    assert old != new, stage


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"history.keep": "1"}, "history.keep=1 is not possible; allowed: 2"),
    ({"history.dtype": "float16"}, "allowed: float32, bfloat16"),
    ({"selection.labels": "noisy"}, "history.keep=4 judges by clean labels"),
    ({"selection.source": "test"}, "needs selection.source='train'"),
  ],
)
def test_what_cannot_work_is_refused(changes, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    config_of(**changes)


def test_bfloat16_halves_a_checkpoint(tmp_path):
  rng = np.random.default_rng(0)
  tree = {"w": rng.normal(size=(256, 256)).astype(np.float32)}
  size = {}
  for dtype in (None, "bfloat16"):
    folder = tmp_path / str(dtype)
    with checkpoints.Checkpoints(epath.Path(folder)) as kept:
      kept.save(1, parallel.replicate(tree, parallel.data_mesh()), dtype=dtype)
      kept.wait()
      restored = kept.restore(1, tree)["w"]
    expected = tree["w"] if dtype is None else tree["w"].astype(dtype)
    np.testing.assert_array_equal(restored, expected.astype(np.float32))
    size[dtype] = sum(
      p.stat().st_size for p in pathlib.Path(folder).rglob("*") if p.is_file()
    )
  assert 0.4 < size["bfloat16"] / size[None] < 0.6
