"""Guests: whole machines with a Debian suite's kernel, Python and PyTorch under QEMU, whose memory is dumped.

QEMU runs without acceleration, so that it works on any machine; a guest takes some minutes.
"""
import collections
import json
import pathlib
import shutil
import socket
import subprocess
import time

from machine import DEBIAN_PYTHON, VICTIMS, LeftOut, install_packages, run

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
for victim in $(cat /victims/list); do
  python3 /victims/$victim.py > /tmp/$victim.log 2>&1 &
  until grep -q -e '^READY' -e Error: /tmp/$victim.log; do sleep 1; done
  cat /tmp/$victim.log > /dev/ttyS1
done
sleep 2
echo "GUEST-READY $(uname -r)" > /dev/ttyS1
exec sleep 1000000
"""


class Guest:
    """A guest whose victims stand still, and have said what a perfect recovery would find."""

    def __init__(self, suite, victims, work):
        self.folder = work / "guest"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.process = None
        try:
            root = self.root(suite)
            self.fill(root, victims)
            cpu, append = PAGING.get(root.name.split(".")[0], FIVE_LEVELS)
            self.boot(root, cpu, append)
            self.read()
        except BaseException:
            self.close()
            raise

    def root(self, suite):
        """The suite in a folder of its own, or such a folder that is there already."""
        lacks = [package for package, command in (("mmdebstrap", "mmdebstrap"), ("qemu-system-x86",
                 "qemu-system-x86_64"), ("e2fsprogs", "mkfs.ext4")) if not shutil.which(command)]
        if lacks:
            install_packages(lacks)
        if pathlib.Path(suite).is_absolute():
            return pathlib.Path(suite)
        root = self.folder / suite
        packages = ",".join(["linux-image-amd64", "kmod", "udev", *DEBIAN_PYTHON])
        run(["mmdebstrap", "--variant=minbase", "--include=" + packages, suite, root])
        return root

    def fill(self, root, victims):
        shutil.rmtree(root / "victims", ignore_errors=True)
        shutil.copytree(VICTIMS, root / "victims")
        (root / "victims" / "list").write_text(" ".join(victims))
        (root / "matrix-init").write_text(INIT)
        (root / "matrix-init").chmod(0o755)
        self.disk = self.folder / "disk"
        with open(self.disk, "wb") as disk:
            disk.truncate(8 << 30)
        run(["mkfs.ext4", "-q", "-F", "-d", root, self.disk])

    def boot(self, root, cpu, append):
        kernel, initrd = (sorted((root / "boot").glob(name))[-1] for name in ("vmlinuz-*", "initrd.img-*"))
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
        self.lacks = [line[len("LEFT-OUT "):] for line in lines if line.startswith("LEFT-OUT ")]
        models = collections.OrderedDict()
        for line in lines:
            if line.startswith("TRUTH "):
                # A dump of a machine does not say which process is which.
                truth = dict(json.loads(line[len("TRUTH "):]), pid=None)
                same = json.dumps([truth["id"], truth["state_dict"]], sort_keys=True)
                models.setdefault(same, dict(truth, sightings=0))["sightings"] += 1
        if not models:
            raise RuntimeError("no victim of the guest said anything: " + " | ".join(lines[-4:])[-400:])
        self.models = list(models.values())
        self.name = "%s:%s" % (self.models[0]["python"], self.models[0]["torch"])
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
