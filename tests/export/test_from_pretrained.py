"""Networks from folders of an export: what they say, what is refused."""

import hashlib
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from PIL import Image

import kfkd_jax
from kfkd_jax import history, models
from kfkd_jax.training import step

CONFIG = {
  "method": "kf_kd",
  "model": {"name": "mlp", "width": 4, "dtype": "float32"},
  "class_names": ["ant", "bee", "cat"],
  "image_shape": [4, 4, 3],
  "mean": [0.5, 0.4, 0.3],
  "std": [0.2, 0.3, 0.4],
}
MODULE = models.create("mlp", 3, width=4)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)


def variables(seed):
  return models.init(MODULE, jax.random.key(seed), IMAGES[:1])


def write(folder, arrays=None, **changes):
  """The two files of a network; changes of None take a part away."""
  if arrays is None:
    arrays = traverse_util.flatten_dict(variables(0), sep="/")
  content = safetensors.numpy.save(jax.tree.map(np.asarray, arrays))
  (folder / "model.safetensors").write_bytes(content)
  config = {**CONFIG, "sha256": hashlib.sha256(content).hexdigest(), **changes}
  config = {key: value for key, value in config.items() if value is not None}
  (folder / "config.json").write_text(json.dumps(config))
  return folder


def logits(seed, images=IMAGES):
  views = step.Views((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
  return step.eval_apply(MODULE)(variables(seed), views.clean(images))


def test_arrays_say_what_the_network_says(tmp_path):
  model = kfkd_jax.from_pretrained(write(tmp_path))
  expected = jax.nn.softmax(logits(0))
  np.testing.assert_allclose(model.predict(IMAGES), expected, atol=1e-6)
  said = model.apply_fn(model.variables, IMAGES)
  np.testing.assert_allclose(said, logits(0), atol=1e-5)
  assert model.class_names == ("ant", "bee", "cat")
  assert model.card == {}


def test_pictures_by_name_or_opened_say_the_same(tmp_path):
  model = kfkd_jax.from_pretrained(str(write(tmp_path)))
  shown = [Image.fromarray(pixels) for pixels in IMAGES]
  for number, picture in enumerate(shown):
    picture.resize((6, 4)).save(tmp_path / f"{number}.png")
  shown = [picture.resize((6, 4)) for picture in shown]
  paths = sorted(tmp_path.glob("*.png"))
  probs = model.predict(shown)
  assert probs.shape == (5, 3)
  for given in (paths, str(tmp_path), f"{tmp_path}/*.png"):
    np.testing.assert_array_equal(model.predict(given), probs)
  np.testing.assert_allclose(model.predict(shown[2])[0], probs[2], atol=1e-6)
  np.testing.assert_allclose(model.predict(paths[2])[0], probs[2], atol=1e-6)


def test_a_fusion_is_the_weighted_sum_of_its_networks(tmp_path):
  stacked = history.stack_checkpoints([variables(0), variables(1)])
  arrays = traverse_util.flatten_dict(stacked, sep="/")
  arrays["weights"] = np.array([0.25, 0.75], np.float32)
  model = kfkd_jax.from_pretrained(write(tmp_path, arrays))
  probs = [jax.nn.softmax(logits(seed)) for seed in (0, 1)]
  np.testing.assert_allclose(
    model.predict(IMAGES), 0.25 * probs[0] + 0.75 * probs[1], atol=1e-6
  )


def test_weights_of_half_the_size_are_widened(tmp_path):
  arrays = traverse_util.flatten_dict(variables(0), sep="/")
  halves = {name: np.float16(array) for name, array in arrays.items()}
  model = kfkd_jax.from_pretrained(write(tmp_path, halves))
  assert {x.dtype.name for x in jax.tree.leaves(model.variables)} == {"float32"}
  expected = jax.nn.softmax(logits(0))
  np.testing.assert_allclose(model.predict(IMAGES), expected, atol=1e-2)


@pytest.mark.parametrize(
  ("images", "message"),
  [
    (IMAGES / 255, "images are float64; the model takes uint8"),
    (IMAGES[0], r"shape \(4, 4, 3\); the model takes \(N, 4, 4, 3\)"),
    (IMAGES[:0], "images are none"),
    ([], "predict needs inputs"),
    ("nowhere.png", "nowhere.png"),
    ([Image.new("I;16", (4, 4))], r"images\[0\] has pixels of more than 8"),
  ],
)
def test_images_that_do_not_fit(tmp_path, images, message):
  model = kfkd_jax.from_pretrained(write(tmp_path))
  with pytest.raises((ValueError, OSError), match=message):
    model.predict(images)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model": {"name": "lenet", "dtype": "float32"}}, "name 'lenet' is unkn"),
    ({"model": {"name": "mlp", "stem": 9, "dtype": "float32"}}, "stem=9"),
    ({"model": None}, "KeyError: 'model'"),
    ({"model": {"name": "mlp", "dtype": "float7"}}, "float7"),
    ({"class_names": [1, 2, 3]}, "class_names are not all text"),
    ({"mean": [0.5, 0.4]}, "describes no network"),
    ({"image_shape": [4, 4, 10**12]}, "Dense_0/kernel is|describes no network"),
    ({"class_names": ["a", "b"]}, r"Dense_2/\w+ is \(\d+,"),
    ({"sha256": "0" * 64}, "is damaged or replaced"),
  ],
)
def test_a_config_that_does_not_fit(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message) as told:
    kfkd_jax.from_pretrained(write(tmp_path, **changes))
  assert "\n" not in str(told.value) and str(tmp_path) in str(told.value)


def test_weights_that_do_not_fit(tmp_path):
  arrays = traverse_util.flatten_dict(variables(0), sep="/")
  arrays["params/more"] = arrays.pop("params/Dense_0/bias")
  with pytest.raises(ValueError, match=r"Dense_0/bias is missing and .*absent"):
    kfkd_jax.from_pretrained(write(tmp_path, arrays))
  write(tmp_path, sha256=None)
  path = tmp_path / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-4])
  with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
    kfkd_jax.from_pretrained(tmp_path)
  path.unlink()
  with pytest.raises(
    ValueError, match=r"holds no model.safetensors; `kfkd exp"
  ):
    kfkd_jax.from_pretrained(tmp_path)


def test_a_revision_goes_with_a_repository(tmp_path):
  with pytest.raises(ValueError, match="revision='v1' goes with OWNER/NAME"):
    kfkd_jax.from_pretrained(write(tmp_path), revision="v1")
  with pytest.raises(ValueError, match="'a/b/c' is neither a folder nor OWNER"):
    kfkd_jax.from_pretrained("a/b/c")
