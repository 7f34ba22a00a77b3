"""What stands where it does not belong, or differs where it must not."""

import hashlib
import pathlib
import shutil

import pytest
from etils import epath

from kfkd_jax import cli, files, stages
from kfkd_jax import config as config_lib
from kfkd_jax.run import results, seals
from kfkd_jax.run.workspace import Workspace

pytestmark = pytest.mark.slow

KEYS = {
  "data.num_train": 60, "selection.num": 40, "model.name": "mlp",
  "model.width": 8, "train.epochs": 3, "train.batch_size": 32,
  "distill.teachers": "kf", "compare.independent": 1,
  "compare.bootstrap_samples": 100, "report.num_examples": 1,
  "export.saved_model": False, "export.onnx": False,
}  # fmt: skip
# `metrics.jsonl` and all else is compared; only these are Orbax's own, with
# times and drawn names inside. Their trees are compared by their digests.
MAY_DIFFER = ("history", "resume")


def command(name, workdir, **changes):
  keys = KEYS | {k.replace("__", "."): v for k, v in changes.items()}
  arguments = [f"--config.{key}={value}" for key, value in keys.items()]
  return cli.main([name, *arguments, f"--workdir={workdir}"])


def config_of(workdir):
  return config_lib.read(None, saved=epath.Path(workdir) / "config.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  assert command("run", workdir) == command("export", workdir) == 0
  return workdir


@pytest.fixture(scope="module")
def other(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("other")
  assert command("run", workdir, seed=1) == 0
  return workdir


@pytest.fixture
def workdir(whole, tmp_path):
  return epath.Path(shutil.copytree(whole, tmp_path / "w"))


def test_sums_are_of_all_files_in_a_folder(tmp_path):
  """Such as a SavedModel, whose weights lie a folder deeper."""
  folder = epath.Path(tmp_path)
  (folder / "model" / "variables").mkdir(parents=True)
  for name in ("card.json", "model/graph.pb", "model/variables/data"):
    (folder / name).write_text(name)
  seals.write_sums(folder, ["card.json", "model", "not there"])
  listed = (folder / seals.SUMS).read_text().split()[1::2]
  assert listed == ["card.json", "model/graph.pb", "model/variables/data"]
  assert not seals.changed(folder)
  (folder / "model/variables/data").write_text("else")
  assert seals.changed(folder) == ["model/variables/data"]


def exchange(source, path):
  if path.is_dir():
    path.rmtree()
    shutil.copytree(source, path)
  else:
    shutil.copy(source, path)


def contents(workdir):
  found = {}
  for path in sorted(
    p for p in pathlib.Path(workdir).rglob("*") if p.is_file()
  ):
    name = str(path.relative_to(workdir))
    if path.name == "seconds.json":  # how long it took
      continue
    if not any(f"/{part}/" in name for part in MAY_DIFFER):
      found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
  for path in workdir.glob("runs/*/history/*/digests/metadata"):
    found[str(path.relative_to(workdir))] = path.read_text()
  return found


def test_two_runs_leave_the_same_bytes(whole, tmp_path):
  assert command("run", tmp_path) == command("export", tmp_path) == 0
  # The page must not tell whether there was an export before it.
  shutil.rmtree(tmp_path / "report")
  assert command("run", tmp_path) == 0
  assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize(
  ("name", "stage"),
  [
    ("report/tables/results.csv", "report"),
    ("report/figures/gains.svg", "report"),
    ("results.jsonl", "compare"),
    ("hits.npz", "compare"),
    ("diagnosis.json", "diagnose"),
    ("fusion.json", "fuse"),
    ("noise.npz", "train"),
    ("runs/teacher", "train"),
    ("runs/kf_kd", "distill"),
  ],
)
def test_what_another_run_left_is_not_taken(workdir, other, name, stage):
  """Each is whole in itself, and of the same kind."""
  exchange(other / name, workdir / name)
  assert stages.manifest.spoilt(
    Workspace(config_of(workdir), workdir), stage
  ) == [name]


def test_a_lost_figure_comes_back_and_foreign_files_stay(workdir, capsys):
  before = contents(workdir)
  (workdir / "report" / "mine.txt").write_text("mine")
  (workdir / "report" / "figures" / "gains.png").unlink()
  assert command("run", workdir) == 0
  line = "report/figures/gains.png is damaged or incomplete, making it again"
  assert line in capsys.readouterr().out
  assert (workdir / "report" / "mine.txt").read_text() == "mine"
  (workdir / "report" / "mine.txt").unlink()
  assert contents(workdir) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("part", ["predictions/test", "history", "model.json"])
def test_a_part_of_another_run_is_refused_where_it_is_read(
  workdir, other, part
):
  run = workdir / "runs" / "teacher"
  exchange(other / "runs" / "teacher" / part, run / part)

  def read():
    results.predictions(workdir, "teacher", "test").read(3)
    results.read_members(Workspace(config_of(workdir), workdir), [0, 0, 1])

  with pytest.raises(ValueError, match=r"belongs elsewhere.*inputs \w+, not"):
    read()


def test_notes_of_earlier_versions_still_hold(workdir):
  """Runs noted their contents alone, and one page and some models were sealed.

  None of it may be made again for that.
  """
  run, note = workdir / "runs" / "teacher", workdir / "manifest.json"
  held = files.read_json(run / "finished.json")["contents"]
  files.write_json(run / "finished.json", {"contents": held})
  manifest = files.read_json(note)
  manifest["train"]["outputs"]["runs/teacher"] = files.digest(held)
  page = (workdir / "report" / "index.html").read_bytes()
  manifest["report"]["outputs"] = {"report/index.html": files.digest(page)}
  files.write_json(note, manifest)
  (workdir / "report" / "SHA256SUMS").unlink()
  for stage in ("train", "report"):
    assert stages.is_up_to_date(Workspace(config_of(workdir), workdir), stage)
