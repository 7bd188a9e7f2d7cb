"""One job through one library for PyTorch; started by `against.py`.

Runs in an environment of its own: it imports neither JAX nor jaxadv. Reads the
job from an `.npz` file and writes the seconds and the adversarial images to
another.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks import peer_network

# Images that are attacked before the clock starts.
_WARM_UP = 8


def foolbox_pgd(net, job) -> Callable:
  """Foolbox, whose model is called without a copy to NumPy."""
  import foolbox

  model = foolbox.PyTorchModel(net, bounds=(0, 1))
  attack = foolbox.attacks.LinfPGD(
    abs_stepsize=float(job["step_size"]), steps=int(job["num_steps"])
  )
  return lambda x, y: attack(model, x, y, epsilons=float(job["eps"]))[1]


def torchattacks_pgd(net, job) -> Callable:
  """The library torchattacks."""
  import torchattacks

  return torchattacks.PGD(
    net,
    eps=float(job["eps"]),
    alpha=float(job["step_size"]),
    steps=int(job["num_steps"]),
  )


def art_pgd(net, job) -> Callable:
  """ART, which takes and returns NumPy arrays."""
  from art.attacks import evasion
  from art.estimators import classification

  classifier = classification.PyTorchClassifier(
    net,
    loss=torch.nn.CrossEntropyLoss(),
    input_shape=peer_network.images(job).shape[1:],
    nb_classes=job["logits"].shape[1],
    clip_values=(0.0, 1.0),
  )
  attack = evasion.ProjectedGradientDescentPyTorch(
    classifier,
    eps=float(job["eps"]),
    eps_step=float(job["step_size"]),
    max_iter=int(job["num_steps"]),
    num_random_init=1,
    batch_size=int(job["batch_size"]),
    verbose=False,
  )
  return lambda x, y: torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def torchattacks_autoattack(net, job) -> Callable:
  """The port of AutoAttack in torchattacks, as it comes.

  Its APGD and FAB take 10 steps where the authors' take 100.
  """
  import torchattacks

  return torchattacks.AutoAttack(net, eps=float(job["eps"]), seed=0)


def torchattacks_autoattack_100(net, job) -> Callable:
  """The same four attacks with the authors' 100 steps."""
  import torchattacks

  eps, classes = float(job["eps"]), job["logits"].shape[1]
  common = {"eps": eps, "steps": 100, "n_restarts": 1, "seed": 0}
  return torchattacks.MultiAttack(
    [
      torchattacks.APGD(net, **common),
      torchattacks.APGDT(net, n_classes=classes, **common),
      torchattacks.FAB(net, n_classes=classes, multi_targeted=True, **common),
      torchattacks.Square(net, eps=eps, n_queries=5000, seed=0),
    ]
  )


def authors_autoattack(net, job) -> Callable:
  """The authors' own code."""
  import autoattack

  adversary = autoattack.AutoAttack(
    net,
    norm=str(job["norm"]),
    eps=float(job["eps"]),
    verbose=False,
    device="cpu",
    seed=0,
  )
  size = int(job["batch_size"])
  return lambda x, y: adversary.run_standard_evaluation(x, y, bs=size)


def packaged_autoattack(net, job) -> Callable:
  """The authors' code as it is packaged on PyPI."""
  import pyautoattack

  adversary = pyautoattack.AutoAttack(
    net, norm=str(job["norm"]), eps=float(job["eps"]), seed=0
  )
  size = int(job["batch_size"])
  run = adversary.run_standard_evaluation
  return lambda x, y: run(x, y, batch_size=size)[0]


JOBS = {
  "foolbox": foolbox_pgd,
  "torchattacks": torchattacks_pgd,
  "art": art_pgd,
  "torchattacks AutoAttack": torchattacks_autoattack,
  "torchattacks AutoAttack, 100 steps": torchattacks_autoattack_100,
  "autoattack": authors_autoattack,
  "pyautoattack": packaged_autoattack,
}


def main() -> None:
  """Attacks the images in batches, after a few that are not timed."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("library", choices=JOBS)
  parser.add_argument("job", help="An .npz file to read.")
  parser.add_argument("result", help="An .npz file to write.")
  args = parser.parse_args()
  job = np.load(args.job)
  torch.set_num_threads(int(job["threads"]))
  torch.manual_seed(0)
  net = peer_network.network(job)
  # Libraries that ask for the weights' gradients too pay for it: theirs.
  attack = JOBS[args.library](net, job)
  x = peer_network.images(job)
  label = torch.from_numpy(job["label"]).long()
  size = int(job["batch_size"])
  attack(x[:_WARM_UP], label[:_WARM_UP])
  start = np.asarray([time.perf_counter(), time.process_time()])
  batches = zip(x.split(size), label.split(size), strict=True)
  x_adv = torch.cat([attack(*batch).detach() for batch in batches])
  seconds = np.asarray([time.perf_counter(), time.process_time()]) - start
  np.savez(
    args.result, seconds=seconds, x_adv=x_adv.permute(0, 2, 3, 1).numpy()
  )


if __name__ == "__main__":
  main()
