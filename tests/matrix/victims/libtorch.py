"""Victim: a C++ program without any Python: TorchScript files loaded by `torch::jit::load`, a `torch::nn` network that was trained.

This script writes the files, builds libtorch.cpp with the headers and libraries of its own PyTorch, and becomes that program.
With `--build` it leaves all that beside itself and prints `BUILT PYTHON:TORCH COMMAND` instead, for a machine where the compiler would be too slow.
"""
import glob
import os
import platform
import shutil
import subprocess
import sys

import torch
from torch import nn

torch.manual_seed(17)
HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(HERE, "libtorch.cpp")


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.a_name_that_does_not_fit_into_a_string_object = nn.Parameter(torch.randn(width))

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3)) * self.a_name_that_does_not_fit_into_a_string_object


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(Block(6), nn.ReLU(), nn.Linear(6, 5))
        self.register_buffer("scale", torch.arange(5).double())
        self.threshold = 0.25
        self.label = "a model"
        self.shift = torch.full((5,), 2.0)

    def forward(self, x):
        return self.features(x) * self.scale + self.shift * self.threshold


def has_library(name, folder):
    return bool(glob.glob(os.path.join(folder, "lib%s.so*" % name)))


def build(program):
    """Compiles libtorch.cpp; what the compiler says in the end where it fails."""
    compiler = shutil.which("g++")
    try:
        from torch.utils import cpp_extension
    except ImportError as reason:
        return str(reason)
    includes = cpp_extension.include_paths()
    if not compiler:
        return "no g++"
    if not any(os.path.exists(os.path.join(folder, "torch", "torch.h")) for folder in includes):
        return "no headers of LibTorch"
    lib = cpp_extension.library_paths()[0]
    names = [name for name in ("torch", "torch_cpu", "c10") if has_library(name, lib)]
    version = [int(part) for part in torch.__version__.split(".")[:2]]
    standard = "c++14" if version < [2, 1] else "c++17" if version < [2, 12] else "c++20"
    command = [compiler, "-std=" + standard, "-O1", "-w", SOURCE, "-o", program]
    command += ["-D_GLIBCXX_USE_CXX11_ABI=%d" % torch._C._GLIBCXX_USE_CXX11_ABI]
    # A header of PyTorch before 1.9 uses what newer compilers no longer include by themselves.
    command += ["-include", "limits"]
    command += ["-I" + folder for folder in includes] + ["-L" + lib, "-Wl,-rpath," + lib, "-Wl,--no-as-needed"]
    # Some libraries that PyTorch's own need are opened at run time only.
    command += ["-l" + name for name in names] + ["-Wl,--allow-shlib-undefined", "-pthread"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    return " | ".join(done.stdout.strip().splitlines()[-3:])[-300:] if done.returncode else None


def main():
    only_build = "--build" in sys.argv
    folder = HERE if only_build else os.getcwd()
    program, plain, frozen = [os.path.join(folder, name) for name in ("libtorch", "plain.pt", "frozen.pt")]
    net = torch.jit.script(Net())
    net.save(plain)
    freeze = getattr(torch.jit, "freeze", None)
    if freeze:
        freeze(torch.jit.script(Net().eval())).save(frozen)
    else:
        print("LEFT-OUT frozen TorchScript: no torch.jit.freeze in PyTorch %s" % torch.__version__)
    problem = build(program)
    if problem:
        print("LEFT-OUT C++: " + problem)
        if only_build:
            return
        print("READY", flush=True)
        os.execv("/bin/sleep", ["sleep", "infinity"])
    command = [program, plain] + ([frozen] if freeze else [])
    if only_build:
        print("BUILT %s:%s %s" % (platform.python_version(), torch.__version__, " ".join(command)))
        return
    sys.stdout.flush()
    os.execv(program, command)


main()
