"""Writes networks and fused ensembles as files that need none of this package.

Each model leaves in `export/` a program with its weights inside, StableHLO
through `jax.export` for any batch size and several kinds of device, and its
weights by name. A card says what they are and what they scored. One of them,
`config.json` and `model.safetensors`, is the model of the folder as the Hugging
Face Hub lays it out.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import jinja2
import ml_collections
import numpy as np
import safetensors.numpy
from etils import epath
from flax import traverse_util

import kfkd_jax
from kfkd_jax import (
  catalogue,
  files,
  fusion,
  history,
  models,
  parallel,
  processes,
)
from kfkd_jax.data import hub as hub_data
from kfkd_jax.data import splits
from kfkd_jax.export import formats, hub, pretrained, saved_model, trailer
from kfkd_jax.report import text, verdict
from kfkd_jax.run import (
  build,
  forecast,
  results,
  seals,
  students,
  workspace,
)
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.training import step

# Largest difference of a probability from the live model's, by compute type:
# the compiler may keep or drop roundings to bfloat16 as it likes.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
_MAX_BYTES = 2**31 - 2**20  # what a flatbuffer holds, and room for the program


class Model(NamedTuple):
  """A model to export: one network, or several with weights.

  Attributes:
    method: its slug.
    epochs: of each network, M numbers.
    stacked: variables `[M, ...]`.
    weights: `f32[M]`, convex.
    space: its network is that of the model.
  """

  method: str
  epochs: list[int]
  stacked: dict[str, Any]
  weights: np.ndarray
  space: Workspace

  @property
  def is_fusion(self) -> bool:
    return self.method in catalogue.FUSIONS


PredictFn = Callable[[jax.Array], Any]


def run(space: Workspace) -> str:
  """Writes `export/`; returns what is in it and how exact it is."""
  found = [read(space, method) for method in methods(space.config)]
  return processes.on_main(_export, space, found)


def _export(space: Workspace, found: Sequence[Model]) -> str:
  folder = epath.Path(space.path) / "export"
  programs = {m.method: serialise(m) for m in found}
  gaps = check_parity(space, found, programs)
  # Models of an earlier export go, and nothing else.
  for method, suffix in itertools.product(
    catalogue.EXPORTABLE, formats.ALL_SUFFIXES
  ):
    if (folder / f"{method}{suffix}").exists():
      formats.remove(folder / f"{method}{suffix}")
  written = {m.method: _write(folder, m, programs) for m in found}
  said = _other_formats(space, found, folder)
  rows = _tested(space)
  main = main_model(found, rows)
  _write_main(folder, main)
  card = make_card(space, found, written, gaps, rows, main.method)
  files.write_text(folder / "README.md", render_card(card))
  files.write_text(
    folder / pretrained.CARD, text.without_markup(files.to_json(card))
  )
  models = [
    f"{method}{end}" for method in programs for end in formats.ALL_SUFFIXES
  ]
  there = [name for name in models if (folder / name).exists()]
  seals.write_sums(
    folder,
    [
      "README.md",
      pretrained.CARD,
      pretrained.CONFIG,
      pretrained.WEIGHTS,
      *there,
    ],
  )
  size = sum(f["bytes"] for part in written.values() for f in part.values())
  return (
    f"export/ with {', '.join(programs)}, {forecast.shown(size)}; differs from "
    f"the live models by at most {max(gaps.values()):.1e}; {said}; "
    f"{pretrained.WEIGHTS} is {main.method}"
    + "".join(f"\nWARNING: {line}" for line in card["warnings"])
  )


def methods(config: ml_collections.ConfigDict) -> list[str]:
  """The slugs of what is exported."""
  if config.export.models is not None:
    return list(config.export.models)
  taught = [students.student_name(t) for t in config.distill.teachers]
  return ["final", *catalogue.FUSIONS, *taught]


def main_model(
  found: Sequence[Model], rows: Mapping[str, Mapping[str, Any]]
) -> Model:
  """Whom somebody is given who takes the folder for one model.

  One network before several, and of these a student, for that is what a run is
  for, unless it is clearly below the final network.
  """
  return min(
    found,
    key=lambda model: (
      model.is_fusion,
      rows[model.method]["gain_interval"][1] < 0,
      not catalogue.taught_by(model.method),
    ),
  )


def _tested(space: Workspace) -> dict[str, dict[str, Any]]:
  """The row of each method, in the fold that chose the weights."""
  rows = files.read_json_lines(space.path / "results.jsonl")
  return {r["method"]: r for r in rows if r["split"] in ("test", "test/0")}


def make_apply_fn(space: Workspace) -> step.ApplyFn:
  """`(variables, images u8[B, H, W, Ch]) -> logits[B, K]`, in eval mode."""
  return step.clean_apply(build.make_module(space), build.make_views(space))


def read(space: Workspace, method: str) -> Model:
  """The networks behind a method and their weights, from the disk."""
  content = processes.on_main(files.read_json, space.path / "fusion.json")
  epochs = content["epochs"]
  run_name = workspace.TEACHER
  if method in catalogue.FUSIONS:
    weights = results.weights_of(space.path, method)
  elif method == "final":
    weights = np.asarray(fusion.final_only(len(epochs)))
  else:
    run_name, weights = method, np.ones(1, np.float32)
    epochs = [space.config.distill.epochs or space.config.train.epochs]
  members = [epochs[c] for c in np.flatnonzero(weights)]
  return Model(
    method,
    members,
    *results.read_members(space, weights, name=run_name),
    results.configured_as(space, run_name),
  )


def make_predict(model: Model, *, impl: str = "map") -> PredictFn:
  """`images u8[B, H, W, Ch] -> probs f32[B, K]`, the weights inside.

  An ensemble's networks run one after the other in a loop, so that the program
  is as small as that of one; with `impl="loop"` each is written out.
  """
  apply_fn = make_apply_fn(model.space)
  if len(model.weights) == 1:
    variables = history.take_checkpoints(model.stacked, 0)

    def predict(images):
      return history.predict(apply_fn, variables, images)

  else:

    def predict(images):
      return history.fused_predict(
        apply_fn, model.stacked, model.weights, images, impl=impl
      )

  return predict


def serialise(model: Model) -> bytes:
  """The content of a `.jaxexp` file."""
  size = sum(x.nbytes for x in jax.tree.leaves(model.stacked))
  if size > _MAX_BYTES:
    raise ValueError(
      f"{model.method} has {len(model.epochs)} networks of together "
      f"{size / 2**30:.1f} GiB, and a file holds less than 2 GiB; leave it out "
      "of export.models, or fuse fewer networks (fuse.max_members)"
    )
  (batch,) = jax.export.symbolic_shape("b")
  shape = (batch, *_image_shape(model.space))
  images = jax.ShapeDtypeStruct(shape, jnp.uint8)
  predict = jax.jit(make_predict(model))
  with formats.no_source_paths():
    exported = jax.export.export(predict, platforms=saved_model.PLATFORMS)(
      images
    )
    # Without derivatives, for which nobody asks and which would double it.
    return trailer.appended(bytes(exported.serialize(vjp_order=0)))


def check_parity(
  space: Workspace,
  found: Sequence[Model],
  programs: Mapping[str, bytes],
) -> dict[str, float]:
  """Largest difference of each program from its live model, by method.

  The programs run in a process of their own, which knows JAX alone. Both sides
  use the CPU: an accelerator cannot be shared between processes, and rounds
  more.

  Raises:
    ParityError: a difference is above what rounding explains.
  """
  task = space.task
  images = task.splits["test"].images[: space.config.export.parity_examples]
  outside = run_outside(programs, images)
  tolerance = TOLERANCE[space.config.model.dtype]
  gaps = {}
  for model in found:
    live = live_probs(model, images)
    gap = float(np.abs(outside[model.method] - live).max())
    if not gap <= tolerance:  # not a number must fail as well
      raise formats.ParityError(
        f"{model.method}.jaxexp differs from the live model by {gap:.1e}, "
        f"above {tolerance:.0e}; nothing was exported"
      )
    gaps[model.method] = gap
  return gaps


def live_probs(model: Model, images: np.ndarray) -> np.ndarray:
  """What the model says before export, network by network: `f64[N, K]`."""
  apply_fn = make_apply_fn(model.space)
  with jax.default_device(parallel.cpu()):
    probs = [
      history.predict(apply_fn, member, images)
      for member in history.unstack_checkpoints(model.stacked)
    ]
  # In float64, so that a difference is the program's and not this sum's.
  return np.einsum("m,mnk->nk", model.weights.astype(np.float64), probs)


def run_outside(
  programs: Mapping[str, bytes], images: np.ndarray
) -> dict[str, np.ndarray]:
  """Probabilities by method, from a process that imports JAX alone."""
  script = importlib.resources.files("kfkd_jax.export") / "standalone.py"
  with (
    importlib.resources.as_file(script) as main,
    tempfile.TemporaryDirectory() as temporary,
  ):
    folder = pathlib.Path(temporary)
    np.save(folder / "images.npy", images)
    arguments = [str(folder / "images.npy")]
    for name, program in programs.items():
      (folder / f"{name}.jaxexp").write_bytes(program)
      arguments += [str(folder / f"{name}{e}") for e in (".jaxexp", ".npy")]
    done = subprocess.run(
      # -P: the script's folder, which is this package's, is not on the path.
      [sys.executable, "-P", str(main), *arguments],
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      stderr=subprocess.PIPE,
      text=True,
    )
    if done.returncode:
      last = (done.stderr.strip() or "no message").splitlines()[-1]
      raise formats.ParityError(f"the exported models do not run: {last}")
    return {name: np.load(folder / f"{name}.npy") for name in programs}


def weights_file(model: Model) -> bytes:
  """The content of a `.safetensors` file: arrays by name, and what they are.

  Names are paths such as `params/Dense_0/kernel`; a fusion's have the leading
  axis M, and `weights` holds the networks' weights `[M]`.
  """
  variables = model.stacked
  if not model.is_fusion:
    variables = history.take_checkpoints(variables, 0)
  tensors = traverse_util.flatten_dict(variables, sep="/")
  if model.is_fusion:
    tensors["weights"] = model.weights
  content = safetensors.numpy.save(
    {k: np.ascontiguousarray(v) for k, v in tensors.items()},
    {
      "format": "flax",
      "kfkd_jax": kfkd_jax.__version__,
      **{n: files.to_json(value) for n, value in describe(model).items()},
    },
  )
  return _with_sorted_header(content)


def describe(model: Model) -> dict[str, Any]:
  """What it takes to build the network again and to use it."""
  views = build.make_views(model.space)
  return {
    "method": model.method,
    "model": build.model_options(model.space.config),
    "epochs": model.epochs,
    "image_shape": _image_shape(model.space),
    "mean": views.mean,
    "std": views.std,
    "class_names": model.space.task.class_names,
  }


def _with_sorted_header(content: bytes) -> bytes:
  """The same `.safetensors`; its writer shuffles the metadata each time."""
  end = 8 + int.from_bytes(content[:8], "little")
  header = json.dumps(json.loads(content[8:end]), sort_keys=True).encode()
  header += b" " * (-len(header) % 8)  # the arrays begin at a multiple of 8
  return len(header).to_bytes(8, "little") + header + content[end:]


def make_card(
  space: Workspace,
  found: Sequence[Model],
  written: Mapping[str, Mapping[str, Any]],
  gaps: Mapping[str, float],
  rows: Mapping[str, Mapping[str, Any]],
  main: str,
) -> dict[str, Any]:
  """What the files are, where they come from and what they scored."""
  task = space.task
  views = build.make_views(space)
  ledger = splits.read_ledger(space.path / "noise.npz")
  exported = [m.method for m in found]
  return {
    "main": main,
    "metadata": hub.metadata(
      task.name, rows[main], license_id=space.config.export.license
    ),
    "versions": {"kfkd_jax": kfkd_jax.__version__, "jax": jax.__version__},
    "platforms": saved_model.PLATFORMS,
    "input": {"dtype": "uint8", "shape": _image_shape(space)},
    "normalisation": {"mean": views.mean, "std": views.std},
    "class_names": task.class_names,
    "data": {
      "name": hub_data.shown(task.name),
      "num_train": len(task.given),
    },
    "noise": {
      "kind": space.config.noise.kind,
      "rate": ledger.realised_rate("train"),
    },
    "objective": catalogue.method_name(space.config.train.objective),
    "level": space.config.compare.level,
    "warnings": verdict.warn([*rows.values()], methods=exported),
    "parity_examples": space.config.export.parity_examples,
    "models": {
      model.method: {
        "title": catalogue.method_name(model.method),
        "epochs": model.epochs,
        "weights": model.weights,
        "network": {
          **build.model_options(model.space.config),
          "num_parameters": models.num_parameters(
            history.take_checkpoints(model.stacked, 0)
          ),
        },
        "result": rows[model.method],
        "parity": gaps[model.method],
        "files": written[model.method],
      }
      for model in found
    },
    "others": [
      {"title": catalogue.method_name(method), **row}
      for method, row in rows.items()
      if method not in (*exported, *catalogue.MINOR)
    ],
  }


def render_card(card: Mapping[str, Any]) -> str:
  """The card as Markdown."""
  environment = jinja2.Environment(
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  environment.filters["text"] = text.to_markdown
  environment.filters["yaml"] = hub.to_yaml
  environment.filters["percent"] = lambda fraction: f"{100 * fraction:.1f}"
  source = importlib.resources.files("kfkd_jax.export").joinpath("card.md")
  return environment.from_string(source.read_text("utf-8")).render(card)


def _write(folder, model, programs) -> dict[str, dict[str, Any]]:
  """Writes a model's files; returns the size and sum of each by its name."""
  contents = {
    f"{model.method}.jaxexp": programs[model.method],
    f"{model.method}.safetensors": weights_file(model),
  }
  for name, content in contents.items():
    files.write_bytes(folder / name, content)
  return {
    name: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()}
    for name, c in contents.items()
  }


def _write_main(folder: epath.Path, model: Model) -> None:
  """Writes a model that is there once more, by the names the Hub knows."""
  weights = files.read_bytes(folder / f"{model.method}.safetensors")
  config = {**describe(model), "sha256": hashlib.sha256(weights).hexdigest()}
  files.write_bytes(folder / pretrained.WEIGHTS, weights)
  files.write_text(
    folder / pretrained.CONFIG, text.without_markup(files.to_json(config))
  )


def _other_formats(space: Workspace, found, folder) -> str:
  """Writes what else was asked for; says what there is."""
  task = space.task
  images = task.splits["test"].images[: space.config.export.parity_examples]
  shipped = {
    model.method: formats.Shipped(
      # Not every converter knows the loop.
      make_predict(model, impl="loop"),
      live_probs(model, images),
    )
    for model in found
  }
  tolerance = TOLERANCE[space.config.model.dtype]
  return formats.write(
    space.config, folder, shipped, images, tolerance=tolerance
  )


def _image_shape(space: Workspace) -> tuple[int, ...]:
  return space.task.images.shape[1:]
