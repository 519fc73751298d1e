"""Victim: language models of transformers, and a module of Lightning; left out where these are not installed."""
import importlib

import torch
from torch import nn

from truth import attempt, tell, wait

torch.manual_seed(4)


def of_transformers():
    lib = importlib.import_module("transformers")
    bert = lib.BertConfig(vocab_size=500, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                          intermediate_size=96)
    gpt = lib.GPT2Config(vocab_size=300, n_positions=64, n_embd=48, n_layer=2, n_head=4)
    llama = lib.LlamaConfig(vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                            num_attention_heads=4, num_key_value_heads=2)
    t5 = lib.T5Config(vocab_size=150, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return [
        ("gpt2", lib.GPT2LMHeadModel(gpt), True),
        ("bert", lib.BertModel(bert), False),
        ("llama", lib.LlamaForCausalLM(llama).to(torch.bfloat16), False),
        ("t5", lib.T5ForConditionalGeneration(t5), False),
    ]


def of_lightning():
    class Lit(importlib.import_module("pytorch_lightning").LightningModule):
        def __init__(self, width):
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(nn.Linear(5, width), nn.GELU(), nn.Linear(width, 2))
            self.loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))

    return [("lightning", Lit(7), False)]


def train(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    tokens = torch.randint(0, 300, (2, 8))
    net(tokens, labels=tokens).loss.backward()
    optimizer.step()
    return optimizer


nets = (attempt("transformers", of_transformers) or []) + (attempt("Lightning", of_lightning) or [])
optimizers = {name: train(net) for name, net, is_trained in nets if is_trained}
for name, net, _ in nets:
    tell(name, net, optimizers.get(name))
wait()
