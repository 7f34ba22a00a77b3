"""Sets of the Hugging Face Hub: columns by type, splits, pictures, mistakes."""

import sys

import numpy as np
import pytest
from PIL import Image

from kfkd_jax import config as config_lib
from kfkd_jax import data
from kfkd_jax.data import hub, pictures
from kfkd_jax.run import tasks

CLASSES = ["ant", "bee", "cat"]


@pytest.fixture
def datasets(tmp_path, monkeypatch):
  found = pytest.importorskip("datasets")
  monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  found.disable_progress_bars()
  return found


def picture(number, mode="L"):
  """Of a size that differs from its neighbours'."""
  rng = np.random.default_rng(number)
  pixels = rng.integers(0, 256, (8 + number % 3, 10, 3), np.uint8)
  return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def put(datasets, tmp_path):
  """Writes a Parquet file of pictures, labels and what else is given."""

  def write(split, labels, *, modes="L", names=CLASSES, **more):
    count, folder = len(labels), tmp_path / "set"
    folder.mkdir(exist_ok=True)
    shown = [
      picture(n, modes if isinstance(modes, str) else modes[n])
      for n in range(count)
    ]
    columns = {"picture": shown, "kind": labels, **more}
    kinds = {
      "picture": datasets.Image(),
      "kind": datasets.ClassLabel(names=names),
      **{k: datasets.ClassLabel(names=["no", "yes"]) for k in more},
    }
    table = datasets.Dataset.from_dict(columns, datasets.Features(kinds))
    table.to_parquet(folder / f"{split}.parquet")
    return f"hf:{folder}"

  return write


def test_columns_are_found_by_type_and_pictures_fitted_as_of_a_folder(put):
  put("train", [0, 1, 2] * 4)
  found = data.load(put("test", [2, 0, 1]), image_size=6)
  assert found.class_names == ("ant", "bee", "cat")
  assert found.train.labels.tolist() == [0, 1, 2] * 4
  assert found.test.labels.tolist() == [2, 0, 1]
  assert found.train.ids.tolist() == list(range(12))
  assert found.train.images.shape == (12, 6, 6, 1)
  expected = pictures.to_array(pictures.fitted(picture(5), 6))
  np.testing.assert_array_equal(found.train.images[5], expected)


def test_one_picture_with_colours_makes_all_of_them_rgb(put):
  put("train", [0, 1, 2], modes=["L", "RGB", "L"])
  found = data.load(put("test", [0, 1, 2]), image_size=6)
  assert found.train.images.shape == found.test.images.shape == (3, 6, 6, 3)
  red, _, blue = np.moveaxis(found.train.images, -1, 0)
  np.testing.assert_array_equal(red[0], blue[0])
  assert (red[1] != blue[1]).any()


def test_sizes_that_differ_need_one(put):
  name = put("train", [0, 1, 2] * 4)
  with pytest.raises(ValueError, match=r"set train, example \d+ has the size"):
    data.load(name)


def test_pictures_on_disk_are_those_in_memory_and_their_print_too(put):
  put("train", [0, 1, 2] * 4)
  name = put("test", [0, 1])
  whole, stored = (
    data.load(name, image_size=6, stream=way) for way in ("never", "always")
  )
  assert isinstance(stored.train.images, data.Stored)
  np.testing.assert_array_equal(stored.train.images[:], whole.train.images)
  assert stored.fingerprint == whole.fingerprint
  put("train", [0, 1, 2] * 4, modes="1")
  other = data.load(name, image_size=6).fingerprint
  differ = [part for part in other if other[part] != whole.fingerprint[part]]
  assert differ == ["training images"]


def test_train_alone_sets_the_same_share_aside(put):
  name = put("train", [0, 1] * 10)
  found, again = (
    data.load(name, image_size=6, test_share=0.3) for _ in range(2)
  )
  assert np.bincount(found.test.labels).tolist() == [3, 3]
  both = np.concatenate([found.train.ids, found.test.ids])
  assert np.sort(both).tolist() == list(range(20))
  np.testing.assert_array_equal(found.test.ids, again.test.ids)
  assert (np.diff(found.train.ids) > 0).all()
  expected = pictures.to_array(pictures.fitted(picture(found.test.ids[2]), 6))
  np.testing.assert_array_equal(found.test.images[2], expected)
  with pytest.raises(ValueError, match=r"data\.test_share=0\.01 of the 20"):
    data.load(name, test_share=0.01)


def test_a_test_split_without_labels_is_passed_over(put):
  put("train", [0, 1, 2])
  name = put("test", [-1, -1])
  with pytest.raises(ValueError, match=r"with labels; .*: train, test"):
    data.load(name)
  put("validation", [2, 1])
  assert data.load(name, image_size=6).test.labels.tolist() == [2, 1]


def test_one_of_several_label_columns_is_named(put):
  name = put("train", [0, 1, 2] * 20, rough=[0, 0, 1] * 20)
  with pytest.raises(
    ValueError, match=r"several .* data\.label_column"
  ) as told:
    data.load(name)
  listed = "picture (Image), kind (ClassLabel), rough (ClassLabel)"
  assert str(told.value).endswith(listed)
  config = config_lib.default_config()
  for key, text in {
    "data.name": name,
    "data.image_size": "6",
    "data.label_column": "kind",
    "noise.kind": "field",
    "noise.field": "rough",
    "augment.pad": "1",
    "augment.cutout": "0",
    "train.batch_size": "8",
  }.items():
    config_lib.override(config, key, text)
  config_lib.validate(config)
  task = tasks.load_task(config)
  assert task.class_names == tuple(CLASSES)
  clean = task.ledger.clean[task.ledger.split == "train"]
  assert (task.given == clean // 2).all()


@pytest.mark.parametrize(
  ("columns", "message"),
  [
    (
      data.Columns(label="picture"),
      r"no ClassLabel column .picture. \(class_encode",
    ),
    (data.Columns(image="kind"), "no Image column 'kind'; its columns: pic"),
  ],
)
def test_a_column_of_another_type_is_refused(put, columns, message):
  with pytest.raises(ValueError, match=message):
    data.load(put("train", [0, 1]), columns=columns)


def test_sets_that_are_none(put, datasets, tmp_path):
  name = put("validation", [0, 1])
  with pytest.raises(ValueError, match="no split train, only validation"):
    data.load(name)
  name = put("train", [0, -1, 1])
  with pytest.raises(ValueError, match="1 of 3 training examples have no kind"):
    data.load(name)
  with pytest.raises(
    ValueError, match=r"'x' is no further label of hf:.* none"
  ):
    data.load(put("train", [0, 1]), label_field="x")
  plain = {"picture": [picture(0)], "kind": [1], "words": ["a"]}
  datasets.Dataset.from_dict(plain).to_parquet(tmp_path / "b" / "train.parquet")
  with pytest.raises(
    ValueError,
    match=r"no ClassLabel .*class_encode.*kind \(int64\), words \(string\)",
  ):
    data.load(f"hf:{tmp_path / 'b'}")
  (tmp_path / "c").mkdir()
  with pytest.raises(
    ValueError, match=r"name='hf:.*/c' cannot be read: [^\n]+$"
  ):
    data.load(f"hf:{tmp_path / 'c'}")


def test_pictures_in_files_of_their_own(datasets, tmp_path):
  for number in range(6):
    path = tmp_path / "set" / "train" / CLASSES[number % 2] / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path)
  found = data.load(f"hf:{tmp_path / 'set'}", image_size=6, test_share=0.5)
  assert found.class_names == ("ant", "bee")
  assert found.train.images.shape == (3, 6, 6, 1)


# Without the package.


def test_the_package_is_asked_for_by_name(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(ImportError, match=r"datasets.*: pip .*kfkd-jax\[hub"):
    data.load(f"hf:{tmp_path}")


@pytest.mark.parametrize("rest", ["", "digits", "a/b/c/d", "../x/y", "a b/c"])
def test_what_is_neither_a_folder_nor_a_name(rest):
  with pytest.raises(
    ValueError, match="is neither hf:FOLDER nor hf:OWNER/NAME"
  ):
    data.load(f"hf:{rest}")


def test_columns_go_with_such_sets_alone():
  config = config_lib.default_config()
  config.data.label_column = "fine_label"
  with pytest.raises(
    config_lib.ConfigError,
    match=r"label_column='fine_label' goes with .*digits",
  ):
    config_lib.validate(config)
  config.data.name = "hf:OWNER/NAME"
  config_lib.validate(config)


def test_a_card_names_no_folders(tmp_path):
  assert hub.shown(f"hf:{tmp_path}") == f"hf:{tmp_path.name}"
  assert hub.shown("hf:a/b") == "hf:a/b"
  assert hub.repository(f"hf:{tmp_path}") is None
  assert hub.repository("cifar10_n") == "uoft-cs/cifar10"
