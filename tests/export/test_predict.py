"""Images in, probabilities out; every mistake on one line."""

import csv
import dataclasses
import hashlib
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax import export
from PIL import Image

from kfkd_jax import cli, files
from kfkd_jax.data import pictures as data_pictures
from kfkd_jax.export import predict, trailer

SHAPE = (4, 5, 3)
NAMES = ["ant", "bee", "cat"]
MATRIX = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32) / 4


def reference(images):
  logits = images.reshape(len(images), -1) / 255 @ MATRIX.astype(np.float64)
  exps = np.exp(logits)
  return exps / exps.sum(1, keepdims=True)


def network(images):
  flat = images.reshape(images.shape[0], -1).astype(jnp.float32) / 255
  return jax.nn.softmax(flat @ MATRIX[: flat.shape[1]])


def serialised(function=network, shape=SHAPE, dtype=np.uint8, num=1, **options):
  (batch,) = export.symbolic_shape("b")
  images = jax.ShapeDtypeStruct((batch, *shape), dtype)
  done = export.export(jax.jit(function), **options)(*[images] * num)
  return trailer.appended(bytes(done.serialize()))


def write_card(path):
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  listed = {"files": {path.name: {"sha256": digest}}}
  card = {"class_names": NAMES, "models": {path.stem: listed}}
  files.write_json(epath.Path(path.parent) / "card.json", card)


@pytest.fixture
def model(tmp_path):
  path = tmp_path / "export" / "bugs.jaxexp"
  path.parent.mkdir()
  path.write_bytes(serialised())
  write_card(path)
  return path


def pictures(count, shape=SHAPE, seed=1):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, *shape), dtype=np.uint8)


def save(path, array, **options):
  array = array.squeeze(-1) if array.shape[-1] == 1 else array
  Image.fromarray(array).save(path, **options)
  return str(path)


def run(model, inputs, folder):
  output = str(folder / "out" / "probs.npz")
  said = predict.run(str(model), [str(i) for i in inputs], output, folder)
  return files.read_npz(epath.Path(output)), said


def test_pictures_and_arrays_in_their_order(model, tmp_path):
  images = pictures(4)
  np.savez(tmp_path / "two.npz", images=images[1:3])
  inputs = [
    save(tmp_path / "a.png", images[0]),
    tmp_path / "two.npz",
    save(tmp_path / "b.PNG", images[3]),
  ]
  arrays, said = run(model, inputs, tmp_path)
  np.testing.assert_allclose(arrays["probs"], reference(images), atol=1e-6)
  assert arrays["probs"].dtype == np.float32
  assert arrays["classes"].tolist() == NAMES
  two = str(tmp_path / "two.npz")
  assert arrays["names"].tolist() == [
    str(inputs[0]), f"{two}[0]", f"{two}[1]", str(inputs[2]),
  ]  # fmt: skip
  top = reference(images)[0].argmax()
  first = f"a.png: {NAMES[top]} ({reference(images)[0, top]:.3f})"
  assert first in said.splitlines()[0]
  assert "note" not in said
  assert "4 x 3 probabilities" in said


def test_jpeg_as_pillow_decodes_it(model, tmp_path):
  path = save(tmp_path / "a.jpg", pictures(1)[0], quality=80)
  with Image.open(path) as image:
    decoded = np.asarray(image)[None]
  arrays, _ = run(model, [path], tmp_path)
  np.testing.assert_allclose(arrays["probs"], reference(decoded), atol=1e-6)


@pytest.mark.parametrize(("size", "count"), [(4, 10), (5, 10), (10, 3), (3, 1)])
def test_batches_of_any_size_are_the_whole(
  model, tmp_path, monkeypatch, size, count
):
  monkeypatch.setattr(predict, "_BATCH", size)
  images = pictures(count)
  exported = predict.load(model)
  probs = predict.probabilities(exported, images)
  np.testing.assert_allclose(probs, reference(images), atol=1e-6)


def test_summary_names_a_few_and_counts_the_rest():
  probs = np.tile(np.float32([0.001, 0.899, 0.1]), (22, 1))
  names = [f"{n}.png" for n in range(22)]
  lines = predict.summary(probs, names, NAMES)
  assert lines[0] == f"0.png: {NAMES[1]} (0.899), {NAMES[2]} (0.100)"
  assert lines[-1] == "... and 2 more"
  assert len(predict.summary(probs[:20], names[:20], NAMES)) == 20


def test_a_table_for_people_lies_beside(model, tmp_path):
  images = pictures(2)
  inputs = [save(tmp_path / f"{n}.png", images[n]) for n in range(2)]
  out = tmp_path / "out"
  said = predict.run(str(model), inputs, str(out / "x.csv"), tmp_path)
  assert f"written to {out}/x.npz and {out}/x.csv" in said
  with (out / "x.csv").open() as f:
    rows = list(csv.DictReader(f))
  probs = reference(images)
  assert [row["class"] for row in rows] == [NAMES[k] for k in probs.argmax(-1)]
  assert [row["name"] for row in rows] == inputs
  assert float(rows[1]["probability"]) == pytest.approx(
    probs[1].max(), abs=1e-4
  )
  assert float(rows[1][f"p({NAMES[2]})"]) == pytest.approx(
    probs[1, 2], abs=1e-4
  )


def test_folders_patterns_and_standard_input(tmp_path, monkeypatch):
  (tmp_path / "deep" / "er").mkdir(parents=True)
  for name in ("deep/b.png", "deep/er/a.JPG", "c.png"):
    save(tmp_path / name, pictures(1)[0], format="PNG")
  (tmp_path / "deep" / "notes.txt").write_text("")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr("sys.stdin", io.StringIO("c.png\n\n"))
  found = predict.read_inputs(["deep", "*.png", "-"], SHAPE)
  assert found.names == ["deep/b.png", "deep/er/a.JPG", "c.png", "c.png"]
  (tmp_path / "none").mkdir()
  for path, message in (
    ("none", r"none holds no image; these end in \.bmp"),
    ("x*", r"no file is named x\*"),
  ):
    with pytest.raises(ValueError, match=message):
      predict.read_inputs([path], SHAPE)


def test_without_a_card_classes_are_numbers(model, tmp_path):
  (model.parent / "card.json").unlink()
  exported = predict.load(model)
  assert exported.class_names == ["0", "1", "2"]
  assert exported.image_shape == SHAPE


def test_a_card_for_other_files_is_no_concern(model):
  other = model.parent / "other.jaxexp"
  other.write_bytes(model.read_bytes())
  assert predict.load(other).class_names == ["0", "1", "2"]


@pytest.mark.parametrize(
  ("change", "shape", "note"),
  [
    (lambda i: i.resize((10, 8)), SHAPE, "resized to 5x4"),
    (lambda i: i.convert("RGBA"), SHAPE, None),
    (lambda i: i.convert("L"), SHAPE, None),
    (lambda i: i.quantize(8), SHAPE, None),
    (lambda i: i, (4, 5, 1), "colours turned to grey"),
    (lambda i: i.convert("L"), (4, 5, 1), None),
    (lambda i: i.convert("1"), (4, 5, 1), None),
  ],
)
def test_pictures_are_made_to_fit_and_it_is_said(tmp_path, change, shape, note):
  image = change(Image.fromarray(pictures(1)[0]))
  image.save(tmp_path / "a.png")
  array, changes = predict.read_image(epath.Path(tmp_path / "a.png"), shape)
  assert array.shape == shape and array.dtype == np.uint8
  assert [c for c in changes if c != "transparency ignored"] == (
    [note] if note else []
  )
  wanted = image.convert("L" if shape[2] == 1 else "RGB")
  if wanted.size != (5, 4):
    wanted = wanted.resize((5, 4), Image.Resampling.BILINEAR)
  wanted = np.asarray(wanted)
  np.testing.assert_array_equal(array.squeeze(), wanted)


def test_long_pictures_are_cut_to_the_square_that_training_saw(tmp_path):
  image = Image.fromarray(pictures(1)[0]).resize((12, 8))
  image.save(tmp_path / "a.png")
  array, changes = predict.read_image(epath.Path(tmp_path / "a.png"), (4, 4, 3))
  assert changes == ["cut to the centre square and resized to 4x4"]
  np.testing.assert_array_equal(array, data_pictures.fitted(image, 4))


def test_transparency_is_ignored_and_it_is_said(tmp_path):
  pixels = np.concatenate([pictures(1)[0], np.full((4, 5, 1), 7)], -1)
  path = save(tmp_path / "a.png", pixels.astype(np.uint8))
  array, changes = predict.read_image(epath.Path(path), SHAPE)
  np.testing.assert_array_equal(array, pixels[..., :3])
  assert changes == ["transparency ignored"]


def test_camera_turns_are_undone(tmp_path):
  """EXIF orientation 6: stored lying, to be shown turned clockwise."""
  upright = pictures(1)[0]
  exif = Image.Exif()
  exif[0x0112] = 6
  path = save(tmp_path / "a.png", np.rot90(upright).copy(), exif=exif)
  array, changes = predict.read_image(epath.Path(path), SHAPE)
  np.testing.assert_array_equal(array, upright)
  assert not changes


def test_notes_count_files(model, tmp_path):
  big = pictures(3, (8, 10, 3))
  inputs = [save(tmp_path / f"{i}.png", image) for i, image in enumerate(big)]
  _, said = run(model, inputs, tmp_path)
  note = f"note: resized to 5x4: {inputs[0]} and 2 more"
  assert said.splitlines()[0] == note


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    (
      {"images": pictures(2, (5, 4, 3))},
      r"shape \(2, 5, 4, 3\); the model takes \(N, 4, 5, 3\)",
    ),
    ({"images": pictures(2)[0]}, r"shape \(4, 5, 3\); the model takes"),
    ({"images": pictures(2) / 255}, "are float64; the model takes uint8"),
    ({"images": pictures(0)}, r"images are none, shape \(0, 4, 5, 3\)"),
    ({"x": pictures(2)}, "holds no array called `images`"),
  ],
)
def test_wrong_arrays(tmp_path, arrays, message):
  np.savez(tmp_path / "i.npz", **arrays)
  with pytest.raises(ValueError, match=message):
    predict.read_inputs([str(tmp_path / "i.npz")], SHAPE)


def cut(path):
  path.write_bytes(path.read_bytes()[:-40])


def test_wrong_pictures(tmp_path):
  def read(name, shape=SHAPE):
    return predict.read_inputs([str(tmp_path / name)], shape)

  (tmp_path / "a.txt").write_text("no picture")
  with pytest.raises(ValueError, match=r"a\.txt is neither an \.npz nor"):
    read("a.txt")
  (tmp_path / "a.npz").write_text("no arrays")
  with pytest.raises(ValueError, match=r"a\.npz is damaged or not an \.npz"):
    read("a.npz")
  save(tmp_path / "a.png", pictures(1, (40, 50, 3))[0])
  cut(tmp_path / "a.png")
  with pytest.raises(ValueError, match=r"a\.png is damaged: .*truncated"):
    read("a.png")
  deep = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000
  Image.fromarray(deep).save(tmp_path / "deep.png")
  with pytest.raises(ValueError, match=r"deep\.png has pixels of more than 8"):
    read("deep.png")
  save(tmp_path / "b.png", pictures(1)[0])
  with pytest.raises(ValueError, match="images of 2 channels; give them as"):
    read("b.png", (4, 5, 2))
  with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
    read("nowhere.png")
  with pytest.raises(ValueError, match="predict needs inputs"):
    predict.read_inputs([], SHAPE)


@pytest.mark.parametrize(
  "content",
  [b"", b"x", b"PK\x03\x04 not a model", b"\0" * 64, b"\xff" * 64, b"# text\n"],
)
def test_files_that_are_no_models(tmp_path, content):
  path = tmp_path / "a.jaxexp"
  path.write_bytes(trailer.appended(content))
  with pytest.raises(ValueError, match="is not a model that `kfkd export`"):
    predict.load(path)


@pytest.mark.parametrize("kept", [0.01, 0.2, 0.5, 0.9, 0.99])
def test_truncated_models(model, kept):
  content = model.read_bytes()
  model.write_bytes(content[: int(len(content) * kept)])
  with pytest.raises(ValueError, match=r"is damaged: its SHA-256|not the file"):
    predict.load(model)


def test_truncated_models_that_nothing_vouches_for(model):
  (model.parent / "card.json").unlink()
  content = model.read_bytes()
  model.write_bytes(content[: len(content) // 2])
  with pytest.raises(ValueError, match="or is damaged: "):
    predict.load(model)


def test_a_flipped_bit_is_noticed(model):
  write_card(model)
  original = bytearray(model.read_bytes())
  content = original.copy()
  content[len(content) // 2] ^= 1
  body = bytes(content[: -len(trailer.appended(b""))])
  model.write_bytes(trailer.appended(body))  # the card alone notices
  with pytest.raises(ValueError, match="SHA-256 sums differ"):
    predict.load(model)
  (model.parent / "card.json").unlink()
  model.write_bytes(content)
  with pytest.raises(ValueError, match="sum is not the one at its end") as said:
    predict.load(model)
  assert "\n" not in str(said.value)


def test_a_model_alone_is_checked_wherever_a_bit_is_flipped(model, monkeypatch):
  def nothing_is_read(content):
    raise AssertionError("damaged bytes were read")

  (model.parent / "card.json").unlink()
  original = model.read_bytes()
  assert predict.load(model).checked
  monkeypatch.setattr(export, "deserialize", nothing_is_read)
  end = len(original) - len(trailer.appended(b""))
  rng = np.random.default_rng(0)
  for place in [*rng.integers(0, end, 60), len(original) - 1]:
    content = bytearray(original)
    content[place] ^= 1 << rng.integers(8)
    model.write_bytes(content)
    with pytest.raises(ValueError, match="sum is not the one at its end"):
      predict.load(model)


def without_trailer(model):
  content = model.read_bytes()
  model.write_bytes(content[: -len(trailer.appended(b""))])


def test_a_model_that_nothing_vouches_for_is_tried_and_it_is_said(
  model, tmp_path
):
  (model.parent / "card.json").unlink()
  without_trailer(model)
  image = save(tmp_path / "a.png", pictures(1)[0])
  arrays, said = run(model, [image], tmp_path)
  np.testing.assert_allclose(arrays["probs"], reference(pictures(1)), atol=1e-6)
  assert f"note: {model} is unchecked" in said


def test_an_older_export_is_checked_by_its_card(model, tmp_path):
  without_trailer(model)
  write_card(model)
  exported = predict.load(model)
  assert exported.checked and exported.class_names == NAMES


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("import os\nos.kill(os.getpid(), 11)", "reads it with SIGSEGV$"),
    ("raise ValueError('bad' + chr(10) + 'worse')", "is damaged: worse$"),
    ("import time\ntime.sleep(60)", "not done with one image in 1 s$"),
  ],
)
def test_a_crash_of_the_trial_is_one_line(
  model, tmp_path, monkeypatch, body, message
):
  (model.parent / "card.json").unlink()
  without_trailer(model)
  (tmp_path / "trial.py").write_text(body)
  monkeypatch.setattr(predict.importlib.resources, "files", lambda _: tmp_path)
  monkeypatch.setattr(predict, "_TRIAL_SECONDS", 1 if "sleep" in body else 60)
  with pytest.raises(ValueError, match=message) as said:
    predict.load(model)
  assert "\n" not in str(said.value)


def test_plain_jax_reads_what_carries_a_digest(model):
  read = export.deserialize(bytearray(model.read_bytes()))
  probs = read.call(pictures(3))
  np.testing.assert_allclose(probs, reference(pictures(3)), atol=1e-6)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda card: None, "where a JSON object belongs"),
    (lambda card: [], "where a JSON object belongs"),
    (lambda card: float("nan"), "where a JSON object belongs"),
    (lambda card: {}, r"has no models \(an object belongs there\)"),
    (lambda card: card | {"models": []}, "has other models"),
    (lambda card: card | {"models": {"bugs": 1}}, "no JSON object models.bugs"),
    (lambda card: card | {"models": {"bugs": {}}}, "has no models.bugs.files"),
    (
      lambda card: card | {"models": {"bugs": {"files": {"bugs.jaxexp": {}}}}},
      r"has no models.bugs.files.bugs.jaxexp.sha256 \(text",
    ),
    (lambda card: {"models": card["models"]}, "has no class_names"),
    (lambda card: card | {"class_names": "abc"}, "has other class_names"),
    (lambda card: card | {"class_names": [1, 2, 3]}, "that are not all text"),
    (lambda card: card | {"class_names": ["a"]}, "has 1 class_names for the 3"),
  ],
)
def test_cards_that_lack_a_part(model, change, message):
  card = model.parent / "card.json"
  card.write_text(json.dumps(change(json.loads(card.read_text()))))
  with pytest.raises(ValueError, match=rf"card\.json is .*{message}") as said:
    predict.load(model)
  assert "\n" not in str(said.value)


@pytest.mark.parametrize(
  "content",
  [
    lambda: serialised(dtype=np.float32),
    lambda: serialised(lambda a, b: network(a + b), num=2),
    lambda: serialised(lambda x: (network(x), network(x))),
    lambda: serialised(lambda x: network(x).sum(0)),
    lambda: serialised(lambda x: network(x[..., None]), shape=SHAPE[:2]),
  ],
)
def test_programs_of_another_kind(tmp_path, content):
  path = tmp_path / "a.jaxexp"
  path.write_bytes(content())
  with pytest.raises(ValueError, match="is not a model that `kfkd export`"):
    predict.load(path)


def test_programs_for_other_devices(tmp_path):
  path = tmp_path / "a.jaxexp"
  path.write_bytes(serialised(platforms=["tpu"]))
  with pytest.raises(ValueError, match="exported for tpu, but this machine"):
    predict.load(path)


def test_programs_of_a_newer_jax(model, monkeypatch):
  """What jax 0.7.2 makes of a file that 0.10.2 wrote."""
  read = export.deserialize

  def as_if_old(content):
    return dataclasses.replace(read(content), nr_devices=0)

  monkeypatch.setattr(export, "deserialize", as_if_old)
  with pytest.raises(ValueError, match="written by a newer jax"):
    predict.load(model)


def test_unreadable_program(model, monkeypatch, capfd):
  """Whole on the outside, damaged inside, and no card to notice it."""
  (model.parent / "card.json").unlink()
  read = export.deserialize

  def damaged(content):
    exported = read(content)
    broken = exported.mlir_module_serialized[:200]
    return dataclasses.replace(exported, mlir_module_serialized=broken)

  monkeypatch.setattr(export, "deserialize", damaged)
  with pytest.raises(ValueError, match=r"is damaged, or jax .* cannot read it"):
    predict.load(model)


def test_models_by_name(model, tmp_path):
  assert predict.find("bugs", tmp_path) == epath.Path(model)
  with pytest.raises(ValueError, match=r"which holds \['bugs'\]"):
    predict.find("bug", tmp_path)
  with pytest.raises(ValueError, match="run `kfkd export` first"):
    predict.find("bugs", tmp_path / "elsewhere")
  with pytest.raises(ValueError, match="there is no such file"):
    predict.find("bugs.jaxexp", tmp_path)


def test_output_is_not_an_input(model, tmp_path):
  path = str(tmp_path / "i.npz")
  np.savez(path, images=pictures(2))
  with pytest.raises(ValueError, match="is also an input"):
    predict.run(str(model), [path], path, tmp_path)
  with pytest.raises(ValueError, match=r"must end in \.npz or \.csv"):
    predict.run(str(model), [path], str(tmp_path / "o.txt"), tmp_path)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 3, 1, 2], [0, 1, 3, 2]])
def test_command_line_in_any_order(model, tmp_path, monkeypatch, capsys, order):
  monkeypatch.chdir(tmp_path)
  save(tmp_path / "a.png", pictures(1)[0])
  save(tmp_path / "b.png", pictures(1)[0])
  parts = ["predict", "a.png", "b.png", f"--model={model}"]
  assert cli.main([parts[i] for i in order]) == 0
  assert "2 x 3 probabilities written to probs.npz" in capsys.readouterr().out
  assert files.read_npz(epath.Path("probs.npz"))["names"].tolist() == [
    "a.png",
    "b.png",
  ]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["predict", "a.png"], "predict needs --model"),
    (["predict", "--model=x.jaxexp", "a.png"], "there is no such file"),
    (["predict", "--model=x", "a.png"], "run `kfkd export` first"),
    (["run", "a.png"], "argument 'a.png' is unknown; only predict"),
    (["run", "--model=x"], "--model goes with predict, not with 'run'"),
    (["train", "--output=x.npz"], "--output goes with predict"),
  ],
)
def test_command_line_mistakes(
  arguments, message, capsys, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  assert cli.main(arguments) == 2
  err = capsys.readouterr().err
  assert message in err
  assert err.count("\n") == 1
  assert not list(tmp_path.iterdir())
