"""The page says what the artefacts say, and needs nothing but itself."""

import base64
import csv
import html.parser
import io
import itertools
import re
import shutil
from typing import NamedTuple

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from kfkd_jax import config as config_lib
from kfkd_jax import files, plots
from kfkd_jax.data import augment, splits
from kfkd_jax.predictions import PredictionStore
from kfkd_jax.report import page as page_lib
from kfkd_jax.report import run_page as report
from kfkd_jax.run import tasks, workspace
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages import compare, diagnose, fuse
from kfkd_jax.training.loop import Split

NASTY = "<script>alert(1)</script>"
VOID = {"meta", "link", "br", "img"}
NUM_EPOCHS = 7


def sharpen(logits):
  shifted = np.exp(3 * (logits - logits.max(-1, keepdims=True)))
  return shifted / shifted.sum(-1, keepdims=True)


def predict(rng, labels, num_classes):
  """A history that learns and then forgets, `[C, N, K]`."""
  noise = rng.normal(size=(NUM_EPOCHS, len(labels), num_classes))
  knows = rng.random((NUM_EPOCHS, len(labels), 1)) < 0.55
  return sharpen(noise + 2 * knows * np.eye(num_classes)[labels])


def make_task(rng, *, num_classes, channels, noisy, halved):
  names = [NASTY, "$\\x$ & 'y'", *"cdefghijklmnopqrstuvwxyz"][:num_classes]
  sizes = {"train": 80, "test": 60}
  if not halved:
    sizes["select"] = 40
  parts = {}
  for name, size in sizes.items():
    images = rng.integers(0, 256, (size, 8, 8, channels), np.uint8)
    labels = rng.integers(0, num_classes, size).astype(np.int32)
    parts[name] = Split(images, labels, np.arange(size))
  rows = []
  for name in ("train", "test" if halved else "select"):
    clean = parts[name].labels
    flip = noisy & (rng.random(len(clean)) < 0.4)
    given = np.where(flip, (clean + 1) % num_classes, clean).astype(np.int32)
    rows.append((parts[name].ids, clean, given, np.full(len(clean), name)))
  ledger = splits.NoiseLedger(*map(np.concatenate, zip(*rows)))
  test = parts["test"]
  folds = (
    tuple(
      tasks.Fold("test", *splits.halve_test(test.labels, test.ids, fold=f))
      for f in range(3)
    )
    if halved
    else (tasks.Fold("select", np.arange(40), np.arange(60)),)
  )
  return tasks.Task(
    name="made up",
    class_names=tuple(names),
    images=parts["train"].images,
    given=ledger.given[ledger.split == "train"],
    ledger=ledger,
    statistics=augment.channel_statistics(parts["train"].images),
    transition=None,
    splits=parts,
    folds=folds,
    rest=parts["train"].images[:0],
  )


def make_config(*, noisy, halved):
  config = config_lib.default_config()
  config.train.epochs = NUM_EPOCHS
  config.compare.bootstrap_samples = 100
  config.report.num_examples = 5
  config.fuse.num_epsilons = 11
  config.predictions.train = noisy
  config.noise.kind = "pair" if noisy else "none"
  config.noise.rate = 0.4 if noisy else 0.0
  config.selection.source = "test" if halved else "train"
  config_lib.validate(config)
  return config


def write_results(config, workdir, task, rng):
  """Scores the fusions and, in the first fold, a student."""
  rows = []
  for number, fold in enumerate(task.folds):
    on = workspace.selected_on(config, fold)
    store = PredictionStore(workdir / "runs" / "teacher" / "predictions/test")
    chosen = files.read_json(workdir / "fusion.json")["folds"][number]
    probs = np.stack([store[c] for c in range(len(store))])
    entries = [compare.Entry("final", probs[-1], "", 1, 1.0)]
    for name, method in chosen["methods"].items():
      fused = np.tensordot(np.asarray(method["weights"]), probs, 1)
      members = int(np.count_nonzero(method["weights"]))
      gain = method["gain"]
      entries.append(
        compare.Entry(name, fused, on, members, 1.25, select_gain=gain)
      )
    if number == 0:
      student = sharpen(
        np.log(probs[2] + 1e-3) + rng.normal(size=probs[2].shape)
      )
      entries.append(compare.Entry("kf_kd", student, on, 1, 2.5))
    split = "test" if len(task.folds) == 1 else f"test/{number}"
    here = fold.test_rows
    rows += compare.score(
      config,
      [entry._replace(probs=entry.probs[here]) for entry in entries],
      task.splits["test"].labels[here],
      split=split,
    )
  files.write_json_lines(workdir / "results.jsonl", rows)


class Made(NamedTuple):
  config: object
  workdir: object
  task: tasks.Task


def make_workdir(
  workdir,
  patch,
  *,
  num_classes=4,
  channels=1,
  noisy=True,
  halved=False,
  class_names=None,
):
  """What the stages before the report leave, from a made history."""
  rng = np.random.default_rng(0)
  config = make_config(noisy=noisy, halved=halved)
  task = make_task(
    rng,
    num_classes=num_classes,
    channels=channels,
    noisy=noisy,
    halved=halved,
  )
  if class_names is not None:
    task = task._replace(class_names=class_names)
  patch.setattr(tasks, "load_task", lambda config: task)
  for name, part in task.splits.items():
    store = PredictionStore.create(
      workdir / "runs" / "teacher" / "predictions" / name,
      part.labels,
      part.ids,
      num_classes=num_classes,
    )
    for c, probs in enumerate(predict(rng, part.labels, num_classes)):
      store.write(c + 1, probs)
      files.write_text(
        workdir / "runs" / "teacher" / "history" / f"{c + 1}" / "kept", ""
      )
  splits.write_ledger(workdir / "noise.npz", task.ledger)
  diagnose.run(Workspace(config, workdir))
  fuse.run(Workspace(config, workdir))
  write_results(config, workdir, task, rng)
  inputs = {"train": {"inputs": {"config": "c0ffee"}}, "report": {"inputs": {}}}
  files.write_json(workdir / "manifest.json", inputs)
  return Made(config, workdir, task)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    yield make_workdir(epath.Path(tmp_path_factory.mktemp("noisy")), patch)


@pytest.fixture(scope="module")
def page(made):
  return report.render(Workspace(made.config, made.workdir)).html


class Element(NamedTuple):
  tag: str
  attributes: dict
  children: list

  def all(self, tag, **attributes):
    """Elements below with this tag and these attributes, in order."""
    found = []
    for child in self.children:
      if isinstance(child, Element):
        wanted = {
          k.rstrip("_").replace("_", "-"): v for k, v in attributes.items()
        }
        if child.tag == tag and wanted.items() <= child.attributes.items():
          found.append(child)
        found += child.all(tag, **attributes)
    return found

  @property
  def text(self):
    parts = [c.text if isinstance(c, Element) else c for c in self.children]
    return " ".join("".join(parts).split())


class Parser(html.parser.HTMLParser):
  """Builds the tree; an element closed out of turn is an error."""

  def __init__(self):
    super().__init__()
    self.root = Element("root", {}, [])
    self.open = [self.root]

  def handle_starttag(self, tag, attrs):
    element = Element(tag, dict(attrs), [])
    self.open[-1].children.append(element)
    if tag not in VOID:
      self.open.append(element)

  def handle_startendtag(self, tag, attrs):
    self.open[-1].children.append(Element(tag, dict(attrs), []))

  def handle_endtag(self, tag):
    assert self.open.pop().tag == tag, f"</{tag}> closes another element"

  def handle_data(self, data):
    self.open[-1].children.append(data)


def parse(page):
  parser = Parser()
  parser.feed(page)
  parser.close()
  assert parser.open == [parser.root], "an element is never closed"
  return parser.root


def below(element):
  for child in element.children:
    if isinstance(child, Element):
      yield child
      yield from below(child)


def assert_stands_alone(page):
  addresses = set(re.findall(r"\w+://[^\s\"'<>]*", page))
  assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, never fetched
  assert "@import" not in page
  for element in below(parse(page)):
    for name in ("src", "href", "xlink:href", "poster", "srcset", "data"):
      link = element.attributes.get(name)
      assert link is None or link.startswith(("data:", "#")), element.tag
  assert "default-src 'none'" in page


def test_page_is_whole_and_needs_nothing_else(page):
  assert page.startswith("<!doctype html>")
  assert_stands_alone(page)
  root = parse(page)
  ids = [e.attributes["id"] for e in below(root) if "id" in e.attributes]
  assert len(ids) == len(set(ids))
  for element in below(root):
    named = element.attributes.get("aria-labelledby")
    assert named is None or named in ids


def test_page_can_be_heard(page):
  root = parse(page)
  assert root.all("html", lang="en")
  levels = [int(e.tag[1]) for e in below(root) if re.fullmatch(r"h\d", e.tag)]
  assert levels[0] == 1
  assert levels.count(1) == 1
  assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
  figures = root.all("figure")
  assert len(figures) == 10
  for figure in figures:
    (svg,) = figure.all("svg")
    assert svg.attributes["role"] == "img"
    assert len(svg.attributes["aria-label"]) > 20
    assert len(svg.all("path")) > 3
    assert len(svg.all("text")) > 3
    assert len(figure.all("figcaption")[0].text) > 20
  assert all(e.attributes["alt"] for e in root.all("img"))
  assert all("scope" in th.attributes for th in root.all("th"))


def result_rows(root):
  """By fold and method, each row's cells: shown text and exact value."""
  (table,) = root.all("table", class_="results")
  return [
    {
      tr.all("th")[0].text: [
        (td.text, td.attributes.get("data-value")) for td in tr.all("td")
      ]
      for tr in body.all("tr")
      if tr.all("td")
    }
    for body in table.all("tbody")
  ]


def assert_row_equals(cells, row):
  texts = [text for text, _ in cells]
  exact = [value for _, value in cells]
  low, high = row["gain_interval"]
  assert texts[0] == f"{100 * row['accuracy']:.1f}"
  keys = ("nll", "ece", "brier", "train_cost", "inference_cost")
  assert [float(v) for v in exact[:2]] == [row["accuracy"], row["gain"]]
  assert [float(v) for v in exact[3:8]] == [row[k] for k in keys]
  assert texts[3:6] == [f"{row[k]:.3f}" for k in ("nll", "ece", "brier")]
  assert float(exact[8]) == row["storage_cost"]
  if row["method"] != "final":
    minus = f"{100 * row['gain']:+.1f}".replace("-", "−")
    assert texts[1] == minus.replace("−0.0", "+0.0")
    bounds = [
      float(b) for b in re.findall(r"[+-][\d.]+", texts[2].replace("−", "-"))
    ]
    np.testing.assert_allclose(bounds, [100 * low, 100 * high], atol=0.0501)
  if row["select_gain"] is None:
    assert texts[9] == "–"
  else:
    assert float(exact[9]) == row["select_gain"] - row["gain"]
  assert texts[10] == (row["selected_on"] or "nothing")
  assert float(exact[11]) == row["aurc"]
  if row["set_size"] is None:
    assert len(texts) == 12
  else:
    assert [float(v) for v in exact[12:]] == [
      row["set_coverage"],
      row["set_size"],
    ]


def test_table_equals_results(made, page):
  rows = files.read_json_lines(made.workdir / "results.jsonl")
  (shown,) = result_rows(parse(page))
  assert list(shown) == [plots.method_name(row["method"]) for row in rows]
  for row in rows:
    assert_row_equals(shown[plots.method_name(row["method"])], row)


def test_sets_are_calibrated_on_halves_and_stand_behind(made, tmp_path):
  workdir = epath.Path(shutil.copytree(made.workdir, tmp_path / "copy"))
  config = config_lib.changed(made.config, {"compare.sets": 0.8})
  write_results(config, workdir, made.task, np.random.default_rng(0))
  rows = files.read_json_lines(workdir / "results.jsonl")
  for row in rows:  # 60 points: the promise, and how far a share may be off
    assert row["set_coverage"] == pytest.approx(0.8 + 1 / 62, abs=0.06)
    assert 1 <= row["set_size"] <= 4
  page = report.render(Workspace(config, workdir)).html
  (shown,) = result_rows(parse(page))
  for row in rows:
    assert_row_equals(shown[plots.method_name(row["method"])], row)
  assert "hold the label of 80 %" in " ".join(page.split())


def test_rows_of_earlier_versions_open(made, tmp_path):
  workdir = epath.Path(shutil.copytree(made.workdir, tmp_path / "copy"))
  later = {"aurc", "risk_coverage", "set_coverage", "set_size"}
  rows = files.read_json_lines(workdir / "results.jsonl")
  assert all(later <= row.keys() for row in rows)
  rows = [{k: v for k, v in r.items() if k not in later} for r in rows]
  files.write_json_lines(workdir / "results.jsonl", rows)
  page = report.render(Workspace(made.config, workdir))
  assert "risk-coverage" not in page.figures
  (shown,) = result_rows(parse(page.html))
  assert all(cells[11] == ("–", None) for cells in shown.values())


def test_summary_names_the_four_numbers(made, page):
  rows = {
    row["method"]: row
    for row in files.read_json_lines(made.workdir / "results.jsonl")
  }
  test = files.read_json(made.workdir / "diagnosis.json")["splits"]["test"]
  (stats,) = parse(page).all("ul", class_="stats")
  values = [e.text for e in stats.all("span", class_="value")]
  assert values == [
    *(f"{100 * rows[m]['accuracy']:.1f}%" for m in ("final", "kf", "kf_kd")),
    f"{100 * test['max_forget']:.1f}%",
  ]
  notes = [e.text for e in stats.all("span", class_="note")]
  assert notes[0] == "accuracy on 60 test points after 7 epochs"
  assert notes[1].endswith(f"{rows['kf']['num_members']} networks at inference")
  assert notes[2].endswith("], one network at inference")


def test_a_smaller_network_is_a_share_of_one(made, monkeypatch):
  summary = report._summary

  def smaller(rows):
    return summary([
      {**row, "inference_cost": 0.262} if row["method"] == "kf_kd" else row
      for row in rows
    ])  # fmt: skip

  monkeypatch.setattr(report, "_summary", smaller)
  page = report.render(Workspace(made.config, made.workdir)).html
  (stats,) = parse(page).all("ul", class_="stats")
  notes = [e.text for e in stats.all("span", class_="note")]
  assert notes[2].endswith("], 26 % of one network at inference")


def test_names_stay_text(made, page):
  root = parse(page)
  assert len(root.all("script")) == 1
  assert "alert" not in root.all("script")[0].text
  assert made.task.class_names[0] == NASTY
  svg_texts = {t.text for svg in root.all("svg") for t in svg.all("text")}
  assert made.task.class_names[1] in svg_texts
  cards = root.all("ol", class_="cards long")[0]
  shown = {dd.text.rstrip(" ✗✓") for dd in cards.all("dd")}
  assert NASTY in shown


def test_names_in_the_configuration_stay_text(made):
  config = made.config.copy_and_resolve_references()
  config.data.dir = f"/{NASTY}"
  page = report.render(Workspace(config, made.workdir)).html
  assert len(parse(page).all("script")) == 1
  assert f"/{NASTY}" in [td.text for td in parse(page).all("td")]


def test_same_artefacts_same_bytes(made, page):
  assert report.render(Workspace(made.config, made.workdir)).html == page


def test_run_writes_the_page(made, page):
  line = report.run(Workspace(made.config, made.workdir))
  assert (made.workdir / "report" / "index.html").read_text() == page
  assert line == f"report/index.html, {len(page.encode()) / 1000:.0f} kB"
  figures = made.workdir / "report" / "figures"
  names = {f.attributes["data-name"] for f in parse(page).all("figure")}
  assert {p.name for p in figures.iterdir()} == {
    f"{name}.{kind}" for name in names for kind in ("svg", "png")
  }
  for path in figures.glob("*.png"):
    assert Image.open(io.BytesIO(path.read_bytes())).size[0] > 900
  text = (made.workdir / "report" / "tables" / "results.csv").read_text()
  rows = files.read_json_lines(made.workdir / "results.jsonl")
  shown = list(csv.DictReader(io.StringIO(text)))
  assert [r["method"] for r in shown] == [row["method"] for row in rows]
  for cells, row in zip(shown, rows):
    assert float(cells["gain_interval_high"]) == row["gain_interval"][1]
    assert float(cells["nll"]) == row["nll"]


def test_tables_as_text():
  rows = [{"name": "a|b\n,c", "value": 0.25}, {"name": "", "value": None}]
  assert page_lib.to_markdown(rows) == (
    "| name | value |\n| --- | --- |\n| a\\|b ,c | 0.2500 |\n|  |  |\n"
  )


def test_every_value_of_a_figure_is_said_and_belongs_to_its_method(made, page):
  (figure,) = parse(page).all("figure", data_name="gains")
  rows = files.read_json_lines(made.workdir / "results.jsonl")
  said = {
    c.attributes["data-method"]: c.all("title")[0].text
    for c in figure.all("circle", class_="point")
  }
  assert list(said) == [r["method"] for r in rows if r["method"] != "final"]
  (kf,) = [r for r in rows if r["method"] == "kf"]
  low, high = (f"{100 * bound:+.1f}" for bound in kf["gain_interval"])
  gain = f"{100 * kf['gain']:+.1f}"
  assert said["kf"] == f"Knowledge Fusion: {gain} [{low}, {high}]"


def pairs(element):
  """Each row's heading and its only cell."""
  return {
    tr.all("th")[0].text: tr.all("td")[0].text for tr in element.all("tr")
  }


def test_configuration_versions_and_hashes_are_there(made, page):
  details = parse(page).all("details")
  values = pairs(details[0])
  assert values["num_epsilons"] == "11"
  assert values["clip_norm"] == "default"
  assert values["teachers"] == '["kf", "mixture"]'
  versions = pairs(details[1])
  for name in ("kfkd_jax", "Python", "jax", "flax", "optax", "numpy"):
    assert re.match(r"\d+\.\d+", versions[name])
  assert jax.devices()[0].device_kind in versions["Device of this report"]
  assert pairs(details[2]) == {"config": "c0ffee"}
  assert [h3.text for h3 in details[2].all("h3")] == ["train"]


def history(made):
  store = PredictionStore(
    made.workdir / "runs" / "teacher" / "predictions/test"
  )
  return np.stack([store[c].argmax(-1) for c in range(len(store))]), store


def kf_classes(made, store):
  fold = files.read_json(made.workdir / "fusion.json")["folds"][0]
  weights = fold["methods"]["kf"]["weights"]
  return sum(w * store[c] for c, w in enumerate(weights)).argmax(-1)


def test_forgotten_examples_are_those_forgotten_most(made, page):
  classes, store = history(made)
  now, names = kf_classes(made, store), made.task.class_names
  forgotten = []
  for n, label in enumerate(store.labels):
    right = [c == label for c in classes[:, n]]
    if not right[-1] and any(right):
      forgotten.append((-sum(right), n))
  cards = parse(page).all("ol", class_="cards long")[0]
  items = [c for c in cards.children if isinstance(c, Element)]
  assert len(items) == 5
  for (times, n), item in zip(sorted(forgotten), items):
    true, end, fused, count = (dd.text for dd in item.all("dd"))
    assert true == names[store.labels[n]]
    assert end == f"{names[classes[-1, n]]} ✗"
    sign = "✓" if now[n] == store.labels[n] else "✗"
    assert fused == f"{names[now[n]]} {sign}"
    assert count == f"{-times} of {NUM_EPOCHS}"
    assert_pixels(item.all("img")[0], made.task.splits["test"].images[n])
    assert_strip(item.all("ol")[0], classes[:, n], store.labels[n], names)
  text = parse(page).text
  back = sum(now[n] == store.labels[n] for _, n in forgotten)
  assert f"has {back} of all {len(forgotten)} forgotten points" in text
  table = report.render(Workspace(made.config, made.workdir)).tables
  ids = made.task.splits["test"].ids
  assert [
    (r["id"], r["true"], r["at_end"], r["fused"], r["times_right"])
    for r in table["forgotten"]
  ] == [
    (
      ids[n], names[store.labels[n]], names[classes[-1, n]], names[now[n]],
      -times,
    )
    for times, n in sorted(forgotten)
  ]  # fmt: skip
  for row in table["forgotten"]:
    right = classes[
      :, list(ids).index(row["id"])
    ] == made.task.class_names.index(row["true"])
    assert row["last_right"] == 1 + np.flatnonzero(right)[-1]


def assert_pixels(img, image):
  kind, _, content = img.attributes["src"].partition(",")
  assert kind == "data:image/png;base64"
  shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
  np.testing.assert_array_equal(shown, image.squeeze())


def assert_strip(strip, classes, label, names):
  """Unrolled, the runs are the history."""
  unrolled = []
  for li in strip.all("li"):
    length = int(li.attributes["style"].removeprefix("flex-grow:"))
    when, _, name = li.attributes["title"].partition(": ")
    first = int(re.search(r"\d+", when)[0])
    assert first == len(unrolled) + 1
    assert name == li.text
    assert (li.attributes.get("class") == "yes") == (name == names[label])
    unrolled += [name] * length
  assert unrolled == [names[k] for k in classes]


def test_noise_is_counted(made, page):
  ledger = made.task.ledger
  section = parse(page).all("section", aria_labelledby="noise")[0]
  shown = [
    [tr.all("th")[0].text, *(td.text for td in tr.all("td"))]
    for tr in section.all("tr")[1:]
  ]
  expected = []
  for name in ("train", "select"):
    pairs = [
      (c, g)
      for c, g, s in zip(ledger.clean, ledger.given, ledger.split)
      if s == name
    ]
    changed = sum(c != g for c, g in pairs)
    rate = f"{100 * changed / len(pairs):.1f}"
    expected.append([name, str(len(pairs)), str(changed), rate])
  assert shown == expected
  assert (
    f"40.0 % asked, {expected[0][3]} % of training labels" in parse(page).text
  )
  assert "% of the training labels were made wrong (pair)" in parse(page).text


def test_without_noise_nothing_is_said_of_it(tmp_path, monkeypatch):
  made = make_workdir(
    epath.Path(tmp_path), monkeypatch, noisy=False, channels=3
  )
  page = report.render(Workspace(made.config, made.workdir)).html
  assert_stands_alone(page)
  root = parse(page)
  assert len(root.all("figure")) == 8  # no memorisation, no noise matrix
  assert "Label noise none" in root.text
  assert "made wrong" not in root.text
  colour = root.all("img")[0]
  content = base64.b64decode(colour.attributes["src"].partition(",")[2])
  assert Image.open(io.BytesIO(content)).mode == "RGB"


def test_halvings_stand_apart_and_examples_chose_nothing(tmp_path, monkeypatch):
  made = make_workdir(epath.Path(tmp_path), monkeypatch, halved=True)
  page = report.render(Workspace(made.config, made.workdir)).html
  assert_stands_alone(page)
  rows = files.read_json_lines(made.workdir / "results.jsonl")
  folds = result_rows(parse(page))
  assert len(folds) == 3
  for number, shown in enumerate(folds):
    of_fold = [row for row in rows if row["split"] == f"test/{number}"]
    assert len(shown) == len(of_fold)
    for row in of_fold:
      assert_row_equals(shown[plots.method_name(row["method"])], row)
  final = np.mean([r["accuracy"] for r in rows if r["method"] == "final"])
  text = parse(page).text
  assert f"Final network {100 * final:.1f}%" in text
  assert "mean of 3 halvings" in text
  fold = made.task.folds[0]
  allowed = made.task.splits["test"].images[fold.test_rows]
  for img in parse(page).all("img"):
    content = base64.b64decode(img.attributes["src"].partition(",")[2])
    shown = np.asarray(Image.open(io.BytesIO(content)))
    assert any(np.array_equal(shown, image.squeeze()) for image in allowed)


def test_many_classes_list_the_most_frequent_changes(tmp_path, monkeypatch):
  made = make_workdir(epath.Path(tmp_path), monkeypatch, num_classes=24)
  page = report.render(Workspace(made.config, made.workdir)).html
  section = parse(page).all("section", aria_labelledby="noise")[0]
  table = section.all("table")[1]
  shown = [
    (tr.all("th")[0].text, *(td.text for td in tr.all("td")))
    for tr in table.all("tbody")[0].all("tr")
  ]
  ledger, names = made.task.ledger, made.task.class_names
  counts = {}
  for clean, given, split in zip(ledger.clean, ledger.given, ledger.split):
    if split == "train" and clean != given:
      counts[clean, given] = counts.get((clean, given), 0) + 1
  top = sorted(counts, key=lambda pair: (-counts[pair], pair))[:15]
  assert shown == [(names[c], names[g], str(counts[c, g])) for c, g in top]
  assert not section.all("svg")


def test_optional_methods_may_be_absent(made, tmp_path):
  workdir = epath.Path(shutil.copytree(made.workdir, tmp_path / "copy"))
  rows = files.read_json_lines(workdir / "results.jsonl")
  kept = [row for row in rows if row["method"] != "kf_kd"]
  files.write_json_lines(workdir / "results.jsonl", kept)
  page = report.render(Workspace(made.config, workdir)).html
  assert "KF, distilled" not in page
  assert len(parse(page).all("span", class_="value")) == 3


@pytest.mark.parametrize(
  "value, text",
  [(0.123456, "+12.3"), (-0.05, "−5.0"), (-0.0001, "+0.0"), (0.0, "+0.0")],
)
def test_differences_are_in_points_with_a_sign(value, text):
  assert page_lib.signed(value) == text


def test_large_pictures_are_made_smaller():
  rng = np.random.default_rng(0)
  uri = report.picture(rng.integers(0, 256, (400, 300, 3), np.uint8))
  content = base64.b64decode(uri.partition(",")[2])
  assert Image.open(io.BytesIO(content)).size == (120, 160)
