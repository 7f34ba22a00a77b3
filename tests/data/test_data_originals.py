"""Published files of MNIST and CIFAR: found, checked, read; never prepared."""

import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest

from kfkd_jax import data
from kfkd_jax.data import originals
from kfkd_jax.data.builders import cifar


def published(content):
  return originals.Published(len(content), hashlib.sha256(content).hexdigest())


def idx(array):
  header = bytes([0, 0, 8, array.ndim])
  return header + b"".join(struct.pack(">i", n) for n in array.shape) + bytes(
    array.tobytes()
  )  # fmt: skip


@pytest.fixture
def idx_files(tmp_path, monkeypatch):
  """A folder of made files; the first is packed."""
  rng = np.random.default_rng(0)
  arrays, known = {}, {}
  for number, name in enumerate(originals.IDX_FILES["fashion_mnist"]):
    count = 6 if name.startswith("train") else 4
    shape = (count, 28, 28) if "images" in name else (count,)
    arrays[name] = rng.integers(0, 10, shape, np.uint8)
    content = idx(arrays[name])
    known[name] = published(content)
    if number:
      (tmp_path / name).write_bytes(content)
    else:
      (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
  monkeypatch.setitem(originals.IDX_FILES, "fashion_mnist", known)
  monkeypatch.setitem(originals.FOLDERS, "fashion_mnist", str(tmp_path))
  return arrays


@pytest.mark.parametrize("named", [True, False])
def test_idx_files_are_read_where_they_lie(
  tmp_path, idx_files, monkeypatch, named
):
  monkeypatch.setattr(data.sources, "prepare", pytest.fail)
  folder = {"manual_dir": tmp_path} if named else {}
  loaded = data.load("fashion_mnist", data_dir=tmp_path / "tfds", **folder)
  images, labels, test_images, test_labels = idx_files.values()
  np.testing.assert_array_equal(loaded.train.images, images[..., None])
  np.testing.assert_array_equal(loaded.train.labels, labels)
  np.testing.assert_array_equal(loaded.test.images, test_images[..., None])
  np.testing.assert_array_equal(loaded.test.labels, test_labels)
  assert loaded.train.ids.tolist() == list(range(6))
  assert loaded.class_names[1] == "Trouser"
  larger = data.load("fashion_mnist", manual_dir=tmp_path, image_size=32)
  assert larger.train.images.shape == (6, 32, 32, 1)
  assert larger.fingerprint == loaded.fingerprint


def test_what_is_prepared_already_keeps_its_order(tmp_path, idx_files):
  (tmp_path / "fashion_mnist" / "3.0.1").mkdir(parents=True)
  found = data.sources._original_files("fashion_mnist", None, tmp_path)
  assert found is None


@pytest.mark.parametrize(
  ("file", "damage", "message"),
  [
    ("train-labels-idx1-ubyte", lambda b: b[:-1] + b"x", "14 bytes, SHA-256"),
    ("train-labels-idx1-ubyte", lambda b: b + b"xx", "15 bytes or more, SHA"),
    ("train-images-idx3-ubyte.gz", lambda b: b[:-9], "damaged or cut short"),
    ("train-images-idx3-ubyte.gz", lambda b: b[:20], "damaged or cut short"),
    ("train-images-idx3-ubyte.gz", lambda b: b"", "0 bytes, SHA-256"),
  ],
)
def test_other_content_is_refused(tmp_path, idx_files, file, damage, message):
  path = tmp_path / file
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(ValueError, match=f"{file} is .*{message}"):
    data.load("fashion_mnist", manual_dir=tmp_path)


def test_what_is_missing_is_said(tmp_path, idx_files):
  (tmp_path / "t10k-labels-idx1-ubyte").unlink()
  with pytest.raises(ValueError, match="must hold the four files of fashion_m"):
    data.load("fashion_mnist", manual_dir=tmp_path)
  with pytest.raises(ValueError, match="has none of cifar-10-python"):
    data.load("cifar10", manual_dir=tmp_path)


def tar_gz(members):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return buffer.getvalue()


def pickled(entries):
  """A pickle of protocol 2 as Python 2 wrote it: strings are bytes."""

  def string(text):
    kind = b"U" + bytes([len(text)]) if len(text) < 256 else (
      b"T" + struct.pack("<i", len(text))
    )  # fmt: skip
    return kind + text

  content = b"\x80\x02}("
  for key, value in entries.items():
    content += string(key.encode())
    if isinstance(value, list):
      items = [b"K" + bytes([v]) if isinstance(v, int) else string(v.encode())
               for v in value]  # fmt: skip
      content += b"](" + b"".join(items) + b"e"
    elif isinstance(value, int):
      content += b"M" + struct.pack("<H", value)
    else:  # an array, with the words that NumPy has beside its bytes
      content += b"cnumpy.core.multiarray\n_reconstruct\n(K\x00" + string(b"b")
      content += b"t" + string(value) + b"0"
  return content + b"u."


def cifar_archive(name, rng):
  """Made planes [N, 3072], their labels [N], and the archive that has both."""
  hundred = name == "cifar100"
  num_batches, num = (1, 6) if hundred else (5, 2)
  batches = {
    f"data_batch_{b + 1}" if not hundred else "train": num
    for b in range(num_batches)
  }
  test, meta = ("test", "meta") if hundred else ("test_batch", "batches.meta")
  folder = "cifar-100-python" if hundred else "cifar-10-batches-py"
  planes, labels, members = [], [], {}
  for batch, count in {**batches, test: 3}.items():
    rows = rng.integers(0, 256, (count, 3072), np.uint8)
    fine = rng.integers(0, 10, count).tolist()
    entries = {"batch_label": [], "labels": fine}
    if hundred:
      entries = {"fine_labels": fine, "coarse_labels": [k // 5 for k in fine]}
    entries |= {"data": rows.tobytes(), "filenames": ["a.png"] * count}
    members[f"{folder}/{batch}"] = pickled(entries)
    planes.append(rows)
    labels.append(fine)
  names = [f"class{k}" for k in range(10)]
  key = "fine_label_names" if hundred else "label_names"
  members[f"{folder}/{meta}"] = pickled(
    {"num_cases_per_batch": 10000, key: names, "num_vis": 3072}
  )
  return np.concatenate(planes), np.concatenate(labels), tar_gz(members)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_in_python_form(tmp_path, monkeypatch, name):
  planes, labels, content = cifar_archive(name, np.random.default_rng(1))
  file = next(iter(originals.ARCHIVES[name]))
  monkeypatch.setitem(originals.ARCHIVES, name, {file: published(content)})
  (tmp_path / file).write_bytes(content)
  field = "coarse_label" if name == "cifar100" else None
  loaded = data.load(name, manual_dir=tmp_path, label_field=field)
  images = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  np.testing.assert_array_equal(loaded.train.images, images[:-3])
  np.testing.assert_array_equal(loaded.test.images, images[-3:])
  np.testing.assert_array_equal(loaded.train.labels, labels[:-3])
  np.testing.assert_array_equal(loaded.test.labels, labels[-3:])
  assert loaded.class_names == tuple(f"class{k}" for k in range(10))
  if field is not None:
    np.testing.assert_array_equal(loaded.train.extra, labels[:-3] // 5)
  (tmp_path / file).write_bytes(content + b"x")
  with pytest.raises(ValueError, match=f"{file} is not the published file"):
    data.load(name, manual_dir=tmp_path)


def test_cifar_in_binary_form_and_with_human_labels(tmp_path, monkeypatch):
  rng = np.random.default_rng(2)
  rows = rng.integers(0, 10, (12, 3073), np.uint8)
  builder = cifar.Cifar10
  batches = [*builder.TRAIN_FILES, *builder.TEST_FILES]
  members = {
    f"{builder.FOLDER}/{file}": part.tobytes()
    for file, part in zip(batches, np.split(rows, 6))
  }
  members[f"{builder.FOLDER}/batches.meta.txt"] = b"a b c d e f g h i j"
  content = tar_gz(members)
  file = "cifar-10-binary.tar.gz"
  monkeypatch.setitem(originals.ARCHIVES, "cifar10", {file: published(content)})
  (tmp_path / file).write_bytes(content)
  loaded = data.load("cifar10", manual_dir=tmp_path)
  np.testing.assert_array_equal(loaded.train.labels, rows[:10, 0])
  np.testing.assert_array_equal(
    loaded.test.images[1, :, :, 2], rows[11, -1024:].reshape(32, 32)
  )
  assert loaded.class_names[3] == "d"
  worse = (rows[:10, 0] + 1) % 10
  np.savez(
    tmp_path / "cifar10_n.npz", clean_label=rows[:10, 0], worse_label=worse
  )
  human = data.load("cifar10_n", manual_dir=tmp_path, label_field="worse_label")
  np.testing.assert_array_equal(human.train.extra, worse)
  assert human.test.extra is None


def special(kind):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
    info = tarfile.TarInfo("folder/wanted")
    info.type, info.linkname = kind, "/etc/passwd"
    tar.addfile(info)
  return buffer.getvalue()


WHOLE = tar_gz({"folder/wanted": np.random.default_rng(0).bytes(5000)})


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (special(tarfile.SYMTYPE), "folder/wanted is no plain file"),
    (special(tarfile.LNKTYPE), "folder/wanted is no plain file"),
    (special(tarfile.DIRTYPE), "folder/wanted is no plain file"),
    (special(tarfile.FIFOTYPE), "folder/wanted is no plain file"),
    (WHOLE[:2000], "damaged, cut short or no .tar.gz"),
    (WHOLE[:5], "damaged, cut short or no .tar.gz"),
    (b"", "damaged, cut short or no .tar.gz"),
    (b"junk", "damaged, cut short or no .tar.gz"),
    (gzip.compress(b"junk" * 999), "damaged, cut short or no .tar.gz"),
    (tar_gz({}), "holds no folder/{wanted}"),
  ],
  # The bytes hold the time, and workers must name their tests alike.
  ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_odd_archives_are_named(tmp_path, content, message):
  path = tmp_path / "made.tar.gz"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message) as caught:
    cifar.read_members(path, "folder", ["wanted"])
  assert str(path) in str(caught.value)
