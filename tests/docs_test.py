"""What the documents say is so: their code runs, their tables are complete."""

import pathlib
import re

import pytest

from experiments import recipes
from jaxadv import attacks

_ROOT = pathlib.Path(__file__).resolve().parents[1]
# Of `attacks`: starts, rules and parts, which are no attacks.
_PARTS = {
  *("at_centre", "at_input", "in_ball", "in_bounds", "binary_search"),
  *("elastic", "least_l1", "noisy_loss", "LikeliestTargets"),
}


def _blocks(page, language):
  text = (_ROOT / page).read_text()
  blocks = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
  assert blocks
  return blocks


@pytest.mark.parametrize("page", ["README.md", "docs/extending.md"])
def test_the_code_runs(page):
  names = {"__name__": "page"}
  for block in _blocks(page, "python"):
    exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize(
  "page", ["README.md", "docs/defences.md", "docs/agreement.md"]
)
def test_commands_have_flags_that_there_are(page):
  lines = "".join(_blocks(page, "bash")).replace("\\\n", " ").splitlines()
  for line in lines:
    script = re.search(r"python -m (\w+)\.(\w+)", line)
    if script:
      source = (_ROOT / script[1] / f"{script[2]}.py").read_text()
      # Flags inside of quotes are those of another script.
      for flag in re.findall(r"--(\w+)", re.sub(r'"[^"]*"', "", line)):
        assert re.search(rf'"(--)?{flag}"|shared_flags\.{flag}\(', source), flag


def test_every_attack_is_in_the_table():
  text = (_ROOT / "README.md").read_text()
  rows = "".join(line for line in text.splitlines() if line.startswith("|"))
  named = set(re.findall(r"`(?:attacks\.)?(\w+)`", rows))
  assert set(attacks.__all__) - _PARTS <= named


def test_every_defence_is_in_the_tables():
  readme = (_ROOT / "README.md").read_text()
  rows = re.findall(
    r"^\| `(\w+)` \|.*\|([^|]*)\|$",
    (_ROOT / "docs/defences.md").read_text().partition("## All of them")[2],
    re.MULTILINE,
  )
  said = {
    name: "" if row.number is None else f"{row.meaning}, {row.number:g}"
    for name, row in recipes.RECIPES.items()
  }
  assert {name: number.strip() for name, number in rows} == said
  assert not [name for name in said if f"`{name}`" not in readme]
