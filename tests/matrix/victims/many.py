"""Victim: a model of more than 2,000 modules, trained with SGD."""
import torch
from torch import nn

from truth import tell, wait

torch.manual_seed(15)


class Cell(nn.Module):
    def __init__(self, index):
        super().__init__()
        self.index = index
        self.lin = nn.Linear(3 + index % 5, 4, bias=index % 3 > 0)
        self.norm = nn.BatchNorm1d(4)
        self.act = nn.ReLU(inplace=index % 2 == 0)


class Many(nn.Module):
    def __init__(self):
        super().__init__()
        groups = {"g%d" % group: nn.Sequential(*[Cell(group + i) for i in range(25)]) for group in range(20)}
        self.groups = nn.ModuleDict(groups)


net = Many()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5)
sum((parameter * parameter).sum() for parameter in net.parameters()).backward()
optimizer.step()
tell("many", net, optimizer)
wait()
