"""Records what attacks of other libraries do to a network.

Started by `agreement.py` in an environment of its own: it imports neither JAX
nor jaxadv. Reads a network and images from an `.npz` file and writes per run,
by its name in `recorded.RUNS`, what `recorded.columns` reads. Runs that are
recorded already are left alone.

APGD-CE has the package's 5 restarts and, in L1, comes from larger radii inwards
as AutoAttack-standard does.
"""

import argparse
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from benchmarks import peer_network

_INF = float("inf")
_P = {"linf": _INF, "l2": 2.0, "l1": 1.0, "l0": 0.0}
_THREATS = {"Linf": 0.3, "L2": 2.0, "L1": 10.0}
# `(network, x, y) -> x_adv`.
Attack = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


def _autoattack(norm: str, eps: float, attack: str, net, x, y) -> torch.Tensor:
  import pyautoattack

  adversary = pyautoattack.AutoAttack(
    net, norm=norm, eps=eps, version="custom", attacks=[attack], seed=0
  )
  for ascent in (adversary.apgd, adversary.apgd_targeted):
    ascent.use_largereps = norm == "L1"
  return adversary.run_standard_evaluation(x, y, batch_size=len(x))[0]


def _foolbox(attack_fn, net, x, y) -> torch.Tensor:
  import foolbox

  model = foolbox.PyTorchModel(net, bounds=(0, 1))
  return attack_fn()(model, x, y, epsilons=None)[1]


def runs() -> Mapping[str, Attack]:
  """The runs, by the names that `recorded.RUNS` gives them."""
  from adv_lib import attacks as lib
  from foolbox import attacks as foolbox_attacks

  found: dict[str, Attack] = {
    f"autoattack-{norm}-{eps}-{name}": functools.partial(
      _autoattack, norm, eps, name
    )
    for norm, eps in _THREATS.items()
    for name in ("apgd-ce", "apgd-t", "fab-t", "square")
  }
  deepfool = {
    "l2": foolbox_attacks.L2DeepFoolAttack,
    "linf": foolbox_attacks.LinfDeepFoolAttack,
  }
  for norm, attack in deepfool.items():
    found[f"deepfool-{norm}"] = functools.partial(_foolbox, attack)
  found["ddn-1000"] = functools.partial(lib.ddn, steps=1000, levels=None)
  for norm in ("l2", "linf", "l1", "l0"):
    found[f"fmn-{norm}-1000"] = functools.partial(
      lib.fmn, norm=_P[norm], steps=1000
    )
  found["alma-l2-1000"] = functools.partial(lib.alma, num_steps=1000)
  found["cw-l2-9x1000"] = functools.partial(
    lib.carlini_wagner_l2, max_iterations=1000, abort_early=False
  )
  return found


def _sizes(delta: torch.Tensor) -> dict[str, np.ndarray]:
  """Distances [N] by norm; in L0 pixels that changed by more than 1e-6."""
  delta = delta.flatten(1)
  sizes = {
    norm: torch.linalg.vector_norm(delta, p, dim=1)
    for norm, p in _P.items()
    if norm != "l0"
  }
  sizes["l0"] = (delta.abs() > 1e-6).sum(dim=1)
  return {norm: size.numpy() for norm, size in sizes.items()}


def main() -> None:
  """Makes every run that is not recorded yet."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("job", help="An .npz file to read.")
  parser.add_argument("results", help="An .npz file to write, and add to.")
  parser.add_argument("network", help="What names in it begin with.")
  args = parser.parse_args()
  job, path = np.load(args.job), pathlib.Path(args.results)
  torch.set_num_threads(int(job["threads"]))
  net, x = peer_network.network(job), peer_network.images(job)
  net.requires_grad_(False)
  y = torch.from_numpy(job["label"]).long()
  found = dict(np.load(path)) if path.exists() else {}
  right = net(x).argmax(dim=1) == y
  found[f"{args.network}/clean_correct"] = right.numpy()
  for name, attack in runs().items():
    head = f"{args.network}/{name}"
    if f"{head}/success" in found:
      continue
    torch.manual_seed(0)
    start = time.perf_counter()
    x_adv = attack(net, x.clone(), y.clone()).detach()
    found[f"{head}/success"] = (net(x_adv).argmax(dim=1) != y).numpy()
    for norm, size in _sizes(x_adv - x).items():
      found[f"{head}/{norm}"] = size
    temporary = path.with_name(f"{path.name}.tmp.npz")
    np.savez(temporary, **found)
    os.replace(temporary, path)
    seconds = time.perf_counter() - start
    print(f"{head}: {seconds:.1f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
  main()
