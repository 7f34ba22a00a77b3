"""Damaged files: made again and said so, or one error that names the file.

Never a silently different number: after the damage is dealt with, every number
is what it was.
"""

import pathlib
import random
import shutil

import numpy as np
import pytest
from etils import epath

from kfkd_jax import checkpoints, cli, files
from kfkd_jax.run import results

pytestmark = pytest.mark.slow

ARGUMENTS = [
  "run",
  "--config.data.num_train=60",
  "--config.selection.num=40",
  "--config.model.name=mlp",
  "--config.model.width=8",
  "--config.train.epochs=3",
  "--config.train.batch_size=32",
  "--config.train.average_decay=0.9",
  "--config.history.resume_every=1",
  "--config.distill.teachers=kf",
  "--config.compare.independent=1",
  "--config.compare.bootstrap_samples=100",
  "--config.report.num_examples=1",
]  # fmt: skip
SMALL = (
  "noise.npz", "diagnosis.json", "fusion.json", "results.jsonl",
  "manifest.json", "config.json", "report/index.html",
)  # fmt: skip
TEACHER = "runs/teacher"


def run(workdir, *more):
  return cli.main([*ARGUMENTS, f"--workdir={workdir}", *more])


def numbers(workdir):
  """Everything that a number could be read from."""
  found = {name: (workdir / name).read_bytes() for name in SMALL}
  for path in sorted(workdir.glob("runs/*/predictions/*/*.npz")):
    found[str(path.relative_to(workdir))] = path.read_bytes()
  for folder in sorted(workdir.glob("runs/*/history/[0-9]*")):
    digests = folder / "digests" / "metadata"
    found[str(folder.relative_to(workdir))] = digests.read_bytes()
  return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  assert run(workdir) == 0
  return workdir


@pytest.fixture
def workdir(whole, tmp_path):
  shutil.copytree(whole, tmp_path / "w", symlinks=True)
  return tmp_path / "w"


def flip(path):
  content = bytearray(path.read_bytes())
  generator = random.Random(path.name)
  content[generator.randrange(len(content) // 3, 2 * len(content) // 3)] ^= 4
  path.write_bytes(bytes(content))


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose(path):
  shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path):
  lose(path)
  path.mkdir()


def remedied(workdir, capsys, expected):
  """Runs until all is well, as the errors say; returns what was said."""
  said = ""
  for _ in range(3):
    code = run(workdir)
    out, err = capsys.readouterr()
    said += out + err
    if code == 0:
      break
    assert code == 2 and err.count("\n") == 1, err
    named = [w.strip(",;():") for w in err.split() if str(workdir) in w]
    assert named, err
    assert "remove it" in err, err
    lose(pathlib.Path(named[0]))
  assert code == 0
  assert numbers(workdir) == expected
  return said


@pytest.mark.parametrize("damage", [flip, cut, lose, empty])
@pytest.mark.parametrize("name", SMALL)
def test_small_artefacts(whole, workdir, capsys, name, damage):
  expected = numbers(whole)
  damage(workdir / name)
  said = remedied(workdir, capsys, expected)
  assert name in said or name in ("config.json", "manifest.json")
  assert "train: epoch" not in said


@pytest.mark.parametrize("damage", [flip, cut, lose, empty])
@pytest.mark.parametrize("name", ["00002.npz", "examples.npz"])
def test_prediction_store_is_predicted_again(
  whole, workdir, capsys, name, damage
):
  expected = numbers(whole)
  damage(workdir / TEACHER / "predictions" / "test" / name)
  lose(workdir / "fusion.json")  # so that somebody reads the store
  lose(workdir / "diagnosis.json")
  said = remedied(workdir, capsys, expected)
  assert f"predictions/test/{name}" in said or TEACHER in said
  assert "teacher: epoch" not in said  # without training


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [flip, cut, lose, empty])
def test_history_is_trained_again(whole, workdir, capsys, damage):
  expected = numbers(whole)
  fusion = files.read_json(workdir / "fusion.json")
  weights = fusion["folds"][0]["methods"]["kf"]["weights"]
  folder = workdir / TEACHER / "history" / str(1 + int(np.argmax(weights)))
  if damage in (flip, cut):
    damage(
      max((folder / "tree" / "d").iterdir(), key=lambda p: p.stat().st_size)
    )
    lose(workdir / "runs" / "kf_kd")  # so that somebody reads the checkpoint
  else:
    damage(folder)
  said = remedied(workdir, capsys, expected)
  assert str(folder) in said or "runs/teacher is damaged" in said


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [flip, cut, lose, empty])
def test_resume_falls_back_to_the_older_state(whole, workdir, capsys, damage):
  expected = numbers(whole)
  newest = max(
    (workdir / TEACHER / "resume").iterdir(), key=lambda p: int(p.name)
  )
  if damage in (flip, cut):
    damage(
      max((newest / "tree" / "d").iterdir(), key=lambda p: p.stat().st_size)
    )
  else:
    damage(newest)
  lose(workdir / TEACHER / "finished.json")
  said = remedied(workdir, capsys, expected)
  assert "teacher: epoch 3/3" in said
  assert "teacher: epoch 2/3" not in said
  assert damage in (lose, empty) or "going back to an older one" in said


@pytest.mark.parametrize("damage", [flip, cut, lose, empty])
@pytest.mark.parametrize("name", ["finished.json", "inputs.json", "model.json"])
def test_notes_of_a_run(whole, workdir, capsys, name, damage):
  expected = numbers(whole)
  if name == "model.json":  # read only where something is to be compared
    lose(workdir / "results.jsonl")
  damage(workdir / TEACHER / name)
  remedied(workdir, capsys, expected)


def test_a_stage_alone_says_what_is_damaged(workdir, capsys):
  flip(workdir / "fusion.json")
  more = ["--config.distill.alpha=0.5", f"--workdir={workdir}"]
  code = cli.main(["distill", *ARGUMENTS[1:], *more])
  err = capsys.readouterr().err
  assert code == 2
  assert "distill needs fuse, of which" in err
  assert "fusion.json is damaged" in err


def test_whole_run_is_whole(whole):
  assert results.is_whole(epath.Path(whole) / TEACHER)
  with checkpoints.Checkpoints(epath.Path(whole) / TEACHER / "history") as kept:
    assert kept.steps() == [1, 2, 3]
