"""Victim: a model whose weights lie in mapped files, as a checkpoint that is loaded without a copy leaves them.

Cores leave such files out. One file is mapped for this process alone, one is shared; a layer lies in ordinary memory.
"""
import os

import torch
from torch import nn

from truth import tell, value_bytes, wait

# Bytes before the first tensor, as a checkpoint's header takes them.
HEADER = 5000

torch.manual_seed(17)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(70, 40), nn.LayerNorm(40))
        self.shared = nn.Linear(40, 30)
        self.head = nn.Linear(30, 4)

    def forward(self, values):
        return self.head(self.shared(self.body(values)))


def map_into(module, name, shared):
    """Writes the parameters of a module to a file, and puts those in their place that the mapped file shows."""
    path = os.path.abspath(name)
    parameters = list(module.parameters())
    with open(path, "wb") as file:
        file.write(bytes(HEADER // 4 * 4))
        for parameter in parameters:
            file.write(value_bytes(parameter))
    flat = torch.from_file(path, shared=shared, size=os.path.getsize(path) // 4, dtype=torch.float32)
    at = HEADER // 4
    for parameter in parameters:
        count = parameter.numel()
        parameter.data = flat[at:at + count].view(parameter.shape)
        at += count
    return path


net = Net()
private, shared = map_into(net.body, "body.weights", False), map_into(net.shared, "shared.weights", True)
mapped = {name: private if name.startswith("body") else shared
          for name, _ in net.named_parameters() if not name.startswith("head")}
tell("mapped", net, mapped=mapped)
wait()
