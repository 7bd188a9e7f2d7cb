"""A network of a job file, in PyTorch: the copy that peers attack.

It imports neither JAX nor jaxadv. `victims.job` writes what it reads.
"""

import numpy as np
import torch
from torch.nn import functional


def network(job) -> torch.nn.Module:
  """The network of a job, checked against the logits that the job holds.

  Args:
    job: An open `.npz` file: "layers", the weights by the paths that flax gives
      them, and `x` with its `logits`.
  """
  plan = [str(layer) for layer in job["layers"]]
  residual = plan == ["preact_resnet"]
  net = (PreActResNet(job) if residual else Layers(plan, job)).eval()
  x = images(job)
  with torch.no_grad():
    np.testing.assert_allclose(
      net(x).numpy(), job["logits"], atol=1e-3, rtol=1e-3
    )
  return net


def images(job) -> torch.Tensor:
  """The images of a job, [B, C, H, W]."""
  return torch.from_numpy(job["x"]).permute(0, 3, 1, 2).contiguous()


class Layers(torch.nn.Module):
  """Layers in a row.

  Each is "conv LOW HIGH STRIDE" (padding), "dense" or "pool"; all but the last
  are followed by a ReLU, and rows are flattened in the order H, W, C.
  """

  def __init__(self, plan: list[str], job):
    super().__init__()
    self.plan = [layer.split() for layer in plan]
    counts = {"conv": 0, "dense": 0}
    names = {"conv": "Conv", "dense": "Dense"}
    self.layers = torch.nn.ModuleList()
    for kind, *_ in self.plan:
      if kind == "pool":
        self.layers.append(torch.nn.MaxPool2d(2))
        continue
      name = f"{names[kind]}_{counts[kind]}"
      counts[kind] += 1
      kernel = torch.from_numpy(job[f"params/{name}/kernel"])
      shape = kernel.shape
      if kind == "conv":
        layer = torch.nn.Conv2d(shape[2], shape[3], shape[:2])
        layer.weight.data = kernel.permute(3, 2, 0, 1).contiguous()
      else:
        layer = torch.nn.Linear(*shape)
        layer.weight.data = kernel.T.contiguous()
      layer.bias.data = torch.from_numpy(job[f"params/{name}/bias"])
      self.layers.append(layer)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Logits of `x` [B, C, H, W]."""
    last = len(self.layers) - 1
    for i, ((kind, *sizes), layer) in enumerate(
      zip(self.plan, self.layers, strict=True)
    ):
      if kind == "conv":
        low, high, stride = map(int, sizes)
        layer.stride = (stride, stride)
        x = functional.pad(x, (low, high, low, high))
      elif kind == "dense" and x.ndim == 4:
        x = x.permute(0, 2, 3, 1).flatten(1)
      x = layer(x)
      if kind != "pool" and i < last:
        x = torch.relu(x)
    return x


class PreActResNet(torch.nn.Module):
  """`jaxadv.models.PreActResNet`, whose sizes are those of its weights."""

  def __init__(self, job):
    super().__init__()
    self.weights = torch.nn.ParameterDict()
    for path in job.files:
      if path.startswith(("params/", "batch_stats/")):
        value = torch.from_numpy(job[path])
        if path.endswith("kernel"):
          axes = (3, 2, 0, 1) if value.ndim == 4 else (1, 0)
          value = value.permute(axes).contiguous()
        # Names of parameters may hold no dots or slashes.
        self.weights[self._key(path)] = torch.nn.Parameter(
          value, requires_grad=path.startswith("params/")
        )
    shape = (1, -1, 1, 1)
    self.mean = torch.from_numpy(job["mean"]).float().reshape(shape)
    self.std = torch.from_numpy(job["std"]).float().reshape(shape)
    blocks = {path.split("/")[1] for path in job.files if "/Block_" in path}
    self.num_blocks = len(blocks)

  @staticmethod
  def _key(path: str) -> str:
    return path.replace("/", "__")

  def _get(self, path: str) -> torch.Tensor:
    return self.weights[self._key(path)]

  def _conv(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    kernel = self._get(f"params/{name}/kernel")
    padding = kernel.shape[-1] // 2
    return functional.conv2d(x, kernel, stride=stride, padding=padding)

  def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.batch_norm(
      x,
      self._get(f"batch_stats/{name}/mean"),
      self._get(f"batch_stats/{name}/var"),
      self._get(f"params/{name}/scale"),
      self._get(f"params/{name}/bias"),
      eps=1e-5,
    )

  def _block(self, name: str, x: torch.Tensor) -> torch.Tensor:
    project = self._key(f"params/{name}/Conv_2/kernel") in self.weights
    stride = 2 if project else 1
    active = torch.relu(self._norm(f"{name}/BatchNorm_0", x))
    y = self._conv(f"{name}/Conv_0", active, stride)
    y = torch.relu(self._norm(f"{name}/BatchNorm_1", y))
    y = self._conv(f"{name}/Conv_1", y)
    return y + (self._conv(f"{name}/Conv_2", active, stride) if project else x)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Logits of `x` [B, C, H, W]."""
    x = self._conv("Conv_0", (x - self.mean) / self.std)
    for i in range(self.num_blocks):
      x = self._block(f"Block_{i}", x)
    x = torch.relu(self._norm("BatchNorm_0", x)).mean(dim=(2, 3))
    weight = self._get("params/Dense_0/kernel")
    return functional.linear(x, weight, self._get("params/Dense_0/bias"))
