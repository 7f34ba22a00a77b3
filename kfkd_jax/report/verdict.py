"""What a comparison says in words: the result, which row to take, warnings.

All of it is read from the rows of `results.jsonl` and a split of
`diagnosis.json`. With several halvings the first one is judged, for students
are scored in it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from kfkd_jax import catalogue

_AGREES = 0.9  # a student below says something else than its teacher
_WARNED_OF = (*catalogue.FUSIONS, "independent")  # and students
_CONTROLS = ("random_epochs",)  # nobody would ship them

Row = Mapping[str, Any]


class Verdict(NamedTuple):
  """Sentences, to be read in this order.

  Attributes:
    result: what came out.
    advice: which row to take, and why.
    certainty: how sure one can be.
    warnings: what is clearly below `final`, each with its likely cause.
    notes: what else explains the numbers; may be empty, as may warnings.
    taken: the slug of the row to take.
  """

  result: str
  advice: str
  certainty: str
  warnings: tuple[str, ...]
  notes: tuple[str, ...]
  taken: str

  def __str__(self) -> str:
    warnings = [f"WARNING: {line}" for line in self.warnings]
    said = (self.result, self.advice, self.certainty, *warnings, *self.notes)
    return "\n".join(said)


def judge(
  rows: Sequence[Row],
  *,
  level: float,
  forgetting: Mapping[str, Any] | None = None,
  name: Callable[[str], str] = str,
) -> Verdict:
  """The verdict on a run.

  Args:
    rows: of `results.jsonl`.
    level: of their intervals.
    forgetting: the test split of `diagnosis.json`; None where it is not made.
    name: what a method is called, by its slug.
  """
  found = _first_fold(rows, name)
  above = [row for row in found.values() if _is_single(row) and _is_above(row)]
  taken = _best(above) or found["final"]
  # What is as good in one network needs no ensemble.
  least = max([0.0, *(row["gain"] for row in above)])
  return Verdict(
    _result(found, taken),
    " ".join([_advice(above, taken), *_larger(found, least)]),
    _certainty(rows, found, taken, level),
    _warnings(found),
    (
      *_promises(found),
      *_kf_alone(found),
      *_below_chance(found, forgetting),
    ),
    taken["method"],
  )


def _first_fold(
  rows: Sequence[Row], name: Callable[[str], str]
) -> dict[str, Row]:
  return {
    row["method"]: {**row, "name": name(row["method"])}
    for row in rows
    if row["split"] == rows[0]["split"]
  }


def _is_above(row: Row) -> bool:
  return row["gain_interval"][0] > 0


def _is_below(row: Row) -> bool:
  return row["gain_interval"][1] < 0


def _is_single(row: Row) -> bool:
  return row["num_members"] == 1 and row["inference_cost"] <= 1


def _best(rows: Sequence[Row]) -> Row | None:
  """Of those that cannot be told from the most accurate one, the first choice.

  That is, whose gain lies inside its interval: accuracy alone would choose by
  the luck of the test points. What goes first was settled without them: least
  work at a prediction, then a student, which a run is for, then the cheapest.
  """
  if not rows:
    return None
  top = max(rows, key=lambda row: row["gain"])
  least = min(top["gain"], top["gain_interval"][0])
  level = [row for row in rows if row["gain"] >= least]
  return min(
    level,
    key=lambda row: (
      max(1, row["inference_cost"]),
      not catalogue.taught_by(row["method"]),
      row["train_cost"],
    ),
  )


def _result(found: Mapping[str, Row], taken: Row) -> str:
  final = found["final"]
  students = [row for m, row in found.items() if catalogue.taught_by(m)]
  shown = taken
  if taken is final and students:
    shown = students[0]  # not the best by the test points
  if shown is final:
    parts = [f"the last network: {_percent(final)} for {_trainings(final)}"]
  else:
    size = "the original size"
    if shown["inference_cost"] != 1:
      size = f"{100 * shown['inference_cost']:.0f} % of the operations"
    parts = [
      f"one network of {size}, {_percent(shown)} instead of "
      f"{_percent(final)}, for {_trainings(shown)} ({shown['name']})"
    ]
  independent = found.get("independent")
  if independent is not None and independent["num_members"] > 1:
    parts.append(
      f"{independent['num_members']} independent networks: "
      f"{_percent(independent)} for {_trainings(independent)}"
    )
  said = "; ".join(parts)
  return f"{said[0].upper()}{said[1:]}."


def _percent(row: Row) -> str:
  return f"{100 * row['accuracy']:.1f} %"


def _trainings(row: Row) -> str:
  cost = round(row["train_cost"], 1)
  return f"{cost:g} training{'s' * (cost != 1)}"


def _gain(row: Row) -> str:
  low, high = row["gain_interval"]
  return (
    f"{100 * row['gain']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
  )


def _advice(above: Sequence[Row], taken: Row) -> str:
  if not above:
    return (
      f"Take {taken['name']}: no other single network has a gain whose "
      "interval is clear of zero."
    )
  said = (
    f"Take {taken['name']}: {_gain(taken)} over the final network, clear of "
    "zero, in one network."
  )
  top = max(above, key=lambda row: row["gain"])
  if top["gain"] == taken["gain"]:
    return said
  return (
    f"{said} These points cannot tell it from {top['name']} "
    f"({_percent(top)} for {_trainings(top)}); among such, students go first "
    "and then the cheapest, whatever the points say."
  )


def _larger(found: Mapping[str, Row], least: float) -> list[str]:
  """A sentence on what is clearly better and costs more at every prediction."""
  best = _best([
    row
    for row in found.values()
    if not _is_single(row)
    and row["method"] not in _CONTROLS
    and row["gain_interval"][0] > least
  ])  # fmt: skip
  if best is None:
    return []
  return [
    f"Clearly better is {best['name']}, {_percent(best)} ({_gain(best)}), at "
    f"{best['inference_cost']:g} times the work of one network at every "
    f"prediction and {_trainings(best)}."
  ]


def _certainty(
  rows: Sequence[Row], found: Mapping[str, Row], taken: Row, level: float
) -> str:
  final = found["final"]
  low, high = final["accuracy_interval"]
  folds = len({row["split"] for row in rows})
  where = f" in the first of {folds} halvings" if folds > 1 else ""
  said = (
    f"How sure: {final['num_examples']:,} test points{where} judged every row "
    "and chose none; by them the final network lies between "
    f"{100 * low:.1f} and {100 * high:.1f} % ({100 * level:g} % interval). Of "
    "other seeds they say nothing: kfkd sweep runs some."
  )
  if taken is final:
    return said
  return (
    f"{said} The advice goes by the same points, so expect a little less than "
    "they show."
  )


def warn(rows: Sequence[Row], *, methods: Collection[str]) -> tuple[str, ...]:
  """A line for each fusion, student or ensemble clearly below `final`.

  Args:
    rows: of `results.jsonl`.
    methods: to warn of.
  """
  return _warnings(_first_fold(rows, str), methods)


def _warnings(
  found: Mapping[str, Row], methods: Collection[str] | None = None
) -> tuple[str, ...]:
  return tuple(
    f"{row['name']} is clearly below the final network ({_gain(row)}): "
    f"{_cause(found, method)}"
    for method, row in found.items()
    if (catalogue.taught_by(method) or method in _WARNED_OF)
    and _is_below(row)
    and (methods is None or method in methods)
  )


def _cause(found: Mapping[str, Row], method: str) -> str:
  """Why a method is below `final`, as far as its row can say."""
  row, fusion = found[method], catalogue.taught_by(method)
  if fusion is not None:
    # Rows of earlier versions do not say it.
    agreement = row.get("teacher_agreement")
    if agreement is not None and agreement < _AGREES:
      return (
        f"it says what its teacher says on {100 * agreement:.0f} % of the test "
        "points, so it learned too little: give it more epochs "
        "(distill.epochs) or more images (distill.inputs)"
      )
    if fusion in found and _is_below(found[fusion]):
      return f"so is its teacher {found[fusion]['name']}"
    return "its teacher is not; more epochs (distill.epochs) may help it"
  if method == "independent":
    return "networks of other seeds came out worse than this one"
  if method == "mixture":
    said = (
      "it is chosen by likelihood, which prefers unsure early epochs to sure "
      "and wrong ones"
    )
    if "noisy labels" in row["selected_on"]:
      said += (
        ", all the more on noisy selecting labels under a network that resists "
        "them"
      )
    return f"{said}; Knowledge Fusion goes by accuracy"
  return (
    f"the {100 * row['select_gain']:+.1f} points that it gained on the "
    "selecting points did not hold; more of them (selection.num) would choose "
    "better"
  )


def _promises(found: Mapping[str, Row]) -> list[str]:
  """A line for each fusion that kept less than where it was chosen."""
  return [
    f"{row['name']} promised {100 * row['select_gain']:+.1f} points on the "
    f"selecting points and kept {_gain(row)}: more of them (selection.num) "
    "would choose better."
    for method, row in found.items()
    if method in catalogue.FUSIONS
    and row["select_gain"] is not None
    and not _is_below(row)
    and row["select_gain"] > row["gain_interval"][1]
  ]


def _kf_alone(found: Mapping[str, Row]) -> list[str]:
  kf = found.get("kf")
  if kf is None or kf["num_members"] > 1:
    return []
  return [
    f"{kf['name']} is the last epoch alone: no other epoch helped on the "
    "selecting points, so a student of it learns from the final network."
  ]


def _below_chance(
  found: Mapping[str, Row], forgetting: Mapping[str, Any] | None
) -> list[str]:
  """A line where less was forgotten than independence gives."""
  if forgetting is None:
    return []
  worst = forgetting["max_forget_checkpoint"]
  null = forgetting["null"][worst]
  if forgetting["max_forget"] >= null:
    return []
  said = (
    f"What was forgotten ({100 * forgetting['max_forget']:.1f} % of the test "
    f"points) lies below what chance gives ({100 * null:.1f} %, if being right "
    "then and at the end had nothing to do with each other)"
  )
  if any(_is_above(found[m]) for m in catalogue.FUSIONS if m in found):
    return [f"{said}; fusion gained all the same."]
  return [f"{said}: then and at the end it erred mostly on the same points."]
