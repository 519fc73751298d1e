"""Victim: a model whose buffers and parameters are complex, lazy views, quantized, sparse, nested, lazy, or have no memory (meta)."""
import torch
from torch import nn

from truth import attempt, tell, wait

torch.manual_seed(10)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(3, 2)
        self.register_buffer("before", torch.arange(5))


def add(net, name, build):
    attempt(name, lambda: net.register_buffer(name, build()))


net = Odd()
add(net, "complex64", lambda: torch.complex(torch.randn(4, 3), torch.randn(4, 3)))
add(net, "complex128", lambda: torch.complex(torch.randn(5).double(), torch.randn(5).double()))
lazy = torch.complex(torch.randn(4, 3), torch.randn(4, 3))
add(net, "conjugate", lambda: lazy.conj())
add(net, "adjoint", lambda: lazy.conj().transpose(0, 1))
add(net, "conjugate128", lambda: torch.complex(torch.randn(5).double(), torch.randn(5).double()).conj())
add(net, "negative", lambda: lazy.conj().imag)
add(net, "quantized_u8", lambda: torch.quantize_per_tensor(torch.randn(6, 2), 0.05, 128, torch.quint8))
add(net, "quantized_i8", lambda: torch.quantize_per_tensor(torch.randn(9), 0.125, 0, torch.qint8))
add(net, "quantized_i32", lambda: torch.quantize_per_tensor(torch.randn(3), 0.001, 5, torch.qint32))
scales, zeros = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 1, 2])
add(net, "quantized_channels", lambda: torch.quantize_per_channel(torch.randn(4, 3), scales, zeros, 1, torch.qint8))
places, values = [[0, 1, 4], [2, 0, 3]], [1.5, -2.0, 3.25]
add(net, "sparse", lambda: torch.sparse_coo_tensor(places, values, (5, 6)).coalesce())
add(net, "sparse_rows", lambda: torch.sparse_coo_tensor([[1, 3]], torch.randn(2, 4), (6, 4)))
add(net, "sparse_csr", lambda: torch.randn(3, 4).relu().to_sparse_csr())
add(net, "nested", lambda: torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)]))
add(net, "meta", lambda: torch.empty(3, 5, device="meta"))
attempt("meta parameters", lambda: net.add_module("not_loaded", nn.Linear(4, 6, device="meta")))
attempt("lazy", lambda: net.add_module("lazy", nn.LazyLinear(4)))
net.register_buffer("after", torch.randn(7))
tell("odd_tensors", net)
wait()
