"""Networks, and the ways to make a `LogitsFn` of a model."""

from jaxadv.models.activations import bounded_relu
from jaxadv.models.binding import bind, bind_stochastic
from jaxadv.models.cnn import MadryCNN, SmallCNN, StridedCNN
from jaxadv.models.convolution import conv_general_dilated, max_pool_2x2
from jaxadv.models.from_callable import from_callable
from jaxadv.models.mlp import MLP, seed_network
from jaxadv.models.preact_resnet import PreActResNet
from jaxadv.models.wide_resnet import WideResNet

__all__ = [
  "MLP",
  "MadryCNN",
  "PreActResNet",
  "SmallCNN",
  "StridedCNN",
  "WideResNet",
  "bind",
  "bind_stochastic",
  "bounded_relu",
  "conv_general_dilated",
  "from_callable",
  "max_pool_2x2",
  "seed_network",
]
