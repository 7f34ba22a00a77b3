"""Builders and sources: made archives, TFDS's layout, no TensorFlow."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn import datasets, linear_model
from tensorflow_datasets.core.download import checksums

from kfkd_jax import data
from kfkd_jax.data import builders, sources
from kfkd_jax.data.builders import synthetic


@pytest.fixture(autouse=True)
def _quiet():
  tfds.disable_progress_bar()


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("tfds")
  data.prepare("digits", data_dir=path)
  return path


@pytest.fixture
def put_archive(tmp_path, monkeypatch):
  """Puts made archives where TFDS looks for downloads made by hand."""
  folder = tmp_path / "downloads" / "manual"
  folder.mkdir(parents=True)
  known = dict(checksums.get_all_url_infos())
  # TFDS writes a builder's checksums into its one dictionary of all of them.
  monkeypatch.setattr(checksums, "get_all_url_infos", lambda: dict(known))

  def put(cls, url, content):
    path = folder / url.rpartition("/")[2]
    path.write_bytes(content)
    infos = {**(vars(cls).get("url_infos") or {})}
    infos[url] = checksums.compute_url_info(path)
    monkeypatch.setattr(cls, "url_infos", infos)

  return put


def _tar_gz(members):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return buffer.getvalue()


def _cifar_rows(rng, label_columns):
  images = rng.integers(0, 256, (len(label_columns), 32, 32, 3), np.uint8)
  content = b""
  for labels, image in zip(label_columns, images):
    content += bytes(labels)
    for channel in range(3):  # one plane after the other, row by row
      content += image[:, :, channel].tobytes()
  return images, content


def _idx(array):
  header = bytes([0, 0, 8, array.ndim])
  for size in array.shape:
    header += size.to_bytes(4, "big")
  return gzip.compress(header + array.tobytes())


def _by_content(images):
  return sorted(image.tobytes() for image in images)


def _put_cifar10(put_archive, prefix=""):
  """15 training and 2 test images; returns them in the archive's order."""
  rng = np.random.default_rng(0)
  folder = prefix + builders.Cifar10.FOLDER
  images, labels = [], []
  names = "\n".join(f"class_{i}" for i in range(10)) + "\n\n"
  members = {
    f"{folder}/batches.meta.txt": names.encode(),
    f"{folder}/readme.html": b"not ours",
  }
  for batch in range(1, 6):
    ours = rng.integers(0, 10, 3).tolist()
    pixels, content = _cifar_rows(rng, [[label] for label in ours])
    members[f"{folder}/data_batch_{batch}.bin"] = content
    images += list(pixels)
    labels += ours
  test_images, content = _cifar_rows(rng, [[7], [0]])
  members[f"{folder}/test_batch.bin"] = content
  put_archive(builders.Cifar10, builders.Cifar10.URL, _tar_gz(members))
  return images, labels, test_images


@pytest.mark.parametrize("prefix", ["", "./"])
def test_cifar10_from_a_made_archive(tmp_path, put_archive, prefix):
  images, labels, test_images = _put_cifar10(put_archive, prefix)

  loaded = data.load("cifar10", data_dir=tmp_path)

  assert loaded.class_names == tuple(f"class_{i}" for i in range(10))
  assert loaded.num_classes == 10
  assert loaded.train.images.dtype == np.uint8
  assert loaded.train.labels.dtype == np.int32
  np.testing.assert_array_equal(loaded.train.ids, np.arange(15))
  label_of = {image.tobytes(): label for image, label in zip(images, labels)}
  assert _by_content(loaded.train.images) == sorted(label_of)
  for image, label in zip(loaded.train.images, loaded.train.labels):
    assert label_of[image.tobytes()] == label
  assert _by_content(loaded.test.images) == _by_content(test_images)
  source = data.builder("cifar10", data_dir=tmp_path)
  assert source.data_path == tmp_path / "cifar10" / "3.0.2"
  ids = sorted(r["id"] for r in source.as_data_source("train"))
  assert ids == [b"train_%05d" % i for i in range(15)]


@pytest.mark.parametrize("in_archive_order", [True, False])
def test_cifar10_n_adds_human_labels(tmp_path, put_archive, in_archive_order):
  images, labels, _ = _put_cifar10(put_archive)
  worse = np.arange(15) % 10
  worse_of = {image.tobytes(): w for image, w in zip(images, worse)}
  folder = tmp_path / "downloads" / "manual"
  columns = {"clean_label": np.array(labels), "worse_label": worse}
  if not in_archive_order:
    plain = data.load("cifar10", data_dir=tmp_path)
    columns["clean_label"] = plain.train.labels
    columns["worse_label"] = [worse_of[i.tobytes()] for i in plain.train.images]
  np.savez(folder / "cifar10_n.npz", **columns)

  loaded = data.load("cifar10_n", data_dir=tmp_path, label_field="worse_label")

  assert loaded.name == "cifar10_n"
  assert loaded.train.extra.dtype == np.int32
  for image, label in zip(loaded.train.images, loaded.train.extra):
    assert worse_of[image.tobytes()] == label
  assert loaded.test.extra is None
  few = loaded.train.take(np.array([3, 1]))
  np.testing.assert_array_equal(few.ids, [3, 1])
  np.testing.assert_array_equal(few.extra, loaded.train.extra[[3, 1]])
  columns["clean_label"] = (np.array(labels) + 1) % 10
  np.savez(folder / "cifar10_n.npz", **columns)
  with pytest.raises(ValueError, match="differs from the labels"):
    data.load("cifar10_n", data_dir=tmp_path)


def test_cifar100_has_coarse_labels(tmp_path, put_archive):
  rng = np.random.default_rng(1)
  folder = builders.Cifar100.FOLDER
  images, content = _cifar_rows(rng, [[19, 99], [3, 42], [0, 0]])
  put_archive(
    builders.Cifar100,
    builders.Cifar100.URL,
    _tar_gz(
      {
        f"{folder}/coarse_label_names.txt": b"\n".join(
          b"c%d" % i for i in range(20)
        ),
        f"{folder}/fine_label_names.txt": b"\n".join(
          b"f%d" % i for i in range(100)
        ),
        f"{folder}/train.bin": content,
        f"{folder}/test.bin": content[:3074],
      }
    ),
  )
  loaded = data.load("cifar100", data_dir=tmp_path, label_field="coarse_label")
  expected = {
    image.tobytes(): pair
    for image, pair in zip(images, [(99, 19), (42, 3), (0, 0)])
  }
  assert loaded.num_classes == 100
  for image, fine, coarse in zip(
    loaded.train.images, loaded.train.labels, loaded.train.extra
  ):
    assert expected[image.tobytes()] == (fine, coarse)
  np.testing.assert_array_equal(loaded.test.extra, [19])
  with pytest.raises(
    ValueError,
    match="'fine' is no further label of cifar100, which has coarse_label",
  ):
    data.load("cifar100", data_dir=tmp_path, label_field="fine")


@pytest.mark.parametrize("cls", [builders.Mnist, builders.FashionMnist])
def test_mnist_from_made_files(tmp_path, put_archive, cls):
  rng = np.random.default_rng(2)
  parts = {}
  for prefix, num in (("train", 7), ("t10k", 3)):
    images = rng.integers(0, 256, (num, 28, 28), np.uint8)
    labels = rng.integers(0, 10, num, np.uint8)
    parts[prefix] = {i.tobytes(): k for i, k in zip(images, labels)}
    put_archive(cls, f"{cls.URL}{prefix}-images-idx3-ubyte.gz", _idx(images))
    put_archive(cls, f"{cls.URL}{prefix}-labels-idx1-ubyte.gz", _idx(labels))
  loaded = data.load(cls.name, data_dir=tmp_path)
  assert loaded.train.images.shape == (7, 28, 28, 1)
  assert loaded.class_names == cls.CLASS_NAMES
  for part, prefix in ((loaded.train, "train"), (loaded.test, "t10k")):
    found = {i.tobytes(): k for i, k in zip(part.images, part.labels)}
    assert found == parts[prefix]


def test_damaged_archives_are_named(tmp_path, put_archive):
  cls = builders.Cifar10
  put_archive(cls, cls.URL, _tar_gz({f"{cls.FOLDER}/test_batch.bin": b""}))
  with pytest.raises(ValueError, match=r"holds no cifar-10-batches-bin/.batch"):
    data.load("cifar10", data_dir=tmp_path)
  names = ["batches.meta.txt", *cls.TRAIN_FILES, *cls.TEST_FILES]
  members = {f"{cls.FOLDER}/{name}": b"a" * 3072 for name in names}
  members[f"{cls.FOLDER}/{names[0]}"] = b"0 1 2 3 4 5 6 7 8 9"
  put_archive(cls, cls.URL, _tar_gz(members))
  with pytest.raises(ValueError, match="3072 bytes, not a multiple of 3073"):
    data.load("cifar10", data_dir=tmp_path)
  put_archive(cls, cls.URL, b"another file")
  cls.url_infos[cls.URL].checksum = "0" * 64
  with pytest.raises(Exception, match="wrong checksum"):
    data.load("cifar10", data_dir=tmp_path)


def test_mnist_refuses_another_idx_type(tmp_path, put_archive):
  cls = builders.Mnist
  for name in (
    "train-images-idx3",
    "t10k-images-idx3",
    "t10k-labels-idx1",
    "train-labels-idx1",
  ):
    put_archive(cls, f"{cls.URL}{name}-ubyte.gz", _idx(np.zeros(3, np.uint8)))
  with pytest.raises(ValueError, match=r"starts with 0x801, .* with 0x803"):
    data.load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
  "cls",
  [
    builders.Cifar10,
    builders.Cifar100,
    builders.Mnist,
    builders.FashionMnist,
  ],
)
def test_ours_agree_with_tfds(tmp_path, cls):
  ours = cls(data_dir=tmp_path)
  theirs = tfds.builder(cls.name, data_dir=tmp_path, try_gcs=False)
  assert type(ours) is not type(theirs)
  assert ours.data_path == theirs.data_path
  assert ours.info.supervised_keys == theirs.info.supervised_keys
  assert set(ours.info.features) == set(theirs.info.features)
  for key, feature in theirs.info.features.items():
    assert repr(ours.info.features[key]) == repr(feature)

  class Recorder:
    urls = ()

    def download(self, urls):
      self.urls = [urls] if isinstance(urls, str) else list(urls.values())
      raise InterruptedError

  recorder = Recorder()
  with pytest.raises(InterruptedError):
    ours._split_generators(recorder)
  assert recorder.urls
  known = {**checksums.get_all_url_infos(), **(cls.url_infos or {})}
  assert set(recorder.urls) <= set(known)
  assert all(url.startswith("https://") for url in recorder.urls)


def test_digits_are_sklearns(digits_dir):
  loaded = data.load("digits", data_dir=digits_dir)
  scans = datasets.load_digits()
  assert loaded.train.images.shape == (1297, 8, 8, 1)
  assert loaded.test.images.shape == (500, 8, 8, 1)
  assert loaded.class_names == tuple("0123456789")
  both = np.concatenate([loaded.train.images, loaded.test.images])[..., 0]
  labels = np.concatenate([loaded.train.labels, loaded.test.labels])
  expected = [
    (np.round(image * 255 / 16).astype(np.uint8).tobytes(), label)
    for image, label in zip(scans.images, scans.target)
  ]
  assert sorted(zip([i.tobytes() for i in both], labels)) == sorted(expected)
  expected = np.bincount(labels) * 500 / 1797  # stratified
  assert np.abs(np.bincount(loaded.test.labels) - expected).max() <= 1


def test_digits_never_change(digits_dir):
  # Ids in ledgers and stores point here. Change only with a new VERSION.
  loaded = data.load("digits", data_dir=digits_dir)
  digests = [
    hashlib.sha256(part.images.tobytes() + part.labels.tobytes()).hexdigest()
    for part in (loaded.train, loaded.test)
  ]
  assert [digest[:8] for digest in digests] == ["796ef506", "0e554495"]


def test_tfds_reads_what_we_prepared(digits_dir):
  loaded = data.load("digits", data_dir=digits_dir)
  theirs = tfds.data_source("digits", split="train", data_dir=digits_dir)
  assert len(theirs) == 1297
  for i in (0, 700, 1296):
    np.testing.assert_array_equal(theirs[i]["image"], loaded.train.images[i])
    assert theirs[i]["label"] == loaded.train.labels[i]


def test_slices_of_splits(digits_dir):
  whole = data.load("digits", data_dir=digits_dir)
  part = data.load(
    "digits",
    data_dir=digits_dir,
    train_split="train[100:200]",
    test_split="train[200:]",
  )
  np.testing.assert_array_equal(part.train.images, whole.train.images[100:200])
  np.testing.assert_array_equal(part.test.labels, whole.train.labels[200:])


@pytest.mark.parametrize("train_split", ["train", "train[500:1100]"])
def test_reads_tfrecords_without_tensorflow(digits_dir, tmp_path, train_split):
  """What TFDS prepared with TensorFlow, in its default format, is read."""
  prepared = data.builder("digits", data_dir=digits_dir)
  folder = tmp_path / "digits" / "1.0.0"
  folder.mkdir(parents=True)
  for name in ("features.json", "label.labels.txt"):
    (folder / name).write_text((prepared.data_path / name).read_text())
  info = json.loads((prepared.data_path / "dataset_info.json").read_text())
  info["fileFormat"] = "tfrecord"
  for split in info["splits"]:
    raw = prepared.as_data_source(
      split["name"],
      deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
    )
    counts = [1000, 297] if split["name"] == "train" else [500]
    split["shardLengths"] = [str(count) for count in counts]
    split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    records = iter(raw)
    for shard, count in enumerate(counts):
      content = b""
      for _ in range(count):
        record = next(records)
        content += len(record).to_bytes(8, "little") + b"crc!" + record
        content += b"crc!"
      name = f"digits-{split['name']}.tfrecord-{shard:05d}-of-{len(counts):05d}"
      (folder / name).write_bytes(content)
  (folder / "dataset_info.json").write_text(json.dumps(info))

  expected = data.load("digits", data_dir=digits_dir, train_split=train_split)
  loaded = data.load("digits", data_dir=tmp_path, train_split=train_split)
  np.testing.assert_array_equal(loaded.train.images, expected.train.images)
  np.testing.assert_array_equal(loaded.train.labels, expected.train.labels)
  np.testing.assert_array_equal(loaded.test.labels, expected.test.labels)
  (folder / "digits-test.tfrecord-00000-of-00001").write_bytes(content[:-3])
  with pytest.raises(ValueError, match="ends inside record"):
    data.load("digits", data_dir=tmp_path)


class _Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A set from elsewhere: unusual keys, sizes that differ, more columns."""

  name = "toy"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "photo": tfds.features.Image(shape=(None, None, 3)),
          "species": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {
      "train": self._generate_examples(4),
      "val": self._generate_examples(2),
    }

  def _generate_examples(self, num):
    for i in range(num):
      image = Image.fromarray(np.full((10 + i, 12, 3), 40 * i, np.uint8))
      yield i, {"photo": image, "species": i % 2}


def test_any_image_set_by_name(tmp_path):
  _Toy(data_dir=tmp_path).download_and_prepare(file_format="array_record")
  with pytest.raises(
    ValueError,
    match="test_split='test' is not a split of toy, which has train, val",
  ):
    data.load("toy", data_dir=tmp_path)
  with pytest.raises(
    ValueError,
    match=r"toy/1\.0\.0 train, example \d has the size \(\d+, 12, 3\) and .*"
    r"example 0 \(\d+, 12, 3\).* set data\.image_size",
  ):
    data.load("toy", data_dir=tmp_path, test_split="val")
  loaded = data.load("toy", data_dir=tmp_path, test_split="val", image_size=6)
  assert loaded.train.images.shape == (4, 6, 6, 3)
  assert loaded.class_names == ("cat", "dog")
  order = loaded.train.images[:, 0, 0, 0] // 40
  np.testing.assert_array_equal(loaded.train.labels, order % 2)
  assert loaded.train.extra is None


def test_unknown_names_and_sets_without_images(tmp_path):
  with pytest.raises(ValueError, match="'no_such_set' is unknown to TFDS and"):
    data.load("no_such_set", data_dir=tmp_path)

  class Text(_Toy, skip_registration=True):
    name = "text"

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
      )

    def _generate_examples(self, num):
      yield 0, {"text": "words"}

  Text(data_dir=tmp_path).download_and_prepare(file_format="array_record")
  with pytest.raises(ValueError, match=r"no single Image .*\['text'\]"):
    data.load("text", data_dir=tmp_path, test_split="val")


def test_sets_that_need_tensorflow_say_so(tmp_path, monkeypatch):
  class NeedsTensorflow(_Toy, skip_registration=True):
    def _split_generators(self, dl_manager):
      raise ModuleNotFoundError("No module named 'tensorflow'")

  monkeypatch.setitem(builders.BUILDERS, "toy", NeedsTensorflow)
  with pytest.raises(ValueError, match="name='toy': TFDS needs TensorFlow"):
    data.prepare("toy", data_dir=tmp_path)


def test_the_slower_of_two_preparations_uses_the_faster(tmp_path, monkeypatch):
  runs = []

  class Racing(builders.Digits, skip_registration=True):
    name = "digits"

    def _split_generators(self, dl_manager):
      runs.append(1)
      if len(runs) == 1:  # another process overtakes this one
        data.prepare("digits", data_dir=tmp_path)
      return super()._split_generators(dl_manager)

  monkeypatch.setitem(builders.BUILDERS, "digits", Racing)
  loaded = data.load("digits", data_dir=tmp_path)
  assert len(runs) == 2
  assert loaded.train.images.shape == (1297, 8, 8, 1)
  assert not list((tmp_path / "digits").glob("incomplete*"))


def test_other_file_errors_are_not_swallowed(tmp_path, monkeypatch):
  class Full(_Toy, skip_registration=True):
    def _split_generators(self, dl_manager):
      raise OSError("no space left on device")

  monkeypatch.setitem(builders.BUILDERS, "toy", Full)
  with pytest.raises(OSError, match="no space left"):
    data.prepare("toy", data_dir=tmp_path)


@pytest.mark.slow
def test_two_processes_prepare_at_once(tmp_path):
  code = (
    "import sys; from kfkd_jax import data;"
    "d = data.load('digits', data_dir=sys.argv[1]);"
    "assert d.train.images.shape == (1297, 8, 8, 1)"
  )
  command = [sys.executable, "-c", code, str(tmp_path)]
  running = [subprocess.Popen(command) for _ in range(2)]
  assert [process.wait(timeout=120) for process in running] == [0, 0]


def test_data_dir_follows_the_environment(tmp_path):
  code = (
    "import sys; from kfkd_jax import data; data.load('digits');"
    "assert 'tensorflow' not in sys.modules"
  )
  environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path)}
  subprocess.run([sys.executable, "-c", code], env=environment, check=True)
  assert (tmp_path / "digits" / "1.0.0" / "dataset_info.json").exists()


def test_synthetic_options_and_determinism(tmp_path):
  name = "synthetic/num_classes=5,num_train=2003,num_test=20,seed=3"
  loaded = data.load(name, data_dir=tmp_path)
  assert loaded.train.images.shape == (2003, 32, 32, 3)
  assert loaded.test.images.shape == (20, 32, 32, 3)
  assert loaded.num_classes == 5
  assert np.ptp(np.bincount(loaded.train.labels)) <= 1
  again = data.load(name, data_dir=tmp_path / "again")
  np.testing.assert_array_equal(again.train.images, loaded.train.images)
  assert len({i.tobytes() for i in loaded.train.images}) == 2003
  folders = [p.name for p in (tmp_path / "synthetic").iterdir()]
  assert folders == ["classes5_train2003_test20_seed3"]


@pytest.mark.parametrize("options", ["colour=1", "seed=x", "seed=-1", "seed"])
def test_synthetic_refuses_unknown_options(options):
  with pytest.raises(
    ValueError, match="num_classes, num_train, num_test, seed"
  ):
    data.builder(f"synthetic/{options}")


def test_synthetic_refuses_one_class():
  with pytest.raises(ValueError, match=r"num_classes .* at least 2, got 1"):
    data.builder("synthetic/num_classes=1")


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_synthetic_depends_on_the_seed_and_the_class(num_classes):
  labels = np.zeros(3, int)

  def draw(seed, labels):
    rng = np.random.default_rng(seed)
    return synthetic.draw_images(rng, labels, num_classes=num_classes)

  first = draw(0, labels)
  assert first.dtype == np.uint8
  np.testing.assert_array_equal(draw(0, labels), first)
  assert np.any(draw(1, labels) != first)
  assert np.any(draw(0, labels + num_classes - 1) != first)


def _synthetic_arrays(seed, num):
  labels = np.arange(num) % 10
  images = synthetic.draw_images(
    np.random.default_rng(seed), labels, num_classes=10
  )
  return images, labels


def test_a_linear_model_fails_on_synthetic():
  # Measured: 0.22 for logistic regression and 0.99 for a small convolutional
  # network on 5,000 images; chance is 0.1.
  images, labels = _synthetic_arrays(0, 2000)
  flat = images.reshape(len(images), -1).astype(np.float32) / 255
  model = linear_model.RidgeClassifier(alpha=100.0).fit(flat, labels)
  images, labels = _synthetic_arrays(1, 1000)
  flat = images.reshape(len(images), -1).astype(np.float32) / 255
  assert model.score(flat, labels) < 0.35


def test_texture_energies_solve_synthetic():
  """The class is in the images: local spectra, without position or phase."""

  def features(images):
    grey = images.mean(-1) - images.mean((1, 2, 3), keepdims=True)[..., 0]
    window = np.hanning(12)[:, None] * np.hanning(12)
    energies = []
    for top in range(0, 24, 5):
      for left in range(0, 24, 5):
        patch = grey[:, top : top + 12, left : left + 12] * window
        energies.append(np.log1p(np.abs(np.fft.rfft2(patch))))
    centre = np.mean(energies, 0).reshape(len(images), -1)
    inner = np.mean(energies[6:9] + energies[11:14] + energies[16:19], 0)
    return np.concatenate([centre, inner.reshape(len(images), -1)], 1)

  images, labels = _synthetic_arrays(0, 2000)
  model = linear_model.RidgeClassifier(alpha=1.0).fit(features(images), labels)
  images, labels = _synthetic_arrays(1, 1000)
  assert model.score(features(images), labels) > 0.6


def test_names_are_complete():
  assert set(sources.NAMES) == {
    "cifar10", "cifar100", "mnist", "fashion_mnist", "digits", "synthetic",
    "cifar10_n", "cifar100_n", "imagenet2012",
    "image_folder", "tiny_imagenet", "animal10n", "clothing1m",
  }  # fmt: skip
