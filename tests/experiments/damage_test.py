"""Files that hold something else are named in a line that says what to do."""

import shutil

import pytest

from experiments import assessment, common, networks, validation
from jaxadv import engine
from tests.experiments import assessment_cases as cases
from tests.experiments import scripts, training_cases

_JUNK = (b"", b"{", b"[]", b"\xff\x00\xfe", b'{"a": ')


@pytest.mark.parametrize("content", _JUNK)
def test_results_that_are_none(content, tmp_path):
  (tmp_path / "results.json").write_bytes(content)
  with pytest.raises(
    engine.Damaged, match=r"results\.json is damaged .* delete it and run"
  ):
    common.finished(tmp_path)


@pytest.mark.parametrize("content", _JUNK)
def test_flags_that_are_none(content, tmp_path):
  (tmp_path / "flags.txt").write_bytes(content)
  with pytest.raises(
    engine.Damaged, match=r"flags\.txt is damaged .* or delete .* start afresh"
  ):
    common.begun_with(tmp_path)


@pytest.mark.parametrize("line", [b"\xff", b"{", b"[]", b'{"step": null}'])
def test_metrics_that_are_none(line, tmp_path):
  (tmp_path / "metrics.jsonl").write_bytes(
    b'{"step": 1}\n' + line + b'\n{"step": 3}\n'
  )
  before = (tmp_path / "metrics.jsonl").read_bytes()
  for read in (
    lambda: common.truncate_metrics(tmp_path, 3),
    lambda: common.read_metrics(tmp_path),
  ):
    with pytest.raises(engine.Damaged, match=r"metrics\.jsonl is damaged"):
      read()
  assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_validation_reads_what_a_kill_has_cut(tmp_path, monkeypatch):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
  monkeypatch.setattr(
    validation, "marks", lambda *arguments: {"clean_accuracy": 1.0}
  )
  exam = validation.Exam(training_cases.plan("none"), None, 2, 0)
  validate = validation.validate_fn(exam, None, 0, tmp_path)
  assert validate({})["score"] == 1.0


def _cut(path):
  path.write_bytes(path.read_bytes()[:-100])


def _junk(path):
  path.write_bytes(_JUNK[3])


def _empty(path):
  path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [_cut, _junk, _empty])
@pytest.mark.parametrize("name", ["fgsm.npz", "of.json"])
def test_records_that_are_none(name, spoil, victim, whole, tmp_path):
  place = tmp_path / "copy"
  shutil.copytree(whole[0], place)
  path = place / "records" / name
  (_empty if spoil is _cut and path.suffix == ".json" else spoil)(path)
  with pytest.raises((engine.Damaged, SystemExit), match=f"{name} is damaged"):
    assessment.assess(victim, cases.PLAN, place)


def test_a_damaged_checkpoint_ends_in_one_line(tmp_path):
  run = [f"--workdir={tmp_path}", "--epochs=1", "--num_train=80"]
  run += ["--batch_size=16", "--num_test=2"]
  assert scripts.python("-m", "experiments.train", *run).returncode == 0
  common.write_text(tmp_path / "results.json", "{")
  _, told = scripts.outputs("train", run)
  assert "results.json is damaged" in told
  (tmp_path / "results.json").unlink()
  shutil.rmtree(next((tmp_path / "checkpoints").glob("*/last/d")))
  done = scripts.python("-m", "experiments.train", *run)
  assert done.returncode == 1
  assert "cannot be read" in done.stderr
  assert f"delete {tmp_path / 'checkpoints'} to train" in done.stderr
  assert "Traceback" not in done.stderr


@pytest.mark.parametrize("gone", ["ocdbt.process_0", "d", "manifest.ocdbt"])
def test_weights_that_are_gone(gone, model_dir, tmp_path):
  place = tmp_path / "copy"
  shutil.copytree(model_dir, place)
  path = next((place / "checkpoints").glob(f"*/best/{gone}"))
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  with pytest.raises(ValueError, match=r"cannot be read .* train the model"):
    networks.load_model(place)
