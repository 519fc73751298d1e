"""Victim: four small models in one process, each trained with another optimizer: SGD with momentum, AdamW with two
groups of parameters, an optimizer of the user's own, RMSprop that is centered and has momentum."""
import torch
from torch import nn

from truth import tell, wait

torch.manual_seed(8)


class Small(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width
        self.inner = nn.Linear(5, width)
        self.norm = nn.LayerNorm(width)
        self.outer = nn.Linear(width, 2)

    def forward(self, rows):
        return self.outer(torch.tanh(self.norm(self.inner(rows))))


class Signed(torch.optim.Optimizer):
    """Steps by the sign of an average of gradients; keeps tensors and plain values under keys of its own."""

    def __init__(self, parameters, rate=0.01, fade=0.7):
        super().__init__(parameters, {"rate": rate, "fade": fade, "note": "signed"})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["count"] = 0
                    state["average"] = torch.zeros_like(parameter)
                    state["largest"] = torch.zeros(())
                state["count"] += 1
                state["average"].mul_(group["fade"]).add_(parameter.grad, alpha=1 - group["fade"])
                state["largest"] = parameter.grad.abs().max()
                parameter.add_(state["average"].sign(), alpha=-group["rate"])


def trained(role, net, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(6, 5)).pow(2).sum().backward()
        optimizer.step()
    tell(role, net, optimizer)
    return net, optimizer


def sgd():
    net = Small(4)
    return net, torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True)


def adamw():
    net = Small(6)
    others = list(net.norm.parameters()) + list(net.outer.parameters())
    groups = [{"params": net.inner.parameters(), "lr": 1e-3}, {"params": others}]
    return net, torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1, amsgrad=True)


def signed():
    net = Small(3)
    return net, Signed(net.parameters())


def rmsprop():
    net = Small(7)
    net.inner.bias.requires_grad_(False)
    trainable = (parameter for parameter in net.parameters() if parameter.requires_grad)
    return net, torch.optim.RMSprop(trainable, lr=1e-3, momentum=0.5, centered=True)


steps_of = {sgd: 2, adamw: 3, signed: 4, rmsprop: 1}
kept = [trained(build.__name__, *build(), steps=steps) for build, steps in steps_of.items()]
wait()
