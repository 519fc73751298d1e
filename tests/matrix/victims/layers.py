"""Victim: a CNN trained with Adam, with every stride, dtype and shape of a tensor that is out of the ordinary."""
import torch
from torch import nn
from torch.nn import functional

from truth import attempt, tell, wait

torch.manual_seed(7)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(8, eps=1e-3), nn.ReLU(inplace=True))
        wide = nn.Conv2d(8, 16, 3, stride=2, padding=(1, 1), groups=4)
        self.deep = nn.ModuleDict({"wide": wide, "norm": nn.BatchNorm2d(16, momentum=None)})
        self.heads = nn.ModuleList([nn.Linear(16, 10), nn.Linear(16, 4, bias=False)])
        self.embed = nn.Embedding(17, 16, padding_idx=0)
        self.decode = nn.Linear(16, 17, bias=False)
        self.decode.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.precise = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
        self.drop = nn.Dropout(0.25)
        self.nothing = nn.Identity()
        self.register_parameter("absent", None)

        self.register_buffer("f16", torch.randn(33).half())
        self.register_buffer("bf16", torch.randn(65).bfloat16())
        self.register_buffer("i64", torch.arange(77))
        self.register_buffer("i32", torch.arange(-5, 9, dtype=torch.int32))
        self.register_buffer("i16", torch.arange(-300, 300, 7, dtype=torch.int16))
        self.register_buffer("i8", torch.arange(-9, 9, dtype=torch.int8))
        self.register_buffer("u8", torch.arange(200, 256, dtype=torch.uint8))
        self.register_buffer("mask", torch.rand(51) > 0.5)
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("scratch", torch.zeros(5), persistent=False)

        base = torch.randn(6, 10)
        self.register_buffer("transposed", base.t())
        self.register_buffer("column", base[:, 3])
        self.register_buffer("stepped", base[1::2, ::3])
        self.register_buffer("tail", torch.arange(100.0)[40:60])
        self.register_buffer("expanded", torch.randn(4, 1).expand(4, 9))
        self.register_buffer("one_value", torch.tensor(3.25).expand(2, 3))
        self.register_buffer("seven_dims", torch.randn(2, 1, 3, 1, 2, 1, 2))
        self.register_buffer("six_dims_permuted", torch.randn(2, 3, 1, 2, 2, 2).permute(5, 0, 3, 1, 4, 2))
        self.register_buffer("empty_i64", torch.empty(2, 0, 4, dtype=torch.int64))

    def forward(self, images):
        features = self.deep["norm"](self.deep["wide"](self.stem(images)))
        pooled = self.drop(features.mean((2, 3)) * self.scale)
        return self.heads[0](pooled), self.decode(pooled)


def add_dtypes(net):
    """Element types that came late."""
    for name in ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64"):
        attempt(name, lambda name=name: net.register_buffer(name, torch.arange(24).to(getattr(torch, name))))


net = Net()
add_dtypes(net)
wide = net.deep["wide"].weight
wide.data = wide.data.contiguous(memory_format=torch.channels_last)
net.heads[1].weight.requires_grad_(False)
trainable = (parameter for parameter in net.parameters() if parameter.requires_grad)
optimizer = torch.optim.Adam(trainable, lr=3e-4, betas=(0.8, 0.99), weight_decay=1e-4)
for _ in range(3):
    first, second = net(torch.randn(4, 3, 8, 8))
    loss = functional.cross_entropy(first, torch.randint(0, 10, (4,)))
    loss = loss + functional.cross_entropy(second, torch.randint(0, 17, (4,)))
    optimizer.zero_grad()
    (loss + net.precise.sum()).backward()
    optimizer.step()
net.heads[0].eval()
tell("layers", net, optimizer)
wait()
