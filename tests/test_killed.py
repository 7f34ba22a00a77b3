"""SIGKILL at random instants, then again: the same artefacts."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from kfkd_jax import checkpoints, files

pytestmark = pytest.mark.slow

ARGUMENTS = [
  "run",
  "--config.data.num_train=120",
  "--config.selection.num=60",
  "--config.model.name=mlp",
  "--config.model.width=16",
  "--config.train.epochs=8",
  "--config.train.batch_size=32",
  "--config.train.average_decay=0.9",
  "--config.history.resume_every=2",
  "--config.compare.independent=2",
  "--config.compare.bootstrap_samples=200",
]
TEXTS = ("fusion.json", "diagnosis.json", "results.jsonl", "manifest.json")
RUNS = ("teacher", "teacher_ema", "kf_kd", "mixture_kd", "independent_1")


def start(workdir):
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  return subprocess.Popen(
    [sys.executable, "-m", "kfkd_jax.cli", *ARGUMENTS, f"--workdir={workdir}"],
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(workdir):
  process = start(workdir)
  _, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors


def arrays_of(run):
  found = {}
  for path in sorted(run.glob("predictions/*/*.npz")):
    for name, value in files.read_npz(epath.Path(path)).items():
      found[f"{path.relative_to(run)}/{name}"] = value
  with checkpoints.Checkpoints(epath.Path(run) / "history") as history:
    for step in history.steps():
      digests = run / "history" / str(step) / "digests" / "metadata"
      found[f"history/{step}"] = np.array(digests.read_text())
  return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  finish(workdir)  # also fills the compilation cache
  timed = tmp_path_factory.mktemp("timed")
  started = time.monotonic()
  finish(timed)
  return workdir, time.monotonic() - started


@pytest.mark.parametrize("seed", range(6))
def test_killed_and_run_again_equals_never_killed(whole, tmp_path, seed):
  expected, seconds = whole
  generator = random.Random(seed)
  for _ in range(2):
    process = start(tmp_path)
    time.sleep(generator.uniform(0.1, 0.9) * seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  finish(tmp_path)
  for name in TEXTS:
    actual = pathlib.Path(tmp_path / name).read_bytes()
    assert actual == (expected / name).read_bytes(), name
  for name in RUNS:
    actual = arrays_of(tmp_path / "runs" / name)
    wanted = arrays_of(expected / "runs" / name)
    assert actual.keys() == wanted.keys(), name
    for key in wanted:
      np.testing.assert_array_equal(actual[key], wanted[key], err_msg=key)


@pytest.mark.parametrize("name", ["teacher", "kf_kd"])
def test_sigterm_leaves_soon_with_its_code_and_continues(whole, tmp_path, name):
  expected, seconds = whole
  process = start(tmp_path)
  begun = time.monotonic()
  while not (tmp_path / "runs" / name / "metrics.jsonl").exists():
    assert time.monotonic() - begun < 60 + 3 * seconds
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  sent = time.monotonic()
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 143, errors
  assert time.monotonic() - sent < 10
  assert not errors
  finish(tmp_path)
  for text in TEXTS:
    actual = pathlib.Path(tmp_path / text).read_bytes()
    assert actual == (expected / text).read_bytes(), text
