"""Several working directories on one page: their numbers, what differs."""

import csv
import io
import re

import numpy as np
import pytest
from etils import epath
from test_report import NASTY, assert_stands_alone, below, parse

from kfkd_jax import cli, files
from kfkd_jax.catalogue import method_name
from kfkd_jax.report import overview_page as overview

ODD = "'<script>&\"b"  # a directory may be called so


def make_row(method, *, gain=0.0, cost=1, split="test"):
  return {
    "method": method,
    "seed": 0,
    "split": split,
    "selected_on": "",
    "accuracy": 0.7 + gain,
    "accuracy_interval": [0.65 + gain, 0.75 + gain],
    "gain": gain,
    "gain_interval": [gain - 0.02, gain + 0.03],
    "nll": 0.9,
    "ece": 0.1,
    "brier": 0.4,
    "num_examples": 500,
    "num_members": cost,
    "train_cost": 1.15,
    "inference_cost": cost,
    "storage_cost": cost,
    "select_gain": None,
    "device_kind": "cpu",
    "versions": {"jax": "0.10.2"},
  }


def make_run(
  path, *, epochs=3, gain=0.05, method="kf", data="digits", folds=1, **config
):
  """A working directory as a finished run leaves it."""
  splits = ["test"] if folds == 1 else [f"test/{f}" for f in range(folds)]
  rows = [
    make_row(name, gain=g + 0.01 * f, cost=cost, split=split)
    for f, split in enumerate(splits)
    for name, g, cost in (("final", 0.0, 1), (method, gain, 7))
  ]
  files.write_json_lines(path / "results.jsonl", rows)
  hits = np.zeros((folds, 2, 20), bool)
  hits[:, 0, :14] = hits[:, 1, : 14 + round(20 * gain)] = True
  files.write_npz(
    path / "hits.npz",
    methods=np.array(["final", method]),
    ids=np.arange(20),
    hits=hits,
    tested=np.ones((folds, 20), bool),
    scored=np.ones((folds, 2), bool),
  )
  share = [0.1 * (e + 1) for e in range(epochs)]
  diagnosis = {
    "class_names": [f"{data}-0", f"{data}-1"],
    "epochs": list(range(1, epochs + 1)),
    "splits": {"test": {"accuracy": share, "forget": share[::-1]}},
  }
  files.write_json(path / "diagnosis.json", diagnosis)
  settings = {
    "seed": 0,
    "data": {"name": data, "dir": None},
    "train": {"epochs": epochs},
    "selection": {"source": "test" if folds > 1 else "train"},
    "compare": {"level": 0.95, "bootstrap_samples": 100},
    **config,
  }
  files.write_json(
    path / "config.json", {**settings, "digest": files.digest(settings)}
  )
  return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return epath.Path(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def directories(folder):
  return [
    make_run(folder / "first", noise={"kind": "pair", "field": NASTY}),
    make_run(folder / ODD, epochs=5, gain=-0.01, noise={"kind": "none"}),
    make_run(folder / "third", method=NASTY, noise={"kind": "none"}),
  ]


@pytest.fixture(scope="module")
def page(directories):
  return overview.render(overview.read(directories)).html


def cells(table):
  return [
    [c.text for c in below(tr) if c.tag in ("th", "td")]
    for tr in table.all("tr")
  ]


def test_page_stands_alone_and_can_be_heard(page):
  assert_stands_alone(page)
  root = parse(page)
  ids = [e.attributes["id"] for e in below(root) if "id" in e.attributes]
  assert len(ids) == len(set(ids))
  assert len(root.all("figure")) == 4
  assert all("scope" in th.attributes for th in root.all("th"))
  for svg in root.all("svg"):
    assert len(svg.attributes["aria-label"]) > 20


def test_names_stay_text(page, directories):
  root = parse(page)
  assert len(root.all("script")) == 1
  assert "alert" not in root.all("script")[0].text
  heads = [th.attributes.get("data-run") for th in root.all("th")]
  assert ODD in heads
  titles = {t.text for t in root.all("title")}
  assert f"{ODD}, Knowledge Fusion: -1.0 [-3.0, +2.0]" in titles
  assert f"third, {method_name(NASTY)}: +5.0 [+3.0, +8.0]" in titles


def test_every_method_of_every_run_is_there(page):
  (table,) = parse(page).all("table", data_name="methods-by-run")
  head, final, kf, nasty = cells(table)
  assert head == ["Method", "first", ODD, "third"]
  assert [c.split()[0] for c in final[1:]] == ["70.0"] * 3
  assert kf[1:3] == [
    "75.0 +5.0 [+3.0, +8.0] 1.15 / 7 / 7",
    "69.0 −1.0 [−3.0, +2.0] 1.15 / 7 / 7",
  ]
  assert kf[3] == "–"
  assert nasty[0] == method_name(NASTY)
  assert nasty[1:3] == ["–", "–"]
  (numbers,) = parse(page).all("table", data_name="all-numbers")
  assert len(numbers.all("tbody")[0].all("tr")) == 6


def test_only_keys_that_differ_are_shown(directories):
  runs = overview.read(directories)
  assert overview.differences(runs) == {
    "train.epochs": ["3", "5", "3"],
    "noise.kind": ["pair", "none", "none"],
    "noise.field": [NASTY, "not there", "not there"],
  }
  assert overview.differences(runs[:1]) == {}
  (table,) = parse(overview.render(runs).html).all(
    "table", data_name="differences"
  )
  assert ["train.epochs", "3", "5", "3"] in cells(table)


def test_versions_that_differ_are_shown(tmp_path):
  paths = [make_run(epath.Path(tmp_path) / n) for n in "ab"]
  rows = files.read_json_lines(epath.Path(paths[1]) / "results.jsonl")
  rows = [{**row, "versions": {"jax": "0.11"}} for row in rows]
  files.write_json_lines(epath.Path(paths[1]) / "results.jsonl", rows)
  found = overview.differences(overview.read(paths))
  assert found == {"jax": ["0.10.2", "0.11"]}


def test_a_sweep_stands_for_its_runs_in_order(tmp_path):
  sweep = epath.Path(tmp_path) / "sweep"
  for seed in (10, 9, 101):
    make_run(sweep / f"seed-{seed}", seed=seed)
  runs = overview.read([str(sweep)])
  assert [r.name for r in runs] == ["seed-9", "seed-10", "seed-101"]
  assert overview.differences(runs) == {"seed": ["9", "10", "101"]}


def make_sweep(folder, *, rates=(0.4, 0.05), seeds=(0, 1), **options):
  """Gains grow by five points with the seed, and with the noise."""
  for rate in rates:
    for seed in seeds:
      make_run(
        folder / f"data.name=a%2Fb/x=1/y=2/noise.rate={rate}/seed-{seed}",
        gain=0.05 * seed + 0.1 * (rate > 0.1), seed=seed, **options,
      )  # fmt: skip
  return str(folder)


def test_a_page_on_a_sweep_begins_with_the_means(tmp_path):
  sweep = make_sweep(epath.Path(tmp_path) / "sweep")
  out = epath.Path(tmp_path) / "out"
  assert cli.main(["report", sweep, f"--output={out}"]) == 0
  root = parse((out / "index.html").read_text())
  assert_stands_alone((out / "index.html").read_text())
  (main,) = root.all("main")
  sections = [s.attributes["aria-labelledby"] for s in main.all("section")]
  assert sections[:3] == ["means", "differences", "methods"]
  section = main.all("section")[0]
  points = [f"data.name=a/b, x=1, y=2, noise.rate={r}" for r in (0.05, 0.4)]
  assert [h.text for h in section.all("h3")] == points
  assert [p.text for p in section.all("p", class_="muted")] == [
    "Seeds 0, 1"
  ] * 2
  assert "left out below 6 seeds" in section.all("p")[0].text
  low, high = section.all("table")
  head, final, kf = cells(high)
  assert head[:3] == ["Method", "Accuracy, %", "Gain, points"]
  assert final[:4] == ["Final network", "70.00 ± 0.00", "–", "–"]
  assert kf[1] == "82.50 ± 2.50"
  assert kf[2].startswith("+12.50 ± 2.50 (+") and kf[3:5] == ["2/0/0", "–"]
  assert cells(low)[2][2].startswith("+2.50 ± 2.50 (")
  assert cells(low)[2][3] == "1/1/0"
  assert len(section.all("figure", data_name="mean-gain")) == 1
  table = list(
    csv.DictReader(io.StringIO((out / "tables/means.csv").read_text()))
  )
  assert [row["point"] for row in table] == [
    p for p in points for _ in range(2)
  ]
  assert float(table[3]["gain"]) == pytest.approx(0.125)
  paper = (out / "tables" / "means.tex").read_text()
  assert r"noise.rate=0.4 & kf & 82.50 $\pm$ 2.50 & +12.50" in paper


def test_seeds_alone_and_several_sweeps_are_named_by_their_folders(tmp_path):
  root = epath.Path(tmp_path)
  for name in "ab":
    for seed in (0, 1):
      make_run(root / name / f"seed-{seed}", seed=seed)
  make_run(root / "c")
  found = [str(root / name) for name in "abc"]
  titles = [(m.title, m.seeds) for m in overview.means(overview.read(found))]
  assert titles == [("a", (0, 1)), ("b", (0, 1))]
  grids = [make_sweep(root / name, rates=(0.4,)) for name in "de"]
  titles = [m.title for m in overview.means(overview.read(grids))]
  point = "data.name=a/b, x=1, y=2, noise.rate=0.4"
  assert titles == [f"d: {point}", f"e: {point}"]
  assert overview.means(overview.read([str(root / "c")])) == []


def test_cells_that_cannot_be_averaged_are_named(tmp_path):
  root = epath.Path(tmp_path)
  make_run(root / "seed-0")
  make_run(root / "seed-1", method="mixture")
  runs = overview.read([str(root)])
  with pytest.raises(ValueError, match=f"{root}: seeds .* differ in methods"):
    overview.means(runs)
  (root / "seed-1" / "hits.npz").unlink()
  with pytest.raises(ValueError, match=r"seed-1 has no hits\.npz; run `kfkd"):
    overview.read([str(root)])


def test_names_are_as_short_as_they_can_be(tmp_path):
  root = epath.Path(tmp_path)
  paths = [make_run(root / a / "w") for a in ("x", "y")]
  assert [r.name for r in overview.read(paths)] == ["x/w", "y/w"]


def test_different_data_is_shown_and_said(tmp_path):
  root = epath.Path(tmp_path)
  runs = overview.read([
    make_run(root / "a"), make_run(root / "b", data="mnist"),
  ])  # fmt: skip
  (caution,) = overview.cautions(runs)
  assert caution.startswith("these runs are on different data (a: digits, b: m")
  notices = parse(overview.render(runs).html).all("div", class_="notice")
  assert caution in notices[0].text


def test_different_test_points_and_halvings_are_said(tmp_path):
  root = epath.Path(tmp_path)
  runs = overview.read([make_run(root / "a"), make_run(root / "b", folds=3)])
  different, halved = overview.cautions(runs)
  assert "scored on different test points" in different
  assert halved.startswith("numbers of b are means over halvings")
  final, kf = runs[1].methods.values()
  assert kf["gain"] == pytest.approx((0.05 + 0.06 + 0.07) / 3)
  assert kf["gain_interval"] is None
  assert final["accuracy"] == pytest.approx(0.71)
  overview.render(runs)


def test_equal_runs_have_no_cautions(directories):
  assert overview.cautions(overview.read([directories[0]])) == []


@pytest.mark.parametrize(
  "name, message",
  [
    ("nowhere", r"there is no directory .*nowhere"),
    ("empty", r"empty has no results; run `kfkd run --workdir=.*empty` first"),
    ("half", r"half has no diagnosis\.json; run `kfkd run --workdir=.*half`"),
    ("old", r"old holds results that cannot be read \(KeyError: 'accuracy'\)"),
    ("first", r"first is given twice"),
  ],
)
def test_errors_name_the_directory(folder, directories, name, message):
  (folder / "empty").mkdir(exist_ok=True)
  make_run(folder / "half")
  (folder / "half" / "diagnosis.json").unlink()
  make_run(folder / "old")
  files.write_json_lines(
    folder / "old" / "results.jsonl", [{"method": "kf", "seed": 0}]
  )
  with pytest.raises(ValueError, match=message):
    overview.read([directories[0], str(folder / name)])


def test_command_writes_page_figures_and_tables(directories, tmp_path, capsys):
  out = epath.Path(tmp_path) / "out" / "index.html"
  assert cli.main(["report", *directories[:2], f"--output={out.parent}"]) == 0
  assert str(out) in capsys.readouterr().out
  assert "<!doctype html>" in out.read_text()
  figures = {p.name for p in (out.parent / "figures").iterdir()}
  names = ("gain", "accuracy", "accuracy-curves", "forgetting-curves")
  assert figures == {f"{n}.{kind}" for n in names for kind in ("svg", "png")}
  assert (out.parent / "figures/gain.png").read_bytes()[:4] == b"\x89PNG"
  assert b"var(--" not in (out.parent / "figures/gain.svg").read_bytes()
  rows = list(
    csv.DictReader(
      io.StringIO((out.parent / "tables" / "all-numbers.csv").read_text())
    )
  )
  assert [r["run"] for r in rows] == ["first"] * 2 + [ODD] * 2
  assert float(rows[1]["gain_interval_low"]) == pytest.approx(0.03)
  markdown = (out.parent / "tables" / "differences.md").read_text()
  assert "| train.epochs | 3 | 5 |" in markdown


def test_without_an_output_the_page_goes_here(
  directories, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  assert cli.main(["report", directories[0]]) == 0
  assert (tmp_path / "kfkd-report" / "index.html").exists()


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--config.seed=1"], "takes no --config"),
    (["--model=kf"], "--model goes with predict"),
    (["--output=x.html"], "--output=x.html must be a folder"),
  ],
)
def test_what_does_not_go_with_directories(
  directories, arguments, message, capsys
):
  assert cli.main(["report", directories[0], *arguments]) == 2
  assert message in capsys.readouterr().err


def test_output_needs_directories(capsys):
  assert cli.main(["report", "--output=x"]) == 2
  assert re.search("--output goes with .*report DIR", capsys.readouterr().err)
