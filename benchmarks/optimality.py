"""AttackBench's score of our attacks, beside those of other libraries.

  python -m benchmarks.optimality --nets=nets.npz --data_dir=path \
    --workdir=path --peer_python=peers/bin/python

Every attack may spend 2,000 forward and backward passes per example; the
nearest misclassified point that it ever asks the network about counts
(`questions`), and its score says how near it comes to the best of all attacks
in the table (`scoring`). Attacks with a fixed radius are wrapped in a search
for it (`radius_search`). Without `--peer_python` ours stand alone, and scores
are beside our own best only.

Networks are the two of `victims` and those that `experiments.train` wrote to
`--model_dirs`. Finished attacks are kept under `--workdir`, so a stopped table
goes on where it stood.

Reference: Cina et al., "AttackBench: evaluating gradient-based attacks for
adversarial examples", 2025.
"""

import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from benchmarks import (
  contestants,
  peers,
  questions,
  results,
  scoring,
  victims,
)
from jaxadv import judge
from jaxadv.engine import record

_PEER_PYTHON = flags.DEFINE_string(
  "peer_python", None, "The interpreter that has the peers, if any."
)
_NETS = flags.DEFINE_string(
  "nets", None, "An .npz file of weights (see `victims.variables`)."
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Attack MNIST from this TFDS folder, not the digits."
)
_MODEL_DIRS = flags.DEFINE_list(
  "model_dirs", [], "Attack these models of experiments.train, too."
)
_SMALL = flags.DEFINE_bool("small_nets", True, "Attack the nets of `victims`.")
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where finished attacks are kept.", required=True
)
_EXAMPLES = flags.DEFINE_integer("examples", 100, "The first so many images.")
_BUDGET = flags.DEFINE_integer("budget", 2000, "Passes per example.")
_NORMS = flags.DEFINE_multi_enum(
  "norm", list(questions.DISTANCES), list(questions.DISTANCES), "Only these."
)
_ATTACKS = flags.DEFINE_list("attacks", [], "Only these of ours; default all.")
_THREADS = flags.DEFINE_integer("threads", 1, "Cores for the peers.")
_EPS = flags.DEFINE_float("eps", 0.1, "Of hardening, where nets are trained.")
_JSON = flags.DEFINE_string("json", None, "Also write the rows to this file.")

_OURS = "jaxadv"
Net = victims.Net
Row = dict[str, Any]


def _nets() -> list[Net]:
  data_dir, num_examples = _DATA_DIR.value, _EXAMPLES.value
  found = victims.trained_nets(_MODEL_DIRS.value, data_dir, num_examples)
  if not _SMALL.value:
    return found
  small = victims.small_nets(_NETS.value, data_dir, num_examples, _EPS.value)
  return small + found


def _prefix(net: Net) -> str:
  return f"{net.name}-{len(net.x)}-{_BUDGET.value}"


def _ours(net: Net, norm: str) -> None:
  """Runs those of our attacks that have no file yet."""
  size = int(np.prod(net.x.shape[1:]))
  factories = contestants.of_norm(norm, size, _BUDGET.value)
  for name, attack_fn in factories.items():
    file = f"{_prefix(net)}-{norm}-{_OURS}-{name}.npz"
    path = pathlib.Path(_WORKDIR.value) / file
    if path.exists() or (_ATTACKS.value and name not in _ATTACKS.value):
      continue
    start = time.perf_counter()
    found = questions.best_found(
      attack_fn(),
      net.logits_fn,
      jax.random.key(0),
      net.x,
      net.label,
      norm=norm,
      budget=_BUDGET.value,
    )
    seconds = time.perf_counter() - start
    record.save_npz(path, found._asdict() | {"seconds": np.asarray(seconds)})
    logging.info("%s %s %s: %.1f s", net.name, norm, name, seconds)


def _peers(net: Net) -> None:
  """Has the peers' attacks run that have no file yet."""
  if net.layers is None:
    logging.warning("%s has no copy in PyTorch: peers left out", net.name)
    return
  folder = pathlib.Path(_WORKDIR.value)
  limits = {"budget": _BUDGET.value, "threads": _THREADS.value}
  job = folder / f"{_prefix(net)}.job.npz"
  record.save_npz(
    job, victims.job(net) | {k: np.asarray(v) for k, v in limits.items()}
  )
  peers.run(
    str(_PEER_PYTHON.value),
    "benchmarks.optimality_peer",
    [job, folder, _prefix(net), *_NORMS.value],
  )


def _table(net: Net, norm: str, wrong: np.ndarray) -> list[Row]:
  """A row for every attack that has a file, the best first."""
  head = f"{_prefix(net)}-{norm}-"
  found = {}
  for path in sorted(pathlib.Path(_WORKDIR.value).glob(f"{head}*.npz")):
    with np.load(path) as file:
      columns = {name: file[name] for name in file.files}
    # What the network has wrong from the start needs no attack.
    columns["distance"] = np.where(wrong, 0.0, columns["distance"])
    found[path.stem.removeprefix(head)] = columns
  best = scoring.envelope(c["distance"] for c in found.values())
  rows = [_row(name, columns, best) for name, columns in found.items()]
  return sorted(rows, key=lambda row: -row["score"])


def _row(name: str, columns: dict[str, np.ndarray], best) -> Row:
  libraries = (_OURS, "adv-lib", "foolbox", "pyautoattack")
  library = next(lib for lib in libraries if name.startswith(f"{lib}-"))
  distance = columns["distance"]
  return {
    "attack": name.removeprefix(f"{library}-"),
    "library": library,
    "score": scoring.local_optimality(distance, best),
    "median_distance": scoring.median(distance, best),
    "success_rate": scoring.success_rate(distance, best),
    "passes": float(columns["passes"].mean()),
    "seconds": float(columns["seconds"]),
  }


def main(argv: list[str]) -> None:
  """Runs what is not finished and prints a table per network and norm."""
  del argv
  pathlib.Path(_WORKDIR.value).mkdir(parents=True, exist_ok=True)
  tables: dict[str, list[Row]] = {}
  with jax.default_matmul_precision("highest"):
    for net in _nets():
      key = jax.random.key(0)
      logits = judge.outputs(net.logits_fn, key, net.x, batch_size=len(net.x))
      for norm in _NORMS.value:
        _ours(net, norm)
      if _PEER_PYTHON.value:
        _peers(net)
      for norm in _NORMS.value:
        title = f"{net.name}, {norm}, {len(net.x)} images"
        wrong = logits.argmax(axis=1) != net.label
        tables[title] = _table(net, norm, wrong)
        results.show(title, tables[title])
  if _JSON.value:
    results.save(_JSON.value, tables)


if __name__ == "__main__":
  app.run(main)
