"""Attacks of libraries for PyTorch under a budget; started by `optimality.py`.

Runs in an environment of its own: it imports neither JAX nor jaxadv. Reads a
network and images from an `.npz` file and writes a file per attack: the nearest
misclassified point that the network was ever asked about, and the passes. What
is already there is left alone; a library that is not installed is left out.
"""

import argparse
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks import peer_network

_INF = float("inf")
_P = {"linf": _INF, "l2": 2.0, "l1": 1.0, "l0": 0.0}
# `(model, x, y) -> ignored`: only what the model is asked counts.
Attack = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor], object]


class SpentError(Exception):
  """Every row is out of budget: nothing that follows can count."""


class Asked(torch.nn.Module):
  """Counts passes per row and keeps the nearest misclassified question.

  Rows of a whole batch are told by their place, others by the clean image that
  is nearest. Rows out of budget get zeros without a slope.
  """

  def __init__(self, net, x, y, norm: str, budget: int):
    super().__init__()
    self.net, self.budget, self.p = net, budget, _P[norm]
    self.x, self.y = x.flatten(1).double(), y
    self.passes = torch.zeros(len(x), dtype=torch.long)
    self.best = torch.full((len(x),), _INF, dtype=torch.double)
    self.num_classes = net(x[:1]).shape[1]

  def _rows(self, x: torch.Tensor) -> torch.Tensor:
    if len(x) == len(self.x):
      return torch.arange(len(x))
    return torch.cdist(x.detach().flatten(1).double(), self.x).argmin(dim=1)

  def _backward(self, rows: torch.Tensor, grad: torch.Tensor) -> None:
    asked = (grad != 0).any(dim=1)
    self._count(rows[asked])

  def _count(self, rows: torch.Tensor) -> None:
    self.passes.index_add_(0, rows, torch.ones_like(rows))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Logits of `x` [B, C, H, W], clipped to [0, 1]."""
    # A slope where clipping changes nothing, whatever that of `clamp` is.
    x = x + (x.clamp(0, 1) - x).detach()
    rows = self._rows(x)
    blank = x.flatten(1)[:, : self.num_classes] * 0
    allowed = self.passes[rows] < self.budget
    if not allowed.any():
      raise SpentError
    logits = self.net(x)
    self._count(rows[allowed])
    with torch.no_grad():
      size = self._size(x.flatten(1).double() - self.x[rows])
      wrong = allowed & (logits.argmax(dim=1) != self.y[rows])
      self.best.scatter_reduce_(0, rows[wrong], size[wrong], "amin")
    if logits.requires_grad:
      logits.register_hook(functools.partial(self._backward, rows))
    return torch.where(allowed[:, None], logits, blank)

  def _size(self, delta: torch.Tensor) -> torch.Tensor:
    if self.p == 0:
      return (delta.abs() > 1e-6).sum(dim=1).double()
    return torch.linalg.vector_norm(delta, self.p, dim=1)


def adv_lib_attacks(norm: str, budget: int) -> dict[str, Attack]:
  """adv-lib, with the steps that fit."""
  from adv_lib import attacks as lib
  from adv_lib.attacks import auto_pgd

  p, steps = _P[norm], budget // 2
  common: dict[str, Attack] = {
    "fmn": functools.partial(lib.fmn, norm=p, steps=steps),
    "pdpgd": functools.partial(lib.pdpgd, norm=p, num_steps=steps),
  }
  if norm == "l0":
    sparse = functools.partial(
      lib.pdpgd, norm=0, num_steps=steps, proximal_operator=23
    )
    return common | {
      "pdpgd 2/3": sparse,
      "sigma-zero": functools.partial(lib.sigma_zero, num_steps=steps),
      "vfga": functools.partial(
        lib.vfga, targeted=False, max_iter=budget // 22
      ),
    }
  apgd = functools.partial(
    auto_pgd.minimal_apgd,
    norm=p,
    max_eps={"linf": 0.5, "l2": 10.0, "l1": 50.0}[norm],
    binary_search_steps=10,
    use_large_reps=norm == "l1",
  )
  common |= {
    "apgd": functools.partial(apgd, n_iter=steps // 10),
    "apgd-t": functools.partial(
      apgd, targeted_version=True, num_targets=3, n_iter=steps // 30
    ),
    "fab": functools.partial(lib.fab, norm=p, n_iter=budget // 11),
  }
  if norm == "l1":
    return common | {
      "alma": functools.partial(lib.alma, distance="l1", num_steps=steps)
    }
  common |= {
    "deepfool": functools.partial(lib.df, norm=p),
    "tr": functools.partial(lib.tr, p=p, iter=steps),
  }
  if norm == "l2":
    common |= {
      "ddn": functools.partial(lib.ddn, steps=steps, levels=None),
      "alma": functools.partial(
        lib.alma, distance="l2", num_steps=steps, init_lr_distance=1
      ),
      "pdgd": functools.partial(lib.pdgd, num_steps=steps),
      "sdf": lib.sdf,
      "carlini-wagner": functools.partial(
        lib.carlini_wagner_l2, max_iterations=steps // 9, abort_early=False
      ),
    }
  return common


def foolbox_attacks(norm: str, budget: int) -> dict[str, Attack]:
  """Foolbox, whose model is called without a copy to NumPy."""
  import foolbox

  steps, lib = budget // 2, foolbox.attacks

  def run(attack) -> Attack:
    def call(model, x, y):
      return attack(foolbox.PyTorchModel(model, (0, 1)), x, y, epsilons=None)

    return call

  attacks = {
    "linf": {
      "fmn": lambda: lib.LInfFMNAttack(steps=steps),
      "deepfool": lambda: lib.LinfDeepFoolAttack(),
    },
    "l2": {
      "fmn": lambda: lib.L2FMNAttack(steps=steps),
      "ddn": lambda: lib.DDNAttack(steps=steps),
      "deepfool": lambda: lib.L2DeepFoolAttack(),
      "carlini-wagner": lambda: lib.L2CarliniWagnerAttack(steps=steps // 9),
    },
    "l1": {
      "fmn": lambda: lib.L1FMNAttack(steps=steps),
      "ead": lambda: lib.EADAttack(steps=steps // 9),
    },
    "l0": {"fmn": lambda: lib.L0FMNAttack(steps=steps)},
  }
  return {name: run(make()) for name, make in attacks[norm].items()}


def pyautoattack_attacks(norm: str, budget: int) -> dict[str, Attack]:
  """The FAB of AutoAttack's authors, as packaged."""
  if norm == "l0":
    return {}
  from pyautoattack import fab_pt

  name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]

  def call(targeted: bool, n_iter: int, model, x, y):
    attack = fab_pt.FABAttack_PT(
      model, norm=name, n_iter=n_iter, eps=1e6, seed=0, device="cpu",
      targeted=targeted,
    )  # fmt: skip
    attack.n_target_classes = 9
    return attack.perturb(x, y)

  return {
    "fab": functools.partial(call, False, budget // 12),
    "fab-t": functools.partial(call, True, budget // 36),
  }


LIBRARIES = {
  "adv-lib": adv_lib_attacks,
  "foolbox": foolbox_attacks,
  "pyautoattack": pyautoattack_attacks,
}


def _save(path: pathlib.Path, **arrays) -> None:
  temporary = path.with_name(f"{path.name}.tmp.npz")
  np.savez(temporary, **arrays)
  os.replace(temporary, path)


def _run(name, attack, net, x, y, norm, budget, path) -> None:
  """One attack on all images at once; its file."""
  torch.manual_seed(0)
  model = Asked(net, x, y, norm, budget).eval()
  start = time.perf_counter()
  try:
    attack(model, x.clone(), y.clone())
  except SpentError:
    pass
  except Exception as error:  # Whatever it heard until then still counts.
    print(f"{norm} {name} stopped: {error!r}", file=sys.stderr)
  seconds = time.perf_counter() - start
  _save(
    path,
    distance=model.best.numpy(),
    passes=model.passes.numpy(),
    seconds=seconds,
  )
  print(f"{norm} {name}: {seconds:.1f} s", file=sys.stderr, flush=True)


def main() -> None:
  """Every attack of every library in the norms asked for."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("job", help="An .npz file to read.")
  parser.add_argument("folder", help="Where to write.")
  parser.add_argument("prefix", help="What names of files begin with.")
  parser.add_argument("norms", nargs="+", choices=_P)
  args = parser.parse_args()
  job = np.load(args.job)
  torch.set_num_threads(int(job["threads"]))
  budget, net = int(job["budget"]), peer_network.network(job)
  net.requires_grad_(False)
  x, y = peer_network.images(job), torch.from_numpy(job["label"]).long()
  for norm in args.norms:
    for library, attacks_fn in LIBRARIES.items():
      try:
        attacks = attacks_fn(norm, budget)
      except ModuleNotFoundError as error:
        print(f"left out {library}: {error}", file=sys.stderr)
        continue
      for name, attack in attacks.items():
        file = f"{args.prefix}-{norm}-{library}-{name.replace('/', '_')}.npz"
        path = pathlib.Path(args.folder) / file
        if not path.exists():
          _run(f"{library} {name}", attack, net, x, y, norm, budget, path)


if __name__ == "__main__":
  main()
