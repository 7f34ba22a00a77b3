import io
import os
import socket
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from kfkd_jax import files
from kfkd_jax.run import seals


@pytest.fixture
def folder(tmp_path):
  return epath.Path(tmp_path) / "new" / "folder"


def test_json_takes_arrays_and_numbers_of_any_library(folder):
  value = {"a": np.float32(0.5), "b": jnp.arange(2), "c": (1, np.int64(2))}
  files.write_json(folder / "x.json", value)
  assert files.read_json(folder / "x.json") == {
    "a": 0.5,
    "b": [0, 1],
    "c": [1, 2],
  }


def test_damaged_json_names_the_file(folder):
  files.write_text(folder / "x.json", '{"a": 1')
  with pytest.raises(ValueError, match=r"x\.json is damaged"):
    files.read_json(folder / "x.json")


def test_json_lines_forgive_a_line_cut_short_only_at_the_end(folder):
  files.write_json_lines(folder / "x.jsonl", [{"a": 1}, {"a": 2}])
  files.append_json_line(folder / "x.jsonl", {"a": 3})
  with (folder / "x.jsonl").open("a") as f:
    f.write('{"a": 4')
  assert [r["a"] for r in files.read_json_lines(folder / "x.jsonl")] == [
    1,
    2,
    3,
  ]
  files.write_text(folder / "x.jsonl", '{"a": 1\n{"a": 2}\n')
  with pytest.raises(ValueError, match="line 1 is damaged"):
    files.read_json_lines(folder / "x.jsonl")


def test_npz_is_the_same_bytes_every_time(folder):
  for name in ("x", "y"):
    files.write_npz(folder / f"{name}.npz", a=np.arange(3), b=np.eye(2))
  assert (folder / "x.npz").read_bytes() == (folder / "y.npz").read_bytes()
  assert zipfile.is_zipfile(io.BytesIO((folder / "x.npz").read_bytes()))
  np.testing.assert_array_equal(
    files.read_npz(folder / "x.npz")["b"], np.eye(2)
  )


def test_missing_npz_is_missing_not_damaged(folder):
  with pytest.raises(FileNotFoundError):
    files.read_npz(folder / "x.npz")


def test_failed_write_leaves_the_old_file(folder, monkeypatch):
  files.write_text(folder / "x", "old")
  monkeypatch.setattr(
    type(folder), "replace", lambda *a: (_ for _ in ()).throw(OSError("full"))
  )
  with pytest.raises(OSError, match="full"):
    files.write_text(folder / "x", "new")
  assert (folder / "x").read_text() == "old"


def test_digest_depends_on_content_not_on_key_order():
  assert files.digest({"a": 1, "b": 2}) == files.digest({"b": 2, "a": 1})
  assert files.digest({"a": 1}) != files.digest({"a": 2})
  assert files.digest(b"a") != files.digest(b"b")


def test_an_archive_holds_its_arrays_and_nothing_else(tmp_path):
  path = epath.Path(tmp_path) / "a.npz"
  files.write_npz(path, x=np.arange(3), y=np.array("text"))
  assert sorted(files.read_npz(path)) == ["x", "y"]
  with pytest.raises(ValueError, match="z holds objects"):
    files.write_npz(path, z=np.array([{}], object))


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("[" * 200_000 + "]" * 200_000, "nested deeper"),
    ('{"a":' * 300 + "1" + "}" * 300, "nested deeper"),
    ("null", "holding null where"),
    ("[]", r"holding \[\] where"),
    ("NaN", "holding NaN where"),
    ('"' + "x" * 99 + '"', "holding "),
  ],
)
def test_json_of_another_kind_is_damaged_and_named(folder, text, message):
  files.write_text(folder / "x.json", text)
  with pytest.raises(ValueError, match=rf"x\.json is damaged, {message}"):
    files.read_json(folder / "x.json")
  files.write_text(folder / "x.jsonl", text + "\n")
  with pytest.raises(ValueError, match=r"x\.jsonl line 1 is damaged"):
    files.read_json_lines(folder / "x.jsonl")


def make_socket(path):
  with socket.socket(socket.AF_UNIX) as s:
    s.bind(str(path))


@pytest.mark.parametrize(
  ("make", "kind"),
  [
    (os.mkfifo, "a named pipe"),
    (os.mkdir, "a folder"),
    (make_socket, "a socket"),
    (lambda path: os.symlink("/dev/zero", path), "a device"),
  ],
)
def test_only_files_are_opened(tmp_path, monkeypatch, make, kind):
  monkeypatch.chdir(tmp_path)  # a socket's name is short
  path = epath.Path("x")
  make(path)
  readers = (
    files.read_bytes,
    files.read_json,
    files.read_json_lines,
    files.read_npz,
    lambda path: files.read_foreign_npz(path, ["a"]),
    lambda path: files.append_json_line(path, {}),
  )
  for read in readers:
    with pytest.raises(OSError, match=f"^x is {kind} where a file belongs"):
      read(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path):
  path = epath.Path(tmp_path) / "a.npz"
  files.write_npz(path, x=np.arange(3))
  with zipfile.ZipFile(path, "a") as archive:
    archive.writestr("x.npy", archive.read("x.npy"))
  with pytest.raises(ValueError, match=r"a\.npz is damaged .*two arrays named"):
    files.read_npz(path)
  with pytest.raises(files.RefusedError, match="two arrays named 'x'"):
    files.read_foreign_npz(path, ["x"])


def test_a_pipe_among_sealed_files_is_not_opened(tmp_path):
  folder = epath.Path(tmp_path)
  (folder / "a").write_text("a")
  seals.write_sums(folder, ["a"])
  whole = seals.seal(folder)
  (folder / "a").unlink()
  os.mkfifo(folder / "a")
  assert not files.is_file(folder / "a")
  assert seals.seal(folder) != whole
  assert seals.culprit("folder", folder) == "folder/a"
