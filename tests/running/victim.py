"""A victim with threads, recursion, generators, coroutines: writes what it knows of itself, then waits."""
import gc
import json
import os
import sys
import threading
import time
from collections import Counter, namedtuple

out = sys.argv[1]
stop = threading.Event()
ready = []
PLAIN = (str, bytes, int, float, bool, type(None), tuple, list, dict, set)
Point = namedtuple("Point", "x y")


class Shape:
    def __init__(self, name):
        self.name = name
        self.sides = [1, 2.5, -3]

    def recurse(self, depth, label="é\n'x"):
        blob = b"a\x00'\""
        if depth:
            return self.recurse(depth - 1)
        ready.append(1)
        stop.wait()


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self):
        self.a, self.b = 1, "two"


def closure_worker(count, *args, **kwargs):
    total = 10 ** 30
    empty = ()
    nested = {"k": [1, (2,), {3}], 5: None, "t": True}

    def inner(step):
        nonlocal total
        total += step
        flag = count > 1
        ready.append(1)
        stop.wait()
        return flag, args

    # a comment that
    # moves the lines far

    return inner(
        3
    )


def gen(n):
    for i in range(n):
        square = i * i
        yield square


def outer_gen(n):
    marker = "outer"
    yield from gen(n)


class Awaitable:
    def __await__(self):
        value = yield "waiting"
        return value


async def leaf(tag):
    local = 1e-7
    await Awaitable()


async def middle(tag):
    numbers = [float("inf"), 1e16, 0.1, -0.0]
    await leaf(tag + "!")


async def agen(n):
    for i in range(n):
        yield i
        await Awaitable()


def drive_agen(a):
    step = a.__anext__()
    try:
        step.send(None)
    except StopIteration:
        pass
    return step


def comprehension_worker():
    big = list(range(100))
    text = "x" * 500
    loop = []
    loop.append(loop)
    return [wait(item, big, text, loop) for item in (7,)]


def wait(item, big, text, loop):
    ready.append(1)
    stop.wait()
    return item


def describe(frame):
    rows = []
    while frame is not None:
        code = frame.f_code
        local = {}
        names = list(frame.f_locals) if code.co_name != "<module>" else []
        for name in names:
            value = frame.f_locals[name]
            local[name] = repr(value) if type(value) in PLAIN else None
        rows.append({"function": code.co_name, "qualname": getattr(code, "co_qualname", None),
                     "file": code.co_filename, "line": frame.f_lineno, "locals": local})
        frame = frame.f_back
    return rows


def suspended_rows(kept):
    rows = []
    for kind, value, frame in kept:
        rows.append({"kind": kind, "frame": describe(frame)[0]})
    return rows


def full_name(t):
    return t.__qualname__ if t.__module__ == "builtins" else t.__module__ + "." + t.__qualname__


def record():
    time.sleep(0.7)
    native = {t.ident: (t.name, getattr(t, "native_id", None)) for t in threading.enumerate()}
    me = threading.get_ident()
    threads = [{"name": native.get(i, (None, None))[0], "tid": native.get(i, (None, None))[1], "frames": describe(f)}
               for i, f in sys._current_frames().items() if i != me]
    truth = {"pid": os.getpid(), "version": sys.version, "threads": threads, "suspended": suspended_rows(kept)}
    # As text, because it would be counted otherwise.
    text = json.dumps(truth)
    del threads, native, truth
    gc.collect()
    gc.disable()
    gens = [len(gc.get_objects(generation=i)) for i in range(3)]
    counter = Counter(map(type, gc.get_objects()))
    names = {full_name(t): n for t, n in counter.items()}
    text = text[:-1] + ", " + json.dumps({"gc": gens, "types": names})[1:]
    del counter, names
    with open(out + ".tmp", "w") as f:
        f.write(text)
    os.rename(out + ".tmp", out)
    stop.wait()


shapes = [Shape("s%d" % i) for i in range(37)]
slotted = [Slotted() for i in range(11)]
points = [Point(i, -i) for i in range(13)]
g1 = gen(5)
next(g1)
next(g1)
g2 = outer_gen(4)
next(g2)
g3 = gen(3)
c1 = middle("t")
c1.send(None)
c2 = leaf("never")
a1 = agen(3)
step = drive_agen(a1)
finished = gen(0)
list(finished)
kept = [("generator", g1, g1.gi_frame), ("generator", g2, g2.gi_frame), ("generator", g3, g3.gi_frame),
        ("generator", g2.gi_yieldfrom, g2.gi_yieldfrom.gi_frame),
        ("coroutine", c1, c1.cr_frame), ("coroutine", c1.cr_await, c1.cr_await.cr_frame), ("coroutine", c2, c2.cr_frame),
        ("generator", c1.cr_await.cr_await, c1.cr_await.cr_await.gi_frame),
        ("async_generator", a1, a1.ag_frame)]

threading.Thread(target=shapes[0].recurse, args=(6,), name="recursion \x1b[31m", daemon=True).start()
threading.Thread(target=closure_worker, args=(2, "a"), kwargs={"kw": 1.5}, name="closure", daemon=True).start()
threading.Thread(target=comprehension_worker, name="comprehension", daemon=True).start()


def main(argument):
    values = [1, 2, 3]
    while len(ready) < 3:
        time.sleep(0.01)
    recorder = threading.Thread(target=record, name="recorder", daemon=True)
    recorder.start()
    stop.wait()


main({"a": 1})
