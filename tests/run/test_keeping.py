"""What took long is not lost by a changed key, a lost file or a closed door."""

import contextlib
import os
import pathlib
import shutil
import tempfile

import pytest
from etils import epath
from tiny import tiny_config

from kfkd_jax import cli, files, stages
from kfkd_jax import config as config_lib
from kfkd_jax.lab import sweep
from kfkd_jax.run import keeping, networks, results
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages import distill

QUICK = {"train__epochs": "2", "distill__teachers": "kf"}


def config_of(**changes):
  return tiny_config(**{**QUICK, **changes})


def quiet(line):
  del line


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = epath.Path(tmp_path_factory.mktemp("finished"))
  for name in ("train", "diagnose", "fuse", "distill"):
    stages.run_stage(config_of(), folder, name, say=quiet)
  return folder


@pytest.fixture
def workdir(finished, tmp_path):
  shutil.copytree(finished, tmp_path / "w")
  return epath.Path(tmp_path) / "w"


def everything(workdir):
  paths = pathlib.Path(workdir).rglob("*")
  return {str(p): p.read_bytes() for p in paths if p.is_file()}


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"seed": "1"}, r"^seed=0 -> 1 would .*: teacher \(2 epochs, .*, kf_kd \("),
    ({"distill__alpha": ".5"}, r"^distill\.alpha=1\.0 -> 0\.5 .*: kf_kd \("),
    ({"fuse__window": "0"}, r"^fuse\.window=1 -> 0 would .*: kf_kd \("),
  ],
)
def test_changed_key_is_refused_and_touches_nothing(workdir, change, said):
  before = everything(workdir)
  with pytest.raises(networks.WouldReplaceError, match=said) as error:
    stages.run(config_of(**change), workdir, say=quiet)
  assert "--workdir=NEW" in str(error.value) and "--redo" in str(error.value)
  assert everything(workdir) == before


def test_interrupted_run_is_kept_too_and_an_empty_one_is_not(workdir):
  shutil.rmtree(workdir / "runs" / "kf_kd")
  (workdir / "runs" / "teacher" / "finished.json").unlink()
  files.write_json(workdir / "manifest.json", {})
  with pytest.raises(networks.WouldReplaceError, match="teacher"):
    stages.run_stage(config_of(seed="1"), workdir, "train", say=quiet)
  for name in ("history", "resume"):
    shutil.rmtree(workdir / "runs" / "teacher" / name)
  stages.run_stage(config_of(seed="1"), workdir, "train", say=quiet)
  assert results.is_whole(workdir / "runs" / "teacher")


def test_redo_sets_aside_and_clean_frees(workdir, capsys):
  before = everything(workdir / "runs" / "kf_kd")
  said: list[str] = []
  config = config_of(distill__alpha="0.5")
  stages.run_stage(config, workdir, "distill", say=said.append, redo=True)
  assert any("1 student: mlp" in line for line in said)
  (place,) = (workdir / "aside").iterdir()
  kept = everything(place / "runs" / "kf_kd")
  assert [*kept.values()] == [*before.values()]
  assert config_lib.read(None, saved=place / "config.json") == config_of()
  for name in (".lock.host.7", ".lock.host.8.tmp"):
    (workdir / name).touch()
  assert cli.main(["clean", f"--workdir={workdir}"]) == 0
  out = capsys.readouterr().out
  assert str(place) in out and ".lock.host.7" in out and place.exists()
  assert out.count(".lock.host.8.tmp") == 1  # a lock and half-made as well
  assert cli.main(["clean", "--force", f"--workdir={workdir}"]) == 0
  assert not (workdir / "aside").exists()
  assert not list(workdir.glob(".lock.host.*"))


def test_lost_configuration_is_rebuilt_or_asked_for(workdir):
  saved, copy = workdir / "config.json", workdir / "runs" / "config.json"
  assert keeping.configuration(workdir) == saved
  saved.write_text(saved.read_text()[:200])
  assert keeping.configuration(workdir) == copy
  assert config_lib.read(None, saved=copy) == config_of()
  saved.unlink()
  assert keeping.configuration(workdir) == copy
  copy.unlink()
  with pytest.raises(config_lib.ConfigError, match="holds runs, which are not"):
    keeping.configuration(workdir)


def test_plain_run_without_its_configuration_trains_nothing(workdir, capsys):
  for folder in (workdir, workdir / "runs"):
    (folder / "config.json").unlink()
  before = everything(workdir)
  assert cli.main(["run", f"--workdir={workdir}"]) == 2
  assert "--config=FILE.py" in capsys.readouterr().err
  assert everything(workdir) == before


def test_lost_base_of_a_sweep_is_a_cells_or_asked_for(tmp_path):
  folder = epath.Path(tmp_path)
  sweep._agree(config_of(), folder, 2, ["model.width=8,16"])
  (folder / "base.json").unlink()
  with pytest.raises(config_lib.ConfigError, match=r"base\.json is lost"):
    sweep.configuration(folder)
  cell = folder / "model.width=8" / "seed-0"
  keeping.write_config(Workspace(config_of(model__width="8"), cell))
  found = sweep.configuration(folder)
  assert found == cell / "config.json"
  sweep._agree(config_lib.read(None, saved=found), folder, None, [])
  assert sweep.configuration(folder) == folder / "base.json"
  (folder / "sweep.json").unlink()
  with pytest.raises(config_lib.ConfigError, match=r"sweep\.json is lost"):
    sweep._agree(config_of(), folder, None, [])


def test_refused_run_leaves_no_working_directory(tmp_path):
  folder = epath.Path(tmp_path) / "new"
  with pytest.raises(ValueError, match="unknown to TFDS"):
    stages.run(config_of(data__name="nope"), folder, say=quiet)
  assert not folder.exists()


@contextlib.contextmanager
def without_rights(workdir):
  """A copy of it as somebody who is not root."""
  with tempfile.TemporaryDirectory() as parent:
    copy = pathlib.Path(parent) / "w"
    shutil.copytree(workdir, copy)
    root = os.geteuid() == 0
    for path in (pathlib.Path(parent), copy, *copy.rglob("*")):
      if root:
        os.chown(path, 65534, 65534)
    if root:
      os.seteuid(65534)
    try:
      yield epath.Path(copy)
    finally:
      if root:
        os.seteuid(0)
      for name in ("runs", "runs/teacher", "runs/teacher/inputs.json"):
        os.chmod(copy / name, 0o700)


@pytest.mark.parametrize(
  "name", ["runs", "runs/teacher", "runs/teacher/inputs.json"]
)
def test_what_cannot_be_read_is_not_absent(workdir, name):
  with without_rights(workdir) as copy:
    os.chmod(copy / name, 0)
    with pytest.raises(PermissionError, match=name):
      stages.run(config_of(seed="1"), copy, say=quiet)
    os.chmod(copy / name, 0o700)
    stages.run_stage(config_of(), copy, "train", say=quiet)  # up to date


def test_cost_of_students_is_said_before_the_teacher_is_trained():
  config = config_of(distill__model="resnet18")
  (warning,) = distill.warnings(Workspace(config))
  assert "a student resnet18 takes" in warning
  assert not distill.warnings(Workspace(config_of()))
  (line, again) = stages.STAGES["train"].cost(Workspace(config), [])
  assert line.startswith("teacher: mlp, ") and "FLOP an image" in line
  assert again == warning
