"""Published weights from a `.safetensors` file of timm or Hugging Face.

The zoo names its layers as timm does (wide ResNets as their usual PyTorch code
does), so a tensor's name is the path of its parameter, and only layouts differ.
Hugging Face's names are rewritten into timm's first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath
from flax import traverse_util

from kfkd_jax import files

Tensors = dict[str, Any]

# Their layers are numbered by the order of calls, and nobody publishes them.
UNPUBLISHED = ("mlp", "cnn")

_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "mean": "running_mean",
  "var": "running_var",
}
_DTYPES = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": jnp.bfloat16,
}
_HEADS = ("head.fc", "head", "fc", "classifier")  # names of the last layer
# Filters are height, width, in, out here; out, in, height, width there.
_TO_TORCH, _TO_FLAX = (3, 2, 0, 1), (2, 3, 1, 0)


def load(
  path: epath.PathLike, variables: dict[str, Any], *, name: str
) -> dict[str, Any]:
  """Fills a model's variables from a file.

  Where the file has no classifier, or one of another number of classes, the
  model keeps its own. Position embeddings of another grid are resized. Apart
  from these, every tensor has to be used and every parameter filled.

  Args:
    path: of a `.safetensors` file.
    variables: `{"params", "batch_stats"}` of the model, from `models.init`.
    name: of the model, for messages.

  Returns:
    New variables of the same structure, NumPy arrays where the file filled
    them.
  """
  if name in UNPUBLISHED:
    raise ValueError(f"there are no pretrained weights for model {name!r}")
  own = tensors(variables)
  found = _timm_names(_read(path))
  _resize_positions(found, own)
  for leaf in _fresh_head(found, own):
    found[leaf] = own[leaf]
  _check_complete(path, name, found, own)
  return {
    collection: traverse_util.unflatten_dict(
      {
        keys: _turned(keys, found[_name(keys)], _TO_FLAX)
        for keys in traverse_util.flatten_dict(tree)
      }
    )
    for collection, tree in variables.items()
  }


def tensors(variables: dict[str, Any]) -> Tensors:
  """Variables under timm's names and in PyTorch's layouts: `load` reversed."""
  return {
    _name(keys): _turned(keys, leaf, _TO_TORCH)
    for tree in variables.values()
    for keys, leaf in traverse_util.flatten_dict(tree).items()
  }


def head_mask(params: dict[str, Any]) -> dict[str, Any]:
  """True for the parameters of the last layer, False for all others."""
  return {
    name: jax.tree.map(lambda _, name=name: name in _HEADS, tree)
    for name, tree in params.items()
  }


def _name(keys: tuple[str, ...]) -> str:
  return ".".join((*keys[:-1], _LEAVES.get(keys[-1], keys[-1])))


def _turned(
  keys: tuple[str, ...], leaf: chex.Array, axes: tuple[int, ...]
) -> chex.Array:
  """A kernel with its axes in another order, `axes` if it is a filter."""
  if keys[-1] != "kernel":
    return leaf
  return leaf.transpose(axes if leaf.ndim == 4 else (1, 0))


def _read(path: epath.PathLike) -> Tensors:
  path = epath.Path(path)
  if not path.exists():
    raise ValueError(f"pretrained weights: there is no file {path}")
  try:
    entries = safetensors.deserialize(files.read_bytes(path))
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"pretrained weights: {path} is not a whole safetensors file: {error}"
    ) from error
  # PyTorch counts BatchNorm's batches; no prediction depends on the count.
  return {
    name: _decoded(path, name, entry)
    for name, entry in entries
    if not name.endswith(".num_batches_tracked")
  }


def _decoded(path: epath.Path, name: str, entry: dict[str, Any]) -> np.ndarray:
  if entry["dtype"] not in _DTYPES:
    raise ValueError(
      f"pretrained weights: {name} in {path} has type {entry['dtype']}; it "
      f"must be one of {sorted(_DTYPES)}"
    )
  values = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]])
  values = values.reshape(entry["shape"]).astype(np.float32)
  if not np.isfinite(values).all():
    raise ValueError(
      f"pretrained weights: {name} in {path}: the numbers are not all finite"
    )
  return values


Rules = list[tuple[str, str | Callable[[re.Match], str]]]

# Hugging Face's names by their first part; each rule rewrites what the rules
# before it left.
_HUGGING_FACE: dict[str, Rules] = {
  "resnet": [
    (r"^resnet\.embedder\.embedder\.convolution", "conv1"),
    (r"^resnet\.embedder\.embedder\.normalization", "bn1"),
    (
      r"^resnet\.encoder\.stages\.(\d+)\.layers",
      lambda m: f"layer{int(m[1]) + 1}",
    ),
    (r"layer\.(\d+)\.convolution", lambda m: f"conv{int(m[1]) + 1}"),
    (r"layer\.(\d+)\.normalization", lambda m: f"bn{int(m[1]) + 1}"),
    (r"shortcut\.convolution", "downsample.0"),
    (r"shortcut\.normalization", "downsample.1"),
    (r"^classifier\.1", "fc"),
  ],
  "convnext": [
    (r"^convnext\.embeddings\.patch_embeddings", "stem.0"),
    (r"^convnext\.embeddings\.layernorm", "stem.1"),
    (r"^convnext\.layernorm", "head.norm"),
    (r"^convnext\.encoder\.", ""),
    (r"\.downsampling_layer\.", ".downsample."),
    (r"\.layers\.", ".blocks."),
    (r"\.layer_scale_parameter", ".gamma"),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.layernorm\.", ".norm."),
    (r"\.pwconv(\d)", r".mlp.fc\1"),
    (r"^classifier", "head.fc"),
  ],
  "vit": [
    (r"^vit\.embeddings\.cls_token", "cls_token"),
    (r"^vit\.embeddings\.position_embeddings", "pos_embed"),
    (r"^vit\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^vit\.layernorm", "norm"),
    (r"^vit\.(encoder\.layer|layers)\.", "blocks."),
    (r"\.attention\.attention\.(q|k|v)(uery|ey|alue)\.", r".attn.\1."),
    (r"\.attention\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^classifier", "head"),
  ],
}


def _timm_names(found: Tensors) -> Tensors:
  """The tensors under timm's names, whichever of the two they came with."""
  first_parts = {name.split(".")[0] for name in found}
  rules = [
    rule
    for family, rules in _HUGGING_FACE.items()
    if family in first_parts
    for rule in rules
  ]
  renamed = {}
  for name, value in found.items():
    for pattern, replacement in rules:
      name = re.sub(pattern, replacement, name)
    renamed[name] = value
  # Hugging Face has three matrices where timm has one.
  for query in [n for n in renamed if ".attn.q." in n]:
    parts = [query.replace(".attn.q.", f".attn.{p}.") for p in "qkv"]
    if all(part in renamed for part in parts):
      fused = np.concatenate([renamed.pop(part) for part in parts])
      renamed[query.replace(".attn.q.", ".attn.qkv.")] = fused
  return renamed


def _resize_positions(found: Tensors, own: Tensors) -> None:
  """Resizes a square grid of position embeddings to the model's, bicubic."""
  if "pos_embed" not in found or "pos_embed" not in own:
    return
  given, (_, count, width) = found["pos_embed"], own["pos_embed"].shape
  old, new = (math.isqrt(n - 1) for n in (given.shape[1], count))
  squares = old**2 + 1 == given.shape[1] and new**2 + 1 == count
  if old == new or not squares or given.shape[2] != width:
    return
  # The class token's embedding, the first, has no place in the grid.
  grid = jax.image.resize(
    given[:, 1:].reshape(1, old, old, width), (1, new, new, width), "bicubic"
  )
  found["pos_embed"] = np.concatenate(
    [given[:, :1], np.asarray(grid).reshape(1, -1, width)], axis=1
  )


def _fresh_head(found: Tensors, own: Tensors) -> list[str]:
  """Names of the classifier's tensors if the file has none that fits."""
  head = next(h for h in _HEADS if f"{h}.weight" in own)
  names = [f"{head}.weight", f"{head}.bias"]
  if not any(n in found for n in names):
    return [n for n in names if n in own]
  if not all(n in found and n in own for n in names):
    return []
  classes = {found[n].shape[0] for n in names}
  fits = found[names[0]].shape[1:] == own[names[0]].shape[1:]
  differs = classes != {own[names[0]].shape[0]}
  return names if fits and differs and len(classes) == 1 else []


def _check_complete(
  path: epath.PathLike, name: str, found: Tensors, own: Tensors
) -> None:
  unused = [n for n in found if n not in own]
  unfilled = [n for n in own if n not in found]
  misfits = [
    f"{n} (file {found[n].shape}, model {own[n].shape})"
    for n in found
    if n in own and found[n].shape != own[n].shape
  ]
  problems = {
    "tensors that the model lacks": unused,
    "parameters that the file lacks": unfilled,
    "other shapes": misfits,
  }
  said = [
    f"{what}: {_some(names)}" for what, names in problems.items() if names
  ]
  if said:
    raise ValueError(
      f"pretrained weights: {path} does not fit model {name!r}; "
      + "; ".join(said)
    )


def _some(names: list[str], limit: int = 8) -> str:
  rest = f" and {len(names) - limit} more" if len(names) > limit else ""
  return ", ".join(sorted(names)[:limit]) + rest
