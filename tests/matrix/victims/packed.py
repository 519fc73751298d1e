"""Victim: quantized layers, whose weights are packed in C++ objects: a dynamic model, a static one, one of nothing else."""
import gc
import warnings

import torch
from torch import nn

from truth import attempt, tell, wait

warnings.simplefilter("ignore")
torch.manual_seed(14)
engines = torch.backends.quantized.supported_engines
engine = [name for name in ("fbgemm", "onednn", "qnnpack") if name in engines][0]
torch.backends.quantized.engine = engine


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 64)
        self.fc1 = nn.Linear(64, 128)
        # More rows and columns than one block of any engine.
        self.fc2 = nn.Linear(128, 1100)
        self.fc3 = nn.Linear(1100, 10)

    def forward(self, x):
        return self.fc3(self.fc2(self.fc1(self.embed(x).mean(1))))


class Static(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = torch.quantization.QuantStub(), torch.quantization.DeQuantStub()
        # FBGEMM packs convolutions in ways that are not read.
        self.conv = nn.Conv2d(3, 3, 3) if engine != "fbgemm" else nn.Identity()
        self.fc = nn.Linear(3, 70)

    def forward(self, x):
        return self.dequant(self.fc(self.conv(self.quant(x)).mean((2, 3))))


def static():
    net = Static().eval()
    net.qconfig = torch.quantization.get_default_qconfig("qnnpack" if engine == "qnnpack" else "fbgemm")
    torch.quantization.prepare(net, inplace=True)
    net(torch.randn(4, 3, 9, 9))
    return torch.quantization.convert(net, inplace=True)


dynamic = torch.quantization.quantize_dynamic(Net().eval(), {nn.Linear}, inplace=True)
dynamic(torch.randint(0, 50, (2, 7)))
only = torch.quantization.quantize_dynamic(nn.Sequential(nn.Linear(9, 7, bias=False)), {nn.Linear}, inplace=True)
quantized = attempt("static quantization", static)
# What was replaced refers to itself.
gc.collect()
tell("dynamic", dynamic)
tell("only packed", only)
if quantized is not None:
    tell("static", quantized)
wait()
