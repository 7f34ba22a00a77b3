"""SIGKILL anywhere, then again: the same artefacts.

Half of the deaths are exact: the program dies just before it writes, renames
or removes a certain file for the n-th time. The others come when they come.
"""

import os
import pathlib
import random
import re
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
  "--config.train.epochs=6",
  "--config.train.batch_size=32",
  "--config.history.resume_every=2",
  "--config.compare.independent=2",
  "--config.compare.bootstrap_samples=200",
  "--config.report.num_examples=1",
]
# Whatever has a memory of its own belongs here.
VARIANTS = {
  "average": ["--config.train.average_decay=0.9"],
  "retention": ["--config.history.keep=3", "--config.history.dtype=bfloat16"],
}
TEXTS = (
  "fusion.json", "diagnosis.json", "results.jsonl", "manifest.json",
  "report/index.html",
)  # fmt: skip
STAGES = {  # what only that stage writes
  "train": r"/(noise\.npz|runs/\.?teacher)",
  "diagnose": r"/\.?diagnosis\.json",
  "fuse": r"/\.?fusion\.json",
  "distill": r"/runs/(kf|mixture)_kd",
  "rivals": r"/runs/(independent|kf_soup)",
  "compare": r"/\.?results\.jsonl",
  "report": r"/report",
}

# Python runs it first. It counts what happens to files whose paths match.
HOOK = """
import builtins, io, os, re, signal, threading

left = int(os.environ["DIE_AT"])
pattern = re.compile(os.environ["DIE_IN"])
lock = threading.Lock()
log = os.open(os.environ["DIE_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def counted(function, writes=lambda *a, **k: True):
  def call(path, *arguments, **options):
    global left
    path_or_file = str(path)
    if pattern.search(path_or_file) and writes(*arguments, **options):
      with lock:
        os.write(log, f"{function.__name__} {path_or_file}\\n".encode())
        left -= 1
        if left == 0:
          os.kill(os.getpid(), signal.SIGKILL)
    return function(path, *arguments, **options)

  return call


def opens_to_write(mode="r", *arguments, **options):
  return not set(mode).isdisjoint("wax+")


for name in ("replace", "rename", "mkdir", "unlink", "remove", "rmdir"):
  setattr(os, name, counted(getattr(os, name)))
builtins.open = io.open = counted(io.open, opens_to_write)
"""


def start(workdir, variant, environment=None):
  kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  arguments = [*ARGUMENTS, *VARIANTS[variant], f"--workdir={workdir}"]
  return subprocess.Popen(
    [sys.executable, "-m", "kfkd_jax.cli", *arguments],
    env=kept | (environment or {}),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(workdir, variant, environment=None):
  process = start(workdir, variant, environment)
  _, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors


def dying(folder, stage, at):
  """The environment in which a stage's `at`-th change of a file is the last."""
  folder.mkdir(exist_ok=True)
  (folder / "sitecustomize.py").write_text(HOOK)
  root = str(pathlib.Path(__file__).parents[2])
  paths = [str(folder), root, os.environ.get("PYTHONPATH", "")]
  return {
    "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    "DIE_AT": str(at),
    "DIE_IN": stage,
    "DIE_LOG": str(folder / "log"),
  }


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


def assert_same(workdir, expected):
  for name in TEXTS:
    actual = pathlib.Path(workdir / name).read_bytes()
    assert actual == (expected / name).read_bytes(), name
  runs = sorted(p.name for p in (expected / "runs").iterdir() if p.is_dir())
  assert (
    sorted(p.name for p in (workdir / "runs").iterdir() if p.is_dir()) == runs
  )
  for name in runs:
    actual, wanted = (arrays_of(w / "runs" / name) for w in (workdir, expected))
    assert actual.keys() == wanted.keys(), name
    for key in wanted:
      np.testing.assert_array_equal(actual[key], wanted[key], err_msg=key)


class Whole:
  """Runs that nobody killed, by variant."""

  def __init__(self, make_folder):
    self._make_folder = make_folder
    self._found = {}

  def __call__(self, variant):
    """Its folder, its seconds, and how many changes of files each stage has."""
    if variant not in self._found:
      finish(self._make_folder(variant), variant)  # fills the compiler's cache
      workdir, hook = (self._make_folder(variant) for _ in range(2))
      started = time.monotonic()
      finish(workdir, variant, dying(hook, re.escape(str(workdir)), -1))
      seconds = time.monotonic() - started
      log = (hook / "log").read_text().replace(str(workdir), "").splitlines()
      changes = {
        stage: sum(re.search(f" {pattern}", line) is not None for line in log)
        for stage, pattern in STAGES.items()
      }
      self._found[variant] = workdir, seconds, changes
    return self._found[variant]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  return Whole(tmp_path_factory.mktemp)


@pytest.mark.parametrize(
  ("variant", "seed"),
  [(v, s) for s, v in enumerate(["average", "retention"] * 3)][:5],
)
def test_killed_at_chosen_writes_equals_never_killed(
  whole, tmp_path, variant, seed
):
  """Five of the six stages die once each, before one of their writes."""
  expected, _, changes = whole(variant)
  generator = random.Random(seed)
  workdir, hook = tmp_path / "w", tmp_path / "hook"
  left_out = list(STAGES)[1 + seed % 5]
  for stage in (s for s in STAGES if s != left_out):
    pattern = re.escape(str(workdir)) + STAGES[stage]
    at = generator.randint(1, changes[stage])
    process = start(workdir, variant, dying(hook, pattern, at))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, (stage, at, errors)
    assert len((hook / "log").read_text().splitlines()) == at
    (hook / "log").unlink()
  finish(workdir, variant)
  assert_same(workdir, expected)


@pytest.mark.parametrize(
  ("variant", "seed"), [("average", 0), ("retention", 1), ("average", 2)]
)
def test_killed_whenever_equals_never_killed(whole, tmp_path, variant, seed):
  expected, seconds, _ = whole(variant)
  generator = random.Random(seed)
  for _ in range(2):
    process = start(tmp_path, variant)
    time.sleep(generator.uniform(0.1, 0.9) * seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  finish(tmp_path, variant)
  assert_same(tmp_path, expected)


@pytest.mark.parametrize("name", ["teacher", "kf_kd"])
def test_sigterm_leaves_soon_with_its_code_and_continues(whole, tmp_path, name):
  expected, seconds, _ = whole("average")
  process = start(tmp_path, "average")
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
  finish(tmp_path, "average")
  assert_same(tmp_path, expected)
