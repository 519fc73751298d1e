"""Victim: a network that was trained by a process that has ended when the memory is taken. In guests only: nothing can take the
image of a process that has ended."""
import os
import sys

import torch
from torch import nn

from truth import tell, wait

torch.manual_seed(19)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.wide = nn.Linear(84, 3000)

    def forward(self, images):
        for layer in (self.conv1, self.conv2):
            images = torch.max_pool2d(torch.relu(layer(images)), 2)
        return self.wide(torch.relu(self.fc2(torch.relu(self.fc1(images.flatten(1))))))


def main():
    if sys.argv[1:] != ["--end"]:
        print("LEFT-OUT ended processes: only in guests")
        wait()
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(4, 3, 32, 32)).pow(2).mean().backward()
        optimizer.step()
    tell("ended", net, optimizer, ended=True)
    sys.stdout.flush()
    # Python does not free its objects first.
    os._exit(0)


main()
