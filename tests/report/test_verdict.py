"""Each sentence of the verdict under its condition, on made rows."""

import re

import pytest

from kfkd_jax.report import verdict


def row(method, gain=0.0, half=0.02, **changes):
  """A row of a method whose gain is known to within `half`."""
  made = {
    "method": method,
    "split": "test",
    "selected_on": "select (clean labels)",
    "accuracy": 0.582 + gain,
    "accuracy_interval": [0.54 + gain, 0.62 + gain],
    "gain": gain,
    "gain_interval": [gain - half, gain + half],
    "num_examples": 500,
    "num_members": 1,
    "train_cost": 1.0,
    "inference_cost": 1.0,
    "select_gain": None,
  }
  return {**made, **changes}


FINAL = row("final", half=0.0)
STUDENT = row("kf_kd", 0.088, 0.04, train_cost=2.18, teacher_agreement=0.95)
THREE = row(
  "independent", 0.012, num_members=3, inference_cost=3.0, train_cost=3.0
)


def judged(*rows, **options):
  return verdict.judge([FINAL, *rows], level=0.95, **options)


def test_the_result_is_one_sentence_in_words():
  assert judged(STUDENT, THREE).result == (
    "One network of the original size, 67.0 % instead of 58.2 %, for 2.2 "
    "trainings (kf_kd); 3 independent networks: 59.4 % for 3 trainings."
  )
  smaller = judged({**STUDENT, "inference_cost": 0.262}).result
  assert smaller.startswith("One network of 26 % of the operations, 67.0 %")


def test_a_student_is_the_result_though_none_should_take_it():
  found = judged({**STUDENT, "gain_interval": [-0.01, 0.2]}, row("mixture_kd"))
  assert found.result.endswith(
    "67.0 % instead of 58.2 %, for 2.2 trainings (kf_kd)."
  )
  assert found.advice.startswith("Take final: no other single network")
  assert "expect a little less" not in found.certainty


def test_without_students_the_last_network_is_the_result():
  assert judged().result == "The last network: 58.2 % for 1 training."


def test_the_network_to_take_is_clear_of_zero():
  advice = judged(STUDENT, row("best_epoch", 0.1, 0.11)).advice
  assert advice == (
    "Take kf_kd: +8.8 points [+4.8, +12.8] over the final network, clear of "
    "zero, in one network."
  )


def test_accuracy_alone_never_chooses_inside_an_interval():
  soup = row("kf_soup", 0.112, 0.04, train_cost=1.2)
  advice = judged(soup, STUDENT).advice
  assert advice.startswith("Take kf_kd: ")
  assert "cannot tell it from kf_soup (69.4 % for 1.2 trainings)" in advice
  clear = {**soup, "gain_interval": [0.09, 0.13]}
  assert judged(clear, STUDENT).advice.startswith("Take kf_soup: ")
  assert judged(clear, STUDENT).taken == "kf_soup"


def test_without_a_student_the_cheaper_of_equals_is_taken():
  dear, cheap = row("ce", 0.05, train_cost=2.0), row("elr", 0.045)
  assert judged(dear, cheap).advice.startswith("Take elr: ")


def test_an_ensemble_is_named_where_no_single_network_is_as_good():
  several = {**THREE, "gain": 0.15, "gain_interval": [0.1, 0.2]}
  advice = judged(STUDENT, several).advice
  assert "Clearly better is independent, " in advice
  assert "3 times the work of one network at every prediction" in advice
  as_good = {**several, "gain_interval": [0.08, 0.2]}
  assert "independent" not in judged(STUDENT, as_good).advice
  control = {**several, "method": "random_epochs"}
  assert "random_epochs" not in judged(STUDENT, control).advice


def test_a_page_calls_methods_by_other_names():
  found = judged(row("mixture_kd", 0.1), POOR, row("kf"), name=str.upper)
  said = str(found).replace("kfkd", "")
  assert "MIXTURE_KD" in found.advice
  assert "KF_KD is" in found.warnings[0]
  assert not re.search("kf|mixture", said)


def test_how_sure_one_can_be():
  certainty = judged(STUDENT).certainty
  assert "500 test points judged every row and chose none" in certainty
  assert "between 54.0 and 62.0 % (95 % interval)" in certainty
  assert "expect a little less" in certainty


def test_of_several_halvings_the_first_is_judged():
  rows = [
    {**FINAL, "split": "test/0"}, {**STUDENT, "split": "test/0"},
    {**FINAL, "split": "test/1", "accuracy": 0.7},
  ]  # fmt: skip
  found = verdict.judge(rows, level=0.9)
  assert "instead of 58.2 %" in found.result
  assert "in the first of 2 halvings" in found.certainty


KF = row("kf", num_members=4, inference_cost=4.0, select_gain=0.01)
POOR = row("kf_kd", -0.19, teacher_agreement=0.61)


@pytest.mark.parametrize(
  ("rows", "cause"),
  [
    ([KF, POOR], "its teacher says on 61 % .* more epochs"),
    ([KF, {**POOR, "teacher_agreement": 0.97}], "its teacher is not"),
    ([KF, {**POOR, "teacher_agreement": None}], "its teacher is not"),
    (
      [{**KF, "gain_interval": [-0.2, -0.1]}, {**POOR, "teacher_agreement": 1}],
      "so is its teacher kf$",
    ),
    ([row("kf", -0.1, num_members=2, select_gain=0.01)], r"the \+1.0 points"),
    ([row("mixture", -0.1)], "chosen by likelihood"),
    ([row("independent", -0.1)], "other seeds came out worse"),
    ([row("mixture_kd_2", -0.1, teacher_agreement=0.5)], "on 50 % of"),
  ],
)
def test_what_is_clearly_below_is_warned_of_with_its_cause(rows, cause):
  warning = judged(*rows).warnings[-1]
  assert warning.startswith(
    f"{rows[-1]['method']} is clearly below the final network ("
  )
  assert re.search(cause, warning)


def test_noisy_selecting_labels_are_named_where_they_selected():
  below = row("mixture", -0.1)
  (clean,) = judged(below).warnings
  (noisy,) = judged({**below, "selected_on": "select (noisy labels)"}).warnings
  assert "noisy selecting labels" in noisy
  assert "noisy" not in clean


def test_what_is_not_clearly_below_is_not_warned_of():
  assert judged(row("kf_kd", -0.01), row("fixed_jumps", -0.1)).warnings == ()


def test_a_stage_warns_of_its_own_methods_alone():
  rows = [FINAL, row("mixture", -0.1), POOR]
  (line,) = verdict.warn(rows, methods=["kf_kd"])
  assert line.startswith("kf_kd ")


def test_what_a_fusion_promised_and_did_not_keep_is_said():
  (note,) = judged({**KF, "select_gain": 0.05}).notes
  assert note.startswith(
    "kf promised +5.0 points on the selecting points and kept +0.0 points "
    "[-2.0, +2.0]: more of them"
  )
  assert judged({**KF, "select_gain": 0.02}).notes == ()


def test_the_last_epoch_alone_is_explained():
  (note,) = judged(row("kf")).notes
  assert note.startswith("kf is the last epoch alone")
  assert judged(KF).notes == ()


def test_forgetting_below_chance_is_explained():
  split = {
    "max_forget": 0.05, "max_forget_checkpoint": 1, "null": [0.0, 0.186]
  }  # fmt: skip
  (note,) = judged(KF, forgetting=split).notes
  assert (
    "(5.0 % of the test points) lies below what chance gives (18.6 %" in note
  )
  assert note.endswith("it erred mostly on the same points.")
  gains = {**KF, "gain_interval": [0.01, 0.05]}
  assert judged(gains, forgetting=split).notes[0].endswith("all the same.")
  assert judged(KF, forgetting={**split, "null": [0.0, 0.04]}).notes == ()


def test_in_a_terminal_warnings_stand_out():
  lines = str(judged(KF, POOR)).splitlines()
  assert len(lines) == 4
  assert lines[3].startswith(
    "WARNING: kf_kd is clearly below the final network"
  )
