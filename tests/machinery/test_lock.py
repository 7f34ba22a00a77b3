"""One program at a time: refused, released, taken over from the dead."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from etils import epath

from kfkd_jax import cli, files, lock

HOLD = """
import sys, time
from etils import epath
from kfkd_jax import lock
with lock.held(epath.Path(sys.argv[1])):
  print("held", flush=True)
  time.sleep(float(sys.argv[2]))
"""


def hold(folder, seconds=60.0):
  """A process that has taken the lock of `folder`."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(folder), str(seconds)],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "held\n"
  return process


def end(process):
  process.send_signal(signal.SIGKILL)
  process.communicate()


def take(folder):
  with lock.held(epath.Path(folder)):
    return json.loads((folder / lock.NAME).read_text())


def test_is_gone_afterwards_also_on_errors(tmp_path):
  holder = take(tmp_path / "new")
  assert holder["process"] == os.getpid()
  assert holder["host"] == socket.gethostname()
  with pytest.raises(ZeroDivisionError):
    with lock.held(epath.Path(tmp_path / "new")):
      raise ZeroDivisionError
  assert not list((tmp_path / "new").iterdir())


def test_second_program_is_refused_and_the_first_named(tmp_path, capsys):
  first = hold(tmp_path)
  try:
    code = cli.main(["report", f"--workdir={tmp_path}"])
  finally:
    end(first)
  assert code == 2
  err = capsys.readouterr().err
  message = rf"process {first.pid} on host {re.escape(socket.gethostname())}, "
  assert re.search(message + r"since 20\d\d-\d\d-\d\dT\d\d:", err)
  assert "choose another --workdir" in err
  assert "remove" not in err
  assert [p.name for p in tmp_path.iterdir()] == [lock.NAME]


def test_lock_of_a_dead_process_is_taken_over(tmp_path):
  first = hold(tmp_path)
  end(first)
  assert (tmp_path / lock.NAME).exists()
  assert take(tmp_path)["process"] == os.getpid()
  assert not list(tmp_path.iterdir())


def test_same_process_cannot_hold_it_twice(tmp_path):
  with lock.held(epath.Path(tmp_path)):
    with pytest.raises(lock.LockedError, match=f"process {os.getpid()} on"):
      take(tmp_path)
  take(tmp_path)


@pytest.mark.parametrize(
  "content", ['{"host": "elsewhere", "process": 1, "since": "x"}', "", "[1]"]
)
def test_lock_of_another_host_is_never_taken_over(tmp_path, content):
  path = tmp_path / lock.NAME
  path.write_text(content)
  with pytest.raises(lock.LockedError, match=re.escape(f"remove {path}")):
    take(tmp_path)
  assert path.read_text() == content


def test_file_systems_without_links_and_locks(tmp_path, monkeypatch):
  def refuse(*arguments):
    raise OSError(errno.ENOTSUP, "not supported")

  monkeypatch.setattr(lock.os, "link", refuse)
  monkeypatch.setattr(lock.fcntl, "flock", refuse)
  with lock.held(epath.Path(tmp_path)):
    with pytest.raises(lock.LockedError, match=f"process {os.getpid()} on"):
      take(tmp_path)
  assert not list(tmp_path.iterdir())
  dead = {"host": socket.gethostname(), "process": 2**30, "since": "x"}
  (tmp_path / lock.NAME).write_text(json.dumps(dead))
  assert take(tmp_path)["process"] == os.getpid()


RACE = """
import os, sys, time
from etils import epath
from kfkd_jax import lock
folder, start = epath.Path(sys.argv[1]), float(sys.argv[2])
time.sleep(max(0, start - time.time()))
won = 0
while time.time() < start + 2:
  try:
    with lock.held(folder):
      mine = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)
      os.close(mine)
      os.unlink(folder / "inside")
      won += 1
      if won == 50:
        os.kill(os.getpid(), 9)
  except lock.LockedError:
    pass
print(won)
"""


def test_never_two_at_once_however_they_start_and_die(tmp_path):
  start = time.time() + 1.5
  racers = [
    subprocess.Popen(
      [sys.executable, "-c", RACE, str(tmp_path), str(start)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(4)
  ]
  for racer in racers:
    _, errors = racer.communicate(timeout=60)
    assert racer.returncode in (0, -signal.SIGKILL), errors
  take(tmp_path)


def test_lock_removed_by_hand_stops_whoever_writes(tmp_path):
  folder = epath.Path(tmp_path)
  with lock.held(folder):
    files.write_text(folder / "a", "mine")
    (tmp_path / lock.NAME).unlink()
    other = hold(tmp_path)
    with pytest.raises(lock.LostError, match=re.escape(str(tmp_path))):
      files.write_text(folder / "a", "late")
    with pytest.raises(lock.LostError):
      files.append_json_line(folder / "m.jsonl", {})
  assert (folder / "a").read_text() == "mine"
  try:  # nor does leaving free what is the other's
    with pytest.raises(lock.LockedError, match=f"process {other.pid} on"):
      take(tmp_path)
  finally:
    end(other)
  take(tmp_path)


def make_dangling(path):
  path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize("make", [make_dangling, os.mkfifo, os.mkdir])
def test_lock_that_is_no_file_is_named(tmp_path, make):
  make(tmp_path / lock.NAME)
  with pytest.raises(ValueError, match=r"\.lock is no ordinary file"):
    take(tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == [lock.NAME]


def test_what_the_killed_left_while_taking_it_is_removed(tmp_path):
  child = subprocess.Popen([sys.executable, "-c", ""])
  child.wait()
  prefix = f"{lock.NAME}.{socket.gethostname()}."
  kept = {f"{prefix}{os.getppid()}", f"{lock.NAME}.elsewhere.{child.pid}"}
  for name in (*kept, f"{prefix}{child.pid}", f"{prefix}{2**80}"):
    (tmp_path / name).touch()
  take(tmp_path)
  assert {p.name for p in tmp_path.iterdir()} == kept
