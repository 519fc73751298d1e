"""Victim: a process with a model, two workers that were forked from it, as a data loader does, and a process with the
same class but other weights."""
import os
import sys

import torch
from torch import nn

from truth import say, stand, tell, wait


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
        self.register_buffer("steps", torch.tensor(3))


def in_child(act):
    """Runs `act` in a forked process, which never returns; goes on when it has said all it has to say."""
    read, write = os.pipe()
    sys.stdout.flush()
    if os.fork() == 0:
        os.close(read)
        act()
        os.close(write)
        stand()
    os.close(write)
    os.read(read, 1)


def other_weights():
    torch.manual_seed(13)
    kept.append(Net())
    tell("other weights", kept[0])


kept = []
in_child(other_weights)
torch.manual_seed(12)
net = Net()
truth = tell("parent", net)
for number in (1, 2):
    in_child(lambda: say(dict(truth, role="worker %d" % number, pid=os.getpid())))
wait()
