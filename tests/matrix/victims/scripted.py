"""Victim: script modules: scripted, loaded from a file without Python having seen a tensor, one in a module of Python."""
import copy
import io

import torch
from torch import nn

from truth import attempt, class_name, described_module, say, tell, wait

torch.manual_seed(15)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        self.register_buffer("scale", torch.arange(5).float())

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3))) * self.scale


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.last = nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.inner(x))


kept = []


def tell_and_keep(role, net):
    """Python's tensor objects stay what they are as long as they are kept."""
    kept.append(net.state_dict(keep_vars=True))
    return tell(role, net)


# A script module keeps the module that it was made of.
origins = [Net().eval(), Net()]
scripted, inner = [torch.jit.script(net) for net in origins]
outer = Outer(inner)
truth = tell_and_keep("scripted", scripted)
tell_and_keep("outer", outer)
tell("origin of scripted", origins[0])
tell("origin of inner", origins[1])

file = io.BytesIO()
torch.jit.save(scripted, file)
loaded = torch.jit.load(io.BytesIO(file.getvalue()))
loaded(torch.ones(1, 3, 8, 8))
unseen = copy.deepcopy(truth)
unseen.update(role="loaded", id=hex(id(loaded)))
unseen["class"] = class_name(loaded)
unseen["modules"] = {name: described_module(module) for name, module in loaded.named_modules()}
for entry in unseen["state_dict"].values():
    entry.update(id=None, data_ptr=None)
say(unseen)


def freeze():
    """A frozen module: its weights are constants in its code, which have the names that they had."""
    origin = Net().eval()
    for values in list(origin.norm.parameters()) + [origin.norm.running_mean, origin.norm.running_var]:
        # Constants of equal values become one.
        nn.init.uniform_(values, 1, 2)
    thawed = torch.jit.script(origin)
    known = tell_and_keep("origin of frozen, scripted", thawed)
    tell("origin of frozen", origin)
    net = torch.jit.freeze(thawed, optimize_numerics=False)
    kept.append((origin, thawed, net))
    frozen = copy.deepcopy(known)
    root = {"class": class_name(net), "id": hex(id(net)), "training": None, "hyper": {}}
    frozen.update(role="frozen", id=root["id"], modules={"": root}, grads={})
    frozen["class"] = root["class"]
    # What the code does not use is no constant.
    del frozen["state_dict"]["norm.num_batches_tracked"]
    for entry in frozen["state_dict"].values():
        entry.update(id=None, data_ptr=None, requires_grad=False)
    say(frozen)


attempt("a frozen module", freeze)
wait()
