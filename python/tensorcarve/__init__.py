"""Recovers the neural networks that ran on a machine from a dump of its physical memory.

    import tensorcarve
    case = tensorcarve.open("memory.lime")
    for model in case.models:
        print(model, model.state_dict().keys())

Work goes on without Python's global lock. Everything is computed when it is first asked for, and kept.
"""
import sys

from . import _tensorcarve
from ._progress import observer
from ._tensorcarve import Case, Error, Hit, Model, Process, Tensor, __version__

__all__ = ["Case", "Error", "Hit", "Model", "Process", "Tensor", "__version__", "open", "scan"]


def open(path, *, signatures=None, index=True, without_python=False, spool_dir=None, maps=None, files=(), progress=False):
    """Opens a dump: LiME, ELF or raw, compressed or not. The format is detected by its content.

    signatures      a signature file, or a folder with such files, that adds to the built-in signatures
    index           whether what the pass over memory found is kept in the user's folder for caches, as the command does
    without_python  whether models are looked for by the headers of tensors alone, as if no Python could be read
    spool_dir       where a compressed dump is unpacked, into a file without a name
    maps            a copy of /proc/PID/maps, if the dump is a copy of /proc/PID/mem
    files           mapped files that a core leaves out, such as a checkpoint: PATH, or RECORDED=PATH
    progress        True shows a bar on standard error (tqdm's, if it is installed); a function is called with the name of
                    the phase, the bytes that are done, and all bytes or 0

    Raises tensorcarve.Error, whose hint says what to try.
    """
    return _tensorcarve.open(path, signatures=signatures, index=index, without_python=without_python, spool_dir=spool_dir,
                             maps=maps, files=list(files), progress=observer(progress))


def scan(path, *, signatures=None, names=(), max_hits=5_000_000, progress=False):
    """Finds where signatures match: a list of hits in the order of addresses, at most `max_hits`.

    signatures      a signature file, or a folder with such files, that adds to the built-in signatures
    names           the signatures to search for, by name; all by default
    progress        as for `open`
    """
    return _tensorcarve.scan(path, signatures=signatures, names=list(names), max_hits=max_hits,
                             progress=observer(progress))


def _main():
    """The command `tensorcarve`."""
    sys.exit(_tensorcarve.main(sys.argv))
