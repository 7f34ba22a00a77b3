"""Answers and rightness of any task, in arrays and in rows."""

import itertools
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from kfkd_jax import cli, forgetting
from kfkd_jax.predictions import read_any

LABELS = ["yes", "42", "no"]
ANSWERS = [["yes", "41", ""], ["yes", "42", "no"], ["no", "42", "yes"]]
CORRECT = np.array([[1, 0, 0], [1, 1, 1], [0, 1, 0]], bool)


def rows(kind):
  for epoch, said in zip((10, 20, 30), ANSWERS):
    for i, (answer, label) in enumerate(zip(said, LABELS)):
      row = {"epoch": epoch, "example": f"q{i}"}
      if kind == "correct":
        yield row | {"correct": int(answer == label)}
      else:
        yield row | {"answer": answer, "label": label}


def write(path, kind):
  if path.suffix == ".npz":
    arrays = {
      "correct": {"correct": CORRECT},
      "answers": {"answers": ANSWERS, "labels": LABELS},
    }[kind]
    ids = np.array(["q0", "q1", "q2"])
    np.savez(path, **arrays, epochs=np.array([10, 20, 30]), ids=ids)
  elif path.suffix == ".csv":
    table = list(rows(kind))
    lines = [",".join(table[0])]
    lines += [",".join(map(str, row.values())) for row in table]
    path.write_text("\n".join(lines) + "\n")
  else:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(kind)))
  return path


@pytest.mark.parametrize("kind", ["correct", "answers"])
@pytest.mark.parametrize("suffix", [".npz", ".csv", ".jsonl"])
def test_every_form_says_the_same(suffix, kind, tmp_path, capsys):
  path = write(tmp_path / f"mine{suffix}", kind)
  found = read_any(path)
  np.testing.assert_array_equal(found.correct, CORRECT)
  np.testing.assert_array_equal(found.epochs, [10, 20, 30])
  assert cli.main(["diagnose", f"--predictions={path}"]) == 0
  out = capsys.readouterr().out
  assert "max F_e 0.667 at epoch 20 (null 0.667); 2 of the 2 points of" in out
  assert "once right and wrong at the end 0.667" in out
  said = json.loads((tmp_path / "mine.diagnosis.json").read_text())
  split = said["splits"]["test"]
  assert split["accuracy"] == pytest.approx([1 / 3, 1, 1 / 3])
  assert split["time_to_forget"] == [0, 2, 0]
  assert split["forgotten"] == ["q0", "q2"]
  assert split["k"] == [1, 2, 3]
  assert split["pass_of_last"] == pytest.approx([1 / 3, 1, 1])
  assert split["pass_at_k"] == pytest.approx([5 / 9, 8 / 9, 1])
  if kind == "correct":  # of two, one is no majority whatever the other says
    assert split["majority_at_least"] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
  else:
    assert split["majority_of_last"] == pytest.approx([1 / 3, 1 / 3, 2 / 3])


def test_numbers_and_their_text_are_one_answer(tmp_path):
  lines = [
    {"epoch": 1, "example": 7, "answer": 3, "label": "3"},
    {"epoch": 2, "example": 7, "answer": None, "label": "3"},
  ]
  path = tmp_path / "a.jsonl"
  path.write_text("\n".join(map(json.dumps, lines)))
  found = read_any(path)
  np.testing.assert_array_equal(found.correct, [[True], [False]])
  assert found.ids.tolist() == ["7"]


def test_probabilities_are_answers_too(tmp_path, capsys):
  probs = np.eye(3)[np.array([[0, 1], [0, 2], [1, 2]])]
  np.savez(tmp_path / "p.npz", probs=probs, labels=np.array([0, 1]))
  assert cli.main(["diagnose", f"--predictions={tmp_path}/p.npz"]) == 0
  assert "majority of all 3 0.500, one of all right 1.000" in (
    capsys.readouterr().out
  )


def test_fuse_needs_probabilities(tmp_path, capsys):
  path = write(tmp_path / "a.csv", "correct")
  assert cli.main(["fuse", f"--predictions={path}"]) == 2
  assert "holds no probs[C,N,K]" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"labels": [0]}, r"no array 'probs'; expected one of probs\[C,N,K\], cor"),
    ({"answers": [[0]]}, "no array 'labels'"),
    ({"answers": [[0]], "correct": [[0]]}, "has correct and answers; expected"),
    ({"correct": [[0, 2]]}, "correct must hold booleans, or 0 and 1; got int"),
    ({"correct": [1, 0]}, r"correct must be \[checkpoints, examples\]"),
    ({"answers": [[0.5]], "labels": [0.5]}, r"labels must be \[1\] and of the"),
    ({"answers": [["a"]], "labels": [0]}, "labels must be .* got int64"),
    ({"answers": [["a"]], "labels": np.array([0], "u1")}, "got uint8"),
    ({"answers": [["a"]], "labels": ["a", "b"]}, r"got <U1\[2\] and <U1"),
    ({"correct": [[1]], "epochs": [1, 2]}, "1 ascending whole numbers"),
    ({"correct": [[1]], "ids": [1.5]}, r"ids must be 1 .* got float64\[1\]"),
  ],
)
def test_mistakes_in_arrays(arrays, message, tmp_path):
  path = tmp_path / "a.npz"
  np.savez(path, **{name: np.asarray(a) for name, a in arrays.items()})
  with pytest.raises(ValueError, match=message) as caught:
    read_any(path)
  assert "a.npz" in str(caught.value)


HEAD = "epoch,example,correct\n"


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.csv", "", "a.csv has no rows"),
    ("a.csv", HEAD, "a.csv has no rows"),
    ("a.csv", "epoch,correct\n1,1\n", "line 2 has no example; every row has"),
    ("a.csv", HEAD + "1,a,yes\n", "line 2: correct must be 0 or 1, got 'yes'"),
    ("a.csv", HEAD + "x,a,1\n", "line 2: epoch must be a whole number"),
    ("a.csv", HEAD + "1,a,1\n1,a,1\n", "line 3: epoch 1 has example 'a' twice"),
    (
      "a.csv",
      HEAD + "1,a,1\n2,b,1\n",
      "epoch 1 has no row for example 'b'; every checkpoint has one",
    ),
    ("a.csv", b"\xff\xfe", "a.csv is not UTF-8"),
    ("a.jsonl", '{"epoch": 1\n', "line 1 is no JSON"),
    ("a.jsonl", "[1]\n", "line 1 is no JSON object"),
    (
      "a.jsonl",
      '{"epoch": 1, "example": 1, "answer": 0.5, "label": 1}',
      "line 1: answer must be text or a whole number, got 0.5",
    ),
    (
      "a.csv",
      "epoch,example,answer,label\n1,a,b,c\n2,a,b,d\n",
      "line 3: example 'a' has label 'd', and 'c' before",
    ),
    ("a.csv", "epoch,example,answer\n1,a,b\n", "line 2 has no label"),
  ],
)
def test_mistakes_in_rows(name, content, message, tmp_path, capsys):
  path = tmp_path / name
  path.write_bytes(content.encode() if isinstance(content, str) else content)
  assert cli.main(["diagnose", f"--predictions={path}"]) == 2
  err = capsys.readouterr().err
  assert message in err and str(path) in err and err.count("\n") == 1


@hypothesis.given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 10**6))
def test_vote_and_pass_against_loops(C, N, seed):
  rng = np.random.default_rng(seed)
  said = rng.integers(0, 3, (C, N))
  vote = forgetting.majority_vote(said)
  words = np.array(["b", "a", "ab"])
  np.testing.assert_array_equal(
    forgetting.majority_vote(words[said]), words[vote]
  )
  for n in range(N):
    column = said[:, n].tolist()
    best = max(range(C), key=lambda c: (column.count(column[c]), c))
    assert vote[n] == column[best]
  correct = said == 0
  for k in range(1, C + 1):
    subsets = list(itertools.combinations(range(C), k))
    expected = np.mean([correct[list(s)].any(0) for s in subsets], axis=0)
    np.testing.assert_allclose(
      forgetting.pass_at_k(correct, k), expected, atol=1e-6
    )
  expected = correct.any(0) & ~correct[-1]
  np.testing.assert_array_equal(forgetting.forgotten(correct), expected)


def test_functions_refuse_what_does_not_fit():
  with pytest.raises(ValueError, match=r"k must lie in 1\.\.2 \(C\); got 3"):
    forgetting.pass_at_k(np.ones((2, 3), bool), 3)
  with pytest.raises(ValueError, match="integers or strings"):
    forgetting.majority_vote(np.ones((2, 3)))
