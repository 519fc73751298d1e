"""Volatility 3's scanners over a file: reads the job from stdin, prints hits and seconds; both as JSON."""

import json
import struct
import sys
import time

from volatility3.framework import contexts
from volatility3.framework.layers import physical, scanners

job = json.load(sys.stdin)
literals = [bytes.fromhex(literal) for literal in job["literals"] or []]
context = contexts.Context()
context.config["file.location"] = "file://" + job["path"]
layer = physical.FileLayer(context, "file", "file")
context.add_layer(layer)


def is_type(base):
    """The six fields of cpython.type, as in signatures/cpython.toml, in one frame."""
    if base < 0 or base % 8 or base % 4096 + 48 > 4096:
        return False
    refcnt, own, size, name, basicsize, itemsize = struct.unpack("<6Q", layer.read(base, 48, pad=True))
    user = range(0x1000, 0x100_0000_0000_0000)
    if itemsize != 40 or not 512 <= basicsize <= 4096 or name not in user or size > 4096:
        return False
    return own in user and own % 4096 == base % 4096 and refcnt != 0


def find(scanner):
    """What the scanner finds in the section that the job names."""
    return layer.scan(context, scanner, sections=[(job["start"], job["size"])])


start = time.perf_counter()
if job["job"] == "type-by-rule":
    hits = [(at - 8, 0) for at in find(scanners.RegExScanner(job["regex"].encode())) if is_type(at - 8)]
elif job["job"] == "type-by-field":
    hits = [(at - 40, 0) for at in find(scanners.BytesScanner(literals[0])) if is_type(at - 40)]
elif len(literals) == 1:
    hits = [(at, 0) for at in find(scanners.BytesScanner(literals[0]))]
else:
    ids = {literal: n for n, literal in enumerate(literals)}
    hits = [(at, ids[literal]) for at, literal in find(scanners.MultiStringScanner(literals))]
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "hits": hits}))
