"""Training on images that stay on disk is training on those in memory."""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest
from etils import epath
from PIL import Image

from kfkd_jax import checkpoints, cli, files, models, parallel
from kfkd_jax.data.stored import Files, Stored
from kfkd_jax.data.stream import RandomViews, TrainingBatches
from kfkd_jax.predictions import PredictionStore
from kfkd_jax.training import (
  evaluation,
  feed,
  loop,
  objective,
  step,
  termination,
)

NUM, NUM_TEST, EPOCHS = 21, 9, 3
SIDE = 6


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  folder = tmp_path_factory.mktemp("images")
  names = [f"{i}.png" for i in range(NUM + NUM_TEST)]
  for i, name in enumerate(names):
    pixels = np.random.default_rng(i).integers(0, 256, (8, 9, 3), np.uint8)
    Image.fromarray(pixels).save(folder / name)
  return Stored(Files(str(folder), np.array(names)), size=SIDE)


def make_recipe(**changes):
  recipe = loop.Recipe(
    module=models.create("mlp", 3, width=4, axis_name=parallel.DATA_AXIS),
    optimizer=optax.sgd(0.1, 0.9),
    views=step.Views(mean=(0.5,) * 3, std=(0.3,) * 3, pad=1, flip=True),
    epochs=EPOCHS,
    batch_size=8,
    evaluation_batch=4,
  )
  return recipe._replace(**changes)


VIEWS = RandomViews((0.3, 1.0), rand_ops=1, rand_magnitude=5.0)


def train(
  run,
  stored,
  recipe=None,
  *,
  in_memory=False,
  num_devices=1,
  lesson=objective.supervised(),  # noqa: B008
  observe=lambda report: None,
  **extra,
):
  labels = np.arange(NUM + NUM_TEST, dtype=np.int32) % 3
  rows = np.arange(NUM + NUM_TEST)
  training, test = stored.take(rows[:NUM]), stored.take(rows[NUM:])
  if in_memory:
    training, test = training.whole(), test.whole()
  return loop.train(
    epath.Path(run),
    recipe or make_recipe(),
    lesson,
    {"image": training, "label": labels[:NUM], **extra},
    {"test": evaluation.Split(test, labels[NUM:], rows[:NUM_TEST])},
    seeds=loop.Seeds(1, 2, 3),
    mesh=parallel.data_mesh(jax.devices()[:num_devices]),
    observe=observe,
  )


def probs_of(run):
  store = PredictionStore(epath.Path(run) / "predictions" / "test")
  return np.stack([store[c] for c in range(len(store))])


def assert_same(first, second):
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_on_disk_trains_to_the_bits_of_in_memory(stored, tmp_path):
  expected = train(tmp_path / "memory", stored, in_memory=True)
  assert_same(train(tmp_path / "disk", stored), expected)
  assert_same(probs_of(tmp_path / "disk"), probs_of(tmp_path / "memory"))


def test_rows_in_memory_are_put_on_the_devices_once_an_epoch(stored):
  labels = np.arange(NUM, dtype=np.int32) % 3
  images = stored.take(np.arange(NUM)).whole()
  with feed.Feed(
    {"image": images, "label": labels},
    batch_size=8,
    order_seed=0,
    view_seed=0,
    num_steps=6,
    views=RandomViews(),
    workers=0,
    mesh=parallel.data_mesh(jax.devices()[:2]),
  ) as rows:
    first, *rest = [*rows(range(2)), *rows(range(2, 6))]
  assert [each["index"] is first["index"] for each in rest] == [
    True, True, False, False, False
  ]  # fmt: skip
  for each in (first, rest[-1]):  # all examples, and three to fill up
    counted = np.asarray(each["weight"]) > 0
    assert sorted(np.asarray(each["index"])[counted]) == list(range(NUM))


def test_what_examples_carry_travels_with_them(stored, tmp_path):
  rng = np.random.default_rng(0)
  probs = rng.dirichlet(np.ones(3), NUM).astype(np.float32)
  lesson = objective.cached_distillation()
  expected, found = (
    train(
      tmp_path / str(in_memory),
      stored,
      lesson=lesson,
      in_memory=in_memory,
      teacher_probs=probs,
    )
    for in_memory in (True, False)
  )
  assert_same(found, expected)


def test_eight_devices_end_where_one_does(stored, tmp_path):
  recipe = make_recipe(random_views=VIEWS)
  one = train(tmp_path / "one", stored, recipe)
  eight = train(tmp_path / "eight", stored, recipe, num_devices=8)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    eight,
    one,
  )


def test_stopped_within_an_epoch_continues_to_the_same_bits(
  stored, tmp_path, monkeypatch
):
  recipe = make_recipe(random_views=VIEWS)
  expected = train(tmp_path / "whole", stored, recipe)
  images_of = feed.Feed._images_of

  def interrupt(self, number):
    if number == 4:  # within the second epoch
      os.kill(os.getpid(), signal.SIGTERM)
    return images_of(self, number)

  monkeypatch.setattr(feed.Feed, "_images_of", interrupt)
  with pytest.raises(termination.Terminated):
    train(tmp_path / "run", stored, recipe)
  monkeypatch.undo()
  with checkpoints.Checkpoints(epath.Path(tmp_path / "run/resume")) as resume:
    assert resume.steps()[-1] == 4
  assert_same(train(tmp_path / "run", stored, recipe), expected)
  assert_same(probs_of(tmp_path / "run"), probs_of(tmp_path / "whole"))


@pytest.mark.slow
def test_workers_change_nothing(stored, tmp_path):
  recipe = make_recipe(random_views=VIEWS)
  expected = train(tmp_path / "none", stored, recipe)
  found = train(tmp_path / "two", stored, recipe._replace(workers=2))
  assert_same(found, expected)


# The whole program.


def make_folder(root, count=60):
  """Photographs of one dominant colour each, in three classes."""
  rng = np.random.default_rng(0)
  for i in range(count):
    label = i % 3
    pixels = rng.integers(0, 100, (20 + i % 5, 24, 3))
    pixels[..., label] += 120
    path = root / "rgb"[label] / f"{i}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
  return root


def arguments(root, **changes):
  options = {
    "data.name": "image_folder",
    "data.root": root,
    "data.image_size": 16,
    "data.stream": "always",
    "noise.kind": "none",
    "noise.rate": 0,
    "selection.num": 12,
    "model.name": "mlp",
    "model.width": 4,
    "train.epochs": 2,
    "train.batch_size": 8,
    "augment.crop_scale": "0.5,1.0",
    "augment.rand_ops": 1,
    "compare.independent": 1,
    "compare.bootstrap_samples": 100,
    "history.resume_every": 1,
    **changes,
  }
  return [f"--config.{key}={value}" for key, value in options.items()]


@pytest.mark.slow
def test_a_folder_of_photographs_from_training_to_report(tmp_path, capsys):
  root = make_folder(tmp_path / "photographs")
  workdir = tmp_path / "work"
  given = ["run", *arguments(root), f"--workdir={workdir}"]
  assert cli.main(given) == 0
  assert (workdir / "report" / "index.html").exists()
  rows = files.read_json_lines(epath.Path(workdir / "results.jsonl"))
  assert {"final", "kf", "kf_kd"} <= {row["method"] for row in rows}
  assert len(PredictionStore(workdir / "runs/teacher/predictions/test")) == 2
  capsys.readouterr()
  # The number of workers decides nothing, so nothing is done again.
  again = ["run", *arguments(root, **{"data.workers": 3})]
  assert cli.main([*again, f"--workdir={workdir}"]) == 0
  assert "train: up to date" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_and_run_again_equals_never_killed(tmp_path):
  root = make_folder(tmp_path / "photographs")

  def start(workdir):
    changes = {"data.workers": 1, "train.epochs": 6}
    command = ["train", *arguments(root, **changes), f"--workdir={workdir}"]
    return subprocess.Popen(
      [sys.executable, "-m", "kfkd_jax.cli", *command],
      env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )

  def finish(workdir):
    process = start(workdir)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors

  finish(tmp_path / "whole")
  process = start(tmp_path / "run")
  metrics = tmp_path / "run" / "runs" / "teacher" / "metrics.jsonl"
  for _ in range(6000):
    if metrics.exists() and len(metrics.read_text().splitlines()) >= 2:
      break
    time.sleep(0.01)
  process.kill()
  process.communicate(timeout=60)  # workers hold stderr until they end
  finish(tmp_path / "run")
  for name in ("test", "select", "train"):
    first, second = (
      PredictionStore(
        epath.Path(tmp_path / w) / "runs/teacher/predictions" / name
      )
      for w in ("whole", "run")
    )
    assert len(first) == len(second) == 6
    for c in range(6):
      np.testing.assert_array_equal(first[c], second[c])


TWO_PROCESSES = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(
  coordinator_address="localhost:{port}", num_processes=2, process_id={number}
)
import numpy as np
from kfkd_jax import parallel
from kfkd_jax.data.stored import Files, Stored
from kfkd_jax.data.stream import RandomViews
from kfkd_jax.training.feed import Feed

seen = []
picture = Stored.picture
Stored.picture = lambda self, row: seen.append(row) or picture(self, row)
names = np.array([f"{{i}}.png" for i in range({count})])
training = {{
  "image": Stored(Files({folder!r}, names), size={side}),
  "label": np.arange({count}, dtype=np.int32) % 3,
}}
with Feed(
  training, batch_size=8, order_seed=1, view_seed=2, num_steps=2,
  views=RandomViews((0.3, 1.0), rand_ops=1, rand_magnitude=5.0),
  workers=0, mesh=parallel.data_mesh(),
) as feed:
  for rows in feed(range(2)):
    whole = parallel.to_host(rows)
    print(int(whole["image"].astype(np.int64).sum()), flush=True)
    np.save({output!r}, whole["image"][0])
print(len(seen), flush=True)
"""


@pytest.mark.slow
def test_two_processes_decode_half_each_and_see_one_batch(stored, tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  processes = [
    subprocess.Popen(
      [
        sys.executable,
        "-c",
        TWO_PROCESSES.format(
          port=port,
          number=number,
          count=NUM,
          folder=stored._source.folder,
          side=SIDE,
          output=str(tmp_path / f"{number}.npy"),
        ),
      ],
      env={**environment, "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      text=True,
    )
    for number in range(2)
  ]
  said = [p.communicate(timeout=120)[0].split() for p in processes]
  assert [p.returncode for p in processes] == [0, 0]
  assert [int(words[-1]) for words in said] == [8, 8]  # of 2 batches of 8
  batches = TrainingBatches(
    stored.take(np.arange(NUM)), VIEWS, 8, 2, 1, 2, np.arange(8)
  )
  for number in range(2):
    found = np.load(tmp_path / f"{number}.npy")
    np.testing.assert_array_equal(found, batches[1])
