"""Our attacks beside what other libraries recorded on the same networks.

  python -m benchmarks.agreement --golden=path --data_dir=path --workdir=path

`--golden` holds weights (`nets.npz`, the networks `nat` and `adv`, see
`victims.TwoConvNet`) and per-example results (`results.npz`); the images are
the first of MNIST's test set. Finished runs are kept under `--workdir`, so a
stopped table goes on where it stood. How runs are scored: `recorded`.
"""

import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks import recorded, results, victims
from jaxadv import autoattack, cascade, engine

_GOLDEN = flags.DEFINE_string(
  "golden", None, "Folder of nets.npz and results.npz.", required=True
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "TFDS folder that holds MNIST.", required=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where finished runs are kept.", required=True
)
_EXAMPLES = flags.DEFINE_integer("examples", 500, "The first so many images.")
_RUNS = flags.DEFINE_multi_enum(
  "run", None, list(recorded.RUNS), "Only this run; may be repeated."
)
_MARKDOWN = flags.DEFINE_string("markdown", None, "Also write the table there.")

_NETS = dict(zip(victims.KINDS, ("nat", "adv"), strict=True))
_CASCADE = ("apgd-ce", "apgd-t", "fab-t", "square")

Row = dict[str, Any]


def _attacked(name: str, net: str, logits_fn, x, labels) -> tuple[Any, float]:
  """Our record of a run and its seconds; from the workdir, if finished."""
  path = pathlib.Path(_WORKDIR.value) / f"{net}-{name}-{len(x)}.npz"
  clock = path.with_suffix(".seconds")
  if path.exists() and clock.exists():
    return engine.Record.load(path), float(clock.read_text())
  started = time.monotonic()
  record = engine.craft(
    recorded.RUNS[name].attack_fn(), logits_fn, jax.random.key(0), x, labels
  )
  seconds = time.monotonic() - started
  record.save(path)
  clock.write_text(repr(seconds))
  return record, seconds


def _line(net, run, measure, theirs, ours, agree, fell, cost) -> Row:
  """One line of the table; `fell` are their broken examples and ours."""
  their_success, success = fell
  passes, seconds = cost
  return {
    "network": net,
    "run": run,
    "measure": measure,
    "theirs": float(theirs),
    "ours": float(ours),
    "agrees": "yes" if agree else "NO",
    "only they broke": int((their_success & ~success).sum()),
    "only we broke": int((success & ~their_success).sum()),
    "passes per image": passes,
    "seconds": seconds,
  }


def _row(name: str, net: str, theirs, right, record, x, seconds) -> Row:
  run = recorded.RUNS[name]
  distance = run.norm or "linf"
  fell = theirs["success"][: len(x)], recorded.broken(run, x, record)
  other = recorded.score(run, right, fell[0], theirs[distance][: len(x)])
  ours = recorded.score(run, right, fell[1], record.distance[distance])
  measure = f"median {run.norm}" if run.norm else "robust accuracy"
  passes = record.backwards if record.backwards.any() else record.forwards
  agree = recorded.agrees(run, ours, other)
  cost = float(np.mean(passes)), seconds
  return _line(net, name, measure, other, ours, agree, fell, cost)


def _cascaded(threat: str, logits_fn, x, labels) -> Row:
  """AutoAttack as it is used, beside the union of its four recorded runs."""
  ball = recorded.THREATS[threat][0]
  result = cascade.cascade(
    autoattack.standard(ball, num_classes=10),
    logits_fn,
    jax.random.key(0),
    x,
    labels,
    checkpoint_dir=pathlib.Path(_WORKDIR.value) / f"cascade-{threat}-{len(x)}",
  )
  runs = (
    recorded.columns(_GOLDEN.value, f"adv/autoattack-{threat}-{attack}")
    for attack in _CASCADE
  )
  theirs = np.logical_or.reduce([run["success"][: len(x)] for run in runs])
  fell = theirs, result.record.success
  other, ours = (1.0 - broken.mean() for broken in fell)
  agree = ours <= other + recorded.CASCADE_SLACK
  cost = float(result.record.forwards.mean()), sum(result.seconds.values())
  name = f"autoattack-{threat}, cascade"
  measure = "robust accuracy"
  return _line("adv", name, measure, other, ours, agree, fell, cost)


def _rows_of(net: str, variables, x, labels) -> list[Row]:
  logits_fn, folder = victims.bind(variables), _GOLDEN.value
  right = recorded.columns(folder, net)["clean_correct"][: len(x)]
  rows = []
  for name, run in recorded.RUNS.items():
    if net not in run.nets or (_RUNS.value and name not in _RUNS.value):
      continue
    theirs = recorded.columns(folder, f"{net}/{name}")
    record, seconds = _attacked(name, net, logits_fn, x, labels)
    rows.append(_row(name, net, theirs, right, record, x, seconds))
    print(" ".join(str(cell) for cell in rows[-1].values()), flush=True)
  if net == "adv" and not _RUNS.value:
    rows += [_cascaded(t, logits_fn, x, labels) for t in recorded.THREATS]
  return rows


def main(argv: list[str]) -> None:
  """Makes every run that is not finished, and the table."""
  del argv
  x, labels = victims.images(_DATA_DIR.value, _EXAMPLES.value)
  nets = victims.variables(f"{_GOLDEN.value}/nets.npz", eps=0.3)
  rows = []
  with jax.default_matmul_precision("highest"):
    for kind, variables in nets.items():
      rows += _rows_of(_NETS[kind], variables, x, labels)
  title = f"Agreement, {len(x)} images"
  results.show(title, rows)
  if _MARKDOWN.value:
    results.write_markdown(_MARKDOWN.value, title, rows)


if __name__ == "__main__":
  app.run(main)
