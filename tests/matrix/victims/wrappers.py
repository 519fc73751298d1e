"""Victim: models in the wrappers of PyTorch: weight_norm, parametrizations, DataParallel, torch.compile; lists and dicts
of parameters, buffers that were registered late, a subclass of Parameter, names that are not ASCII."""
import torch
from torch import nn

from truth import attempt, tell, wait

torch.manual_seed(9)


class Scaled(nn.Parameter):
    """A user's own kind of parameter."""


class Symmetric(nn.Module):
    def forward(self, matrix):
        return matrix.triu() + matrix.triu(1).transpose(-1, -2)


class Kept(nn.Module):
    """Parameters in every container that there is for them."""

    def __init__(self):
        super().__init__()
        self.listed = nn.ParameterList([nn.Parameter(torch.randn(size)) for size in (2, 3, 4)])
        left, right = nn.Parameter(torch.randn(2, 2)), nn.Parameter(torch.randn(1))
        self.named = nn.ParameterDict({"left": left, "rechts-außen": right})
        self.scaled = Scaled(torch.randn(3))
        self.größe = nn.Parameter(torch.randn(2))
        self.层 = nn.Linear(3, 2)
        self.add_module("with space", nn.Linear(2, 2))
        self.add_module("7", nn.Linear(1, 2))
        self.add_module("🙂", nn.Linear(2, 1))


def late(net):
    """Buffers and a parameter that came after training had begun."""
    net.register_buffer("late", torch.arange(6.0).view(2, 3))
    net.named.register_buffer("history", torch.ones(3, dtype=torch.int32))
    net.extra = nn.Parameter(torch.randn(2))
    net.scaled.requires_grad_(False)
    return net


def weight_norm():
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3), dim=0), nn.utils.weight_norm(nn.Linear(3, 2), dim=None))


def spectral_norm():
    net = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)))
    net(torch.randn(2, 4))
    return net


def parametrized():
    import torch.nn.utils.parametrize as parametrize

    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    parametrize.register_parametrization(net[0], "weight", Symmetric())
    attempt("parametrizations.weight_norm", lambda: nn.utils.parametrizations.weight_norm(net[1]))
    net[0].weight.sum().backward()
    return net


def data_parallel():
    net = nn.DataParallel(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)))
    net.module(torch.randn(2, 4)).sum().backward()
    return net


def compiled():
    return torch.compile(nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5)))


def recurrent():
    return nn.LSTM(3, 4, num_layers=2, bidirectional=True)


def attention():
    return nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=12)


def kept():
    return late(Kept())


builders = (kept, weight_norm, spectral_norm, parametrized, data_parallel, compiled, recurrent, attention)
nets = {build.__name__: attempt(build.__name__, build) for build in builders}
for role, net in nets.items():
    if net is not None:
        tell(role, net)
wait()
