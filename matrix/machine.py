"""What the machine gives: commands, packages, Pythons with PyTorch."""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import cuda_stubs

# The pair that is Debian's own Python and PyTorch.
SYSTEM = "system"


class LeftOut(Exception):
    """Something that this machine, or this version, does not allow; the text says why."""


def run(command, **options):
    """Runs a command; its output goes into the exception if it fails."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          stdin=subprocess.DEVNULL, universal_newlines=True, **options)
    if done.returncode:
        last = " | ".join(done.stdout.strip().splitlines()[-3:])
        raise LeftOut("%s: status %d: %s" % (" ".join(map(str, command))[:120], done.returncode, last[-400:]))
    return done.stdout


def say(*words):
    """Tells how far it is; the table alone goes to standard output."""
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)


def install_packages(packages):
    """Installs Debian packages, where that is possible."""
    if os.geteuid() or not shutil.which("apt-get"):
        raise LeftOut("%s: not installed, and not root on a Debian" % " ".join(packages))
    run(["apt-get", "update", "-qq"])
    run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
        env=dict(os.environ, DEBIAN_FRONTEND="noninteractive"))


def has_torch(python):
    probe = [python, "-c", "import torch"]
    return subprocess.run(probe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def find_python(minor, folders):
    """An interpreter of that minor version: from the folders of installations, then from PATH."""
    found = [path for folder in folders for path in pathlib.Path(folder).glob("%s*/bin/python3" % minor)]
    found = [path for path in found if re.match(r"%s(\D|$)" % re.escape(minor), path.parent.parent.name)]
    if found:
        return str(sorted(found)[-1])
    on_path = shutil.which("python" + minor)
    if not on_path:
        raise LeftOut("no Python %s on this machine" % minor)
    return on_path


class Environment:
    """An interpreter that has PyTorch; a virtual environment goes away again."""

    def __init__(self, pair, work, folders):
        minor, torch = pair.split(":")
        self.folder, self.bytecode = None, work / "bytecode"
        if minor == SYSTEM:
            self.python = "/usr/bin/python3"
            if not has_torch(self.python):
                install_packages(["python3-torch"])
        else:
            base = find_python(minor, folders)
            self.folder = work / "venv"
            shutil.rmtree(self.folder, ignore_errors=True)
            run([base, "-m", "venv", self.folder])
            self.python = str(self.folder / "bin" / "python")
            self.install(torch)
        probe = "import sys, torch; print('%d.%d.%d' % sys.version_info[:3], torch.__version__)"
        python, torch = run([self.python, "-c", probe]).split()[-2:]
        self.name = "%s:%s" % (python, torch)

    def install(self, torch):
        """PyTorch itself and the small packages that it imports; NVIDIA's are replaced (cuda_stubs.py)."""
        pip = [self.python, "-m", "pip", "install", "-q", "--no-cache-dir", "--no-compile"]
        run(pip + ["--no-deps", "torch==" + (torch if torch.count(".") == 2 else torch + ".*")])
        site = next(self.folder.glob("lib/python*/site-packages"))
        metadata = next(site.glob("torch-*.dist-info/METADATA")).read_text(errors="replace")
        required = [line for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.M) if "extra ==" not in line]
        run(pip + [line for line in required if not re.match(r"(nvidia|cuda|triton|pytorch-triton)", line)] + ["numpy"])
        cuda_stubs.write_missing(site / "torch")

    def close(self):
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.bytecode, ignore_errors=True)
