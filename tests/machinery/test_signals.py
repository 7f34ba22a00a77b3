"""Ctrl-C and SIGTERM: one line and the shell's exit code, at any instant."""

import gc
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from kfkd_jax import cli, signals

ROOT = pathlib.Path(__file__).parents[2]
ARGUMENTS = [
  "run",
  "--config.data.num_train=60",
  "--config.selection.num=40",
  "--config.model.name=mlp",
  "--config.model.width=8",
  "--config.train.epochs=3",
  "--config.train.batch_size=32",
  "--config.distill.teachers=kf",
  "--config.compare.independent=1",
  "--config.compare.bootstrap_samples=100",
  "--config.report.num_examples=1",
]
LINE = "kfkd: interrupted; run again to continue\n"


def send(number):
  os.kill(os.getpid(), number)


def wait_for_ever():
  end = time.monotonic() + 20
  while time.monotonic() < end:
    time.sleep(0.01)


def swallowed_by_garbage_collection(number):
  gc.callbacks.append(lambda phase, _: phase == "stop" or send(number))
  try:
    gc.collect()
  finally:
    gc.callbacks.pop()
  wait_for_ever()


def swallowed_by_a_finaliser(number):
  class Finalised:
    def __del__(self):
      send(number)

  Finalised()
  wait_for_ever()


def turned_into_another_error(number):
  try:
    send(number)
    wait_for_ever()
  except BaseException as error:
    raise ValueError("a library failed") from error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
  "lose",
  [
    swallowed_by_garbage_collection,
    swallowed_by_a_finaliser,
    turned_into_another_error,
  ],
)
def test_signals_that_are_lost_are_obeyed(monkeypatch, capsys, number, lose):
  monkeypatch.setattr(cli, "_dispatch", lambda *unused: lose(number))
  if number == signal.SIGINT:
    assert cli.main(["run"]) == 130
  else:
    with pytest.raises(SystemExit, match="143"):
      cli.main(["run"])
  assert capsys.readouterr().err == (LINE if number == signal.SIGINT else "")


def test_cleaning_up_is_not_disturbed(monkeypatch):
  cleaned = []

  def dispatch(*unused):
    try:
      send(signal.SIGINT)
      wait_for_ever()
    finally:
      end = time.monotonic() + 1
      while time.monotonic() < end:  # raised again four times by now
        time.sleep(0.01)
      cleaned.append(True)

  monkeypatch.setattr(cli, "_dispatch", dispatch)
  assert cli.main(["run"]) == 130
  assert cleaned


STUCK = """
import sys, threading
from kfkd_jax import cli, signals

def dispatch(*unused):
  try:
    print("ready", flush=True)
    threading.Event().wait()
  except BaseException:
    print("told", flush=True)
    threading.Event().wait()

cli._dispatch = dispatch
signals._PATIENCE_SECONDS = float(sys.argv[1])
cli.main(["run"])
"""


def start_stuck(patience):
  process = subprocess.Popen(
    [sys.executable, "-c", STUCK, str(patience)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  return process


def test_second_interrupt_ends_what_is_stuck():
  process = start_stuck(60)
  process.send_signal(signal.SIGINT)
  assert process.stdout.readline() == "told\n"
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=20)
  assert (process.returncode, errors) == (130, LINE)


def test_patience_with_what_is_stuck_ends():
  process = start_stuck(0.5)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=20)
  assert (process.returncode, errors) == (143, "")


def test_the_command_puts_back_what_it_changed(monkeypatch, tmp_path):
  def state():
    handlers = [signal.getsignal(n) for n in signals.EXIT_CODES]
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return handlers, hooks, wakeup

  before = state()
  during = []
  monkeypatch.setattr(cli, "_dispatch", lambda *_: during.append(state()) or 0)
  assert cli.main(["run"]) == 0
  assert during != [before]
  assert state() == before


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_interrupted_at_any_instant(tmp_path, seed):
  """Waits for a file that the run makes, and then for a moment."""
  generator = random.Random(seed)
  sign = (
    ".lock",
    "manifest.json",
    "runs/teacher/metrics.jsonl",
    "fusion.json",
    "runs/kf_kd/metrics.jsonl",
    "results.jsonl",
  )[seed % 6]
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "kfkd_jax.cli"),
      *(*ARGUMENTS, f"--workdir={tmp_path}"),
    ],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  while not (tmp_path / sign).exists():
    assert process.poll() is None
    time.sleep(0.002)
  time.sleep(generator.uniform(0, 0.3))
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=60)
  assert (process.returncode, errors) == (130, LINE)
  assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
  ("number", "code", "line"),
  [
    (signal.SIGINT, 130, "kfkd: interrupted; run again to continue\n"),
    (signal.SIGTERM, 143, ""),
  ],
)
def test_signals_are_heard_while_jax_loads(tmp_path, number, code, line):
  slow = "import time\nprint('loading', flush=True)\ntime.sleep(60)\n"
  (tmp_path / "jax.py").write_text(slow)
  program = subprocess.Popen(
    [sys.executable, "-m", "kfkd_jax.cli", "run"],
    env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    cwd=tmp_path,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert program.stdout.readline() == "loading\n"
  program.send_signal(number)
  _, err = program.communicate(timeout=30)
  assert (program.returncode, err) == (code, line)
