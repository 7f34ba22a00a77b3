"""Streamed batches: the order of resident data, any workers, any start."""

import signal

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from kfkd_jax import data
from kfkd_jax.data import order, records, stream
from kfkd_jax.data.stored import Files, Stored

NUM, BATCH = 21, 8
STEPS = 3  # of an epoch


@pytest.fixture(autouse=True)
def _time_limit():
  """Processes that wait for each other must not wait for ever."""

  def give_up(number, frame):
    raise TimeoutError

  previous = signal.signal(signal.SIGALRM, give_up)
  signal.alarm(120)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  folder = tmp_path_factory.mktemp("images")
  names = [f"{i}.png" for i in range(NUM)]
  for i, name in enumerate(names):
    pixels = np.random.default_rng(i).integers(0, 256, (10, 12, 3), np.uint8)
    Image.fromarray(pixels).save(folder / name)
  return Stored(Files(str(folder), np.array(names)), size=6)


VIEWS = stream.RandomViews((0.2, 1.0), rand_ops=2, rand_magnitude=9.0)


def training(stored, *, views=VIEWS, places=None, order_seed=1, view_seed=2):
  places = np.arange(BATCH) if places is None else places
  return stream.TrainingBatches(
    stored, views, BATCH, 3 * STEPS, order_seed, view_seed, places
  )


def read(batches, **options):
  with stream.ahead(batches, **options) as found:
    return np.stack(list(found))


@pytest.fixture(scope="module")
def whole(stored):
  return read(training(stored))


def test_same_rows_in_the_same_order_as_resident_data(stored):
  images = stored.whole()
  found = read(training(stored, views=stream.RandomViews()))
  for epoch in range(3):
    permutation = order.epoch_order(1, epoch, NUM)
    index, _ = order.epoch_batches(permutation, BATCH)
    for number in range(STEPS):
      expected = images[index[number]]
      np.testing.assert_array_equal(found[epoch * STEPS + number], expected)


@pytest.mark.parametrize("first", [1, 4, 8, 9])
def test_reading_may_begin_anywhere(stored, whole, first):
  with stream.ahead(training(stored), first=first) as found:
    rest = list(found)
  assert len(rest) == 9 - first
  for expected, actual in zip(whole[first:], rest):
    np.testing.assert_array_equal(actual, expected)


def test_workers_make_the_same_bits(stored, whole):
  np.testing.assert_array_equal(read(training(stored), workers=2), whole)


def test_processes_read_their_own_rows_alone(stored, whole, monkeypatch):
  seen = []
  picture = Stored.picture
  monkeypatch.setattr(
    Stored, "picture", lambda self, row: seen.append(row) or picture(self, row)
  )
  places = np.array([2, 3, 6])
  found = training(stored, places=places)[4]
  np.testing.assert_array_equal(found, whole[4][places])
  assert len(seen) == 3


def test_views_differ_by_step_place_and_seed(stored, whole):
  assert not np.array_equal(whole[0], whole[3])
  other = training(stored, view_seed=3)[0]
  assert not any(np.array_equal(a, b) for a, b in zip(whole[0], other))
  one = Stored(stored._source, size=6, places=np.zeros(NUM, int))
  views = training(one)[0]
  assert len({view.tobytes() for view in views}) == BATCH


def test_views_never_change(stored):
  # A run that is continued must see the views that it would have seen.
  draw = stream._draws(1, 2, 3)
  assert [round(draw(), 6) for _ in range(3)] == [0.574173, 0.715619, 0.518244]


def test_saved_iterator_continues_where_it_was(stored, whole):
  """Runs need no such state, but who uses Grain's own may."""
  iterator = iter(stream.dataset(training(stored)))
  for _ in range(4):
    next(iterator)
  state = iterator.get_state()
  again = iter(stream.dataset(training(stored)))
  again.set_state(state)
  np.testing.assert_array_equal(next(again), whole[4])
  np.testing.assert_array_equal(next(iterator), whole[4])


def test_fixed_batches_are_those_of_evaluation(stored):
  index, mask = order.padded_batches(NUM, 5)
  found = read(stream.FixedBatches(stored, index))
  np.testing.assert_array_equal(found[mask], stored.whole())


@pytest.mark.parametrize(
  "workers", [0, pytest.param(1, marks=pytest.mark.slow)]
)
def test_broken_image_is_named_whoever_decodes_it(tmp_path, workers):
  for i in range(4):
    Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
  (tmp_path / "2.png").write_bytes(b"x")
  source = Files(str(tmp_path), np.array([f"{i}.png" for i in range(4)]))
  batches = stream.FixedBatches(Stored(source, size=4), np.arange(4)[:, None])
  with stream.ahead(batches, workers=workers) as found:
    next(found)
    next(found)
    with pytest.raises(ValueError, match=r"2\.png cannot be read"):
      next(found)


class Spy:
  """Says of a worker what its batch would not."""

  def __len__(self):
    return 4

  def __getitem__(self, number):
    import sys

    bridge = sys.modules.get("jax._src.xla_bridge")
    import kfkd_jax.data.stream as module

    del module
    return np.array([number, len(bridge._backends) if bridge else 0])


@pytest.mark.slow
def test_workers_touch_no_device():
  np.testing.assert_array_equal(
    read(Spy(), workers=1), [[0, 0], [1, 0], [2, 0], [3, 0]]
  )


# TFDS sets that stay on disk.


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  data.prepare("digits", data_dir=folder)
  return folder


def test_tfds_set_on_disk_is_the_set_in_memory(digits_dir, capsys):
  resident = data.load("digits", data_dir=digits_dir)
  streamed = data.load("digits", data_dir=digits_dir, stream="always")
  assert "reading the labels of train, once" in capsys.readouterr().out
  for expected, found in zip(resident[1:3], streamed[1:3]):
    assert isinstance(found.images, Stored)
    assert found.images.shape == expected.images.shape
    np.testing.assert_array_equal(found.images.whole(), expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.ids, expected.ids)
  data.load("digits", data_dir=digits_dir, stream="always")
  assert "labels" not in capsys.readouterr().out  # they were noted


@pytest.mark.slow
def test_tfds_records_reach_a_worker(digits_dir):
  images = data.load("digits", data_dir=digits_dir, stream="always").test.images
  index = np.arange(12).reshape(3, 4)
  found = read(stream.FixedBatches(images, index), workers=1)
  np.testing.assert_array_equal(found, images[:12].reshape(3, 4, 8, 8, 1))


def test_labels_are_read_again_where_nobody_may_write(
  digits_dir, monkeypatch, capsys
):
  source = data.builder("digits", data_dir=digits_dir)
  found = records.opened(source, "train[:9]", "image")

  def refuse(*args, **kwargs):
    raise PermissionError

  monkeypatch.setattr(records.files, "write_npz", refuse)
  for _ in range(2):
    columns = records.kept_label_columns(found, source, "train[:9]")
    assert columns["label"].shape == (9,)
    assert "reading the labels" in capsys.readouterr().out


def test_what_stays_on_disk(digits_dir):
  size = 1797 * 64 / 2**30
  for stream_key, limit, stays in (
    ("auto", size * 1.01, False),
    ("auto", size * 0.99, True),
    ("never", 0.0, False),
  ):
    loaded = data.load(
      "digits", data_dir=digits_dir, stream=stream_key, memory_limit=limit
    )
    assert isinstance(loaded.train.images, Stored) == stays


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The features and splits of TFDS's own, with a few made pictures."""

  name = "imagenet2012"
  VERSION = tfds.core.Version("5.1.0")

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(encoding_format="jpeg"),
          "label": tfds.features.ClassLabel(names=["tench", "goldfish"]),
          "file_name": tfds.features.Text(),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager):
    splits = {"train": 6, "validation": 4, "test": 3}
    return {k: self._generate_examples(k, n) for k, n in splits.items()}

  def _generate_examples(self, split, num):
    for i in range(num):
      mode = "CMYK" if i == 2 else "RGB"
      image = Image.new(mode, (30 + i, 20), tuple(range(10, 10 + len(mode))))
      label = -1 if split == "test" else i % 2
      yield i, {"image": image, "label": label, "file_name": f"n_{i}.JPEG"}


def test_imagenet_through_tfds(tmp_path, monkeypatch):
  made = Imagenet2012(data_dir=tmp_path)
  made.download_and_prepare(file_format="array_record")
  monkeypatch.setattr(data.sources, "builder", lambda *args, **kwargs: made)
  loaded = data.load("imagenet2012", image_size=16, stream="always")
  assert loaded.class_names == ("tench", "goldfish")
  assert len(loaded.train.labels) == 6
  assert sorted(loaded.test.labels.tolist()) == [0, 0, 1, 1]
  assert loaded.train.images[[5, 0]].shape == (2, 16, 16, 3)
  with pytest.raises(ValueError, match=r"without a label \(label < 0\)"):
    data.load("imagenet2012", image_size=16, test_split="test")
