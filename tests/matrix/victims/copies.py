"""Victim: a model, and three deep copies of it in the same process: equal, in half precision, with other weights."""
import copy

import torch
from torch import nn

from truth import tell, wait

torch.manual_seed(11)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))


net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
net(torch.randn(3, 1, 6, 6)).sum().backward()
optimizer.step()
equal = copy.deepcopy(net)
half = copy.deepcopy(net).half().eval()
average, average_optimizer = copy.deepcopy((net, optimizer))
for parameter in average.parameters():
    parameter.data.mul_(0.5)
tell("first", net, optimizer)
tell("equal", equal)
tell("half", half)
tell("average", average, average_optimizer)
wait()
