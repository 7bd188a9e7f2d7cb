import json

import pytest

from tests.experiments import scripts


def _demo(workdir):
  return scripts.python(
    *("-m", "experiments.demo", f"--workdir={workdir}"),
    *("--epochs=3", "--num_examples=16"),
  )


@pytest.mark.slow
def test_compares_two_networks_and_does_nothing_twice(tmp_path):
  first = _demo(tmp_path)
  assert first.returncode == 0, first.stderr
  assert first.stdout.count("worst case  ") == 1
  assert f"report: {tmp_path / 'report.html'}" in first.stdout
  found = json.loads((tmp_path / "results.json").read_text())
  assert list(found) == ["standard", "hardened"]
  for numbers in found.values():
    assert numbers["num_examples"] == 16
    assert list(numbers["attacks"]) == [
      *("fgsm", "bim", "pgd", "targeted_pgd", "goal_image")
    ]
  again = _demo(tmp_path)
  assert again.returncode == 0, again.stderr
  assert again.stdout.count("already finished") == 2
  assert "standard: fgsm" in first.stdout
  assert "standard: fgsm" not in again.stdout
  assert json.loads((tmp_path / "results.json").read_text()) == found
