"""Victims that stand still, and the ways to take an image of a process."""
import collections
import json
import mmap
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import time

from machine import VICTIMS, LeftOut, install_packages, run

NAMES = sorted(path.stem for path in VICTIMS.glob("*.py") if path.stem != "truth")
SECONDS_TO_GET_READY = 300


def spoken(lines):
    """What victims said: the features that are left out, and the truths of their models."""
    lacks = [line[len("LEFT-OUT "):] for line in lines if line.startswith("LEFT-OUT ")]
    return lacks, [json.loads(line[len("TRUTH "):]) for line in lines if line.startswith("TRUTH ")]


class Victim:
    """A victim that stands still, and has said what a perfect recovery would find."""

    def __init__(self, name, environment, work):
        self.folder = work / "victim"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.output = self.folder / "output"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        # What is imported is compiled once per environment, and nothing of it goes to this folder.
        clean.update(PYTHONPYCACHEPREFIX=str(environment.bytecode), PYTHONIOENCODING="utf-8")
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                environment.script(name), cwd=str(self.folder), env=clean,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            self.get_ready(name)
        except BaseException:
            self.close()
            raise

    def get_ready(self, name):
        start = time.monotonic()
        while True:
            text = self.output.read_text(encoding="utf-8", errors="replace")
            lines = text.splitlines()
            if "READY" in lines:
                break
            if self.process.poll() is not None or time.monotonic() - start > SECONDS_TO_GET_READY:
                last = " | ".join(lines[-3:])[-400:]
                raise RuntimeError("%s did not get ready: status %s: %s" % (name, self.process.poll(), last))
            time.sleep(0.1)
        self.lacks, truths = spoken(lines)
        # A worker is taken before its parent, which is not to notice.
        self.processes = collections.OrderedDict()
        for truth in sorted(truths, key=lambda truth: truth["pid"] == self.process.pid):
            self.processes.setdefault(truth["pid"], []).append(truth)

    def close(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def take_mem(pid, folder):
    """A copy as `tensorcarve recover --help` shows how to make: readable mappings one after another, and their maps."""
    image, maps = folder / "mem", folder / "maps"
    text = pathlib.Path("/proc/%d/maps" % pid).read_text(errors="surrogateescape")
    maps.write_text(text, errors="surrogateescape")
    with open("/proc/%d/mem" % pid, "rb", buffering=0) as memory, open(image, "wb") as copy:
        for line in text.splitlines():
            span, access = line.split()[:2]
            start, end = (int(bound, 16) for bound in span.split("-"))
            # The kernel's own page can't be read, whatever the maps say of it, nor what belongs to a device.
            if access.startswith("r") and "[vsyscall]" not in line and " /dev/nvidia" not in line:
                copy_mapping(memory, start, end, copy)
    return image


def copy_mapping(memory, start, end, copy):
    while start < end:
        memory.seek(start)
        try:
            data = memory.read(min(end - start, 1 << 20))
        except OSError:
            data = b""
        # Some pages nobody can read: [vvar], the guard pages of stacks (Linux 6.13 and later).
        data = data or bytes(mmap.PAGESIZE)
        copy.write(data)
        start += len(data)


def take_gcore(pid, folder, options=()):
    if not shutil.which("gcore"):
        install_packages(["gdb"])
    run(["gcore", *options, "-o", folder / "core", pid])
    return folder / ("core.%d" % pid)


def take_gcore_all(pid, folder):
    """With the mappings that the process asked not to be dumped; without those of files all the same."""
    return take_gcore(pid, folder, ["-a"])


def take_kernel(pid, folder):
    """The kernel's own core, which ends the process."""
    pattern = pathlib.Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern:
        raise LeftOut("core_pattern is %r: the kernel gives cores to something else" % pattern)
    resource.prlimit(pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    cwd = pathlib.Path(os.readlink("/proc/%d/cwd" % pid))
    os.kill(pid, signal.SIGABRT)
    state = pathlib.Path("/proc/%d/stat" % pid)
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] not in "ZX":
        time.sleep(0.05)
    cores = list(cwd.glob("core*"))
    if not cores:
        raise LeftOut("the kernel wrote no core, pattern %r" % pattern)
    image = folder / "kernel.core"
    os.rename(str(cores[0]), str(image))
    return image


def take(pid, capture, folder):
    """An image of the process, as one of `CAPTURES`: its path; "maps" lies beside it where it is needed."""
    return TAKE[capture](pid, folder)


# How each is taken.
TAKE = {"mem": take_mem, "gcore": take_gcore, "gcore-all": take_gcore_all, "kernel": take_kernel}
# The kernel's core comes last: it ends the process.
CAPTURES = list(TAKE)
