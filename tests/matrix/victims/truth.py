"""What a perfect recovery would find, said by the victim itself before its memory is taken.

A victim prints one line `TRUTH {…}` for each of its models, a line `LEFT-OUT …` for each feature that its version of
PyTorch lacks, and `READY` when nothing will change any more. Python 3.6 syntax; only PyTorch is needed.
"""
import ctypes
import hashlib
import json
import os
import sys
import time

import torch

PLAIN = (int, float, bool, str, type(None))


def resolved(tensor):
    """The same with its values in memory, where it is a lazy conjugate or negative view (PyTorch 1.10 and later)."""
    for name in ("resolve_conj", "resolve_neg"):
        tensor = getattr(tensor, name)() if hasattr(tensor, name) else tensor
    return tensor


def value_bytes(tensor):
    """The elements in row-major order, as state_dict() would save them."""
    dense = resolved(tensor.detach()).contiguous()
    return ctypes.string_at(dense.data_ptr(), dense.numel() * dense.element_size()) if dense.numel() else b""


def described(tensor):
    """A strided tensor: on the CPU with the hash of its bytes."""
    row = {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).replace("torch.", ""),
        "stride": list(tensor.stride()),
        "offset": tensor.storage_offset(),
        "data_ptr": hex(tensor.data_ptr()),
        "id": hex(id(tensor)),
        "requires_grad": tensor.requires_grad,
        "device": str(tensor.device),
    }
    if on_cpu(tensor):
        row["sha256"] = hashlib.sha256(value_bytes(tensor)).hexdigest()
    return row


def on_cpu(tensor):
    return tensor.device.type == "cpu"


def form(tensor):
    """`strided`, or what it is that safetensors has no entry for."""
    if "Uninitialized" in type(tensor).__name__:
        return "lazy"
    if getattr(tensor, "is_nested", False):
        return "nested"
    if is_wrapper(tensor):
        return "wrapper"
    if not tensor.numel() and inside(tensor):
        return "placeholder"
    if tensor.layout != torch.strided:
        return "sparse"
    if not on_cpu(tensor):
        return "meta" if tensor.device.type == "meta" else "accelerator"
    if tensor.is_quantized:
        return "quantized"
    return "complex" if tensor.is_complex() else "strided"


def is_wrapper(tensor):
    """Whether the class of a tensor says what operations do: it has no elements of its own."""
    of_torch = getattr(torch.Tensor, "__torch_dispatch__", None)
    return getattr(type(tensor), "__torch_dispatch__", None) is not of_torch


def inside(thing, depth=3):
    """{path: SHA-256} of the tensors in the attributes of a tensor, and of objects among these."""
    own = dict(getattr(thing, "__dict__", {}))
    own.update((name, getattr(thing, name)) for name in getattr(type(thing), "__slots__", ()) if hasattr(thing, name))
    found = {}
    for name, value in own.items():
        if torch.is_tensor(value):
            found[name] = hashlib.sha256(value_bytes(value)).hexdigest()
        elif depth and hasattr(value, "__dict__") and not isinstance(value, (type, torch.nn.Module)):
            found.update(("%s.%s" % (name, path), digest) for path, digest in inside(value, depth - 1).items())
    return found


def described_odd(tensor):
    """A tensor that safetensors has no entry for: what is still known of it, and the bytes of its parts."""
    row = {"form": form(tensor), "class": class_name(tensor), "id": hex(id(tensor))}
    if row["form"] == "lazy":
        return row
    if row["form"] in ("meta", "accelerator"):
        return dict(described(tensor), **row)
    if row["form"] == "nested":
        # The tensors in it have shapes, it has none.
        values = b"".join(value_bytes(part) for part in tensor.unbind())
        digests = [hashlib.sha256(value_bytes(part)).hexdigest() for part in nested_tables(tensor)]
        return dict(row, shape=None, parts=[hashlib.sha256(values).hexdigest()] + digests)
    row["shape"] = list(tensor.shape)
    parts = []
    if row["form"] == "sparse":
        parts = [tensor._indices(), tensor._values()] if tensor.layout == torch.sparse_coo else []
    elif row["form"] == "quantized":
        parts = [tensor.int_repr()]
        if tensor.qscheme() == torch.per_tensor_affine:
            row.update(scale=tensor.q_scale(), zero_point=tensor.q_zero_point())
    elif row["form"] == "complex":
        parts = [tensor]
    elif row["form"] in ("wrapper", "placeholder"):
        return dict(row, parts=sorted(inside(tensor).values()))
    row["parts"] = [hashlib.sha256(value_bytes(part)).hexdigest() for part in parts]
    return row


def nested_tables(tensor):
    """The tensors that say which elements of a nested tensor belong to which tensor in it, as far as they can be had."""
    names = ("_nested_tensor_size", "_nested_tensor_strides")
    return [getattr(tensor, name)() for name in names if hasattr(tensor, name)]


def registered(module, prefix=""):
    """Names of all parameters and buffers, also of modules that stand in several places."""
    if is_scripted(module):
        return [prefix + name for name in module.state_dict()]
    names = [prefix + name for name in list(module._parameters) + list(module._buffers)]
    for name, child in module._modules.items():
        names += registered(child, prefix + name + ".") if child is not None else []
    return names


def plain(value):
    """Whether a hyper-parameter is of a kind that the recovery must give back."""
    return isinstance(value, PLAIN) or isinstance(value, tuple) and all(plain(item) for item in value)


def as_json(value):
    """The same as JSON has it: tuples are lists."""
    return [as_json(item) for item in value] if isinstance(value, tuple) else value


def is_kept_otherwise(net, name):
    """Whether state_dict() makes an entry of a plain attribute, or of what its module has packed in a C++ object."""
    path, _, own = name.rpartition(".")
    kept = vars(dict(net.named_modules())[path])
    is_plain = own in kept and not torch.is_tensor(kept[own])
    return is_plain or any(is_script_object(value) for value in kept.values())


def is_script_object(value):
    return type(value).__name__ == "ScriptObject"


def is_scripted(module):
    return isinstance(module, torch.jit.ScriptModule)


def described_packed(net):
    """The weights that modules have packed in C++ objects, under the names of the attributes that hold them."""
    packed = {}
    for path, module in net.named_modules():
        for own, value in ([] if is_scripted(module) else vars(module).items()):
            if is_script_object(value) and hasattr(module, "_weight_bias"):
                weight, bias = module._weight_bias()
                entry = dict(described_odd(weight), form="packed")
                entry["parts"] += [hashlib.sha256(value_bytes(bias)).hexdigest()] if bias is not None else []
                packed[path + "." + own if path else own] = entry
    return packed


def class_name(thing):
    # Of a script module the class that its code is of, not that of the Python object.
    if isinstance(thing, torch.jit.ScriptModule) and hasattr(thing, "_c"):
        return thing._c.qualified_name
    return type(thing).__module__ + "." + type(thing).__qualname__


def described_module(module):
    own = vars(module)
    hyper = {name: as_json(value) for name, value in own.items() if not name.startswith("_") and plain(value)}
    training = module.training if is_scripted(module) else own.get("training")
    return {"class": class_name(module), "id": hex(id(module)), "training": training, "hyper": hyper}


def described_optimizer(optimizer, net):
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    state = {
        names[id(parameter)]: {
            key: described(kept) if torch.is_tensor(kept) else kept
            for key, kept in entry.items()
            if not torch.is_tensor(kept) or on_cpu(kept)
        }
        for parameter, entry in optimizer.state.items()
        if id(parameter) in names
    }
    groups = [
        {key: as_json(value) for key, value in group.items() if key != "params" and plain(value)}
        for group in optimizer.param_groups
    ]
    of_groups = [[names[id(p)] for p in group["params"] if id(p) in names] for group in optimizer.param_groups]
    return {"class": class_name(optimizer), "state": state, "param_groups": groups, "parameters": of_groups}


def training_elsewhere(net, optimizer):
    """Gradients and what the optimizer keeps on an accelerator, by the names that the recovery gives them."""
    gradients = [(name, parameter.grad) for name, parameter in net.named_parameters()]
    state = optimizer.state if optimizer is not None else {}
    kept = [("%s.%s" % (name, key), value) for name, parameter in net.named_parameters()
            for key, value in state.get(parameter, {}).items()]
    return {name: described(tensor) for name, tensor in gradients + kept
            if torch.is_tensor(tensor) and not on_cpu(tensor)}


def tell(role, net, optimizer=None, mapped=None, moved=None, ended=False):
    """Prints the truth of one model of this process, and returns it; `mapped` says which tensors lie in which mapped file,
    `moved` are the values of tensors that have none, `ended` says that the process will have ended."""
    truth = {
        "role": role,
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "class": class_name(net),
        "id": hex(id(net)),
        "state_dict": {},
        "odd": {},
        # What state_dict() holds beside parameters and buffers.
        "extra": [],
        "inside": {},
        "moved": {name: hashlib.sha256(value_bytes(value)).hexdigest() for name, value in (moved or {}).items()},
        "modules": {name: described_module(module) for name, module in net.named_modules()},
        "grads": {
            name: described(parameter.grad)
            for name, parameter in net.named_parameters()
            if parameter.grad is not None and on_cpu(parameter.grad)
        },
        "training_elsewhere": training_elsewhere(net, optimizer),
        "mapped": mapped or {},
        "ended": ended,
    }
    names = set(registered(net))
    for name, tensor in net.state_dict(keep_vars=True).items():
        if name not in names or not torch.is_tensor(tensor):
            if not is_kept_otherwise(net, name):
                truth["extra"].append(name)
        elif form(tensor) == "strided":
            truth["state_dict"][name] = described(tensor)
            if inside(tensor):
                truth["inside"][name] = inside(tensor)
        else:
            truth["odd"][name] = described_odd(tensor)
    truth["odd"].update(described_packed(net))
    if optimizer is not None:
        truth["optimizer"] = described_optimizer(optimizer, net)
    say(truth)
    return truth


def say(truth):
    """Prints a truth that is known already, such as that of a forked worker's parent."""
    sys.stdout.write("TRUTH " + json.dumps(truth) + "\n")
    sys.stdout.flush()


def attempt(feature, build):
    """Calls `build`, or names the feature as left out where this version of PyTorch lacks it."""
    try:
        return build()
    except (AssertionError, AttributeError, ImportError, NotImplementedError, RuntimeError, TypeError) as reason:
        sys.stdout.write("LEFT-OUT %s: %s: %s\n" % (feature, type(reason).__name__, str(reason).split("\n")[0][:150]))
        return None


def stand():
    """Stands still until the memory is taken."""
    while True:
        time.sleep(1000)


def wait():
    """The same for the last process of a victim: all that there is to say has been said."""
    sys.stdout.write("READY\n")
    sys.stdout.flush()
    stand()
