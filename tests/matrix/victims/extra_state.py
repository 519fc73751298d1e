"""Victim: modules whose state_dict() holds more than parameters and buffers, and some that only look like it."""
import torch
from torch import nn
from torch.nn.utils import spectral_norm, weight_norm

from truth import attempt, tell, wait

torch.manual_seed(30)


class Counter(nn.Module):
    """Keeps a number that is no tensor, as torch.nn.Module has it since 1.10."""
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3))
        self.seen = 17

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


class Codebook(nn.Linear):
    """Saves a tensor that is neither a parameter nor a buffer."""
    def __init__(self):
        super().__init__(4, 3)
        self.codes = torch.randn(5)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "codes"] = self.codes


class Twice(nn.Linear):
    """Saves its weight again under its own name: nothing more."""
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight


class Net(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        for number, layer in enumerate(layers):
            self.add_module("layer%d" % number, layer)


def fake_quantize():
    from torch.quantization import FakeQuantize, HistogramObserver
    return Net(nn.Linear(2, 2), FakeQuantize(), HistogramObserver())


def parametrized():
    from torch.nn.utils.parametrizations import orthogonal
    return Net(orthogonal(nn.Linear(3, 3)))


kept = [
    ("extra state", Net(Counter(), nn.Linear(2, 2), Counter())),
    ("saved by a method", Net(Codebook())),
    ("plain", Net(Twice(4, 3), spectral_norm(nn.Linear(3, 2)), weight_norm(nn.Linear(2, 2)), nn.LSTM(3, 4),
                  nn.MultiheadAttention(8, 2), nn.BatchNorm1d(3))),
    ("parametrized", attempt("parametrizations", parametrized)),
    ("fake quantized", attempt("fake quantization", fake_quantize)),
]
hooked = Net(nn.Linear(3, 3))
hooked._register_state_dict_hook(lambda module, state, prefix, metadata: state.update({prefix + "late": torch.ones(2)}))
kept.append(("a hook", hooked))
kept = [(role, net) for role, net in kept if net is not None]
for role, net in kept:
    tell(role, net)
wait()
