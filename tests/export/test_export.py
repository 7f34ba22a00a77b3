"""Exported files say what the networks said, to those who have only JAX."""

import hashlib
import json

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import yaml
from etils import epath
from flax import traverse_util
from hostile import HOSTILE, rendered
from tiny import tiny_config

import kfkd_jax
from kfkd_jax import cli, files, fusion, history, models, stages
from kfkd_jax import config as config_lib
from kfkd_jax.export import (
  formats,
  hub,
  onnx_model,
  predict,
  saved_model,
)
from kfkd_jax.export import (
  models as export,
)
from kfkd_jax.report import text
from kfkd_jax.run import build, results, seals, tasks
from kfkd_jax.run.workspace import Workspace

METHODS = ["final", "kf", "mixture", "kf_kd"]
MIXED = [0.2, 0.3, 0.5]


def config_of(**changes):
  return tiny_config(**{
    "model__width": "8",
    "train__epochs": "3",
    "distill__teachers": "kf",
    "compare__independent": "1",
    "export__parity_examples": "50",
    "export__saved_model": "False",
    "export__onnx": "False",
    **changes,
  })  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run without an export, whose mixture has three members."""
  folder = epath.Path(tmp_path_factory.mktemp("tiny"))
  for stage in ("train", "fuse", "distill", "rivals", "compare"):
    stages.run_stage(config_of(), folder, stage, say=lambda line: None)
  content = files.read_json(folder / "fusion.json")
  content["folds"][0]["methods"]["mixture"]["weights"] = MIXED
  files.write_json(folder / "fusion.json", content)
  note = files.read_json(folder / "manifest.json")
  note["fuse"]["outputs"] = {"fusion.json": seals.seal(folder / "fusion.json")}
  files.write_json(folder / "manifest.json", note)
  return folder


@pytest.fixture(scope="module")
def exported(finished):
  lines = []
  stages.run_stage(config_of(), finished, "export", say=lines.append)
  assert "differs from the live models by at most" in lines[-1]
  assert "\nWARNING: kf_kd is clearly below the final network" in lines[-1]
  return finished / "export"


@pytest.fixture
def restored(exported):
  """Leaves the export as it was, whatever a test does to it."""
  before = {p.name: p.read_bytes() for p in exported.iterdir()}
  yield exported
  for path in exported.iterdir():
    if path.is_file():
      path.unlink()
  for name, content in before.items():
    (exported / name).write_bytes(content)


def stored_probs(workdir, method):
  """What the run itself wrote down about the test images."""
  if method.endswith("_kd"):
    store = results.predictions(workdir, method, "test")
    return store[len(store) - 1]
  store = results.predictions(workdir, "teacher", "test")
  if method == "final":
    return store[len(store) - 1]
  chosen = files.read_json(workdir / "fusion.json")["folds"][0]["methods"]
  return fusion.fuse(store, np.asarray(chosen[method]["weights"], np.float32))


def programs_of(folder):
  return {m: (folder / f"{m}.jaxexp").read_bytes() for m in METHODS}


@pytest.mark.parametrize("count", [1, 500])
def test_another_process_says_what_the_run_wrote_down(
  finished, exported, count
):
  """Every method, with batches of other sizes than any seen at export."""
  images = tasks.load_task(config_of()).splits["test"].images[:count]
  outside = export.run_outside(programs_of(exported), images)
  for method in METHODS:
    assert outside[method].shape == (count, 10)
    assert outside[method].dtype == np.float32
    np.testing.assert_allclose(
      outside[method], stored_probs(finished, method)[:count], atol=1e-5
    )


def test_methods_differ_so_that_parity_means_something(finished):
  probs = {m: stored_probs(finished, m) for m in METHODS}
  assert np.abs(probs["mixture"] - probs["final"]).max() > 1e-2
  assert np.abs(probs["kf_kd"] - probs["final"]).max() > 1e-2


def test_card_tells_the_results(finished, exported):
  card = files.read_json(exported / "card.json")
  rows = {
    row["method"]: row
    for row in files.read_json_lines(finished / "results.jsonl")
  }
  assert list(card["models"]) == sorted(METHODS)
  for method, model in card["models"].items():
    assert model["result"] == rows[method]
    assert 0 <= model["parity"] <= 1e-5
    for name, file in model["files"].items():
      content = (exported / name).read_bytes()
      assert file["bytes"] == len(content)
      assert file["sha256"] == hashlib.sha256(content).hexdigest()
  assert card["models"]["mixture"]["epochs"] == [1, 2, 3]
  assert card["models"]["mixture"]["weights"] == pytest.approx(MIXED)
  assert card["models"]["final"]["epochs"] == [3]
  assert card["noise"] == {"kind": "pair", "rate": 55 / 120}
  network = card["models"]["kf"]["network"]
  assert network["num_parameters"] == 64 * 8 + 8 * 8 + 80 + 26 + 32
  assert card["platforms"] == ["cpu", "cuda", "tpu"]
  assert card["class_names"] == list("0123456789")


def test_readable_card_tells_the_same(exported):
  card = files.read_json(exported / "card.json")
  said = (exported / "README.md").read_text()
  for method, model in card["models"].items():
    row = model["result"]
    low, high = (f"{100 * x:.1f}" for x in row["accuracy_interval"])
    (line,) = [x for x in said.splitlines() if x.startswith(f"| `{method}`")]
    assert f"{100 * row['accuracy']:.1f} [{low}, {high}]" in line
    assert f"| {row['selected_on'] or 'nothing'} |" in line
  assert "45.8 % of the training labels were wrong" in said
  (warning,) = [x for x in said.splitlines() if x.startswith("Take care: ")]
  assert warning.startswith("Take care: kf_kd is clearly below ")
  assert "{{" not in said and "{%" not in said
  assert said.endswith("\n") and not said.endswith("\n\n")


def test_names_of_classes_are_text_wherever_the_card_goes(
  exported, restored, finished, monkeypatch
):
  task = tasks.load_task(config_of())
  names = tuple((HOSTILE * 10)[:10])
  hostile = task._replace(name=HOSTILE[0], class_names=names)
  monkeypatch.setattr(tasks, "load_task", lambda config: hostile)
  export.run(Workspace(config_of(export__models="final"), finished))
  written = (restored / "card.json").read_text()
  assert not set("<>&") & set(written)
  assert json.loads(written)["class_names"] == list(names)
  shown = rendered((restored / "README.md").read_text())
  plain = rendered(export.render_card({
    **json.loads(written),
    "class_names": ["a"] * 10,
    "data": {"name": "b", "num_train": 120},
  }))  # fmt: skip
  assert shown.tags == plain.tags
  for name in names:
    assert text.printable(name) in shown.text
  assert predict.load(restored / "final.jaxexp").class_names == list(names)


def test_clean_labels_are_called_clean(exported):
  card = files.read_json(exported / "card.json")
  clean = {**card, "noise": {"kind": "none", "rate": 0.0}}
  assert "none was added" in export.render_card(clean)
  assert "wrong on purpose" not in export.render_card(clean)


def test_files_tell_no_folder_names(exported):
  for content in programs_of(exported).values():
    assert b".py" not in content
    assert b"kfkd_jax" not in content


def test_program_of_an_ensemble_is_that_of_one_network(finished):
  config = config_of()
  three = export.read(Workspace(config, finished), "mixture")
  many = export.Model(
    "mixture",
    [1] * 24,
    history.take_checkpoints(three.stacked, np.arange(24) % 3),
    np.full(24, 1 / 24, np.float32),
    three.space,
  )
  sizes = [len(export.serialise(m)) for m in (three, many)]
  weights = [
    sum(x.nbytes for x in jax.tree.leaves((m.stacked, m.weights)))
    for m in (three, many)
  ]
  assert sizes[1] - sizes[0] <= weights[1] - weights[0] + 200
  assert sizes[1] < weights[1] + 20_000


def network_from(path):
  """Rebuilds a network as somebody with Flax would."""
  with safetensors.safe_open(str(path), framework="numpy") as file:
    metadata = {k: json.loads(v) for k, v in read_text(file.metadata())}
  tensors = safetensors.numpy.load_file(str(path))
  options = dict(metadata["model"])
  module = models.create(
    options.pop("name"), len(metadata["class_names"]), **options
  )
  weights = tensors.pop("weights", None)
  variables = traverse_util.unflatten_dict(tensors, sep="/")

  def predict(images):
    mean, std = np.array(metadata["mean"]), np.array(metadata["std"])
    logits = module.apply(variables, (images / 255 - mean) / std)
    return jax.nn.softmax(logits)

  return predict, weights, variables, metadata


def read_text(metadata):
  return [
    (k, v) for k, v in metadata.items() if k not in ("format", "kfkd_jax")
  ]


@pytest.mark.parametrize("method", ["final", "kf_kd"])
def test_weights_by_name_rebuild_the_network(finished, exported, method):
  path = exported / f"{method}.safetensors"
  predict, weights, variables, metadata = network_from(path)
  assert weights is None
  assert set(variables) == {"params", "batch_stats"}
  assert metadata["image_shape"] == [8, 8, 1]
  images = tasks.load_task(config_of()).splits["test"].images
  np.testing.assert_allclose(
    predict(images), stored_probs(finished, method), atol=1e-5
  )


def test_weights_of_a_fusion_are_stacked(exported):
  path = exported / "mixture.safetensors"
  _, weights, variables, metadata = network_from(path)
  assert weights == pytest.approx(MIXED)
  assert metadata["epochs"] == [1, 2, 3]
  assert variables["params"]["Dense_0"]["kernel"].shape == (3, 64, 8)


def test_the_folder_is_a_model_that_is_built_again(finished, exported):
  """Of the final network, since the student is clearly below it."""
  images = tasks.load_task(config_of()).splits["test"].images
  model = kfkd_jax.from_pretrained(str(exported))
  np.testing.assert_allclose(
    model.predict(images), stored_probs(finished, "final"), atol=1e-5
  )
  assert model.class_names == tuple("0123456789")
  assert model.config["method"] == model.card["main"] == "final"


def test_a_fusion_alone_is_the_model_of_the_folder(finished, restored, trusted):
  trusted["mixture"] = stored_probs(finished, "mixture")
  said = export.run(Workspace(config_of(export__models="mixture"), finished))
  assert "; model.safetensors is mixture" in said
  model = kfkd_jax.from_pretrained(restored)
  images = tasks.load_task(config_of()).splits["test"].images[:30]
  np.testing.assert_allclose(
    model.predict(images), stored_probs(finished, "mixture")[:30], atol=1e-5
  )


@pytest.mark.parametrize(
  ("highs", "main"),
  [
    ({}, "kf_kd"),
    ({"kf_kd": -0.01}, "mixture_kd"),
    ({"kf_kd": -0.01, "mixture_kd": -0.01}, "final"),
  ],
)
def test_the_model_of_a_folder_is_a_student_unless_it_lost(highs, main):
  names = ["final", "kf", "kf_kd", "mixture_kd"]
  found = [export.Model(name, [], {}, np.ones(1), None) for name in names]
  rows = {n: {"gain_interval": [-1, highs.get(n, 0.0)]} for n in names}
  assert export.main_model(found, rows).method == main


def front_matter(said):
  opening, head, _ = said.split("---\n", 2)
  assert opening == ""
  return yaml.safe_load(head)


def test_card_begins_with_what_the_hub_reads(finished, restored, trusted):
  card = files.read_json(restored / "card.json")
  said = (restored / "README.md").read_text()
  found = front_matter(said)
  assert found == card["metadata"]
  assert found["library_name"] == "kfkd-jax"
  assert "license" not in found and "datasets" not in found
  (index,) = found["model-index"]
  (result,) = index["results"]
  assert result["dataset"]["name"] == "digits"
  accuracy = card["models"]["final"]["result"]["accuracy"]
  assert result["metrics"][0]["value"] == pytest.approx(accuracy, abs=1e-4)
  trusted["final"] = stored_probs(finished, "final")
  config = config_of(export__models="final", export__license="cc-by-4.0")
  export.run(Workspace(config, finished))
  found = front_matter((restored / "README.md").read_text())
  assert found["license"] == "cc-by-4.0"


@pytest.mark.parametrize(
  "name", [*HOSTILE, "\x7f\x9f\ufffe\U000e0001\U0001f600"]
)
def test_front_matter_keeps_any_name(name):
  line = hub.to_yaml({"name": name})
  assert yaml.safe_load(f"key: {line}\n") == {"key": {"name": name}}
  assert not set("<>&\n") & set(line)


def test_card_compares_with_the_rows_that_have_no_model(exported):
  said = (exported / "README.md").read_text()
  others = [line for line in said.splitlines() if line.startswith("| | ")]
  names = [line.split(" | ")[1] for line in others]
  assert names == ["Evenly spaced epochs", "Best epoch"]


@pytest.fixture
def trusted(monkeypatch):
  """Takes the process outside for granted: other tests run it."""

  def outside(programs, images):
    return {method: probs[: len(images)] for method, probs in says.items()}

  says: dict[str, np.ndarray] = {}
  monkeypatch.setattr(export, "run_outside", outside)
  return says


@pytest.mark.parametrize("wrong", [2e-5, -2e-5, np.nan])
def test_a_difference_stops_the_export(finished, restored, trusted, wrong):
  trusted.update({m: stored_probs(finished, m) for m in METHODS})
  trusted["kf_kd"] = np.array(trusted["kf_kd"])
  trusted["kf_kd"][7, 3] += wrong
  before = {p.name: p.read_bytes() for p in restored.iterdir()}
  with pytest.raises(formats.ParityError, match=r"kf_kd\.jaxexp differs"):
    export.run(Workspace(config_of(), finished))
  assert before == {p.name: p.read_bytes() for p in restored.iterdir()}


def test_a_program_that_does_not_run_stops_the_export():
  with pytest.raises(formats.ParityError, match=r"do not run: .*buffer"):
    export.run_outside({"final": b"nothing"}, np.zeros((1, 8, 8, 1), np.uint8))


def test_too_large_for_a_file(finished, monkeypatch):
  config = config_of()
  model = export.read(Workspace(config, finished), "mixture")
  monkeypatch.setattr(export, "_MAX_BYTES", 1000)
  with pytest.raises(ValueError, match=r"mixture has 3 networks .*export\.mod"):
    export.serialise(model)


def test_another_choice_of_models_replaces_the_first(
  finished, restored, trusted
):
  trusted["kf_kd"] = stored_probs(finished, "kf_kd")
  (restored / "mine.onnx").write_text("mine")
  said = export.run(Workspace(config_of(export__models="kf_kd"), finished))
  assert "export/ with kf_kd, " in said
  assert sorted(p.name for p in restored.iterdir()) == [
    "README.md", "SHA256SUMS", "card.json", "config.json", "kf_kd.jaxexp",
    "kf_kd.safetensors", "mine.onnx", "model.safetensors",
  ]  # fmt: skip
  assert list(files.read_json(restored / "card.json")["models"]) == ["kf_kd"]


def test_second_export_does_nothing_and_repeats_to_the_byte(finished, restored):
  config, lines = config_of(), []
  assert not stages.run_stage(config, finished, "export", say=lines.append)
  assert lines == ["export: up to date"]
  before = programs_of(restored)
  (restored / "final.jaxexp").unlink()
  assert stages.run_stage(config, finished, "export", say=lines.append)
  assert programs_of(restored) == before


@pytest.mark.parametrize(
  "name",
  [
    "kf.safetensors",
    "model.safetensors",
    "README.md",
    "SHA256SUMS",
    "card.json",
  ],
)
@pytest.mark.parametrize("damage", ["flip", "lose"])
def test_every_exported_file_is_sealed(finished, restored, name, damage):
  config = config_of()
  (restored / "notes.txt").write_text("mine")
  assert stages.is_up_to_date(Workspace(config, finished), "export")
  content = (restored / name).read_bytes()
  (restored / name).unlink()
  if damage == "flip":
    (restored / name).write_bytes(content[:-9] + b"X" + content[-8:])
  assert not stages.is_up_to_date(Workspace(config, finished), "export")
  (culprit,) = stages.manifest.spoilt(Workspace(config, finished), "export")
  assert name in culprit or name == "SHA256SUMS"


def test_weights_repeat_to_the_byte(finished):
  model = export.read(Workspace(config_of(), finished), "mixture")
  assert len({export.weights_file(model) for _ in range(5)}) == 1


def test_export_before_its_turn(tmp_path):
  with pytest.raises(stages.MissingStageError, match="export needs train"):
    stages.run_stage(config_of(), epath.Path(tmp_path), "export")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"export__models": "mixture_kd"}, "does not teach"),
    ({"export__models": "kf,kf"}, "each at most once"),
    ({"export__models": "()"}, r"export.models=\(\) is not possible"),
    ({"export__models": "swa"}, "a tuple of"),
    ({"export__parity_examples": "0"}, "parity_examples=0"),
    ({"export__license": "My own"}, "export.license='My own' is not possible"),
  ],
)
def test_impossible_configurations(changes, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    config_of(**changes)


@pytest.mark.parametrize(
  ("name", "dtype"),
  [
    pytest.param("cnn", "float32", marks=pytest.mark.slow),
    ("mlp", "bfloat16"),
    pytest.param("resnet18", "bfloat16", marks=pytest.mark.slow),
  ],
)
def test_other_networks_export_alike(name, dtype):
  """Convolutions and half precision, from fresh weights of two seeds."""
  config = config_of(model__name=name, model__dtype=dtype, model__width="4")
  task = tasks.load_task(config)
  module = build.make_module(Workspace(config))
  images = task.splits["test"].images[:20]
  both = [models.init(module, jax.random.key(s), images[:1]) for s in (0, 1)]
  model = export.Model(
    "kf",
    [1, 2],
    history.stack_checkpoints(both),
    np.array([0.4, 0.6]),
    Workspace(config),
  )
  programs = {"kf": export.serialise(model)}
  gaps = export.check_parity(Workspace(config), [model], programs)
  assert gaps["kf"] <= export.TOLERANCE[dtype]


@pytest.mark.parametrize(
  ("key", "module", "needs"),
  [
    ("saved_model", saved_model, "TensorFlow is not installed"),
    ("onnx", onnx_model, "jax2onnx and onnxruntime are not installed"),
  ],
)
def test_other_formats_are_left_out_and_said_so(
  finished, restored, trusted, monkeypatch, key, module, needs
):
  trusted["final"] = stored_probs(finished, "final")
  monkeypatch.setattr(module, "is_available", lambda: False)
  config = config_of(export__models="final", **{f"export__{key}": "True"})
  assert needs in export.run(Workspace(config, finished))
  config = config_of(export__models="final")
  assert f"export.{key}=False" in export.run(Workspace(config, finished))


class Text:
  """A format of its own: the probabilities as text, said wrong if asked."""

  error = 0.0

  def is_available(self):
    return True

  def write(self, path, predict, shape):
    images = np.zeros((2, *shape), np.uint8)
    np.savetxt(str(path), np.asarray(predict(images)))

  def probabilities(self, path, images):
    return np.loadtxt(str(path))[: len(images)] + self.error


def test_a_format_that_says_something_else_is_removed(tmp_path, monkeypatch):
  config, folder = config_of(export__onnx="True"), epath.Path(tmp_path)
  text = Text()
  monkeypatch.setitem(formats._FORMATS, "onnx", ("text", "text is", text))
  images = np.zeros((2, 8, 8, 1), np.uint8)

  def predict(images):
    return np.full((len(images), 10), 0.1)

  shipped = {"final": formats.Shipped(predict, predict(images))}
  said = formats.write(config, folder, shipped, images, tolerance=1e-5)
  assert "text beside them" in said
  assert [p.name for p in folder.iterdir()] == ["final.onnx"]
  text.error = 1e-3
  with pytest.raises(
    formats.ParityError, match=r"final\.onnx differs .*1\.0e-03"
  ):
    formats.write(config, folder, shipped, images, tolerance=1e-5)
  assert not list(folder.iterdir())


@pytest.mark.skipif(
  not saved_model.is_available(), reason="TensorFlow is not installed"
)
@pytest.mark.filterwarnings("ignore")  # TensorFlow's own
def test_saved_model_says_the_same(finished, tmp_path):
  config = config_of()
  model = export.read(Workspace(config, finished), "mixture")
  predict = export.make_predict(model)
  path = epath.Path(tmp_path) / "mixture.savedmodel"
  saved_model.write(path, predict, (8, 8, 1))
  images = tasks.load_task(config).splits["test"].images[:30]
  np.testing.assert_allclose(
    saved_model.probabilities(path, images),
    stored_probs(finished, "mixture")[:30],
    atol=1e-5,
  )


def test_predict_takes_an_exported_model_by_name(
  finished, exported, tmp_path, capsys
):
  images = tasks.load_task(config_of()).splits["test"].images[:6]
  np.savez(tmp_path / "i.npz", images=images)
  arguments = [
    "predict", "--model=mixture", f"{tmp_path / 'i.npz'}",
    f"--workdir={finished}", f"--output={tmp_path / 'p.npz'}",
  ]  # fmt: skip
  assert cli.main(arguments) == 0
  assert "6 x 10 probabilities" in capsys.readouterr().out
  arrays = files.read_npz(epath.Path(tmp_path / "p.npz"))
  np.testing.assert_allclose(
    arrays["probs"], stored_probs(finished, "mixture")[:6], atol=1e-5
  )
  assert arrays["classes"].tolist() == list("0123456789")


@pytest.mark.skipif(
  not onnx_model.is_available(), reason="jax2onnx is not installed"
)
@pytest.mark.filterwarnings("ignore")  # jax2onnx's own
@pytest.mark.parametrize("method", ["final", "mixture"])
def test_onnx_says_the_same(finished, tmp_path, method):
  config = config_of()
  model = export.read(Workspace(config, finished), method)
  predict = export.make_predict(model, impl="loop")
  path = epath.Path(tmp_path) / f"{method}.onnx"
  onnx_model.write(path, predict, (8, 8, 1))
  images = tasks.load_task(config).splits["test"].images[:30]
  np.testing.assert_allclose(
    onnx_model.probabilities(path, images),
    stored_probs(finished, method)[:30],
    atol=1e-5,
  )
