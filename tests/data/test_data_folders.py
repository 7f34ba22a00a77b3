"""Image sets in folders: layouts, odd pictures, broken files, views."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from kfkd_jax import data
from kfkd_jax.data import folders, pictures, rand_augment, stored
from kfkd_jax.data.stored import Files, Stored


def picture(value=0, size=(8, 6), mode="RGB"):
  rng = np.random.default_rng(value)
  pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
  return Image.fromarray(pixels).convert(mode)


def put(path, image=None, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = picture(len(str(path))) if image is None else image
  image.save(path, **options)


def fill(root, names):
  for number, name in enumerate(names):
    put(root / name, picture(number))


SPLIT = [
  *[f"train/{c}/{i}.jpg" for c in ("cat", "dog", "ant") for i in (2, 10, 1)],
  *[f"val/{c}/{i}.PNG" for c in ("dog", "cat", "ant") for i in range(2)],
]
FLAT = [f"{c}/{i}.png" for c in ("b", "a") for i in range(10)]


def load(root, **options):
  options = {"image_size": 4, **options}
  return data.load("image_folder", manual_dir=root, **options)


# Layouts.


def test_train_and_val_with_classes_in_sorted_order(tmp_path):
  fill(tmp_path, SPLIT)
  (tmp_path / ".DS_Store").write_text("x")
  (tmp_path / "train" / "cat" / ".hidden.jpg").write_text("x")
  loaded = load(tmp_path)
  assert loaded.class_names == ("ant", "cat", "dog")
  assert loaded.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
  assert loaded.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
  assert loaded.train.ids.tolist() == list(range(9))
  assert loaded.train.images.shape == (9, 4, 4, 3)
  first = Image.open(tmp_path / "train" / "ant" / "1.jpg")
  expected = pictures.to_array(pictures.fitted(first, 4))
  np.testing.assert_array_equal(loaded.train.images[0], expected)


def test_test_is_preferred_to_val(tmp_path):
  fill(tmp_path, [*SPLIT, "test/cat/0.jpg"])
  assert load(tmp_path).test.labels.tolist() == [1]


def test_unlabelled_test_folder_is_passed_over(tmp_path):
  fill(tmp_path, [*SPLIT, "test/1.jpg"])
  assert len(load(tmp_path).test.labels) == 6


def test_class_folders_alone_set_a_fixed_share_aside(tmp_path):
  fill(tmp_path, FLAT)
  loaded = load(tmp_path, test_share=0.3)
  assert loaded.class_names == ("a", "b")
  assert np.bincount(loaded.test.labels).tolist() == [3, 3]
  both = np.concatenate([loaded.train.ids, loaded.test.ids])
  np.testing.assert_array_equal(np.sort(both), np.arange(20))
  # The split must never change: predictions point at these rows.
  assert loaded.test.ids.tolist() == [3, 4, 7, 12, 18, 19]


def test_a_class_may_be_called_train(tmp_path):
  fill(tmp_path, [f"{c}/{i}.jpg" for c in ("train", "bus") for i in range(5)])
  assert load(tmp_path).class_names == ("bus", "train")


def test_class_missing_in_test_is_said_and_allowed(tmp_path, capsys):
  fill(tmp_path, [n for n in SPLIT if "val/ant" not in n])
  (tmp_path / "val" / "ant").mkdir()
  assert set(load(tmp_path).test.labels) == {1, 2}
  assert "val has no images of 1 classes: ant" in capsys.readouterr().out


def test_other_files_are_ignored_and_said(tmp_path, capsys):
  fill(tmp_path, FLAT)
  (tmp_path / "a" / "notes.txt").write_text("x")
  assert len(load(tmp_path).train.labels) == 16
  assert "a: ignored 1 other files: notes.txt" in capsys.readouterr().out


@pytest.mark.parametrize(
  "names,folder,message",
  [
    ([*SPLIT], "train/empty", "train/empty holds no images .* remove it"),
    (
      [*SPLIT, "val/fox/1.jpg"],
      None,
      "has classes that .*train lacks: fox",
    ),
    (
      [n for n in SPLIT if "train" in n],
      None,
      "train/ but no class folders in",
    ),
    (["a/1.jpg"], None, r"two class folders or more.* it has \['a'\]"),
    ([], None, "two class folders or more.* it has none"),
    ([*FLAT, "1.jpg"], None, r"images beside its class folders \(1.jpg\)"),
    ([*FLAT, "a/deep/1.jpg"], None, "a/deep is a folder in a folder of images"),
    (["a/1.jpg", "b/1.jpg"], None, "test_share=0.2 of the 2 images"),
  ],
)
def test_folders_that_cannot_be_meant(tmp_path, names, folder, message):
  fill(tmp_path, names)
  if folder:
    (tmp_path / folder).mkdir()
  with pytest.raises(ValueError, match=message):
    load(tmp_path)


def test_root_must_be_given_and_exist(tmp_path):
  with pytest.raises(ValueError, match=r"'image_folder' needs data\.root"):
    data.load("image_folder")
  with pytest.raises(ValueError, match=r"data.root=.*nowhere is no folder"):
    load(tmp_path / "nowhere")
  fill(tmp_path, FLAT)
  with pytest.raises(ValueError, match="label_field='x' is no further label"):
    load(tmp_path, label_field="x")


# Broken images.


def test_broken_images_are_named_or_skipped(tmp_path, capsys):
  fill(tmp_path, SPLIT)
  (tmp_path / "train" / "cat" / "2.jpg").write_bytes(b"no picture")
  whole = (tmp_path / "train" / "dog" / "10.jpg").read_bytes()
  (tmp_path / "train" / "dog" / "10.jpg").write_bytes(whole[:-200])
  (tmp_path / "val" / "dog" / "0.PNG").write_bytes(b"")
  with pytest.raises(ValueError, match=r"(cat/2|dog/10).jpg cannot be read: "):
    load(tmp_path)
  lazy = load(tmp_path, stream="always")
  with pytest.raises(ValueError, match=r"cat/2.jpg cannot .* no JPEG or PNG"):
    lazy.train.images[5]
  with pytest.raises(ValueError, match=r"dog/10.jpg .* data.skip_broken=True"):
    lazy.train.images[[0, 7]]
  capsys.readouterr()
  for stream in ("never", "always"):
    loaded = load(tmp_path, skip_broken=True, stream=stream)
    assert loaded.train.ids.tolist() == [0, 1, 2, 3, 4, 6, 8]
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert loaded.test.ids.tolist() == [0, 1, 2, 3, 5]
    assert "skipped 2 broken images:" in capsys.readouterr().out


# Pictures.


def encoded(image, kind="PNG", **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


GREY16 = Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16))
PALETTE = picture(1).quantize(4)


@pytest.mark.parametrize(
  "image,kind",
  [
    (picture(1, mode="L"), "PNG"),
    (picture(1, mode="LA"), "PNG"),
    (picture(1, mode="1"), "PNG"),
    (picture(1, mode="RGBA"), "PNG"),
    (picture(1, mode="CMYK"), "JPEG"),
    (PALETTE, "PNG"),
    (GREY16, "PNG"),
  ],
)
def test_every_mode_becomes_rgb_or_grey(image, kind):
  for channels in (1, 3):
    found = pictures.decode(encoded(image, kind), channels, name="x")
    array = pictures.to_array(found)
    assert array.shape == (image.height, image.width, channels)
    assert array.dtype == np.uint8


def test_modes_keep_their_values():
  def decode(image, **options):
    content = encoded(image, **options)
    return pictures.to_array(pictures.decode(content, 3, name="x"))

  rgb = np.asarray(picture(1))
  np.testing.assert_array_equal(decode(picture(1, mode="RGBA")), rgb)
  np.testing.assert_array_equal(decode(GREY16)[0, :, 0], [0, 0, 1, 255])
  palette = decode(PALETTE, transparency=0)
  np.testing.assert_array_equal(palette, np.asarray(PALETTE.convert("RGB")))
  cmyk = decode(picture(1, (64, 64), "CMYK"), kind="JPEG", quality=100)
  plain = np.asarray(picture(1, (64, 64), "CMYK").convert("RGB"))
  assert np.abs(cmyk.astype(int) - plain).mean() < 8


def test_orientation_of_the_camera_is_undone():
  image = Image.fromarray(np.zeros((2, 6, 3), np.uint8))
  image.putpixel((0, 0), (255, 255, 255))
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was turned by a quarter
  found = pictures.decode(encoded(image, exif=exif), 3, name="x")
  assert found.size == (2, 6)
  assert found.getpixel((1, 0)) == (255, 255, 255)


def test_fitted_cuts_the_centre_square():
  image = Image.new("L", (10, 4))
  image.paste(255, (3, 0, 7, 4))
  assert np.all(np.asarray(pictures.fitted(image, 4)) == 255)
  border = Image.new("L", (8, 8), 255)
  border.paste(0, (1, 1, 7, 7))
  inner = pictures.fitted(border, 6, fraction=0.75)
  assert np.all(np.asarray(inner) == 0)
  same = picture(1, (5, 5))
  np.testing.assert_array_equal(pictures.fitted(same, 5), np.asarray(same))


def draws(seed):
  return np.random.default_rng(seed).random


def test_random_crops_have_the_shares_that_were_asked_for(monkeypatch):
  boxes = []

  class Spy:
    size = (300, 200)

    def resize(self, size, method, box):
      assert size == (16, 16)
      boxes.append(box)

  draw = draws(0)
  for _ in range(2000):
    pictures.random_resized_crop(
      Spy(), (16, 16), draw, scale=(0.1, 0.5), ratio=(0.75, 4 / 3)
    )
  left, top, right, bottom = np.array(boxes).T
  width, height = right - left, bottom - top
  assert np.all((left >= 0) & (top >= 0) & (right <= 300) & (bottom <= 200))
  share = width * height / 60_000
  assert share.min() > 0.095 and share.max() < 0.505
  assert abs(share.mean() - 0.3) < 0.01
  ratio = np.log(width / height)
  assert np.abs(ratio).max() < np.log(4 / 3) + 0.02
  assert abs(ratio.mean()) < 0.02
  assert left.min() == 0 and top.min() == 0 and bottom.max() == 200


@pytest.mark.parametrize("size,box", [((400, 10), (194, 0, 207, 10))])
def test_random_crop_of_a_long_picture_is_its_centre(size, box):
  class Spy:
    def resize(self, to, method, box):
      return box

  spy = Spy()
  spy.size = size
  found = pictures.random_resized_crop(
    spy, (8, 8), draws(0), scale=(0.9, 1.0), ratio=(0.75, 4 / 3)
  )
  assert abs(found[0] - box[0]) <= 1 and found[1::2] == box[1::2]
  assert found[2] - found[0] == 13


@pytest.mark.parametrize("name", rand_augment.OPERATIONS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_operations_keep_size_and_mode_and_do_something(name, mode):
  image = picture(3, (40, 30), mode).point(lambda v: 40 + v // 2)
  operation = rand_augment.OPERATIONS[name]
  for sign in (-1.0, 1.0):
    found = operation(image, 0.9, sign)
    assert found.size == image.size and found.mode == mode
    same = np.array_equal(np.asarray(found), np.asarray(image))
    assert same == (name == "identity" or (name, mode) == ("color", "L"))
  if name not in ("auto_contrast", "equalize"):
    np.testing.assert_array_equal(operation(image, 0.0, 1.0), np.asarray(image))


def test_solarize_and_shifts_grow_with_the_strength():
  ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (2, 1)))
  for strength in (0.0, 0.25, 1.0):
    found = np.asarray(rand_augment.OPERATIONS["solarize"](ramp, strength, 1.0))
    changed = np.count_nonzero(found[0] != np.arange(256))
    assert changed == 256 * strength
  white = Image.new("L", (331, 662), 255)
  for name, axis, size in (("translate_x", 1, 331), ("translate_y", 0, 662)):
    moved = np.asarray(rand_augment.OPERATIONS[name](white, 1.0, 1.0))
    covered = np.count_nonzero((moved == 255).all(axis=1 - axis))
    assert abs(size - covered - 150 * size / 331) <= 1


def test_rand_augment_chooses_all_operations_evenly(monkeypatch):
  chosen = []
  for name in rand_augment.OPERATIONS:
    monkeypatch.setitem(
      rand_augment.OPERATIONS,
      name,
      lambda image, strength, sign, name=name: chosen.append((name, sign)),
    )
  rand_augment.rand_augment(None, draws(0), num_ops=14_000, magnitude=5)
  names, counts = np.unique([name for name, _ in chosen], return_counts=True)
  assert len(names) == 14 and counts.min() > 850 and counts.max() < 1150
  assert abs(np.mean([sign for _, sign in chosen])) < 0.05


# Stored images.


def make_stored(tmp_path, count=7, **options):
  names = [f"{i}.png" for i in range(count)]
  for i, name in enumerate(names):
    put(tmp_path / name, picture(i, (9, 7)))
  return Stored(Files(str(tmp_path), np.array(names)), **options)


def test_stored_images_read_like_an_array(tmp_path):
  stored = make_stored(tmp_path)
  whole = np.stack([np.asarray(picture(i, (9, 7))) for i in range(7)])
  assert stored.shape == whole.shape and len(stored) == 7
  assert stored.nbytes == whole.nbytes
  for rows in (3, np.int64(2), slice(1, 5), [6, 0, 0], np.array([5]), slice(0)):
    np.testing.assert_array_equal(stored[rows], whole[rows])
  np.testing.assert_array_equal(stored.whole(), whole)
  taken = stored.take(np.array([4, 2, 6]))
  np.testing.assert_array_equal(taken[1:], whole[[2, 6]])
  np.testing.assert_array_equal(taken.take(np.array([2]))[0], whole[6])


def test_stored_images_of_several_sizes_need_one(tmp_path):
  stored = make_stored(tmp_path)
  put(tmp_path / "3.png", picture(3, (9, 8)))
  with pytest.raises(ValueError, match=r"3.png has the .* data.image_size"):
    stored[:]
  with pytest.raises(ValueError, match=r"3.png has the size"):
    stored[3]
  assert make_stored(tmp_path, size=5)[:].shape == (7, 5, 5, 3)


# Sets of the paper.


def test_tiny_imagenet(tmp_path):
  fill(
    tmp_path,
    [
      f"train/{w}/images/{w}_{i}.JPEG" for w in ("n02", "n01") for i in range(3)
    ],
  )
  fill(tmp_path, [f"val/images/val_{i}.JPEG" for i in range(3)])
  (tmp_path / "train" / "n01" / "n01_boxes.txt").write_text("x")
  table = "val_0.JPEG\tn02\t0\t0\t62\t62\nval_2.JPEG\tn01\t1\t2\t3\t4\n"
  (tmp_path / "val" / "val_annotations.txt").write_text(table)
  loaded = data.load("tiny_imagenet", manual_dir=tmp_path)
  assert loaded.class_names == ("n01", "n02")
  assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
  assert loaded.test.labels.tolist() == [1, 0]
  last = Image.open(tmp_path / "val" / "images" / "val_2.JPEG")
  np.testing.assert_array_equal(loaded.test.images[1], np.asarray(last))
  (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn03\n")
  with pytest.raises(ValueError, match="class n03 of val/ is not in train/"):
    data.load("tiny_imagenet", manual_dir=tmp_path)


def test_animal10n(tmp_path):
  fill(tmp_path, ["training/3_12.jpg", "training/9_1.jpg", "testing/0_7.jpg"])
  loaded = data.load("animal10n", manual_dir=tmp_path)
  assert loaded.num_classes == 10
  assert loaded.class_names[3] == "coyote"
  assert loaded.train.labels.tolist() == [3, 9]
  assert loaded.test.labels.tolist() == [0]
  fill(tmp_path, ["testing/cat.jpg"])
  with pytest.raises(ValueError, match=r"testing/cat.jpg does not start with"):
    data.load("animal10n", manual_dir=tmp_path)
  with pytest.raises(ValueError, match="lacks training, testing"):
    data.load("animal10n", manual_dir=tmp_path / "training")


def make_clothing(root):
  keys = [f"images/{i % 2}/{i}.jpg" for i in range(8)]
  fill(root, keys)
  texts = {
    "category_names_eng.txt": "T-Shirt\nDown Coat\nVest\n",
    "noisy_label_kv.txt": "".join(f"{k} {i % 3}\n" for i, k in enumerate(keys)),
    "clean_label_kv.txt": "".join(f"{k} 2\n" for k in keys[3:]),
    "noisy_train_key_list.txt": "\n".join(keys[:4]),
    "clean_train_key_list.txt": "\n".join(keys[4:6]),
    "clean_test_key_list.txt": "\n".join(keys[6:]),
  }
  for name, text in texts.items():
    (root / name).write_text(text)


def test_clothing1m_with_its_noisy_labels_or_with_both(tmp_path):
  make_clothing(tmp_path)
  noisy = data.load("clothing1m", manual_dir=tmp_path)
  assert noisy.class_names == ("T-Shirt", "Down Coat", "Vest")
  assert noisy.train.labels.tolist() == [0, 1, 2, 0]
  assert noisy.train.extra is None
  assert noisy.test.labels.tolist() == [2, 2]
  both = data.load(
    "clothing1m", manual_dir=tmp_path, label_field=folders.NOISY_FIELD
  )
  assert both.train.labels.tolist() == [2, 2, 2]
  assert both.train.extra.tolist() == [0, 1, 2]
  table = tmp_path / "clean_label_kv.txt"
  text = table.read_text()
  for other, message in (
    (text.replace(" 2", " 3", 1), r"clean_label_kv\.txt: 3 is none of 3"),
    (text.replace(" 2", " x", 1), r"clean_label_kv\.txt: x is none of 3"),
    (text.replace("7.jpg", "8.jpg"), "has no label of images/1/7"),
  ):
    table.write_text(other)
    with pytest.raises(ValueError, match=message):
      data.load("clothing1m", manual_dir=tmp_path)
  table.write_bytes(b"\xff\xfe")
  with pytest.raises(ValueError, match=r"clean_label_kv\.txt is no file of"):
    data.load("clothing1m", manual_dir=tmp_path)
  (tmp_path / "noisy_label_kv.txt").unlink()
  with pytest.raises(ValueError, match=r"lacks noisy_label_kv\.txt"):
    data.load("clothing1m", manual_dir=tmp_path)


# What is not an ordinary file of the set.


def test_a_dangling_link_and_a_pipe_are_named_and_skipped(tmp_path, capsys):
  fill(tmp_path, FLAT)
  (tmp_path / "a" / "gone.png").symlink_to("nowhere.png")
  os.mkfifo(tmp_path / "b" / "pipe.png")
  with pytest.raises(
    pictures.BrokenImageError, match=r"(gone|pipe)\.png cannot"
  ):
    load(tmp_path)
  assert len(load(tmp_path, skip_broken=True).train.labels) == 16
  out = capsys.readouterr().out
  assert "broken images" in out
  assert "gone.png" in out
  assert "pipe.png" in out


@pytest.mark.parametrize("link", ["c", "a/x.png"])
def test_links_that_lead_out_are_followed_if_asked_for(tmp_path, link):
  root, other = tmp_path / "root", tmp_path / "other"
  fill(root, FLAT)
  fill(other, ["1.png", "2.png"])
  target = other if link == "c" else other / "1.png"
  (root / link).symlink_to(target)
  with pytest.raises(
    ValueError, match=f"{link} lies outside data.root=.*data.follow_links=True"
  ):
    load(root)
  followed = load(root, follow_links=True)
  both = len(followed.train.labels) + len(followed.test.labels)
  assert both == (22 if link == "c" else 21)


def test_links_that_stay_inside_are_followed(tmp_path):
  fill(tmp_path, FLAT)
  (tmp_path / "a" / "again.png").symlink_to(tmp_path / "b" / "0.png")
  loaded = load(tmp_path)
  assert len(loaded.train.labels) + len(loaded.test.labels) == 21


def test_the_root_itself_may_be_a_link(tmp_path):
  fill(tmp_path / "root", FLAT)
  (tmp_path / "link").symlink_to("root")
  assert len(load(tmp_path / "link").train.labels) == 16


def test_what_pillow_warns_of_is_read_without_a_word(tmp_path):
  """In a process of its own: here, warnings are errors."""
  code = """
import io
import os
import subprocess
import sys
from PIL import Image
from kfkd_jax.data import pictures
Image.MAX_IMAGE_PIXELS = 50
def encoded(image, **options):
  buffer = io.BytesIO()
  image.save(buffer, **options)
  return buffer.getvalue()
grey = Image.new("RGB", (8, 8), 7)
exif = Image.Exif()
exif[0x0112], exif[0x010E] = 6, "words " * 30
palette = grey.convert("P")
for content in (
  encoded(grey, format="PNG"),
  encoded(grey, format="JPEG", exif=exif.tobytes()[:-40]),
  encoded(grey, format="JPEG", exif=exif.tobytes()[:18]),
  encoded(grey, format="JPEG", exif=b"Exif" + bytes(2) + b"MM" + bytes(30)),
  encoded(palette, format="PNG", transparency=bytes(range(256))),
):
  assert pictures.decode(content, 3, name="it").size == (8, 8)
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )
  assert (done.returncode, done.stderr) == (0, "")


# What tells the data from other data.


def changes(root, before):
  now = load(root).fingerprint
  return {key for key in now if now[key] != before[key]}


def test_fingerprint_tells_what_changed(tmp_path):
  fill(tmp_path, SPLIT)
  before = load(tmp_path).fingerprint
  assert load(tmp_path, image_size=6).fingerprint == before
  touched = tmp_path / "train" / "ant" / "1.jpg"
  os.utime(touched, (0, 0))
  assert not changes(tmp_path, before)
  content = touched.read_bytes()
  put(touched, picture(99))
  assert changes(tmp_path, before) == {"training images"}
  touched.write_bytes(content)
  (tmp_path / "val" / "cat" / "0.PNG").rename(tmp_path / "val/ant/7.PNG")
  assert changes(tmp_path, before) == {"test images", "test labels"}
  (tmp_path / "val" / "ant" / "7.PNG").rename(tmp_path / "val/cat/0.PNG")
  for one, other in (("ant", "x"), ("cat", "ant"), ("x", "cat")):
    (tmp_path / "train" / one).rename(tmp_path / "train" / other)
  assert "training images" in changes(tmp_path, before)
  fill(tmp_path, ["train/cat/new.jpg"])
  assert "number of training images" in changes(tmp_path, before)


def test_fingerprint_of_much_reads_a_sample(tmp_path, monkeypatch):
  fill(tmp_path, FLAT)
  source = Files(str(tmp_path), np.array(FLAT))
  monkeypatch.setattr(stored, "_MOST_DIGESTED", 10)
  monkeypatch.setattr(stored, "_NUM_SAMPLED", 3)
  before, places = source.digest(np.arange(20)), []
  read = Files._read
  monkeypatch.setattr(
    Files, "_read", lambda self, p: places.append(int(p)) or read(self, p)
  )
  assert source.digest(np.arange(20)) == before
  assert places == [0, 9, 19]
  (tmp_path / FLAT[5]).write_bytes(b"another size")
  assert source.digest(np.arange(20)) != before
