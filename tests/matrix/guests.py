"""Guests: whole machines with a Debian suite's kernel, Python and PyTorch under QEMU, whose memory is dumped.

A guest may have other suites' Pythons as well, in folders of their own: SUITE+SUITE. QEMU runs without acceleration, so
that it works on any machine; a guest takes some minutes.
"""
import collections
import itertools
import json
import pathlib
import shutil
import socket
import subprocess
import time

from images import spoken
from machine import ANY_DATE, DEBIAN_CPP, DEBIAN_PYTHON, VICTIMS, LeftOut, install_packages, run

# The victim in C++.
CPP = "libtorch"
# The victim that ends.
ENDED = "ended"
MEBIBYTES = 2700
SECONDS_TO_BOOT = 3600
# Kinds of paging that machines have: four levels with two tables per process, four, five.
PAGING = {"bullseye": ("max,la57=off", "pti=on"), "bookworm": ("max,la57=off", "pti=off")}
FIVE_LEVELS = ("max", "")
# The first process of the guest: it starts one victim after another, and then stands still as well. What they say goes
# to a line of its own, because the kernel writes to the console whenever it wants.
INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp; mount -o remount,rw /
cd /root
fallocate -l 64M /swap && chmod 600 /swap && mkswap /swap > /dev/null && swapon /swap
while read -r root victim command; do
  mount --bind /proc $root/proc
  chroot $root $command > /tmp/$victim.log 2>&1 < /dev/null &
  until grep -q -e '^READY' -e Error: /tmp/$victim.log || ! kill -0 $! 2> /dev/null; do sleep 1; done
  cat /tmp/$victim.log > /dev/ttyS1
done < /victims/list
sleep 2
echo "GUEST-READY $(uname -r)" > /dev/ttyS1
exec sleep 1000000
"""


class Guest:
    """A guest whose victims stand still, and have said what a perfect recovery would find."""

    def __init__(self, suites, victims, work):
        self.folder = work / "guest"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.process, self.lacks, self.built = None, [], []
        try:
            packages = DEBIAN_PYTHON + (DEBIAN_CPP if CPP in victims else [])
            self.fill([self.root(suite, packages) for suite in suites.split("+")], victims)
            self.boot()
            self.read()
        except BaseException:
            self.close()
            raise

    def root(self, suite, packages):
        """The suite in a folder of its own, or such a folder that is there already."""
        lacks = [package for package, command in (("mmdebstrap", "mmdebstrap"), ("qemu-system-x86",
                 "qemu-system-x86_64"), ("e2fsprogs", "mkfs.ext4")) if not shutil.which(command)]
        if lacks:
            install_packages(lacks)
        if pathlib.Path(suite).is_absolute():
            return pathlib.Path(suite)
        root = self.folder / suite
        packages = ",".join(["linux-image-amd64", "kmod", "udev", *packages])
        run(["mmdebstrap", "--variant=minbase", ANY_DATE, "--include=" + packages, suite, root])
        return root

    def fill(self, roots, victims):
        """Makes the disk: the first root, with the others in it; the victims take turns with the roots."""
        root, *others = roots
        shutil.rmtree(root / "others", ignore_errors=True)
        shutil.rmtree(root / "victims", ignore_errors=True)
        shutil.copytree(VICTIMS, root / "victims")
        places = ["/"]
        for number, other in enumerate(others):
            places.append("/others/%d" % number)
            (root / "others").mkdir(exist_ok=True)
            # The same files by other names, where the file system allows it.
            run(["cp", "-a", "--link" if other.stat().st_dev == root.stat().st_dev else "--", other,
                 str(root) + places[-1]])
            shutil.rmtree(str(root) + places[-1] + "/victims", ignore_errors=True)
            shutil.copytree(VICTIMS, str(root) + places[-1] + "/victims")
        lines = ["%s %s %s\n" % (place, victim, self.command_of(victim, str(root) + place))
                 for place, victim in zip(itertools.cycle(places), victims)]
        (root / "victims" / "list").write_text("".join(lines))
        (root / "matrix-init").write_text(INIT)
        (root / "matrix-init").chmod(0o755)
        self.disk = self.folder / "disk"
        with open(self.disk, "wb") as disk:
            disk.truncate((4 + 4 * len(roots)) << 30)
        run(["mkfs.ext4", "-q", "-F", "-d", root, self.disk])
        self.kernel_files = [sorted((root / "boot").glob(name))[-1] for name in ("vmlinuz-*", "initrd.img-*")]
        self.paging = PAGING.get(root.name.split(".")[0], FIVE_LEVELS)
        shutil.rmtree(root / "others", ignore_errors=True)

    def command_of(self, victim, root):
        """How the guest starts a victim. The one in C++ is built here, as a compiler is slow in the guest."""
        script = "/victims/%s.py" % victim
        if victim != CPP:
            return "python3 " + script + (" --end" if victim == ENDED else "")
        lines = run(["chroot", root, "/usr/bin/python3", script, "--build"]).splitlines()
        built = [line.split(" ", 2)[1:] for line in lines if line.startswith("BUILT ")]
        lacks, _ = spoken(lines)
        if not built:
            raise LeftOut("; ".join(lacks))
        self.lacks += lacks
        self.built.append(built[0][0])
        return built[0][1]

    def boot(self):
        (kernel, initrd), (cpu, append) = self.kernel_files, self.paging
        self.console, self.serial, self.monitor = (self.folder / name for name in ("console", "serial", "monitor"))
        command = [
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", cpu, "-machine", "q35", "-smp", "2",
            "-m", MEBIBYTES, "-display", "none", "-nic", "none", "-no-reboot", "-kernel", kernel, "-initrd", initrd,
            "-append", "root=/dev/vda rw init=/matrix-init console=ttyS0 quiet loglevel=0 " + append,
            "-drive", "file=%s,if=virtio,format=raw" % self.disk, "-serial", "file:%s" % self.console,
            "-serial", "file:%s" % self.serial, "-monitor", "unix:%s,server,nowait" % self.monitor]
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL)
        start = time.monotonic()
        while "GUEST-READY" not in self.said():
            if self.process.poll() is not None or time.monotonic() - start > SECONDS_TO_BOOT:
                text = self.console.read_text(errors="replace") if self.console.exists() else ""
                last = " | ".join((text + self.said()).splitlines()[-4:])[-400:]
                raise RuntimeError("the guest did not get ready: status %s: %s" % (self.process.poll(), last))
            time.sleep(1)

    def said(self):
        return self.serial.read_text(errors="replace").replace("\r", "") if self.serial.exists() else ""

    def read(self):
        """What the victims said; workers that were forked from a model see the same one."""
        lines = self.said().splitlines()
        lacks, truths = spoken(lines)
        self.lacks += lacks
        models = collections.OrderedDict()
        for truth in truths:
            same = json.dumps([truth["id"], truth["state_dict"]], sort_keys=True)
            model = models.setdefault(same, dict(truth, pid=[], sightings=0))
            model["sightings"] += 1
            # A recovery names one of the processes that share the model.
            model["pid"].append(truth["pid"])
        if not models:
            raise RuntimeError("no victim of the guest said anything: " + " | ".join(lines[-4:])[-400:])
        self.models = list(models.values())
        # A C++ program runs no Python, and says no version.
        names = ["%s:%s" % (model["python"], model["torch"]) for model in self.models if model["python"]] or self.built
        self.name = " and ".join(sorted(set(names), key=names.index))
        self.kernel = next(line.split()[1] for line in lines if line.startswith("GUEST-READY "))
        self.command("stop")

    def command(self, text):
        """Has QEMU's monitor do something, and waits until it is done."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(600)
            monitor.connect(str(self.monitor))
            for word in ("", text + "\n"):
                monitor.sendall(word.encode())
                answer = b""
                while not answer.rstrip().endswith(b"(qemu)"):
                    answer += monitor.recv(65536)
        return answer.decode(errors="replace")

    def close(self):
        if self.process:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def take(guest, capture, folder):
    """An image of the guest's memory, as one of `CAPTURES`."""
    image = folder / capture
    if capture == "elf":
        guest.command("dump-guest-memory %s" % image)
    else:
        guest.command('pmemsave 0 %d "%s"' % (MEBIBYTES << 20, image))
    if not image.exists() or not image.stat().st_size:
        raise LeftOut("QEMU wrote no image")
    return image


# ELF as QEMU writes it, and the plain bytes from address zero.
CAPTURES = ["elf", "raw"]
