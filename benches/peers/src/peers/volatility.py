"""Volatility 3's scanners over a file: reads the job from stdin, prints hits and seconds; both as JSON."""

import json
import struct
import sys
import time

from volatility3.framework import constants, contexts
from volatility3.framework.layers import physical, scanners

job = json.load(sys.stdin)
patterns = [bytes.fromhex(pattern) for pattern in job["patterns"]]
context = contexts.Context()
context.config["file.location"] = "file://" + job["path"]
layer = physical.FileLayer(context, "file", "file")


def is_type(base):
    """The six fields of cpython.type, as in signatures/cpython.toml, in one frame."""
    if base < 0 or base % 8 or base % 4096 + 48 > 4096:
        return False
    refcnt, own, size, name, basicsize, itemsize = struct.unpack("<6Q", layer.read(base, 48, pad=True))
    user = range(0x1000, 0x100_0000_0000_0000)
    if itemsize != 40 or not 512 <= basicsize <= 4096 or name not in user or size > 4096:
        return False
    return own in user and own % 4096 == base % 4096 and refcnt != 0


start = time.perf_counter()
sections = [(job["start"], job["size"])]
if len(patterns) == 1:
    found = layer.scan(context, scanners.BytesScanner(patterns[0]), sections=sections)
    if job["type"]:
        hits = [(at - 40, 0) for at in found if is_type(at - 40)]
    else:
        hits = [(at, 0) for at in found]
else:
    ids = {pattern: n for n, pattern in enumerate(patterns)}
    found = layer.scan(context, scanners.MultiStringScanner(patterns), sections=sections)
    hits = [(at, ids[pattern]) for at, pattern in found]
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "hits": hits}))
