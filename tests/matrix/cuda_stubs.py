"""Stand-ins for NVIDIA's libraries, so that PyTorch's CUDA wheels run on a CPU without 3 GB of downloads.

Since PyTorch 1.13 the wheels import libraries such as libcudart from packages of their own. For each of those that is
missing this writes a shared object of a few KB with exactly the symbols that PyTorch's own libraries import, under the
versions that they ask for. A call answers "no device". PyTorch's own files stay as they are.
"""
import collections
import pathlib
import re
import subprocess

LIBRARY = re.compile(r"lib(cu|nv|nccl|npp)")
# The driver's own library: PyTorch opens it at run time, if at all.
DRIVER = "libcuda.so.1"
# What such symbols are called where they have no version to tell whose they are.
LOOSE = re.compile(r"(cu[a-zA-Z]|p?nccl|nvtx|nvrtc|nvJit|nvshmem|nvml|__cuda|_ZN?K?\d*nv)")
TEXT_ANSWER = re.compile(r"Get(Error|Status)(String|Name)$|GetLastErrorString$|ncclGetLastError$")
NO_DEVICE = "mov $100, %eax"  # cudaErrorNoDevice in the CUDA runtime's driver_types.h
SUCCESS = "xor %eax, %eax"
ANSWERS = {  # what is called while a library is loaded must not fail
    "__cudaRegisterFatBinary": "lea area(%rip), %rax",
    "__cudaRegisterFatBinaryEnd": SUCCESS,
    "__cudaInitModule": SUCCESS,
    "cudaGetLastError": SUCCESS,
    "cudaPeekAtLastError": SUCCESS,
    "cudaDeviceSynchronize": SUCCESS,
}
PROLOGUE = """
.bss
area: .skip 4096
.section .rodata
text: .asciz "no CUDA device (a stand-in for the library)"
.section .note.GNU-stack,"",@progbits
.text
"""


def readelf(option, path):
    command = ["readelf", "-W", option, str(path)]
    return subprocess.run(command, stdout=subprocess.PIPE, universal_newlines=True, check=True).stdout


def needed(path):
    return re.findall(r"\(NEEDED\).*\[(.+?)\]", readelf("-d", path))


def version_owners(path):
    """{version: library that it is asked of}."""
    owners, library = {}, None
    for line in readelf("-V", path).splitlines():
        named = re.search(r"Version: \d+\s+File: (\S+)\s+Cnt", line)
        asked = re.search(r"Name: (\S+)\s+Flags: \S+\s+Version: \d+", line)
        if named:
            library = named.group(1)
        elif asked and library:
            owners[asked.group(1)] = library
    return owners


def symbols(path):
    """Names that are defined, and (name, version) of those that are imported and must be there."""
    defined, imported = set(), set()
    for line in readelf("--dyn-syms", path).splitlines():
        fields = line.split()
        if len(fields) < 8 or not fields[0].endswith(":"):
            continue
        name, _, version = fields[7].replace("@@", "@").partition("@")
        if fields[6] != "UND":
            defined.add(name)
        elif fields[4] != "WEAK":
            imported.add((name, version))
    return defined, imported


def write_library(path, by_version):
    """Assembles one stand-in; {version: names}, where names without a version are under ""."""
    code, script, written = [PROLOGUE], [], set()
    for version in sorted(by_version, reverse=True):
        # A name that is asked for under two versions has one definition.
        names = sorted(by_version[version] - written)
        written.update(names)
        for name in names:
            answer = "lea text(%rip), %rax" if TEXT_ANSWER.search(name) else ANSWERS.get(name, NO_DEVICE)
            code.append(".globl {0}\n.type {0},@function\n{0}:\n {1}\n ret\n.size {0}, .-{0}\n".format(name, answer))
        if version:
            script.append("%s { global: %s };\n" % (version, " ".join(name + ";" for name in names)))
    assembly, versions = path.with_suffix(".stub.s"), path.with_suffix(".stub.versions")
    assembly.write_text("".join(code))
    versions.write_text("".join(script))
    command = ["gcc", "-shared", "-nostdlib", "-o", str(path), str(assembly), "-Wl,-soname," + path.name]
    subprocess.run(command + (["-Wl,--version-script," + str(versions)] if script else []), check=True)
    assembly.unlink()
    versions.unlink()


def write_missing(torch_folder):
    """Writes the stand-ins that an installed `torch` needs into its `lib`; returns their names."""
    lib = pathlib.Path(torch_folder) / "lib"
    wanted = collections.defaultdict(lambda: collections.defaultdict(set))
    libraries, loose, everywhere = set(), set(), set()
    for path in sorted(lib.glob("*.so*")) + sorted(lib.parent.glob("_C*.so")):
        libraries.update(name for name in needed(path) if LIBRARY.match(name) and name != DRIVER)
        owners, (defined, imported) = version_owners(path), symbols(path)
        everywhere |= defined
        for name, version in imported:
            if version in owners:
                wanted[owners[version]][version].add(name)
            elif not version and LOOSE.match(name):
                loose.add(name)
    missing = sorted(name for name in libraries if not (lib / name).exists())
    if missing:
        versioned = {name for library in wanted.values() for names in library.values() for name in names}
        wanted[missing[0]][""] |= loose - everywhere - versioned
    for name in missing:
        write_library(lib / name, wanted[name])
    return missing
