"""Disks that are full, read-only or forbidden: one error, nothing lost."""

import contextlib
import errno
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from kfkd_jax import checkpoints, cli, files, parallel

ARGUMENTS = [
  "run",
  "--config.data.num_train=60",
  "--config.selection.num=40",
  "--config.model.name=mlp",
  "--config.model.width=64",
  "--config.train.epochs=8",
  "--config.train.batch_size=32",
  "--config.history.resume_every=1",
  "--config.distill.teachers=kf",
  "--config.compare.independent=1",
  "--config.compare.bootstrap_samples=100",
  "--config.report.num_examples=1",
  "--config.runtime.compilation_cache=False",
]
TEXTS = ("diagnosis.json", "fusion.json", "results.jsonl", "manifest.json")


# Sets the limit after the fork, which threads of this process forbid to use.
LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
if limit:
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from kfkd_jax import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def run(workdir, limit=None):
  unwanted = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
  environment = {k: v for k, v in os.environ.items() if k not in unwanted}
  return subprocess.run(
    [
      *(sys.executable, "-c", LIMITED, str(limit or 0)),
      *(*ARGUMENTS, f"--workdir={workdir}"),
    ],
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )


def mount(folder, size, *options):
  options = ",".join([f"size={size}", *options])
  return subprocess.run(
    ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
    capture_output=True,
  ).returncode


@contextlib.contextmanager
def full_disk(folder):
  """Room for the teacher and little more, or else a limit on files.

  Yields what limits the first run, and what takes the limit away.
  """
  folder.mkdir()
  if mount(folder, "2000k"):
    yield 30_000, lambda: None
    return
  try:
    yield None, lambda: mount(folder, "50m", "remount")
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  assert run(workdir).returncode == 0
  return workdir


def check_everything_reads(workdir):
  for path in workdir.rglob("*.npz"):
    files.read_npz(epath.Path(path))
  for path in workdir.rglob("*.json"):
    if path.parent in (workdir, workdir / "runs" / "teacher"):
      files.read_json(epath.Path(path))


def continues(whole, workdir, stopped):
  assert stopped.returncode == 2, stopped.stderr
  # TensorStore's threads may still print while the process ends.
  assert stopped.stderr.count("kfkd: ") == 1, stopped.stderr
  assert "kfkd_jax/" not in stopped.stderr, stopped.stderr
  assert f"make room in {workdir}" in stopped.stderr
  check_everything_reads(workdir)
  again = run(workdir)
  assert again.returncode == 0, again.stderr
  for name in TEXTS:
    assert (workdir / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_full_disk(whole, tmp_path):
  with full_disk(tmp_path / "disk") as (limit, free):
    workdir = tmp_path / "disk" / "w"
    stopped = run(workdir, limit)
    free()
    continues(whole, workdir, stopped)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [600, 10_000, 30_000])
def test_files_that_may_not_grow(whole, tmp_path, limit):
  stopped = run(tmp_path / "w", limit)
  continues(whole, tmp_path / "w", stopped)


@pytest.mark.parametrize(
  ("number", "message"),
  [
    (errno.ENOSPC, "No space left on device.*make room in"),
    (errno.EDQUOT, "uota exceeded.*make room in"),
    (errno.EROFS, "Read-only file system.*must be yours to read and write"),
    (errno.EACCES, "Permission denied.*choose another --workdir"),
  ],
)
def test_each_failure_is_one_line(
  tmp_path, capsys, monkeypatch, number, message
):
  kind = type(epath.Path(tmp_path))
  write = kind.write_bytes

  def refuse(self, *arguments):
    if tmp_path in pathlib.Path(self).parents:  # not JAX's own files
      raise OSError(number, os.strerror(number), str(self))
    return write(self, *arguments)

  monkeypatch.setattr(kind, "write_bytes", refuse)
  code = cli.main([*ARGUMENTS, f"--workdir={tmp_path}"])
  err = capsys.readouterr().err
  assert code == 2
  assert err.count("\n") == 1
  assert re.search(message, err)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_working_directory_is_a_file(tmp_path, capsys, inside):
  (tmp_path / "taken").write_text("mine")
  code = cli.main([*ARGUMENTS, f"--workdir={tmp_path / 'taken' / inside}"])
  err = capsys.readouterr().err
  assert code == 2
  assert err.count("\n") == 1
  assert f"{tmp_path / 'taken'}" in err
  assert (tmp_path / "taken").read_text() == "mine"


def test_checkpoint_that_cannot_be_written_names_its_folder(
  tmp_path, monkeypatch
):
  tree = parallel.replicate({"w": np.ones(3)}, parallel.data_mesh())

  def refuse(*arguments, **options):
    raise ValueError("no room\nand much more")

  kept = checkpoints.Checkpoints(epath.Path(tmp_path) / "history")
  monkeypatch.setattr(kept._manager, "save", refuse)
  kept.save(1, tree)
  with pytest.raises(OSError, match=r"written \(no room\).*history"):
    kept.wait()
