"""Predicts images with an exported model; needs no configuration and no run."""

from __future__ import annotations

import glob
import hashlib
import importlib.resources
import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.export
import numpy as np
from etils import epath
from PIL import Image, ImageOps, UnidentifiedImageError

from kfkd_jax import files
from kfkd_jax.data import pictures
from kfkd_jax.export import trailer
from kfkd_jax.report import text

T = TypeVar("T")

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SUFFIXES = (
  ".bmp", ".gif", ".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".tif", ".tiff",
  ".webp",
)  # fmt: skip
_PILLOW_MODES = {1: "L", 3: "RGB"}  # by number of channels
# Pixels wider than eight bits would be cut off, not scaled.
_WIDE_MODES = ("I", "F")
_BATCH = 1024
_SHOWN = 20
_TOP = 3  # classes shown of each input, where they are likely at all
_LEAST = 0.01
_MOST_CELLS = 1_000_000  # of the table; above, the other classes stay out
_TRIAL_SECONDS = 600
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "text"}


class Exported(NamedTuple):
  """An exported model.

  Attributes:
    path: its file.
    call: `u8[B, H, W, Ch] -> f32[B, K]`, compiled once a batch size.
    image_shape: H, W, Ch.
    class_names: K names; numbers where no card tells.
    checked: whether its bytes are known to be those that were exported.
  """

  path: epath.Path
  call: Callable[[np.ndarray], jax.Array]
  image_shape: tuple[int, int, int]
  class_names: list[str]
  checked: bool


class Inputs(NamedTuple):
  """Images as a model takes them.

  Attributes:
    images: `u8[N, H, W, Ch]`.
    names: N, the file and, for an `.npz`, the row.
    notes: what was changed to make them fit.
  """

  images: np.ndarray
  names: list[str]
  notes: list[str]


def run(
  model: str, inputs: Sequence[str], output: str, workdir: epath.Path
) -> str:
  """Writes the probabilities of all inputs to `output`; returns a summary.

  Args:
    model: a `.jaxexp` file, or the name of a model in `workdir/export`.
    inputs: as in `read_inputs`.
    output: the `.npz` to write: `probs` f32[N, K], `names` [N], `classes` [K],
      and beside it a `.csv` for people; either of their names.
    workdir: where models are found by name.
  """
  stem, suffix = os.path.splitext(output)
  if suffix not in (".npz", ".csv"):
    raise ValueError(f"--output={output} must end in .npz or .csv")
  output, table = f"{stem}.npz", f"{stem}.csv"
  if os.path.abspath(output) in map(os.path.abspath, inputs):
    raise ValueError(f"--output={output} is also an input; name another file")
  exported = load(find(model, workdir))
  found = read_inputs(inputs, exported.image_shape)
  probs = probabilities(exported, found.images)
  files.write_npz(
    epath.Path(output),
    probs=probs,
    names=np.array(found.names),
    classes=np.array(exported.class_names),
  )
  files.write_text(
    epath.Path(table), to_csv(probs, found.names, exported.class_names)
  )
  notes = [f"note: {note}" for note in found.notes]
  if not exported.checked:
    notes.append(
      f"note: {exported.path} is unchecked: it carries no SHA-256 sum, and no "
      "card.json beside it lists it"
    )
  return "\n".join([
    *notes,
    *summary(probs, found.names, exported.class_names),
    f"{len(probs)} x {probs.shape[1]} probabilities written to {output} and "
    f"{table}",
  ])  # fmt: skip


def find(model: str, workdir: epath.Path) -> epath.Path:
  """The file that `--model` means."""
  if model.endswith(".jaxexp"):
    path = epath.Path(model)
    if not path.exists():
      raise ValueError(f"--model={model}: there is no such file")
    return path
  folder = epath.Path(workdir) / "export"
  path = folder / f"{model}.jaxexp"
  if not path.exists():
    there = sorted(p.stem for p in folder.glob("*.jaxexp"))
    raise ValueError(
      f"--model={model} is neither a .jaxexp file nor a model in {folder}, "
      f"which holds {there or 'none; run `kfkd export` first'}"
    )
  return path


def load(path: epath.Path) -> Exported:
  """Reads an exported model and checks that it is whole and takes images.

  The digest at its end and a `card.json` beside it that lists the file must
  agree with its bytes. A file with neither is tried in another process first.
  """
  path = epath.Path(path)
  content = files.read_bytes(path)
  whole = trailer.agrees(content)
  if whole is False:
    raise ValueError(
      f"{path} is damaged: its SHA-256 sum is not the one at its end; run "
      "`kfkd export` again"
    )
  class_names = _names_on_card(path, content)
  checked = whole or class_names is not None
  if not checked:
    _try_elsewhere(path, content)
  try:
    exported = jax.export.deserialize(bytearray(content))
    image_shape, num_classes = _signature(exported)
  except Exception as error:  # the reader fails in as many ways as bytes can
    raise _unreadable(path, _first_line(error)) from error
  if class_names and len(class_names) != num_classes:
    raise _not_a_card(
      path.parent / "card.json",
      f"{len(class_names)} class_names for the {num_classes} of {path.name}",
    )
  _check_runs_here(path, exported)
  call = jax.jit(exported.call)
  one = jax.ShapeDtypeStruct((1, *image_shape), np.uint8)
  try:
    call.lower(one)  # reads the program, which deserialising leaves packed
  except Exception as error:
    raise ValueError(
      f"{path} is damaged, or jax {jax.__version__} cannot read it: "
      f"{_first_line(error)}; run `kfkd export` again"
    ) from error
  names = class_names or [str(k) for k in range(num_classes)]
  return Exported(path, call, image_shape, names, checked)


def _try_elsewhere(path: epath.Path, content: bytes) -> None:
  """Reads and runs the model where a crash costs nothing."""
  script = importlib.resources.files("kfkd_jax.export") / "trial.py"
  with (
    importlib.resources.as_file(script) as main,
    tempfile.NamedTemporaryFile(suffix=".jaxexp") as copy,
  ):
    copy.write(content)  # what is tried is what is used
    copy.flush()
    try:
      done = subprocess.run(
        [sys.executable, "-P", str(main), copy.name],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        timeout=_TRIAL_SECONDS,
      )
    except subprocess.TimeoutExpired:
      raise _unreadable(
        path, f"it was not done with one image in {_TRIAL_SECONDS} s"
      ) from None
  if done.returncode < 0:
    name = signal.Signals(-done.returncode).name
    raise _unreadable(path, f"it ends the process that reads it with {name}")
  if done.returncode:
    last = (done.stderr.strip() or "no message").splitlines()[-1]
    raise _unreadable(path, last)


def _unreadable(path: epath.Path, why: str) -> ValueError:
  return ValueError(
    f"{path} is not a model that `kfkd export` wrote, or is damaged: {why}"
  )


def _first_line(error: Exception) -> str:
  return (str(error) or type(error).__name__).splitlines()[0]


def _signature(exported: jax.export.Exported) -> tuple:
  """(H, W, Ch) and K; fails where the program is of another kind."""
  (images,), (probs,) = exported.in_avals, exported.out_avals
  _, height, width, channels = images.shape
  _, num_classes = probs.shape
  if images.dtype != np.uint8 or probs.dtype != np.float32:
    raise TypeError(f"takes {images}, returns {probs}")
  return (height, width, channels), num_classes


def _check_runs_here(path: epath.Path, exported: jax.export.Exported) -> None:
  backend = jax.default_backend()
  platform = {"gpu": "cuda"}.get(backend, backend)
  if platform not in exported.platforms:
    raise ValueError(
      f"{path} was exported for {', '.join(exported.platforms)}, but this "
      f"machine runs on {platform}; set JAX_PLATFORMS=cpu"
    )
  if exported.nr_devices != 1:  # an older jax reads a newer file as this
    raise ValueError(
      f"{path} was written by a newer jax than this one ({jax.__version__}); "
      "use that one, or run `kfkd export` here"
    )


def _names_on_card(path: epath.Path, content: bytes) -> list[str] | None:
  """Class names from the card beside the file, if it knows the file."""
  card = path.parent / "card.json"
  if not card.exists():
    return None
  described = files.read_json(card)
  model = _part(card, described, "models", dict).get(path.stem)
  if model is None:
    return None
  where = f"models.{path.stem}"
  listed = _part(card, model, "files", dict, within=where).get(path.name)
  if listed is None:
    return None
  where = f"{where}.files.{path.name}"
  if (
    _part(card, listed, "sha256", str, within=where)
    != hashlib.sha256(content).hexdigest()
  ):
    raise ValueError(
      f"{path} is damaged or not the file that {card} describes: their "
      "SHA-256 sums differ; run `kfkd export` again"
    )
  names = _part(card, described, "class_names", list)
  if not all(isinstance(name, str) for name in names):
    raise _not_a_card(card, "class_names that are not all text")
  return names


def _part(
  card: epath.Path, value: Any, name: str, kind: type[T], *, within: str = ""
) -> T:
  """A part of the card, of the kind that it must have."""
  if not isinstance(value, dict):
    raise _not_a_card(card, f"no JSON object {within}".rstrip())
  if not isinstance(value.get(name), kind):
    part = f"{within}.{name}" if within else name
    said = "other" if name in value else "no"
    raise _not_a_card(card, f"{said} {part} ({_KINDS[kind]} belongs there)")
  return value[name]


def _not_a_card(card: epath.Path, what: str) -> ValueError:
  return ValueError(
    f"{card} is damaged or no card of `kfkd export`: it has {what}; run "
    "`kfkd export` again, or move the model away from it"
  )


def read_inputs(
  paths: Sequence[str], image_shape: tuple[int, int, int]
) -> Inputs:
  """Reads images in the order they are named, those of a folder by name.

  Image files are made to fit: turned as their camera says, cut to the centre
  square where the model takes squares, resized, grey or RGB. Arrays must fit as
  they are.

  Args:
    paths: image files, `.npz` with `images`, folders of image files at any
      depth, patterns with `*`, and `-` for paths a line on standard input.
    image_shape: H, W, Ch of the model.
  """
  paths = _expanded(paths)
  if not paths:
    raise ValueError(
      "predict needs inputs: image files, their folders, or .npz with `images`"
    )
  parts: list[np.ndarray] = []
  names: list[str] = []
  changed: dict[str, list[str]] = {}
  for path in paths:
    if path.endswith(".npz"):
      images = read_arrays(epath.Path(path), image_shape)
      names += [f"{path}[{row}]" for row in range(len(images))]
    else:
      image, changes = read_image(epath.Path(path), image_shape)
      images = image[None]
      names.append(path)
      for change in changes:
        changed.setdefault(change, []).append(path)
    parts.append(images)
  notes = [
    f"{change}: {who[0]}"
    + (f" and {len(who) - 1} more" if len(who) > 1 else "")
    for change, who in changed.items()
  ]
  return Inputs(np.concatenate(parts), names, notes)


def _expanded(paths: Sequence[str]) -> list[str]:
  """The files that are meant."""
  found: list[str] = []
  for path in paths:
    if path == "-":
      found += _expanded(
        [line for line in sys.stdin.read().split("\n") if line]
      )
    elif os.path.isdir(path):
      inside = sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.lower().endswith(_SUFFIXES) and not name.startswith(".")
      )
      if not inside:
        raise ValueError(
          f"{path} holds no image; these end in {', '.join(_SUFFIXES)}"
        )
      found += inside
    elif "*" in path and not os.path.exists(path):
      matching = sorted(glob.glob(path, recursive=True))
      if not matching:
        raise ValueError(f"no file is named {path}")
      found += _expanded(matching)
    else:
      found.append(path)
  return found


def read_arrays(
  path: epath.Path, image_shape: tuple[int, int, int]
) -> np.ndarray:
  """`images` u8[N, H, W, Ch] of an `.npz`."""
  arrays = files.read_foreign_npz(path, ("images",))
  if "images" not in arrays:
    raise ValueError(f"{path} holds no array called `images`")
  return checked(arrays["images"], image_shape, f"{path}: images")


def checked(
  images: np.ndarray, image_shape: tuple[int, int, int], what: str
) -> np.ndarray:
  """Images as they are, if the model takes such.

  Args:
    images: `u8[N, H, W, Ch]`.
    image_shape: H, W, Ch of the model.
    what: they are, for errors.
  """
  if images.ndim != 4 or images.shape[1:] != image_shape:
    wanted = ", ".join(map(str, image_shape))
    raise ValueError(
      f"{what} have shape {images.shape}; the model takes (N, {wanted})"
    )
  if images.dtype != np.uint8:
    raise ValueError(
      f"{what} are {images.dtype}; the model takes uint8, 0 to 255, "
      "and normalises them itself"
    )
  if not len(images):
    raise ValueError(f"{what} are none, shape {images.shape}")
  return images


def read_image(
  path: epath.Path, image_shape: tuple[int, int, int]
) -> tuple[np.ndarray, list[str]]:
  """One image file as `u8[H, W, Ch]`, and what was changed to make it fit."""
  return fitted(_opened(path), image_shape, str(path))


def fitted(
  image: Image.Image, image_shape: tuple[int, int, int], name: str
) -> tuple[np.ndarray, list[str]]:
  """A picture as `u8[H, W, Ch]`, and what was changed to make it fit."""
  height, width, channels = image_shape
  if channels not in _PILLOW_MODES:
    raise ValueError(
      f"{name}: the model takes images of {channels} channels; give them as "
      "arrays, from the command line in an .npz with `images`"
    )
  if image.mode.startswith(_WIDE_MODES):
    raise ValueError(
      f"{name} has pixels of more than 8 bits (mode {image.mode}); save it "
      "with 8"
    )
  image, mode = ImageOps.exif_transpose(image), _PILLOW_MODES[channels]
  changes = []
  if image.has_transparency_data:
    changes.append("transparency ignored")
  if mode == "L" and image.mode not in ("1", "L", "LA"):
    changes.append("colours turned to grey")
  image = image.convert(mode)
  if image.size != (width, height):
    cut = width == height and image.width != image.height
    changes.append(
      f"{'cut to the centre square and ' if cut else ''}resized to "
      f"{width}x{height}"
    )
    if width == height:  # as the training images were made square
      image = pictures.fitted(image, width)
    else:
      image = image.resize((width, height), Image.Resampling.BILINEAR)
  pixels = np.asarray(image, np.uint8)
  return (pixels if channels > 1 else pixels[..., None]), changes


def _opened(path: epath.Path) -> Image.Image:
  """The decoded image."""
  content = files.read_bytes(path)
  try:
    image = Image.open(io.BytesIO(content), formats=_FORMATS)
    image.load()
  except UnidentifiedImageError as error:
    raise ValueError(
      f"{path} is neither an .npz nor an image of these formats: "
      f"{', '.join(_FORMATS)}"
    ) from error
  except Exception as error:
    raise ValueError(f"{path} is damaged: {error}") from error
  return image


def probabilities(model: Exported, images: np.ndarray) -> np.ndarray:
  """`f32[N, K]` for `u8[N, H, W, Ch]` images, in batches of one size."""
  size = min(len(images), _BATCH)
  parts = []
  for start in range(0, len(images), size):
    # The last example fills the last batch up: another size compiles anew.
    rows = np.minimum(np.arange(start, start + size), len(images) - 1)
    parts.append(np.asarray(model.call(images[rows])))
  return np.concatenate(parts)[: len(images)]


def summary(
  probs: np.ndarray, names: Sequence[str], class_names: Sequence[str]
) -> list[str]:
  """The likeliest classes of the first inputs."""
  lines = []
  for name, row in zip(names[:_SHOWN], probs, strict=False):
    best = np.argsort(-row, kind="stable")[:_TOP]
    likely = [k for k in best if row[k] >= _LEAST or k == best[0]]
    said = ", ".join(f"{class_names[k]} ({row[k]:.3f})" for k in likely)
    lines.append(text.printable(f"{name}: {said}"))
  rest = len(names) - len(lines)
  return [*lines, f"... and {rest} more"] if rest else lines


def to_csv(
  probs: np.ndarray, names: Sequence[str], class_names: Sequence[str]
) -> str:
  """A row an input: its name, its class and how likely all classes are."""
  others = class_names if probs.size <= _MOST_CELLS else []
  return text.to_csv([
    {
      "name": name,
      "class": class_names[row.argmax()],
      "probability": f"{row.max():.4f}",
      **{f"p({c})": f"{p:.4f}" for c, p in zip(others, row, strict=False)},
    }
    for name, row in zip(names, probs, strict=True)
  ])  # fmt: skip
