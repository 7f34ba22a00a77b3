"""Weights from files: every family there and back, names, every error."""

import functools
import json
import pathlib
import re
import struct
import tracemalloc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import test_models
from etils import epath
from tiny import tiny_config

from kfkd_jax import checkpoints, models, stages
from kfkd_jax import config as config_lib
from kfkd_jax.models import pretrained, vit
from kfkd_jax.run import build, networks, results, streams, tasks
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.training import loop

FAMILIES = [f for f in test_models.SMALL if f not in ("mlp", "cnn")]


def written(path, tensors):
  """Writes a file as PyTorch's users publish it and returns its path."""
  safetensors.numpy.save_file(
    {n: np.ascontiguousarray(x) for n, x in tensors.items()}, path
  )
  return path


def zeros(variables):
  return jax.tree.map(np.zeros_like, variables)


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def resnet_in_hugging_face(name):
  name = re.sub(r"^conv1\.", "resnet.embedder.embedder.convolution.", name)
  name = re.sub(r"^bn1\.", "resnet.embedder.embedder.normalization.", name)
  name = re.sub(r"^fc\.", "classifier.1.", name)
  for number in (1, 2, 3):
    name = name.replace(
      f"layer{number}.", f"resnet.encoder.stages.{number - 1}.layers."
    )
    name = name.replace(f".conv{number}.", f".layer.{number - 1}.convolution.")
    name = name.replace(f".bn{number}.", f".layer.{number - 1}.normalization.")
  name = name.replace(".downsample.0.", ".shortcut.convolution.")
  return name.replace(".downsample.1.", ".shortcut.normalization.")


def convnext_in_hugging_face(name):
  for timm, other in (
    ("stem.0.", "convnext.embeddings.patch_embeddings."),
    ("stem.1.", "convnext.embeddings.layernorm."),
    ("head.norm.", "convnext.layernorm."),
    ("head.fc.", "classifier."),
    ("stages.", "convnext.encoder.stages."),
    (".blocks.", ".layers."),
    (".downsample.", ".downsampling_layer."),
    (".gamma", ".layer_scale_parameter"),
    (".conv_dw.", ".dwconv."),
    (".norm.", ".layernorm."),
    (".mlp.fc", ".pwconv"),
  ):
    name = name.replace(timm, other)
  return name


def vit_in_hugging_face(name, *, release=4):
  """Published files carry the names of release 4; models, since 5, others."""
  for timm, other in (
    ("cls_token", "vit.embeddings.cls_token"),
    ("pos_embed", "vit.embeddings.position_embeddings"),
    ("patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
  ):
    name = name.replace(timm, other)
  name = re.sub(r"^norm\.", "vit.layernorm.", name)
  name = re.sub(r"^head\.", "classifier.", name)
  for timm, old, new in (
    ("blocks.", "vit.encoder.layer.", "vit.layers."),
    (".attn.proj.", ".attention.output.dense.", ".attention.o_proj."),
    (".mlp.fc1.", ".intermediate.dense.", ".mlp.fc1."),
    (".mlp.fc2.", ".output.dense.", ".mlp.fc2."),
  ):
    name = name.replace(timm, old if release == 4 else new)
  return name


def vit_tensors_in_hugging_face(tensors, *, release=4):
  parts = {
    4: ("attention.query", "attention.key", "attention.value"),
    5: ("q_proj", "k_proj", "v_proj"),
  }[release]
  out = {}
  for name, value in tensors.items():
    if ".attn.qkv." not in name:
      out[vit_in_hugging_face(name, release=release)] = value
      continue
    for part, third in zip(parts, np.split(value, 3)):
      split = name.replace(".attn.qkv.", f".attention.{part}.")
      out[vit_in_hugging_face(split, release=release)] = third
  return out


HUGGING_FACE = {
  "resnet imagenet": lambda tensors: {
    resnet_in_hugging_face(n): x for n, x in tensors.items()
  },
  "bottleneck": lambda tensors: {
    resnet_in_hugging_face(n): x for n, x in tensors.items()
  },
  "convnext": lambda tensors: {
    convnext_in_hugging_face(n): x for n, x in tensors.items()
  },
  "vit": vit_tensors_in_hugging_face,
  "vit of release 5": lambda tensors: vit_tensors_in_hugging_face(
    tensors, release=5
  ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_is_exact(family, tmp_path):
  _, variables, _ = test_models.small(family)
  tensors = pretrained.tensors(variables)
  tensors |= {
    n.replace("running_mean", "num_batches_tracked"): np.int64(7)
    for n in tensors
    if n.endswith("running_mean")
  }
  path = written(tmp_path / "w.safetensors", tensors)
  name = test_models.SMALL[family][0]
  assert_same(pretrained.load(path, zeros(variables), name=name), variables)


@pytest.mark.parametrize("family", HUGGING_FACE)
def test_hugging_face_names(family, tmp_path):
  _, variables, _ = test_models.small(family.split(" of ")[0])
  tensors = HUGGING_FACE[family](pretrained.tensors(variables))
  assert not set(tensors) & set(pretrained.tensors(variables))
  path = written(tmp_path / "w.safetensors", tensors)
  found = pretrained.load(path, zeros(variables), name="model")
  assert_same(found, variables)


def test_hugging_face_names_as_they_stand_in_published_files():
  """Spelled out once, as listed by transformers 5.23."""
  names = {
    "resnet.embedder.embedder.normalization.running_var": "bn1.running_var",
    "resnet.encoder.stages.3.layers.1.layer.2.convolution.weight": (
      "layer4.1.conv3.weight"
    ),
    "resnet.encoder.stages.0.layers.0.shortcut.normalization.bias": (
      "layer1.0.downsample.1.bias"
    ),
    "convnext.encoder.stages.2.layers.8.pwconv2.weight": (
      "stages.2.blocks.8.mlp.fc2.weight"
    ),
    "convnext.encoder.stages.1.downsampling_layer.0.weight": (
      "stages.1.downsample.0.weight"
    ),
    "convnext.embeddings.layernorm.bias": "stem.1.bias",
    "vit.encoder.layer.11.attention.output.dense.weight": (
      "blocks.11.attn.proj.weight"
    ),
    "vit.layers.11.attention.o_proj.weight": "blocks.11.attn.proj.weight",
    "vit.encoder.layer.11.output.dense.bias": "blocks.11.mlp.fc2.bias",
    "vit.embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
  }
  for given, timm in names.items():
    assert list(pretrained._timm_names({given: np.zeros(1)})) == [timm]


@pytest.mark.parametrize(
  ("code", "dtype"),
  [("BF16", jnp.bfloat16), ("F16", np.float16), ("F64", np.float64)],
)
def test_other_precisions_become_float32(code, dtype, tmp_path):
  _, variables, _ = test_models.small("resnet")
  header, body = {}, b""
  for name, value in pretrained.tensors(variables).items():
    content = value.astype(dtype).tobytes()
    header[name] = {
      "dtype": code,
      "shape": value.shape,
      "data_offsets": [len(body), len(body) + len(content)],
    }
    body += content
  head = json.dumps(header).encode()
  path = tmp_path / "w.safetensors"
  path.write_bytes(struct.pack("<Q", len(head)) + head + body)
  found = pretrained.load(path, zeros(variables), name="resnet18")
  assert_same(
    found, jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), variables)
  )


@pytest.mark.parametrize("family", ["resnet", "vit", "convnext", "maxvit"])
def test_another_number_of_classes_keeps_the_fresh_head(family, tmp_path):
  name, options, side = test_models.SMALL[family]
  _, variables, _ = test_models.small(family)
  tensors = pretrained.tensors(variables)
  path = written(tmp_path / "w.safetensors", tensors)
  other = models.create(name, 3, **options)
  fresh = jax.tree.map(
    lambda s: np.full(s.shape, 9, s.dtype),
    jax.eval_shape(
      lambda: models.init(
        other, jax.random.key(0), np.zeros((1, side, side, 3))
      )
    ),
  )
  found = pretrained.tensors(pretrained.load(path, fresh, name=name))
  head = {"resnet": "fc", "vit": "head"}.get(family, "head.fc")
  for tensor, value in found.items():
    if tensor.startswith(f"{head}."):
      assert value.shape[0] == 3 and np.all(value == 9)
    else:
      np.testing.assert_array_equal(value, tensors[tensor])


@pytest.mark.parametrize("family", ["resnet", "vit", "convnext", "maxvit"])
def test_a_file_without_a_classifier_keeps_the_fresh_head(family, tmp_path):
  name, _, _ = test_models.SMALL[family]
  _, variables, _ = test_models.small(family)
  head = {"resnet": "fc", "vit": "head"}.get(family, "head.fc")
  names = (f"{head}.weight", f"{head}.bias")
  tensors = pretrained.tensors(variables)
  kept = {n: x for n, x in tensors.items() if n not in names}
  path = written(tmp_path / "w.safetensors", kept)
  fresh = jax.tree.map(lambda x: np.full(x.shape, 9, x.dtype), variables)
  found = pretrained.tensors(pretrained.load(path, fresh, name=name))
  for tensor, value in found.items():
    np.testing.assert_array_equal(value, 9 if tensor in names else kept[tensor])


@pytest.mark.parametrize(
  ("old", "new", "resized"),
  [
    (
      2,
      3,
      [-0.2459, 0.2689, 0.7838, 1.3034, 2.2561, 3.2089, 2.8528, 4.2434, 5.6339],
    ),
    (4, 2, [6.1619, 11.2041, 33.212, 42.346]),
  ],
)
def test_position_embeddings_take_the_grid_of_the_images(
  old, new, resized, tmp_path
):
  """As timm 1.0.31 resizes the table 9, then k^1.5 for the k-th patch."""

  def filled(side, table):
    shapes = test_models.shapes_of(
      "vit_tiny", 4 * side, 5, depth=1, width=1, patch=4
    )
    variables = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    variables["params"]["pos_embed"] = np.reshape(table, (1, -1, 1))
    return variables

  given = filled(old, np.float32([9, *np.arange(old**2) ** 1.5]))
  path = written(tmp_path / "w.safetensors", pretrained.tensors(given))
  own = filled(new, np.zeros(new**2 + 1, np.float32))
  found = pretrained.load(path, own, name="vit_tiny")["params"]["pos_embed"]
  np.testing.assert_allclose(found.ravel(), [9, *resized], atol=1e-4)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda t: t | {"extra.weight": np.zeros(1)},
      "tensors that the model lacks: extra.weight",
    ),
    (
      lambda t: {n: x for n, x in t.items() if n != "bn1.weight"},
      "parameters that the file lacks: bn1.weight",
    ),
    (
      lambda t: {n: x for n, x in t.items() if n != "fc.bias"},
      "parameters that the file lacks: fc.bias",
    ),
    (
      lambda t: t | {"conv1.weight": np.zeros((4, 1, 3, 3))},
      r"other shapes: conv1.weight \(file \(4, 1, 3, 3\), "
      r"model \(4, 3, 3, 3\)\)",
    ),
    (
      lambda t: t | {"fc.weight": np.zeros((3, 7)), "fc.bias": np.zeros(3)},
      r"other shapes: fc.bias .*fc.weight \(file \(3, 7\)",
    ),
    (
      lambda t: {n.replace("layer", "stage"): x for n, x in t.items()},
      "stage1.0.bn1.bias.* and .* more; parameters that .*layer1.0.bn1.bias",
    ),
    (
      lambda t: t | {"bn1.bias": np.zeros(4, np.int32)},
      "bn1.bias in .*w.safetensors has type I32.*'F32'",
    ),
  ],
)
def test_what_does_not_fit_is_listed(change, message, tmp_path):
  _, variables, _ = test_models.small("resnet")
  tensors = change(pretrained.tensors(variables))
  path = written(tmp_path / "w.safetensors", tensors)
  with pytest.raises(ValueError, match=message) as caught:
    pretrained.load(path, zeros(variables), name="resnet18")
  assert "w.safetensors" in str(caught.value)
  assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
  _, variables, _ = test_models.small("resnet")
  path = tmp_path / "w.safetensors"
  with pytest.raises(ValueError, match=r"there is no file .*w\.safetensors"):
    pretrained.load(path, variables, name="resnet18")
  whole = written(path, pretrained.tensors(variables)).read_bytes()
  for damaged in (b"", whole[:20], whole[:-1], b"\xff" * 100):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"w\.safetensors is not a whole"):
      pretrained.load(path, variables, name="resnet18")


def with_header(header, *, body=b"", length=None):
  """A safetensors file whose header says anything."""
  if not isinstance(header, bytes):
    header = json.dumps(header).encode()
  return struct.pack("<Q", length or len(header)) + header + body


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
  return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE = {
  "endless header": with_header(b"{}", length=2**62),
  "header beyond the file": with_header(b"{}", length=10**6),
  "header of nothing": with_header(b" " * 50),
  "header that is no JSON": with_header(b"{" * 500),
  "deep header": with_header(b'{"a":' * 10**5),
  "list": with_header([1, 2]),
  "no offsets": with_header({"w": {"dtype": "F32", "shape": [4]}}),
  "offsets beyond the file": with_header({"w": entry(shape=[2**40],
    offsets=[0, 2**42])}, body=bytes(16)),
  "negative offsets": with_header({"w": entry(offsets=[-16, 0])},
    body=bytes(16)),
  "offsets backwards": with_header({"w": entry(offsets=[16, 0])},
    body=bytes(16)),
  "overlapping": with_header({"v": entry(), "w": entry(offsets=[8, 24])},
    body=bytes(24)),
  "same bytes twice": with_header({"v": entry(), "w": entry()},
    body=bytes(16)),
  "a hole": with_header({"v": entry(), "w": entry(offsets=[32, 48])},
    body=bytes(48)),
  "bytes left over": with_header({"w": entry()}, body=bytes(24)),
  "shorter numbers than declared": with_header({"w": entry("F64")},
    body=bytes(16)),
  "longer numbers than declared": with_header({"w": entry("F16")},
    body=bytes(16)),
  "unknown numbers": with_header({"w": entry("F31")}, body=bytes(16)),
  "another shape": with_header({"w": entry(shape=[5])}, body=bytes(16)),
  "overflowing shape": with_header({"w": entry(shape=[2**33, 2**33])},
    body=bytes(16)),
  "negative shape": with_header({"w": entry(shape=[-4])}, body=bytes(16)),
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_headers_that_lie_are_refused(content, tmp_path):
  _, variables, _ = test_models.small("resnet")
  path = tmp_path / "w.safetensors"
  path.write_bytes(content)
  tracemalloc.start()
  with pytest.raises(ValueError, match=r"w\.safetensors is not a whole") as e:
    pretrained.load(path, variables, name="resnet18")
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert "\n" not in str(e.value)
  assert peak < 2**20 + 3 * len(content)


def test_damaged_headers_never_give_other_shapes(tmp_path):
  """300 changed bytes: refused in one line, or every shape still fits."""
  _, variables, _ = test_models.small("resnet")
  whole = written(
    tmp_path / "w.safetensors", pretrained.tensors(variables)
  ).read_bytes()
  (length,) = struct.unpack("<Q", whole[:8])
  rng, said = np.random.default_rng(0), []
  for place, byte in rng.integers(0, (8 + length, 256), (300, 2)):
    damaged = bytearray(whole)
    damaged[place] = byte
    (tmp_path / "w.safetensors").write_bytes(damaged)
    try:
      found = pretrained.load(
        tmp_path / "w.safetensors", variables, name="resnet18"
      )
    except ValueError as error:
      said.append(str(error))
      continue
    jax.tree.map(lambda a, b: chex.assert_equal_shape([a, b]), found, variables)
  assert len(said) > 200
  assert "\n" not in "".join(said)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
  _, variables, _ = test_models.small("resnet")
  tensors = pretrained.tensors(variables)
  tensors["bn1.bias"] = np.full_like(tensors["bn1.bias"], np.nan)
  path = written(tmp_path / "w.safetensors", tensors)
  with pytest.raises(ValueError, match=r"bn1\.bias in .* not all finite"):
    pretrained.load(path, variables, name="resnet18")


def test_models_without_published_weights_say_so(tmp_path):
  _, variables, _ = test_models.small("cnn")
  with pytest.raises(ValueError, match=r"no pretrained weights for .*'cnn'"):
    pretrained.load(tmp_path / "w.safetensors", variables, name="cnn")


@pytest.fixture
def config(tmp_path, monkeypatch):
  """A small ViT on a few digits, to start from `w.safetensors`."""
  tiny = functools.partial(vit.ViT, depth=1, head_width=2)
  monkeypatch.setitem(models.MODELS, "vit_tiny", tiny)
  config = tiny_config(
    model__name="vit_tiny",
    model__width="4",
    model__patch="4",
    train__epochs="1",
  )
  config.model.pretrained = str(tmp_path / "w.safetensors")  # not yet there
  return config


def file_for(config, tmp_path, classes):
  """A file of random values for the configured model with other classes."""
  task = tasks.load_task(config)
  module = build.make_module(Workspace(config)).clone(num_classes=classes)
  shapes = jax.eval_shape(
    lambda: models.init(module, jax.random.key(0), task.images[:1])
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes
  )
  return written(
    tmp_path / "w.safetensors", pretrained.tensors(variables)
  ), variables


def test_training_starts_from_the_file(config, tmp_path, monkeypatch):
  _, variables = file_for(config, tmp_path, classes=1000)
  given = {}

  class StopHereError(Exception):
    pass

  def stop(run, recipe, *args, **kwargs):
    given[run.name] = (recipe, kwargs)
    raise StopHereError

  monkeypatch.setattr(loop, "train", stop)
  for member in (0, 1):
    plan = networks.Plan(
      f"m{member}", lambda: networks.supervised(config), {}, member=member
    )
    with pytest.raises(StopHereError):
      networks.carry_out(Workspace(config, epath.Path(tmp_path)), plan)
  starts = [given[f"m{m}"][1]["init_from"]["params"] for m in (0, 1)]
  for start in starts:
    kept = {k: v for k, v in start.items() if k != "head"}
    body = {k: v for k, v in variables["params"].items() if k != "head"}
    assert_same(kept, body)
  heads = [np.asarray(s["head"]["kernel"]) for s in starts]
  assert heads[0].shape == (4, 10) and np.abs(heads[0] - heads[1]).max() > 0

  recipe, kwargs = given["m0"]
  state = loop._initial_state(
    recipe._replace(average_decay=0.9),
    networks.supervised(config).objective,
    kwargs["seeds"],
    {"image": tasks.load_task(config).images},
    kwargs["init_from"],
    kwargs["mesh"],
  )
  assert_same(state.average, kwargs["init_from"])
  assert_same(state.variables, kwargs["init_from"])


def test_transfer_trains_the_head_alone_and_then_the_rest(config, tmp_path):
  """The recipe of configs/transfer.py, with small weights made on the spot."""
  recipe = pathlib.Path(__file__).parents[2] / "configs" / "transfer.py"
  changes = {
    "model.width": "4",
    "model.patch": "8",
    "history.every": "1",
    "history.dtype": "float32",
  }
  narrow = config_lib.read(f"{recipe}:runlocal,model=vit_tiny", changes.items())
  path, variables = file_for(narrow, tmp_path, classes=1000)
  config = config_lib.read(
    f"{recipe}:runlocal,model=vit_tiny,weights={path}", changes.items()
  )
  stages.run_stage(config, epath.Path(tmp_path / "w"), "train")
  space = Workspace(config, epath.Path(tmp_path / "w"))
  with results.open_history(space.path, "teacher") as history:
    first, second = (
      history.restore(epoch, results.template(space))["params"]
      for epoch in (1, 2)
    )
  given = variables["params"]
  body = [name for name in given if name != "head"]
  assert_same({n: first[n] for n in body}, {n: given[n] for n in body})
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(),
    {n: second[n] for n in body},
    {n: given[n] for n in body},
  )
  assert min(jax.tree.leaves(moved)) > 0
  assert np.abs(second["head"]["bias"] - first["head"]["bias"]).max() > 0
  assert first["head"]["kernel"].shape == (4, 5)
  assert np.abs(first["head"]["bias"]).max() > 0  # drawn as zeros


def test_without_a_file_training_starts_fresh(config):
  config.model.pretrained = None
  seeds = streams.seeds_for(config)
  assert build.initial_variables(Workspace(config), seeds) is None


def test_a_run_without_learning_ends_with_the_files_weights(config, tmp_path):
  _, variables = file_for(config, tmp_path, classes=10)
  config.optim.learning_rate = 0.0
  config.optim.weight_decay = 0.0
  plan = networks.Plan("m", lambda: networks.supervised(config), {})
  networks.carry_out(Workspace(config, epath.Path(tmp_path)), plan)
  with checkpoints.Checkpoints(epath.Path(tmp_path) / "runs/m/history") as h:
    found = h.restore(1, results.template(Workspace(config)))
  assert_same(found, variables)
