"""Victim: an interpreter with a model; another one in the process, without PyTorch, has a class of that name."""
import threading

import torch
from torch import nn

from truth import attempt, tell, wait

torch.manual_seed(19)

OTHER = """
import collections, decimal, json, time
class Net(dict): pass
kept = [Net(layers=[1, 2]), collections.OrderedDict(weight=json.loads("[1.5]")), decimal.Decimal(3)]
time.sleep(1e6)
"""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def start_another():
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    other = interpreters.create()
    run = getattr(interpreters, "exec", None) or interpreters.run_string
    thread = threading.Thread(target=run, args=(other, OTHER))
    thread.daemon = True
    thread.start()
    thread.join(1)
    if not thread.is_alive():
        raise RuntimeError("it ended at once")


net = Net()
net.layers(torch.randn(2, 5)).sum().backward()
attempt("a second interpreter", start_another)
tell("first interpreter", net)
wait()
