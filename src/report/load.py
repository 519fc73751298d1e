#!/usr/bin/env python3
"""Builds a recovered network from PyTorch's own classes and loads its weights.

    python3 load.py               loads the weights, prints the module tree, says whether all keys matched
    python3 load.py --partial     does the same for a network that was only partly recovered
    python3 load.py --from-elsewhere    also takes values from other tensors that model.json names: those that an
                                  offload hook keeps, or a wrapper's only tensor of the same shape and type

    from load import load
    net = load()                  a torch.nn.Module with the recovered weights

Needs PyTorch 1.10 or later and nothing else. Everything is read from the files beside this one:
model.json (the module tree) and *.safetensors (the weights). All names and values in them come
from a memory dump. They are used as data only: no code is imported or run by such a name.

A module whose class is part of torch.nn gets that class and computes what it did before. The source
code of a user's own class is not recovered: such a module has its children, weights and attributes,
but no forward(). Write your own, from the paper or by an educated guess:

    net.forward = lambda x: net.fc(net.pool(net.conv(x)).flatten(1))

A chain (model.json has "kind": "chain") is a guess: no module holds its tensors, and their shapes say that they fit
one after another. It becomes a torch.nn.Sequential. What no tensor says must be chosen:

    python3 load.py --input 3x32x32 --activation relu --pool max2 --stride layer0=2,layer3=1 --padding 1 --heads 8

    net = load(activation="relu", pool={"layer0": "max2"}, input="3x32x32")

    activation    after each layer with a weight but the last: relu (the default), gelu, tanh, sigmoid, silu, none
    pool          after each convolution: none, max2, avg2, ...; by default what gives the flattened size for --input,
                  and without --input an adaptive pooling to that size
    stride, padding    of the convolutions: 1 and 0 by default; with --input, padding that gives the flattened size
    heads         of attention layers: one for each 64 features by default

A value applies to all layers, or to those that it names. An activation for the last layer must name it. The network
is in evaluation mode.

Functions that a layer keeps as an attribute are not restored: set, for example,
net.decoder.activation by hand. A user's class that derives from a torch.nn class is rebuilt with that
torch.nn class; an overridden forward() is lost as well.
"""
import collections
import contextlib
import json
import os
import struct
import sys
import weakref

try:
    import torch
except ImportError:
    sys.exit("load.py needs PyTorch 1.10 or later; try: pip install torch")

# Total memory for tensors without any known element.
STAND_IN_BYTES = 1 << 26
HERE = os.path.dirname(os.path.abspath(__file__))
SAFETENSORS = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
    # The following types exist only in some versions of PyTorch.
    "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "ComplexHalf": "complex32", "ComplexDouble": "complex128",
    # Only a quantizer makes such a tensor.
    "QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32",
}


# The fields of model.json that are read, with the types that they can have. None: the field can be null.
NULL = type(None)
FIELDS = {
    "modules": {
        "name": (str,), "class": (str, NULL), "torch_class": (str, NULL), "training": (bool, NULL), "hyper": (dict,),
        "private": (dict,), "python_types": (list,), "parameters": (list,), "buffers": (list,), "unset": (dict,),
        "object": (str,),
    },
    "tensors": {
        "name": (str,), "dtype": (str, NULL), "shape": (list, NULL), "kind": (str,), "requires_grad": (bool, NULL),
        "persistent": (bool,), "status": (str,), "file": (str, NULL), "same_as": (str, NULL), "problem": (str, NULL),
        "object": (str,),
    },
    "parts": {"name": (str,), "dtype": (str, NULL), "shape": (list, NULL), "file": (str, NULL)},
    "elsewhere": {"name": (str,)},
    "form": {"name": (str,)},
}
# The fields that only some rows have.
OPTIONAL = {"file_name": (str,), "form": (dict,), "parts": (list,), "elsewhere": (list,)}
# What the elements of a list are.
ELEMENTS = {"shape": int, "parameters": str, "buffers": str, "python_types": list}


class BadTree(RuntimeError):
    """model.json is not as tensorcarve writes it; the message names the field."""


class BadChoice(RuntimeError):
    """Something was chosen for a chain that cannot be."""


@contextlib.contextmanager
def reading(field, row=None):
    """Any error in this context becomes one that names the field of model.json from which the data are."""
    try:
        yield
    except (BadTree, BadChoice):
        raise
    except Exception as error:
        name = "" if row is None else " (%s)" % shown(row["name"])
        raise BadTree("model.json: %s%s: %s: %s" % (field, name, type(error).__name__, error)) from error


def check(row, kind, place):
    """Raises an error if a row lacks a field that is read, or has one of another type."""
    if not isinstance(row, dict):
        raise BadTree("model.json: %s is not an object" % place)
    optional = {field: types for field, types in OPTIONAL.items() if field in row}
    for field, types in {**FIELDS[kind], **optional}.items():
        if field not in row:
            raise BadTree("model.json: %s.%s is missing" % (place, field))
        value, element = row[field], ELEMENTS.get(field)
        # To Python, true and false are numbers.
        is_element = lambda item: element is None or (isinstance(item, element) and not isinstance(item, bool))
        if not isinstance(value, types) or (isinstance(value, list) and not all(map(is_element, value))):
            raise BadTree("model.json: %s.%s has a value of a wrong type" % (place, field))
    if any(size < 0 for size in row.get("shape") or []):
        raise BadTree("model.json: %s.shape has a negative size" % place)
    if row.get("file") and os.path.basename(row["file"]) != row["file"]:
        raise BadTree("model.json: %s.file is not the name of a file in this folder" % place)
    for field in ("parts", "elsewhere"):
        for number, inner in enumerate(row.get(field, [])):
            check(inner, field, "%s.%s[%d]" % (place, field, number))
    if "form" in row:
        check(row["form"], "form", place + ".form")
    if kind == "tensors":
        with reading("%s.object" % place):
            int(row["object"], 16)


def dtype_of(name):
    """The torch.dtype for a name in the files; None if this PyTorch has no such type."""
    return getattr(torch, SAFETENSORS.get(name, "?"), None)


def read(name):
    """All tensors of a safetensors file; empty if the file does not exist."""
    path = os.path.join(HERE, name)
    try:
        return read_file(path) if os.path.exists(path) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, struct.error) as error:
        raise RuntimeError("%s cannot be read: %s: %s" % (path, type(error).__name__, error)) from error


def read_file(path):
    """All tensors of a safetensors file that exists."""
    tensors = {}
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        for key, entry in header.items():
            if key == "__metadata__":
                continue
            dtype, (start, end) = dtype_of(entry["dtype"]), entry["data_offsets"]
            if dtype is None:
                raise RuntimeError("this PyTorch (%s) has no dtype for %s" % (torch.__version__, entry["dtype"]))
            data = bytearray(end - start)
            file.seek(8 + length + start)
            if file.readinto(data) != len(data):
                raise RuntimeError(path + " is cut off")
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            tensors[key] = flat.reshape(entry["shape"])
    return tensors


def key_of(row):
    """The key of a tensor or a part in its file: its name, unless that is reserved or occurs twice."""
    return row.get("file_name", row["name"])


def compressed_layout(row):
    """The layout of a sparse tensor with one compressed dimension; None if its shapes are ambiguous."""
    shapes = {part["name"][len(row["name"]) + 1:]: part["shape"] for part in row["parts"]}
    if len(row["shape"]) != 2 or len(shapes.get("values", [])) != 1:
        return None
    fits = [size == shapes["compressed_indices"][0] - 1 for size in row["shape"]]
    return {(True, False): "csr", (False, True): "csc"}.get(tuple(fits))


def count_of(shape):
    """The number of elements of a shape, ignoring dimensions of size 0."""
    count = 1
    for size in shape:
        count *= max(size, 1)
    return count


def can_join(row):
    """Whether the parts in the files are enough to rebuild the tensor."""
    form = row.get("form", {}).get("name")
    if form == "overlapping":
        return dtype_of(row["dtype"]) is not None and count_of(row["shape"]) < 1 << 60
    if form == "sparse_compressed":
        return compressed_layout(row) is not None
    if form in ("quantized_per_tensor", "quantized_per_channel", "sparse_coo", "nested"):
        return dtype_of(row["dtype"]) is not None
    return form is None and dtype_of(row["dtype"]) is not None


def nested_tensor(values, sizes, strides, offsets):
    """A nested tensor; without offsets, each inner tensor begins where the previous one ends."""
    tensors, place = [], 0
    for number, (size, stride) in enumerate(zip(sizes.tolist(), strides.tolist())):
        start = place if offsets is None else int(offsets[number])
        tensors.append(torch.as_strided(values, size, stride, start).contiguous())
        place = start + tensors[-1].numel()
    make = getattr(torch, "nested", torch)
    return make.nested_tensor(tensors, dtype=values.dtype)


def join(row, parts):
    """Rebuilds a tensor whose type or form safetensors does not have from its parts."""
    own = {part["name"][len(row["name"]) + 1:]: parts[key_of(part)] for part in row["parts"]}
    form = row.get("form", {"name": None})
    if form["name"] == "quantized_per_tensor":
        return torch._make_per_tensor_quantized_tensor(own["int_repr"], form["scale"], form["zero_point"])
    if form["name"] == "quantized_per_channel":
        scales, zero_points = own["q_per_channel_scales"], own["q_per_channel_zero_points"]
        return torch._make_per_channel_quantized_tensor(own["int_repr"], scales, zero_points, form["axis"])
    if form["name"] == "overlapping":
        flat = own.get("storage", own.get("storage.view_as_real"))
        if flat is None:
            flat = own["storage.bytes"].view(dtype_of(row["dtype"]))
        elif "storage.view_as_real" in own:
            flat = torch.view_as_complex(flat)
        return flat.reshape(-1).as_strided(row["shape"], form["stride"], form["offset"])
    values = own.get("values", own.get("values.view_as_real"))
    if form["name"] is not None and not values.dtype.is_complex and "values.view_as_real" in own:
        values = torch.view_as_complex(values)
    if form["name"] == "nested":
        return nested_tensor(values, own["nested_sizes"], own["nested_strides"], own.get("storage_offsets"))
    if form["name"] == "sparse_coo":
        return torch.sparse_coo_tensor(own["indices"], values, row["shape"])
    if form["name"] == "sparse_compressed":
        make = getattr(torch, "sparse_%s_tensor" % compressed_layout(row))
        return make(own["compressed_indices"], own["plain_indices"], values, row["shape"])
    if "view_as_real" in own:
        return torch.view_as_complex(own["view_as_real"])
    return own["bytes"].view(dtype_of(row["dtype"])).reshape(row["shape"])


def nn_class(name):
    """The class with this dotted name if it is a module class under torch.nn, else None."""
    if not isinstance(name, str) or not name.startswith("torch.nn."):
        return None
    place = torch.nn
    for part in name.split(".")[2:]:
        # vars(), not getattr(): the lookup must not import anything.
        place = vars(place).get(part) if isinstance(place, (type, type(torch))) else None
    moved = vars(torch.nn).get(name.rsplit(".", 1)[1])
    for found in (place, moved):
        if isinstance(found, type) and issubclass(found, torch.nn.Module) and found is not torch.nn.Module:
            # PyTorch's modules also hold names that they import from elsewhere.
            if found.__module__.startswith("torch.nn."):
                return found
    return None


class Recovered(torch.nn.Module):
    """A module of a user's own class: children, weights and attributes, but no forward()."""

    def forward(self, *_args, **_kwargs):
        raise NotImplementedError("forward() of %s is not recovered from the dump; write your own" % self.recovered_class)


def new_module(row):
    """A module of the row's class, with only Module.__init__ called."""
    known = nn_class(row["class"]) or nn_class(row["torch_class"])
    base = known or Recovered
    if nn_class(row["class"]) is None:
        short = (row["class"] or "").rsplit(".", 1)[-1]
        base = type(short if short.isidentifier() else "Unnamed", (base,), {})
    module = base.__new__(base)
    torch.nn.Module.__init__(module)
    own = set(vars(module))
    for section in ("hyper", "private"):
        for name, value in row[section].items():
            # Attributes that Module needs are kept; data does not hide methods.
            is_free = name not in own and not callable(getattr(base, name, None))
            if is_free and name.isidentifier() and not name.startswith("__"):
                vars(module)[name] = value
    vars(module)["recovered_class"] = row["class"] or "?"
    module.training = bool(row["training"])
    return module


def python_values(row):
    """Restores values for which JSON has no type: tuples, inf and nan, large integers."""
    makers = {"tuple": tuple, "float": float, "int": int}
    # Inner values come after outer ones, and must be restored first.
    for kind, *path in reversed(row["python_types"]):
        place = row
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = makers[kind](place[path[-1]])


def new_tensor(row, shared, joined, room):
    """The parameter or buffer of a row, with values only if they were joined; None if it can't be made."""
    is_parameter = row["kind"] == "parameter"
    if shared is not None and isinstance(shared, torch.nn.Parameter) == is_parameter:
        return shared
    tensor, dtype = joined, dtype_of(row["dtype"])
    if tensor is None:
        if dtype is None or row["shape"] is None or row.get("form"):
            return None
        tensor = torch.empty(row["shape"], dtype=dtype) if row["file"] and not row.get("parts") else stand_in(row["shape"], dtype, room)
    if is_parameter and tensor is not None:
        can_learn = tensor.is_floating_point() or tensor.is_complex()
        tensor = torch.nn.Parameter(tensor, requires_grad=bool(row["requires_grad"]) and can_learn)
    return tensor


def stand_in(shape, dtype, room):
    """A tensor without any known element: nan, or zero for integers. It stores a single element if memory is short,
    because sizes from a dump can be anything. None for sizes that no tensor can have."""
    count = count_of(shape)
    if count >= 1 << 60:
        return None
    one = torch.zeros((), dtype=dtype)
    if one.is_floating_point() or one.is_complex():
        one.fill_(float("nan"))
    tensor = one.expand(shape)
    if count * one.element_size() <= room[0]:
        room[0] -= count * one.element_size()
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    return tensor


def build(tree, joined):
    """The network, with values only for joined tensors, and {number of the row: tensor}."""
    modules, by_object, made, first, room = {}, {}, {}, {}, [STAND_IN_BYTES]
    waiting = {}
    for number, row in enumerate(tree["tensors"]):
        waiting.setdefault(row["name"], []).append(number)

    def module_at(name):
        if name not in modules:
            modules[name] = Recovered()
            vars(modules[name])["recovered_class"] = "?"
            attach(name)
        return modules[name]

    def attach(name):
        if name:
            parent, _, own = name.rpartition(".")
            module_at(parent)._modules[own] = modules[name]

    def register(number, module, own):
        row = tree["tensors"][number]
        # Two tensors can have one name: the object, if known, says which of them this row shares.
        place = ("object", row["object"]) if int(row["object"], 16) else None
        shared = None if row["same_as"] is None else first.get(place, first.get(("name", row["same_as"])))
        with reading("tensors[%d]" % number, row):
            tensor = new_tensor(row, shared, joined.get(number), room)
        for key in (place, ("name", row["name"])):
            if key is not None:
                first.setdefault(key, tensor)
        made[number] = tensor
        if row["kind"] == "parameter":
            module._parameters[own] = tensor
        else:
            module._buffers[own] = tensor
            if not row["persistent"]:
                module._non_persistent_buffers_set.add(own)

    for number, row in enumerate(tree["modules"]):
        with reading("modules[%d].python_types" % number, row):
            python_values(row)
        # A module with two names is one module.
        if row["object"] not in by_object:
            with reading("modules[%d].hyper or .private" % number, row):
                by_object[row["object"]] = new_module(row)
        modules[row["name"]] = by_object[row["object"]]
        attach(row["name"])
    for row in tree["modules"]:
        module, skip = modules[row["name"]], len(row["name"]) + 1 if row["name"] else 0
        for full in row["parameters"] + row["buffers"]:
            # If two tensors have one name, the first belongs to the module that comes first.
            if waiting.get(full):
                register(waiting[full].pop(0), module, full[skip:])
        for own, kind in row["unset"].items():
            (module._parameters if kind == "parameter" else module._buffers).setdefault(own, None)
    for full, numbers in waiting.items():
        for number in numbers:
            # Tensors of a module that is only listed under its first name.
            parent, _, own = full.rpartition(".")
            register(number, module_at(parent), own)
    numbers = {row["name"]: number for number, row in enumerate(tree["modules"])}
    for name, module in modules.items():
        with reading("modules[%s].hyper or .private" % numbers.get(name, "?"), {"name": name}):
            finish(module)
    return module_at(""), {number: tensor for number, tensor in made.items() if tensor is not None}


def finish(module):
    """Attributes that some classes derive from their parameters."""
    state = vars(module)
    if isinstance(module, torch.nn.RNNBase):
        names = state.get("_flat_weights_names") or [name for layer in state.get("_all_weights", []) for name in layer]
        flat = [module._parameters.get(name) for name in names]
        state["_flat_weights"] = flat
        state["_flat_weight_refs"] = [None if weight is None else weakref.ref(weight) for weight in flat]
    elif isinstance(module, torch.nn.ParameterDict):
        state.setdefault("_keys", dict.fromkeys(module._parameters))
    elif isinstance(module, torch.nn.TransformerEncoderLayer) and "activation" not in state:
        # PyTorch also stores a number for the function; 0 means any other function.
        known = {1: torch.nn.functional.relu, 2: torch.nn.functional.gelu}.get(state.get("activation_relu_or_gelu"))
        if known is not None:
            state["activation"] = known


def read_tree():
    """model.json, with tensors in attributes of a tensor object ("inner") apart from the tensor's own parts."""
    with reading("the file"), open(os.path.join(HERE, "model.json"), encoding="utf-8") as file:
        tree = json.load(file)
    if not isinstance(tree, dict):
        raise BadTree("model.json: the file is not an object")
    for kind in ("modules", "tensors"):
        if not isinstance(tree.get(kind), list):
            raise BadTree("model.json: %s is not a list" % kind)
        for number, row in enumerate(tree[kind]):
            check(row, kind, "%s[%d]" % (kind, number))
    for row in tree["tensors"]:
        parts = row.get("parts", [])
        row["inner"] = [part for part in parts if "attribute" in part]
        row["parts"] = [part for part in parts if "attribute" not in part]
    return tree


def values_elsewhere(rows, lost):
    """{number of the row: tensor} for rows without elements, if exactly one other tensor can have their values."""
    found, files, is_lost = {}, {}, {id(row) for row in lost}
    for number, row in enumerate(rows):
        if id(row) not in is_lost:
            continue
        inside = [("parts.safetensors", key_of(part)) for part in row["inner"] if part["file"] == "parts.safetensors"]
        outside = [(os.path.join("..", "..", "tensors.safetensors"), place["name"]) for place in row.get("elsewhere", [])]
        fits = []
        for file, name in inside + outside:
            if file not in files:
                files[file] = read(file)
            value = files[file].get(name)
            if value is not None and list(value.shape) == row["shape"] and value.dtype == dtype_of(row["dtype"]):
                fits.append(value)
        if len(fits) == 1:
            found[number] = fits[0]
    return found


def load(partial=False, elsewhere=False, **choices):
    """The network with its recovered weights; choices are for a chain, see above.

    Raises an error that names the missing tensors if the network was only partly recovered. With partial=True,
    missing tensors are nan (zero for integers), and missing pages of a tensor are zeros. With elsewhere=True,
    tensors without values take them from the other tensors that model.json names.
    """
    tree = read_tree()
    unknown = sorted(set(choices) - set(CHOICES if is_chain(tree) else ()))
    if unknown:
        raise BadChoice("nothing to choose: %s" % ", ".join(unknown))
    rows, lost = tree["tensors"], lost_tensors(tree)
    moved = values_elsewhere(rows, lost) if elsewhere else {}
    lost = [row for row in lost if not any(row is rows[number] for number in moved)]
    if lost and not partial:
        raise RuntimeError(
            "this network was only partly recovered; load(partial=True) loads the rest. Not complete: "
            + ", ".join("%s (%s)" % (shown(row["name"]), row["problem"] or row["status"]) for row in lost)
        )
    files = {}

    def value_of(row):
        if row["file"] not in files:
            files[row["file"]] = read(row["file"])
        return files[row["file"]].get(key_of(row))

    is_lost = {id(row) for row in lost}
    parts = read("parts.safetensors")
    joined = {}
    for number, row in enumerate(rows):
        if row.get("parts") and id(row) not in is_lost:
            with reading("tensors[%d].parts or .form" % number, row):
                joined[number] = join(row, parts)
    joined.update(moved)
    if is_chain(tree):
        room, values = [STAND_IN_BYTES], {}
        for number, row in enumerate(rows):
            value = joined.get(number)
            if value is None and row["file"] and not row.get("parts"):
                value = value_of(row)
            values[row["name"]] = (row, new_tensor(row, None, stand_in_for(row, room) if value is None else value, room))
        with reading("chain"):
            return build_chain(tree["chain"], values, choices)
    net, made = build(tree, joined)
    by_name, values = {}, {}
    for number, row in enumerate(rows):
        if number in made and number not in joined:
            values[number] = value_of(row) if row["file"] and not row.get("parts") else None
        by_name.setdefault(row["name"], []).append(number)
    # load_state_dict() loads what it can: one tensor per name, for names that state_dict() lists.
    known = {}
    for name, (number, *others) in by_name.items():
        if not others and values.get(number) is not None and rows[number]["persistent"]:
            known[name] = values.pop(number)
    try:
        result = net.load_state_dict(known, strict=False)
        unused, missing = result.unexpected_keys, result.missing_keys
    except RuntimeError as error:
        raise BadTree("model.json: modules: PyTorch's classes refuse the weights: %s" % error) from error
    except Exception:
        # A class's own code needs data that was not recovered: the values are copied without it.
        unused, missing = known, []
    # load_state_dict() does not find a name with a dot in its last part.
    values.update((by_name[name][0], known[name]) for name in unused if name in known)
    missing = [name for name in missing if name not in by_name]
    if missing and not lost:
        raise RuntimeError("the dump has no values for these keys of PyTorch's classes: %s" % missing)
    with torch.no_grad():
        for number, value in values.items():
            if value is not None:
                if value.shape != made[number].shape:
                    raise RuntimeError("%s has two tensors of different sizes" % shown(rows[number]["name"]))
                with reading("tensors[%d]" % number, rows[number]):
                    made[number].copy_(value)
    return net


def lost_tensors(tree):
    """The rows of tensors that the files do not hold completely, or that can't be rebuilt from their parts."""
    lost = []
    for number, row in enumerate(tree["tensors"]):
        with reading("tensors[%d].parts or .form" % number, row):
            if row["file"] is None or row["status"] != "complete" or (row.get("parts") and not can_join(row)):
                lost.append(row)
    return lost


def shown(text):
    """Text from the dump, safe for a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def whose(name):
    """What is known about a class that is not rebuilt."""
    if not name.startswith("torch."):
        return "user's class"
    place, parts = torch, name.split(".")[1:]
    for number, part in enumerate(parts, 1):
        # The lookup must not import anything.
        found = vars(place).get(part) if isinstance(place, (type, type(torch))) else None
        if found is None:
            return "not in this PyTorch" + ("" if number == len(parts) else ", or in a part that is loaded on demand")
        place = found
    return "the base class of all modules" if place is torch.nn.Module else "PyTorch's, but not a layer of torch.nn"


def shape_text(tensor):
    # Nested tensors have no shape: PyTorch raises an error for it.
    return "nested, %d tensors" % tensor.size(0) if tensor.is_nested else str(list(tensor.shape))


def is_chain(tree):
    return tree.get("kind") == "chain"


def stand_in_for(row, room):
    """A tensor without any known element for a row, or None."""
    dtype = dtype_of(row["dtype"])
    return None if dtype is None or row["shape"] is None else stand_in(row["shape"], dtype, room)


# What can be chosen for a chain, with the defaults. None: it depends on the sizes.
CHOICES = {"activation": "relu", "pool": None, "stride": "1", "padding": None, "heads": None, "input": None}
ACTIVATIONS = {
    "relu": torch.nn.ReLU, "gelu": torch.nn.GELU, "tanh": torch.nn.Tanh, "sigmoid": torch.nn.Sigmoid, "silu": torch.nn.SiLU,
}
CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
# Poolings of this many convolutions are tried; more than that are never pooled one by one.
MAX_POOLS = 12


class Residual(torch.nn.Module):
    """A block with a shortcut around it: both outputs are added."""

    def __init__(self, block, shortcut):
        super().__init__()
        self.block, self.shortcut = block, shortcut

    def forward(self, x):
        return self.block(x) + self.shortcut(x)


class SelfAttention(torch.nn.Module):
    """Attention of a sequence [batch, time, features] to itself."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Sequence(torch.nn.Module):
    """A recurrent layer over a sequence [batch, time, features], without its last state."""

    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x):
        return self.recurrent(x)[0]


class Choices:
    """What the user chose, and by default what the sizes of the chain allow."""

    def __init__(self, chosen, layers=()):
        # A block and its shortcut give the same sizes, which padding keeps.
        numbers = {layer["name"]: number for number, layer in enumerate(layers)}
        ranges = [(numbers[layer["around"][0]], numbers[layer["around"][1]]) for layer in layers if layer["around"]]
        self.in_blocks = {name for name, number in numbers.items() for first, last in ranges if first <= number <= last}
        self.chosen = {name: self.parsed(name, value) for name, value in chosen.items() if value is not None}

    @staticmethod
    def parsed(name, value):
        """{layer: value}, with None for all layers."""
        if isinstance(value, dict):
            return {layer: str(one) for layer, one in value.items()}
        if isinstance(value, (list, tuple)):
            value = "x".join(str(size) for size in value)
        parts = [part.partition("=") for part in str(value).split(",")]
        return {(layer if equals else None): (one if equals else layer) for layer, equals, one in parts}

    def get(self, name, layer=None):
        chosen = self.chosen.get(name, {})
        return chosen.get(layer, chosen.get(None, CHOICES[name]))

    def names(self, name, layer):
        return layer in self.chosen.get(name, {})

    def number(self, name, layer, default=None):
        value = self.get(name, layer)
        if value is None:
            return default
        if not value.isdigit():
            raise BadChoice("%s of %s is %s, not a number" % (name, layer, value))
        return int(value)

    def padding(self, layer, same):
        """The padding of a convolution along each dimension; `same` if sizes are kept by default."""
        same = same or layer["name"] in self.in_blocks
        return tuple(self.number("padding", layer["name"], size // 2 if same else 0) for size in layer["kernel"])

    def sizes(self):
        """Sizes of the input without the batch, or None."""
        value = self.get("input")
        if value is None:
            return None
        sizes = value.split("x")
        if not all(size.isdigit() for size in sizes):
            raise BadChoice("input is %s; write it as 3x32x32" % value)
        return [int(size) for size in sizes]


def pooled(size, pool):
    """The size of a dimension after a pooling."""
    return size // pool_size(pool)


def pool_size(pool):
    """The kernel and the stride of max2 or avg2; 1 for none."""
    if pool == "none":
        return 1
    if pool[:3] not in ("max", "avg") or not pool[3:].isdigit() or int(pool[3:]) < 1:
        raise BadChoice("pool is %s; known are none, max2, avg2 and other numbers" % pool)
    return int(pool[3:])


def positions_after(layers, choices, sizes, pools, same):
    """Height and width after convolutions, or None if the input is too small."""
    for layer, pool in zip(layers, pools):
        stride = max(choices.number("stride", layer["name"]), 1)
        for dim, (kernel, padding) in enumerate(zip(layer["kernel"], choices.padding(layer, same))):
            sizes[dim] = pooled((sizes[dim] + 2 * padding - kernel) // stride + 1, pool)
            if sizes[dim] < 1:
                return None
    return sizes


def derive(layers, choices, wanted):
    """The poolings after convolutions, and whether they keep the size, such that `wanted` positions are left.

    Poolings after all of them come first, then those after more of them. BadChoice if nothing fits.
    """
    names = [layer["name"] for layer in layers]
    given = [choices.get("pool", name) for name in names]
    sizes = choices.sizes()
    if sizes is None:
        return [pool or "none" for pool in given], False
    dims = len(layers[0]["kernel"])
    if len(sizes) != dims + 1:
        raise BadChoice("input has %d sizes, not channels and %d more" % (len(sizes), dims))
    open_places = [place for place, pool in enumerate(given) if pool is None]
    tried = []
    for same in (False, True):
        free = range(1 << len(open_places)) if len(open_places) <= MAX_POOLS else (0, (1 << len(open_places)) - 1)
        for bits in sorted(free, key=lambda bits: (-bin(bits).count("1"), bits)):
            pools = [pool or "none" for pool in given]
            for number, place in enumerate(open_places):
                if bits >> number & 1:
                    pools[place] = "max2"
            left = positions_after(layers, choices, sizes[1:], pools, same)
            if left is not None and count_of(left) == wanted:
                return pools, same
            tried.append("none" if left is None else "x".join(map(str, left)))
    some = ", ".join(sorted(set(tried))[:8])
    raise BadChoice(
        "no pooling of input %s leaves %d positions to flatten (left are: %s); choose --pool, --stride or --padding"
        % (choices.get("input"), wanted, some)
    )


def chain_layer(layer, values, choices, dims, padding):
    """The module of a layer with its values. It is made without memory: its sizes are those of its tensors."""
    kind, inputs, outputs, name, meta = layer["kind"], layer["inputs"], layer["outputs"], layer["name"], {"device": "meta"}
    tensors = {role: values[tensor] for role, tensor in layer["tensors"].items()}
    nn, bias = torch.nn, "bias" in tensors
    if kind in CONVOLUTIONS:
        make = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[CONVOLUTIONS[kind] - 1]
        stride = choices.number("stride", name)
        module = make(inputs, outputs, tuple(layer["kernel"]), stride, padding, groups=layer["groups"], bias=bias, **meta)
    elif kind == "linear":
        module = nn.Linear(inputs, outputs, bias=bias, **meta)
    elif kind == "embedding":
        module = nn.Embedding(inputs, outputs, **meta)
    elif kind == "batch_norm":
        module = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}.get(dims, nn.BatchNorm1d)(outputs, **meta)
    elif kind == "norm":
        module = nn.GroupNorm(1, outputs, **meta) if dims else nn.LayerNorm(outputs, **meta)
    elif kind == "attention":
        heads = choices.number("heads", name, max(inputs // 64, 1))
        module = nn.MultiheadAttention(inputs, heads, batch_first=True, bias=len(tensors) > 2, **meta)
    elif kind in ("lstm", "gru"):
        make = nn.LSTM if kind == "lstm" else nn.GRU
        module = make(inputs, outputs, bias="bias_ih_l0" in tensors, batch_first=True, **meta)
    else:
        raise BadTree("model.json: chain.layers: unknown kind %s" % shown(str(kind)))
    for path, (_, value) in tensors.items():
        *parents, own = path.split(".")
        place = module
        for parent in parents:
            place = place._modules[parent]
        setattr(place, own, value)
    if getattr(module, "num_batches_tracked", None) is not None and "num_batches_tracked" not in tensors:
        module.num_batches_tracked = torch.zeros((), dtype=torch.long)
    unset = [key for key, value in module.state_dict().items() if value.is_meta]
    if unset:
        raise BadTree("model.json: chain.layers: %s has no %s" % (shown(name), ", ".join(unset)))
    wrapper = {"attention": SelfAttention, "lstm": Sequence, "gru": Sequence}.get(kind)
    return wrapper(module) if wrapper else module


def build_chain(chain, values, chosen):
    """A chain as a torch.nn.Sequential. Its modules are named by their layers; net.choices says what was chosen."""
    layers, links = chain["layers"], chain["links"]
    choices = Choices(chosen, layers)
    weights = [number for number, layer in enumerate(layers) if layer["kind"] not in ("batch_norm", "norm")]
    # Where it is flattened, and the convolutions before that.
    flat = {}
    for number, link in enumerate(links):
        first = link["evidence"][0] if link["evidence"] else {}
        if layers[number + 1]["kind"] == "linear" and first.get("kind") in ("flatten", "sizes"):
            before = [layer for layer in layers[:number + 1] if layer["kind"] in CONVOLUTIONS]
            if before and all(layers[place]["kind"] not in ("linear", "attention") for place in weights if place <= number):
                flat[number + 1] = first.get("positions", 1)
                way = [layer for layer in before if not layer["around"]]
    pools, same, adaptive = {}, False, None
    if flat:
        (at, positions), = flat.items()
        if choices.get("input") is None and not choices.chosen.get("pool"):
            adaptive = at
        elif positions > 1 or choices.chosen.get("pool"):
            found, same = derive(way, choices, positions)
            pools = {layer["name"]: pool for layer, pool in zip(way, found)}
        if positions == 1:
            adaptive = at
    groups, dims = [], 0
    for number, layer in enumerate(layers):
        name, kind = layer["name"], layer["kind"]
        with reading("chain.layers[%d]" % number):
            own, is_last = [], weights[-1:] == [number]
            if number in flat:
                if number == adaptive:
                    root = round(flat[number] ** (1 / dims))
                    sizes = (root,) * dims if root ** dims == flat[number] else (flat[number],) + (1,) * (dims - 1)
                    pool = (torch.nn.AdaptiveAvgPool1d, torch.nn.AdaptiveAvgPool2d, torch.nn.AdaptiveAvgPool3d)[dims - 1]
                    own.append((name + "_resize", pool(sizes)))
                own.append((name + "_flatten", torch.nn.Flatten(1)))
            if kind not in ("batch_norm", "norm"):
                dims = CONVOLUTIONS.get(kind, 0)
            own.append((name, chain_layer(layer, values, choices, dims, choices.padding(layer, same))))
            # The activation and the pooling of a layer come after its norms.
            is_end = number + 1 == len(layers) or layers[number + 1]["kind"] not in ("batch_norm", "norm")
            weight = layers[max(place for place in weights if place <= number)] if weights and weights[0] <= number else None
            if is_end and weight is not None and layer["around"] is None and weight["kind"] in ("linear", *CONVOLUTIONS):
                activation = choices.get("activation", weight["name"])
                is_last = weight is layers[weights[-1]] and not choices.names("activation", weight["name"])
                if activation != "none" and not is_last:
                    if activation not in ACTIVATIONS:
                        raise BadChoice("activation is %s; known are none, %s" % (activation, ", ".join(ACTIVATIONS)))
                    own.append((weight["name"] + "_activation", ACTIVATIONS[activation]()))
                pool = pools.get(weight["name"], choices.get("pool", weight["name"]) or "none")
                if dims and pool_size(pool) > 1:
                    classes = {"max": (torch.nn.MaxPool1d, torch.nn.MaxPool2d, torch.nn.MaxPool3d),
                               "avg": (torch.nn.AvgPool1d, torch.nn.AvgPool2d, torch.nn.AvgPool3d)}[pool[:3]]
                    own.append((weight["name"] + "_pool", classes[dims - 1](pool_size(pool))))
        groups.append(own)
    net = torch.nn.Sequential(collections.OrderedDict(with_shortcuts(layers, groups)))
    vars(net)["choices"] = {
        "activation": choices.get("activation"), "pool": pools or choices.get("pool") or ("adaptive" if adaptive else "none"),
        "stride": choices.get("stride"), "padding": choices.get("padding") or ("same" if same else "0"),
    }
    # Whether it was in training is unknown; as a rule, its outputs are wanted.
    return net.eval()


def with_shortcuts(layers, groups):
    """The modules of all layers, with each block and its shortcut as one."""
    numbers = {layer["name"]: number for number, layer in enumerate(layers)}
    modules, number = [], 0
    flattened = lambda first, last: [module for group in groups[first:last] for module in group]
    while number < len(layers):
        block = None
        for start in range(number, len(layers)):
            around = layers[start]["around"]
            if around is not None and numbers[around[0]] == number and start > number:
                block = (number, numbers[around[1]] + 1, start)
            elif around is not None and start == number:
                block = (numbers[around[0]], numbers[around[1]] + 1, start)
            if block:
                break
        if block is None:
            modules += groups[number]
            number += 1
            continue
        first, last, start = block
        end = start
        while end < len(layers) and layers[end]["around"] == layers[start]["around"]:
            end += 1
        inner = torch.nn.Sequential(collections.OrderedDict(flattened(first, last)))
        shortcut = torch.nn.Sequential(collections.OrderedDict(flattened(start, end)))
        modules += [(layers[first]["name"] + "_block", Residual(inner, shortcut))]
        number = max(last, end)
    return modules


def print_tree(module, name="", depth=0):
    known = nn_class(module.recovered_class) is not None
    note = "" if known else "  (%s%s)" % (whose(module.recovered_class), ", no forward()" if isinstance(module, Recovered) else "")
    print("%s%s%s%s" % ("  " * depth, shown(name) + ": " if depth else "", shown(module.recovered_class), note))
    for own, tensor in list(module._parameters.items()) + list(module._buffers.items()):
        what = "None" if tensor is None else "%s %s" % (str(tensor.dtype)[6:], shape_text(tensor))
        print("%s.%s  %s" % ("  " * (depth + 1), shown(own), what))
    for own, child in module._modules.items():
        print_tree(child, own, depth + 1)


def main():
    partial, elsewhere = "--partial" in sys.argv[1:], "--from-elsewhere" in sys.argv[1:]
    choices = {}
    for number, argument in enumerate(sys.argv[1:], 2):
        name, equals, value = argument[2:].partition("=")
        if argument.startswith("--") and name in CHOICES:
            choices[name] = value if equals else "".join(sys.argv[number:number + 1])
    try:
        net = load(partial, elsewhere, **choices)
    except RuntimeError as error:
        hint = "" if partial else "\nhint: python3 load.py --partial loads the rest"
        # PyTorch's own messages contain unescaped names from the dump.
        sys.exit("error: %s%s" % ("\n".join(shown(line) for line in str(error).split("\n")), hint))
    tree = read_tree()
    if is_chain(tree):
        print(net)
        print("chain of %d layers, a guess with score %s; activations, poolings, strides and padding are choices: %s" % (
            len(tree["chain"]["layers"]), tree["chain"]["score"],
            ", ".join("%s %s" % (name, value) for name, value in net.choices.items())))
    else:
        print_tree(net)
    parameters = list(net.parameters())
    print("%d parameters in %d tensors" % (sum(p.numel() for p in parameters), len(parameters)))
    rows, lost = tree["tensors"], lost_tensors(tree)
    moved = values_elsewhere(rows, lost) if elsewhere else {}
    lost = [row for row in lost if not any(row is rows[number] for number in moved)]
    if moved:
        print("from elsewhere: " + ", ".join(shown(rows[number]["name"]) for number in moved))
    inferred = [row for row in tree["tensors"] if row.get("inferred")]
    if inferred:
        print(
            "inferred layout: no known PyTorch layout reads %d of the %d tensors; if the inferred layout is wrong, "
            "their values are wrong" % (len(inferred), len(tree["tensors"]))
        )
    if lost:
        print("not complete: " + ", ".join("%s (%s)" % (shown(row["name"]), row["status"]) for row in lost))
    else:
        print("all keys matched")


if __name__ == "__main__":
    main()
