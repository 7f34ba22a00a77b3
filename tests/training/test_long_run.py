"""Two thousand epochs: memory, time an epoch and open files do not grow."""

import os
import time

import jax
import numpy as np
import pytest
from etils import epath
from tiny import tiny_config

from kfkd_jax import fusion, parallel
from kfkd_jax.predictions import PredictionStore
from kfkd_jax.run import build, networks, streams, tasks
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.training import loop

EPOCHS, SETTLED, SPAN = 2000, 200, 400

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="reads Linux's /proc"
  ),
]


def train(run, **changes):
  """Trains; returns memory in bytes, CPU seconds and open files by epoch."""
  config = tiny_config(**{"train.epochs": str(EPOCHS), **changes})
  task, seen = tasks.load_task(config), []

  def sample(report):
    with open("/proc/self/statm") as f:
      pages = int(f.read().split()[1])
    seen.append((pages * 4096, time.process_time(), num_open_files()))

  loop.train(
    epath.Path(run),
    build.make_recipe(Workspace(config), keep_history=True),
    networks.supervised(config).objective,
    {"image": task.images, "label": task.given},
    build.predicted_splits(Workspace(config)),
    seeds=streams.seeds_for(config),
    mesh=parallel.data_mesh(jax.devices()[:1]),
    observe=sample,
  )
  memory, seconds, opened = np.array(seen).T
  return memory, np.diff(seconds), opened


def num_open_files():
  return len(os.listdir("/proc/self/fd"))


def assert_no_growth(seconds, opened):
  """The quickest CPU seconds: what others do on the machine counts least."""
  early, late = seconds[SETTLED : SETTLED + SPAN], seconds[-SPAN:]
  assert np.quantile(late, 0.05) < 1.5 * np.quantile(early, 0.05)
  # Saves under way have files open; one left open in 100 epochs would show.
  low = [o.min() for o in (opened[SETTLED : SETTLED + SPAN], opened[-SPAN:])]
  assert low[1] <= low[0] + 10


def test_epochs_without_checkpoints_cost_the_same_forever(tmp_path):
  sparse = {"history.every": "1000000", "history.resume_every": "1000000"}
  memory, seconds, opened = train(tmp_path, **sparse)
  assert_no_growth(seconds, opened)
  assert memory[-1] < 1.05 * memory[SETTLED]


def test_a_checkpoint_every_epoch(tmp_path):
  """Half of the growth, 6 kB an epoch, is a leak of TensorStore 0.1.86: its
  `Spec.to_json` keeps 200 to 600 bytes a call, and Orbax calls it for every
  leaf."""
  memory, seconds, opened = train(tmp_path)
  assert_no_growth(seconds, opened)
  assert memory[-1] < 1.06 * memory[SETTLED]
  before = num_open_files()
  store = PredictionStore(epath.Path(tmp_path) / "predictions" / "select")
  assert len(store) == EPOCHS
  chosen = fusion.knowledge_fusion(store, store.labels)
  assert chosen.weights.shape == (EPOCHS,)
  assert num_open_files() == before
