"""Our attacks beside those of other libraries, on the same networks.

  python -m benchmarks.agreement --golden=path --data_dir=path --workdir=path
  python -m benchmarks.agreement --model_dirs=path,path --data_dir=path \
    --workdir=path --peer_python=peers/bin/python --examples=200

`--golden` holds weights (`nets.npz`, the networks `nat` and `adv`, see
`victims.TwoConvNet`) and per-example results (`results.npz`) that were recorded
once; the images are the first of MNIST's test set. On networks of
`experiments.train` (`--model_dirs`, for MNIST) the other libraries are run
first, in their own environment, and recorded under `--workdir`. Finished runs
are kept there, so a stopped table goes on where it stood. How runs are scored:
`recorded`.
"""

import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks import peers, recorded, results, victims
from jaxadv import autoattack, cascade, engine

_GOLDEN = flags.DEFINE_string(
  "golden", None, "Folder of nets.npz and results.npz."
)
_MODEL_DIRS = flags.DEFINE_list(
  "model_dirs", [], "Hardened models of experiments.train, for MNIST."
)
_PEER_PYTHON = flags.DEFINE_string(
  "peer_python", None, "The interpreter that has the peers, for model_dirs."
)
_THREADS = flags.DEFINE_integer("threads", 2, "Cores for the peers.")
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

_GOLDEN_NAMES = dict(zip(victims.KINDS, ("nat", "adv"), strict=True))
_CASCADE = ("apgd-ce", "apgd-t", "fab-t", "square")

Row = dict[str, Any]


def _attacked(name: str, net: victims.Net) -> tuple[Any, float]:
  """Our record of a run and its seconds; from the workdir, if finished."""
  path = pathlib.Path(_WORKDIR.value) / f"{net.name}-{name}-{len(net.x)}.npz"
  clock = path.with_suffix(".seconds")
  if path.exists() and clock.exists():
    return engine.Record.load(path), float(clock.read_text())
  attack, key = recorded.RUNS[name].attack_fn(), jax.random.key(0)
  started = time.monotonic()
  record = engine.craft(attack, net.logits_fn, key, net.x, net.label)
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


def _cascaded(threat: str, net: victims.Net, path: pathlib.Path) -> Row:
  """AutoAttack as it is used, beside the union of its four recorded runs."""
  ball = recorded.THREATS[threat][0]
  folder = f"{net.name}-cascade-{threat}-{len(net.x)}"
  result = cascade.cascade(
    autoattack.standard(ball, num_classes=10),
    net.logits_fn,
    jax.random.key(0),
    net.x,
    net.label,
    checkpoint_dir=pathlib.Path(_WORKDIR.value) / folder,
  )
  runs = (
    recorded.columns(path, f"{net.name}/autoattack-{threat}-{attack}")
    for attack in _CASCADE
  )
  theirs = [run["success"][: len(net.x)] for run in runs]
  fell = np.logical_or.reduce(theirs), result.record.success
  other, ours = (1.0 - broken.mean() for broken in fell)
  agree = ours <= other + recorded.CASCADE_SLACK
  cost = float(result.record.forwards.mean()), sum(result.seconds.values())
  name = f"autoattack-{threat}, cascade"
  measure = "robust accuracy"
  return _line(net.name, name, measure, other, ours, agree, fell, cost)


def _rows_of(net: victims.Net, path: pathlib.Path) -> list[Row]:
  right = recorded.columns(path, net.name)["clean_correct"][: len(net.x)]
  undefended = net.name == "nat"
  rows = []
  for name, run in recorded.RUNS.items():
    left_out = undefended and not run.undefended
    if left_out or (_RUNS.value and name not in _RUNS.value):
      continue
    theirs = recorded.columns(path, f"{net.name}/{name}")
    record, seconds = _attacked(name, net)
    rows.append(_row(name, net.name, theirs, right, record, net.x, seconds))
    print(" ".join(str(cell) for cell in rows[-1].values()), flush=True)
  if not undefended and not _RUNS.value:
    rows += [_cascaded(threat, net, path) for threat in recorded.THREATS]
  return rows


def _golden() -> list[tuple[victims.Net, pathlib.Path]]:
  """The two networks of the record, each with the record's path."""
  folder = pathlib.Path(str(_GOLDEN.value))
  nets = victims.small_nets(
    str(folder / "nets.npz"), _DATA_DIR.value, _EXAMPLES.value, eps=0.3
  )
  return [
    (net._replace(name=_GOLDEN_NAMES[net.name]), folder / "results.npz")
    for net in nets
  ]


def _trained() -> list[tuple[victims.Net, pathlib.Path]]:
  """Networks of `experiments.train`, each with a record made now."""
  folder = pathlib.Path(_WORKDIR.value)
  folder.mkdir(parents=True, exist_ok=True)
  nets = victims.trained_nets(
    _MODEL_DIRS.value, _DATA_DIR.value, _EXAMPLES.value
  )
  found = []
  for net in nets:
    job = folder / f"{net.name}-{len(net.x)}.job.npz"
    path = folder / f"{net.name}-{len(net.x)}.peers.npz"
    threads = {"threads": np.asarray(_THREADS.value)}
    engine.record.save_npz(job, victims.job(net) | threads)
    module = "benchmarks.agreement_peer"
    peers.run(str(_PEER_PYTHON.value), module, [job, path, net.name])
    found.append((net, path))
  return found


def main(argv: list[str]) -> None:
  """Makes every run that is not finished, and the table."""
  del argv
  if _MODEL_DIRS.value and not _PEER_PYTHON.value:
    raise app.UsageError("--model_dirs needs --peer_python")
  with jax.default_matmul_precision("highest"):
    nets = (_golden() if _GOLDEN.value else []) + _trained()
    if not nets:
      raise app.UsageError("give --golden, --model_dirs or both")
    rows = []
    for net, path in nets:
      rows += _rows_of(net, path)
  title = f"Agreement, {_EXAMPLES.value} images"
  results.show(title, rows)
  if _MARKDOWN.value:
    results.write_markdown(_MARKDOWN.value, title, rows)


if __name__ == "__main__":
  app.run(main)
