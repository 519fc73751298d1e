"""Victim: networks of torchvision and timm, two of them trained; left out where these packages are not installed."""
import importlib

import torch

from truth import attempt, tell, wait

torch.manual_seed(3)


def with_packages():
    models = importlib.import_module("torchvision").models
    timm = importlib.import_module("timm")
    detector = models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
    return {
        "mobilenet": (models.mobilenet_v3_small(), True),
        "vit": (models.VisionTransformer(32, 8, 2, 4, 64, 128), True),
        "resnet18": (models.resnet18(), False),
        "densenet": (models.densenet121(), False),
        "swin": (models.swin_t(), False),
        "googlenet": (models.googlenet(init_weights=False), False),
        "detector": (detector(weights=None, weights_backbone=None), False),
        "timm efficientnet": (timm.create_model("efficientnet_b0"), False),
        "timm vit": (timm.create_model("vit_tiny_patch16_224"), False),
        "timm convnext": (timm.create_model("convnext_atto"), False),
    }


def train(net):
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(2, 3, 32, 32)).sum().backward()
        optimizer.step()
    return optimizer


nets = attempt("torchvision and timm", with_packages) or {}
optimizers = {name: train(net) for name, (net, is_trained) in nets.items() if is_trained}
for name, (net, _) in nets.items():
    tell(name, net.eval(), optimizers.get(name))
wait()
