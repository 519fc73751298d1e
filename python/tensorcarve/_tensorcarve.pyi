from os import PathLike
from typing import Any, Callable, Iterator, Optional, Union

import numpy

_Path = Union[str, PathLike[str]]
_Progress = Callable[[str, int, int], Any]

__version__: str

class Error(Exception):
    """Why something could not be done."""

    hint: Optional[str]
    """What to try."""

class Case:
    """A dump and what is found in it. Each result is computed when it is first asked for, and kept."""

    @property
    def path(self) -> str: ...
    @property
    def processes(self) -> list[Process]:
        """The processes, without the threads of the kernel. Where the kernel's records can't be read, the address spaces."""
    @property
    def models(self) -> list[Model]:
        """All networks, in the order of the report: those of ended processes as well."""
    @property
    def warnings(self) -> list[str]:
        """What an analyst should know about the result."""
    def to_dataframe(self, what: str = "models") -> Any:
        """A table of "processes", "models" or "tensors" as a pandas.DataFrame."""

class Process:
    """A process of a dump. What is not known is None."""

    @property
    def pid(self) -> Optional[int]: ...
    @property
    def ppid(self) -> Optional[int]: ...
    @property
    def comm(self) -> Optional[str]: ...
    @property
    def cmdline(self) -> Optional[list[str]]: ...
    @property
    def root(self) -> Optional[int]:
        """The physical address of the root of its page tables."""
    @property
    def python(self) -> Optional[str]:
        """The version of the Python that runs in it."""
    @property
    def models(self) -> list[Model]:
        """Its networks. One that several processes share, as after a fork, is listed with the first of them."""
    def stack(self, *, locals: bool = False) -> dict[str, Any]:
        """The Python threads with their frames, and suspended generators and coroutines, as `tensorcarve stack` prints them."""
    def objects(self, type_name: str) -> list[dict[str, Any]]:
        """The Python objects of a type, by its full name or the last part of it, with their attributes."""
    def maps(self) -> list[dict[str, Any]]:
        """The memory map, as `tensorcarve maps` prints it. Addresses are integers."""
    def core(self, path: _Path, *, overwrite: bool = False) -> None:
        """Writes the process as an ELF core for debuggers, as `tensorcarve core` does."""

class Model:
    """A neural network that was found."""

    @property
    def id(self) -> str:
        """m0, m1, …, as in the output folder of `tensorcarve recover`."""
    @property
    def class_name(self) -> Optional[str]:
        """The full name of its class; None for a chain of layers that no module holds."""
    @property
    def kind(self) -> str:
        """"module" or "chain"."""
    @property
    def pid(self) -> Optional[int]: ...
    @property
    def ended(self) -> bool:
        """Whether its process has ended."""
    @property
    def problems(self) -> list[str]:
        """Parts of it that could not be read."""
    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, in the order of state_dict()."""
    @property
    def training(self) -> dict[str, Tensor]:
        """What training left: `<parameter>.grad` for gradients, `<parameter>.<key>` for what optimizers keep."""
    def state_dict(self, *, partial: bool = False) -> dict[str, numpy.ndarray]:
        """Arrays of what the network's own state_dict() had. A tensor that is not complete is an error, or is left out if
        `partial` is true."""
    def torch(self, *, partial: bool = False) -> dict[str, Any]:
        """The same with torch.Tensors, for load_state_dict()."""
    def save(self, folder: _Path) -> None:
        """Writes the files that `tensorcarve recover` writes of a model to a folder, which must be empty or not exist."""

class Tensor:
    """A tensor of a network. numpy.asarray(tensor) gives its elements."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str:
        """"parameter", "buffer", "gradient" or "optimizer"."""
    @property
    def shape(self) -> Optional[tuple[int, ...]]: ...
    @property
    def dtype(self) -> Optional[str]:
        """The name in safetensors files, or PyTorch's where the format lacks the type."""
    @property
    def status(self) -> str:
        """"complete", "partial", "freed", "missing" or "device"."""
    @property
    def problem(self) -> Optional[str]: ...
    @property
    def holes(self) -> list[tuple[int, int, str]]:
        """Missing bytes of the contiguous tensor: first, end, and why."""
    @property
    def address(self) -> Optional[int]:
        """The virtual address of its first element."""
    @property
    def sha256(self) -> Optional[str]:
        """Of the contiguous bytes; holes count as zeros."""
    @property
    def requires_grad(self) -> Optional[bool]: ...
    def numpy(self, *, fill: bool = False) -> numpy.ndarray:
        """Its elements, gathered from the dump. Missing bytes are an error, or zeros if `fill` is true. bfloat16 and the 8-bit
        floats have the types of the package ml_dtypes, or are unsigned integers without it."""
    def torch(self) -> Any:
        """As a torch.Tensor."""
    def tobytes(self, *, fill: bool = False) -> bytes:
        """Its bytes in row-major order."""
    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> numpy.ndarray: ...

class Hit:
    """A place where a signature matches."""

    @property
    def signature(self) -> str: ...
    @property
    def address(self) -> int: ...
    @property
    def anchor(self) -> int: ...
    @property
    def value(self) -> int: ...
    @property
    def tested(self) -> int: ...
    @property
    def deferred(self) -> int: ...
    @property
    def file_offset(self) -> Optional[int]: ...

def open(path: _Path, *, signatures: Optional[_Path] = None, index: bool = True, without_python: bool = False,
         spool_dir: Optional[_Path] = None, maps: Optional[_Path] = None, files: list[_Path] = ...,
         progress: Optional[_Progress] = None) -> Case: ...
def scan(path: _Path, signatures: Optional[_Path] = None, names: list[str] = ..., max_hits: int = 5_000_000,
         progress: Optional[_Progress] = None) -> list[Hit]: ...
def main(arguments: list[str]) -> int: ...

class Shard:
    """A part of a dump with a worker of `tensorcarve.distributed.recover`, and the answers to questions about it."""

    def __init__(self, pieces: Iterator[bytes], first: int, size: int) -> None: ...
    @staticmethod
    def of_file(path: _Path, start: int, end: int) -> Shard: ...
    def answer(self, question: bytes) -> bytes: ...

def recover_remote(remote: Any, name: _Path, size: int, out: _Path, *, shard: int, overwrite: bool, hashed: bool,
                   signatures: Optional[_Path], format: Optional[str], spool_dir: Optional[_Path], arguments: list[str],
                   progress: Optional[_Progress]) -> dict[str, Any]:
    """What `tensorcarve.distributed.recover` does with the workers that `remote` stands for."""
