"""A working directory refuses data that is not what it began with."""

import numpy as np
import pytest
from etils import epath
from PIL import Image

from kfkd_jax import config as config_lib
from kfkd_jax import files, stages
from kfkd_jax.run import networks, provenance, tasks
from kfkd_jax.run.workspace import Workspace


@pytest.fixture
def root(tmp_path):
  rng = np.random.default_rng(0)
  for number in range(40):
    folder = tmp_path / "pictures" / "abcd"[number % 4]
    folder.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{number}.png")
  return tmp_path / "pictures"


def configured(root, **changes):
  config = config_lib.default_config()
  config.data.name, config.data.root = "image_folder", str(root)
  config.train.batch_size = 8
  return config_lib.changed(
    config, {k.replace("__", "."): v for k, v in changes.items()}
  )


def swap(root):
  (root / "a").rename(root / "x")
  (root / "b").rename(root / "a")
  (root / "x").rename(root / "b")
  return "training images"


def remove(root):
  for path in list(root.glob("c/*.png"))[:3]:
    path.unlink()
  return "number of training images .32 to 30., .*number of test images"


def replace(root):
  path = root / "d" / "3.png"
  Image.new("RGB", (8, 8), 3).save(path)
  return "(training|test) images changed"


@pytest.mark.parametrize("change", [swap, remove, replace])
def test_a_stage_refuses_data_that_changed(tmp_path, root, change):
  config, workdir = configured(root), epath.Path(tmp_path / "work")
  provenance.note(Workspace(config, workdir))
  assert not provenance.difference(Workspace(config, workdir))
  message = change(root)
  tasks._load_task.cache_clear()  # another process
  with pytest.raises(ValueError, match=message) as caught:
    stages.run_stage(config, workdir, "train")
  assert "--workdir=NEW" in str(caught.value)
  assert "--redo" in str(caught.value)
  assert "\n" not in str(caught.value)
  assert not (workdir / "runs").exists()
  other = configured(root, data__image_size=4)  # is trained anew in any case
  assert not provenance.difference(Workspace(other, workdir))


@pytest.mark.slow
def test_changed_data_is_set_aside_with_all_that_was_made_of_it(tmp_path, root):
  small = {"model.width": 4, "compare.independent": 1, "distill.teachers": ()}
  config = configured(root, train__epochs=1, **small)
  workdir, said = epath.Path(tmp_path / "work"), []
  stages.run_stage(config, workdir, "train", said.append)
  replace(root)
  tasks._load_task.cache_clear()  # another process
  with pytest.raises(networks.WouldReplaceError, match="images changed"):
    stages.run(config, workdir, said.append)
  stages.run(config, workdir, said.append, redo=True)
  (aside,) = (workdir / "aside").iterdir()
  assert (aside / "runs" / "teacher" / "history").is_dir()
  assert (aside / "data.json").exists()
  assert stages.is_up_to_date(Workspace(config, workdir), "report")
  assert not provenance.difference(Workspace(config, workdir))


def test_a_damaged_note_is_named(tmp_path, root):
  config, workdir = configured(root), epath.Path(tmp_path / "work")
  files.write_json(workdir / provenance.NOTE, {"fingerprint": {}})
  with pytest.raises(ValueError, match=r"data.json is damaged"):
    provenance.difference(Workspace(config, workdir))
