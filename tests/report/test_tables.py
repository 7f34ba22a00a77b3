"""The table over seeds, against plain loops over rows and points."""

import csv
import io
import itertools

import numpy as np
import pytest
from scipy import stats

from kfkd_jax.report import tables
from kfkd_jax.report import text as text_lib
from kfkd_jax.run.results import Hits

METHODS = ("final", "kf", "kf_kd")


def made(seed, *, num_folds=2, size=9, tested=None):
  """A run of which every fold tests some points; the student only the first."""
  rng = np.random.default_rng(seed)
  if tested is None:
    halves = np.random.default_rng(99)  # the same for every seed
    tested = halves.random((num_folds, size)) < 0.6
    tested[:, 0] = True
  scored = np.ones((num_folds, 3), bool)
  scored[1:, 2] = False
  hits = rng.random((num_folds, 3, size)) < [[0.4], [0.6], [0.7]]
  hits &= tested[:, None] & scored[..., None]
  rows = [
    {
      "method": method,
      "seed": seed,
      "nll": float(rng.random()),
      "ece": 0.1,
      "brier": 0.5,
      "train_cost": 1.0 + m,
      "inference_cost": 3,
      "storage_cost": 3,
    }
    for f, (m, method) in itertools.product(
      range(num_folds), enumerate(METHODS)
    )
    if scored[f, m]
  ]
  ids = np.arange(size) * 3
  return tables.Run(rows, Hits(np.array(METHODS), ids, hits, tested, scored))


def plain_gain(run, m, reference):
  """Points that both methods were scored on, fold by fold."""
  hits, total, count = run.hits, 0, 0
  for f in range(len(hits.tested)):
    for n in range(len(hits.ids)):
      if hits.tested[f, n] and hits.scored[f, m] and hits.scored[f, reference]:
        total += int(hits.hits[f, m, n]) - int(hits.hits[f, reference, n])
        count += 1
  return total / count


def plain_accuracy(run, m):
  found = [
    run.hits.hits[f, m, n]
    for f in range(len(run.hits.tested))
    for n in range(len(run.hits.ids))
    if run.hits.tested[f, n] and run.hits.scored[f, m]
  ]
  return sum(found) / len(found)


@pytest.mark.parametrize("against", METHODS)
@pytest.mark.parametrize("num_seeds", [1, 2, 6])
def test_rows_are_those_of_plain_loops(against, num_seeds):
  runs = [made(seed) for seed in range(num_seeds)]
  rows = tables.summarise(runs, against=against, num_samples=200)
  reference = METHODS.index(against)
  p_values = {}
  for m, row in enumerate(rows):
    gains = [plain_gain(run, m, reference) for run in runs]
    accuracies = [plain_accuracy(run, m) for run in runs]
    assert (row["method"], row["against"]) == (METHODS[m], against)
    assert row["seeds"] == num_seeds
    assert row["gain"] == pytest.approx(np.mean(gains))
    assert row["accuracy"] == pytest.approx(np.mean(accuracies))
    if num_seeds == 1:
      assert row["gain_error"] is row["accuracy_error"] is None
    else:
      assert row["gain_error"] == pytest.approx(stats.sem(gains))
      assert row["accuracy_error"] == pytest.approx(stats.sem(accuracies))
    assert row["wins"] == sum(g > 1e-9 for g in gains)
    assert row["ties"] == sum(abs(g) < 1e-9 for g in gains)
    assert row["wins"] + row["ties"] + row["losses"] == num_seeds
    nll = [
      np.mean([r["nll"] for r in run.rows if r["method"] == METHODS[m]])
      for run in runs
    ]
    assert row["nll"] == pytest.approx(np.mean(nll))
    assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
    assert row["gain_low"] <= row["gain"] <= row["gain_high"]
    flips = itertools.product((1, -1), repeat=num_seeds)
    means = [abs(np.dot(signs, gains)) for signs in flips]
    share = np.mean(np.array(means) >= abs(sum(gains)) - 1e-12)
    if m != reference:
      assert row["p_value"] == pytest.approx(share)
      p_values[m] = share
    else:
      assert row["p_value"] is row["p_holm"] is None
      assert row["gain_low"] == row["gain_high"] == 0
  low, high = sorted(p_values, key=p_values.get)
  assert rows[low]["p_holm"] == pytest.approx(min(1, 2 * p_values[low]))
  assert rows[high]["p_holm"] == pytest.approx(
    max(p_values[high], rows[low]["p_holm"])
  )


def test_gains_of_two_methods_are_opposite():
  runs = [made(seed) for seed in range(4)]
  over_final = tables.summarise(runs, against="final", num_samples=100)
  over_kf = tables.summarise(runs, against="kf", num_samples=100)
  kf, final = over_final[1], over_kf[0]
  assert kf["gain"] == pytest.approx(-final["gain"])
  assert (kf["wins"], kf["ties"]) == (final["losses"], final["ties"])
  assert kf["p_value"] == final["p_value"]
  assert kf["gain_low"] == pytest.approx(-final["gain_high"])


def test_pairing_makes_intervals_narrow():
  """A method that adds one hit to a noisy reference gains surely."""
  runs = []
  for seed in range(6):
    run = made(seed, num_folds=1, size=200, tested=np.ones((1, 200), bool))
    hits = run.hits.hits
    hits[0, 1] = hits[0, 0]
    hits[0, 1, :40] = True
    runs.append(run)
  row = tables.summarise(runs)[1]
  assert row["gain_low"] > 0.05
  assert row["gain_high"] - row["gain_low"] < (
    row["accuracy_high"] - row["accuracy_low"]
  )
  assert (row["wins"], row["ties"], row["losses"]) == (6, 0, 0)


def test_seeds_on_other_points_are_refused():
  other = made(1)
  other = other._replace(hits=other.hits._replace(ids=np.arange(9)))
  with pytest.raises(ValueError, match="differ in ids"):
    tables.summarise([made(0), other])


def test_markdown_and_csv_show_every_row():
  summaries = {
    ("noise.kind=pair", "data.name=a=b,c"): tables.summarise(
      [made(0), made(1)], num_samples=100
    ),
    ("noise.kind=none", "data.name=d"): tables.summarise(
      [made(2)], num_samples=100
    ),
  }
  text = tables.markdown(summaries, num_seeds=2)
  assert "### noise.kind=pair, data.name=a=b,c: 2 seeds" in text
  assert "### noise.kind=none, data.name=d: 1 of 2 seeds" in text
  assert text.count("| kf | ") == 2
  assert "(95 % paired bootstrap interval" in text
  flat = text_lib.to_csv(tables.flat(summaries))
  rows = list(csv.DictReader(io.StringIO(flat)))
  assert len(rows) == 6
  assert rows[0]["data.name"] == "a=b,c"
  first = summaries["noise.kind=pair", "data.name=a=b,c"][1]
  assert float(rows[1]["gain"]) == first["gain"]
  assert rows[5]["gain_error"] == "" and rows[0]["p_holm"] == ""
  assert tables.markdown({}, num_seeds=2) == "no cell is finished yet"


def test_no_p_where_the_seeds_are_too_few_to_say_anything():
  """Two methods: five seeds reach .125 at best, seven .031."""

  def row(method, p):
    known = dict.fromkeys(
      ("accuracy", "gain", "gain_low", "gain_high", "nll", "ece"), 0.5
    )
    return {
      **known, "method": method, "against": "final", "level": 0.95,
      "accuracy_error": None, "gain_error": None, "wins": 1, "ties": 0,
      "losses": 0, "train_cost": 1, "inference_cost": 1, "p_holm": p,
    }  # fmt: skip

  def of(seeds):
    rows = [row("final", None), row("kf", 2 * 2 ** (1 - seeds)), row("x", 1.0)]
    return [{**r, "seeds": seeds} for r in rows]

  few, enough = {("a=1",): of(5)}, {("a=1",): of(7)}
  assert [r["p"] for r in tables.shown(few["a=1",])] == ["-", "-", "-"]
  shown = [r["p"] for r in tables.shown(enough["a=1",])]
  assert shown == ["-", "0.031", "1.000"]
  assert "p is left out below 7 seeds" in tables.note(few)
  assert "Holm" not in tables.note(few)
  assert "left out" not in tables.note(enough)
  both = tables.markdown({**few, ("a=2",): of(7)}, num_seeds=7)
  assert "Holm" in both and "left out below 7 seeds" in both
