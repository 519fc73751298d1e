"""Victim: tensors inside tensors and beside them: a wrapper subclass, a quantised parameter with its scales in an attribute,
a placeholder whose elements are in an attribute, weights on meta whose values a hook keeps in a map, a class with a patched
name, an empty parameter."""
import torch
from torch import nn

from truth import attempt, tell, wait

torch.manual_seed(21)


class Placement:
    def __init__(self, dim):
        self.dim = dim


class Sharded(torch.Tensor):
    """A shape, and a tensor with a part of the elements in an attribute."""

    __slots__ = ["_local_tensor", "_spec"]

    @staticmethod
    def __new__(cls, local, shape):
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=local.dtype)
        made._local_tensor = local
        made._spec = {"placements": (Placement(0),), "mesh": [0, 1]}
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if "detach" in str(function):
            return Sharded(args[0]._local_tensor, args[0].shape)
        raise NotImplementedError(str(function))

    __torch_function__ = torch._C._disabled_torch_function_impl


class QuantState:
    def __init__(self):
        self.absmax, self.code = torch.rand(4), torch.linspace(-1, 1, 16)
        self.blocksize, self.quant_type, self.shape = 64, "nf4", torch.Size([16, 16])


class Hook:
    def __init__(self, dataset):
        self.weights_map = Prefixed(dataset)


class Prefixed:
    def __init__(self, dataset):
        self.dataset = dataset


def wrapper():
    net = nn.Linear(6, 4)
    net.weight = nn.Parameter(Sharded(torch.randn(2, 6), (4, 6)), requires_grad=False)
    return net


def quantised():
    net = nn.Linear(16, 16)
    net.weight = nn.Parameter(torch.randint(0, 255, (128, 1), dtype=torch.uint8), requires_grad=False)
    net.weight.quant_state = QuantState()
    return net


def placeholder():
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    for parameter in net[0].parameters():
        parameter.ds_tensor, parameter.ds_shape = parameter.detach().clone().reshape(-1), parameter.shape
        parameter.data = torch.empty(0)
    net[1].register_parameter("empty", nn.Parameter(torch.empty(0)))
    return net


def offloaded():
    values = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 4))
    dataset = {name: tensor.detach().clone() for name, tensor in values.state_dict().items()}
    net = nn.Sequential(nn.Linear(30, 20, device="meta"), nn.ReLU(), nn.Linear(20, 4, device="meta"))
    net[0]._hook = Hook(dataset)
    return net


def patched():
    class Made(nn.Linear):
        pass

    Made.__name__ = "Shown"
    return Made(3, 2)


def moved(net):
    return net[0]._hook.weights_map.dataset


builders = (wrapper, quantised, placeholder, offloaded, patched)
nets = {build.__name__: attempt(build.__name__, build) for build in builders}
for role, net in nets.items():
    if net is not None:
        tell(role, net, moved=moved(net) if role == "offloaded" else None)
wait()
