"""Victim: a model of more than 100 million parameters, in the shape of a transformer."""
import torch
from torch import nn

from truth import tell, wait

torch.manual_seed(14)


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.query = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width)


class Large(nn.Module):
    def __init__(self, width=1024, depth=8, words=20000):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.layers = nn.ModuleList([Layer(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)


net = Large()
tell("large", net)
wait()
