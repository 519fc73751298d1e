"""Victim: a model that was trained on a GPU, but for one layer that stayed on the CPU."""
import torch
from torch import nn

from truth import attempt, tell, wait

torch.manual_seed(17)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 5)
        self.register_buffer("table", torch.arange(12.0).reshape(3, 4).t())
        self.register_buffer("tail", torch.randn(9).half())

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)).cpu())


def train():
    net = Net()
    net.body.to("cuda")
    net.table, net.tail = net.table.to("cuda"), net.tail.to("cuda")[2:7]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(4, 1, 6, 6).to("cuda")).sum().backward()
        optimizer.step()
    return net, optimizer


trained = attempt("a GPU", train)
if trained:
    net, optimizer = trained
    tell("accelerator", net, optimizer)
wait()
