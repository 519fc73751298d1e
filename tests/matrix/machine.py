"""What the machine gives: commands, packages, Pythons with PyTorch."""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import cuda_stubs

# A mirror may keep a suite for longer than its release file says that it is current.
ANY_DATE = '--aptopt=Acquire::Check-Valid-Until "false"'
VICTIMS = pathlib.Path(__file__).resolve().parent / "victims"
# In place of a Python: the machine's own, that of a Debian suite, that of a guest with such a suite.
SYSTEM, DEBIAN, GUEST = "system", "debian", "guest"
# In place of a PyTorch, where the Python is a path: what that Python has.
INSTALLED = "installed"
DEBIAN_PYTHON = ["python3", "python3-torch"]
# What builds a C++ program with Debian's LibTorch, by means of `torch.utils.cpp_extension`.
DEBIAN_CPP = ["g++", "libtorch-dev", "python3-setuptools"]


class LeftOut(Exception):
    """Something that this machine, or this version, does not allow; the text says why."""


def run(command, **options):
    """Runs a command; its output goes into the exception if it fails."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          stdin=subprocess.DEVNULL, universal_newlines=True, **options)
    if done.returncode:
        lines = done.stdout.strip().splitlines()
        # What `apt-get` says of the cause stands far above the last lines of a command that calls it.
        why = [line for line in lines if line.startswith(("E: ", "dpkg: error"))][:3] or lines[-3:]
        raise LeftOut("%s: status %d: %s" % (" ".join(map(str, command))[:120], done.returncode, " | ".join(why)[:600]))
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
    """An interpreter of that version, from the folders of installations or else from PATH; a path is one already."""
    if minor.startswith("/"):
        return minor
    found = [path for folder in folders for path in pathlib.Path(folder).glob("%s*/bin/python3" % minor)]
    found = [path for path in found if re.match(r"%s(\D|$)" % re.escape(minor), path.parent.parent.name)]
    if found:
        return str(sorted(found)[-1])
    on_path = shutil.which("python" + minor)
    if not on_path:
        raise LeftOut("no Python %s on this machine" % minor)
    return on_path


def build_name(python):
    """What tells builds of one version apart: the command, or the folder of the installation."""
    return python.name if python.parent == pathlib.Path("/usr/bin") else python.parent.parent.name


class Environment:
    """A way to run victims: a command that is an interpreter with PyTorch, and the folder where it finds them.

    What was installed for it goes away again with `close`.
    """

    def __init__(self, pair, work, folders):
        first, second = pair.split(":", 1)
        self.own, self.victims, self.bytecode = [work / "bytecode"], VICTIMS, work / "bytecode"
        try:
            if first == SYSTEM:
                self.use_system()
            elif first == DEBIAN:
                self.use_debian(second, work)
            elif second == INSTALLED:
                self.command = [first]
            else:
                self.install(find_python(first, folders), second, work / "venv")
            probe = "import sys, torch; print('%d.%d.%d' % sys.version_info[:3], torch.__version__)"
            python, torch = run([*self.command, "-c", probe]).splitlines()[-1].split()
            self.name = "%s:%s" % (python, torch)
            if first.startswith("/"):
                # The same versions may be there in several builds.
                self.name += " " + build_name(pathlib.Path(first))
        except BaseException:
            self.close()
            raise

    def use_system(self):
        self.command = ["/usr/bin/python3"]
        if not has_torch(self.command[0]):
            install_packages(["python3-torch"])

    def use_debian(self, suite, work):
        """Python and PyTorch of a Debian suite, in a folder of its own; or such a folder that is there already."""
        root = pathlib.Path(suite)
        if not root.is_absolute():
            if not shutil.which("mmdebstrap"):
                install_packages(["mmdebstrap"])
            root = work / "debian"
            self.own.append(root)
            shutil.rmtree(root, ignore_errors=True)
            run(["mmdebstrap", "--variant=apt", ANY_DATE, "--include=" + ",".join(DEBIAN_PYTHON), suite, root])
        self.victims, self.bytecode = root / "victims", "/bytecode"
        self.own += [self.victims, root / "bytecode"]
        shutil.rmtree(self.victims, ignore_errors=True)
        shutil.copytree(VICTIMS, self.victims)
        self.command = ["chroot", str(root), "/usr/bin/python3"]

    def install(self, base, torch, folder):
        """PyTorch itself and the small packages that it imports; NVIDIA's are replaced (cuda_stubs.py)."""
        self.own.append(folder)
        shutil.rmtree(folder, ignore_errors=True)
        run([base, "-m", "venv", folder])
        self.command = [str(folder / "bin" / "python")]
        pip = [*self.command, "-m", "pip", "install", "-q", "--no-cache-dir", "--no-compile", "--prefer-binary"]
        run(pip + ["--no-deps", "torch==" + (torch if torch.count(".") == 2 else torch + ".*")])
        site = next(folder.glob("lib/python*/site-packages"))
        metadata = next(site.glob("torch-*.dist-info/METADATA")).read_text(errors="replace")
        required = [line for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.M) if "extra ==" not in line]
        # PyTorch before 2.3 is built for NumPy 1; 1.8 does not even start with another.
        numpy = "numpy<2" if tuple(int(part) for part in torch.split(".")[:2]) < (2, 3) else "numpy"
        others = re.compile(r"nvidia|cuda|triton|pytorch-triton|numpy")
        run(pip + [line for line in required if not others.match(line)] + [numpy])
        cuda_stubs.write_missing(site / "torch")

    def script(self, name):
        """The command that runs a victim."""
        inside = pathlib.Path("/victims") if self.command[0] == "chroot" else self.victims
        return [*self.command, str(inside / (name + ".py"))]

    def close(self):
        for folder in self.own:
            shutil.rmtree(folder, ignore_errors=True)
