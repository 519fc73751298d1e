"""Dumps that are too large for one computer, or too many: the work of several workers, on any executor of `concurrent.futures` or
like it (Dask's, Ray's).

    from tensorcarve.distributed import recover, recover_many
    recover("s3://evidence/large.raw", "out", distributed.Client("tcp://scheduler:8786"))
    summary = recover_many(["a.lime", "b.elf.zst", "s3://evidence/c.raw"], "out")
"""
import argparse
import concurrent.futures
import contextlib
import csv
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from . import _tensorcarve, _workers
from ._progress import observer

__all__ = ["recover", "recover_many"]

# Bytes of a shard, if the dump is large: the more, the fewer answers; the fewer, the less memory a worker needs.
_SHARD = 4 << 30
# Shards that each worker has at least, so that all are busy until the end, and the smallest shard that is worth a question.
_SHARDS_PER_WORKER, _SMALLEST = 4, 64 << 20

# What the exit codes of `tensorcarve recover` mean.
_STATUS = {0: "found", 1: "nothing", 3: "partial"}
_EXIT = {status: code for code, status in _STATUS.items()}
_UNITS = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_COMMAND = "import sys, tensorcarve; sys.argv[0] = 'tensorcarve'; tensorcarve._main()"
_COLUMNS = ["dump", "status", "processes", "models", "complete_models", "weights", "folder", "error"]


def recover(url, out, executor=None, *, shard=None, storage_options=None, overwrite=False, hash=True, signatures=None,
            input_format=None, spool_dir=None, progress=False):
    """Recovers one dump, divided among workers: each searches its shards, and only what is looked at more closely is read here.

    url              a path, or a URL that fsspec reads (`s3://...`, `https://...`): the workers must be able to read it as well. A raw,
                     LiME or ELF dump of a machine, not compressed
    out              the output folder, a path here: the same as that of `tensorcarve recover`; manifest.json names the workers
    executor         a `distributed.Client` of Dask, an executor of `concurrent.futures` or like it, or the number of worker processes
                     on this computer; None starts one for each core. Processes are spawned, so that a script needs the usual
                     `if __name__ == "__main__":`
    shard            bytes of a shard, rounded up to a power of two; by default at most 4 GiB, and less for a dump that is small
    storage_options  what fsspec needs to reach the URL, as a dictionary
    overwrite        whether an earlier output in the folder is replaced
    hash             whether the BLAKE3 hash of the dump is computed, by the workers
    signatures       as for `tensorcarve.open`
    input_format     "raw", "lime" or "elf" instead of detecting it
    spool_dir        where what is read of the dump is kept, in a file without a name
    progress         as for `tensorcarve.open`

    A question to a worker that is lost is asked again. Returns {"status": "found", "partial" or "nothing", "models", "warnings",
    "division"}; raises tensorcarve.Error, whose hint says what to try.
    """
    workers, is_done = _workers.workers_of(executor), False
    try:
        url = os.fspath(url)
        dump = _workers.Dump(url, dict(storage_options or {}), workers, 0)
        dump.shard = _power_of_two(shard or min(_SHARD, max(_SMALLEST, dump.size // (_SHARDS_PER_WORKER * workers.count()))))
        try:
            done = _tensorcarve.recover_remote(
                dump, url, dump.size, os.fspath(out), shard=dump.shard, overwrite=overwrite, hashed=hash, signatures=signatures,
                format=input_format, spool_dir=spool_dir, arguments=list(sys.argv), progress=observer(progress))
        finally:
            dump.close()
        is_done = True
        return done
    finally:
        workers.close(is_done)


def _power_of_two(number):
    return 1 << max(0, number - 1).bit_length()


def recover_many(dumps, out, executor=None, *, options=(), overwrite=False):
    """Recovers each dump to a folder of its own in `out`, and writes a summary of all: summary.json and summary.csv.

    dumps      paths, or URLs that fsspec reads (`s3://…`, `https://…`), which are copied to the folder for temporary files first
    executor   does the work; by default one dump is recovered at a time, by all cores
    options    more options of `tensorcarve recover` for each dump, such as ["--hash", "sha256"]
    overwrite  whether dumps that were recovered before are recovered again

    A dump that was recovered by an earlier call is not recovered again, unless it is a file whose size has changed since. A dump that
    can't be read stops nothing: its row has the status "error". Dumps with errors are tried again by the next call.

    Returns the summary: {"dumps": [row for each dump, in order], "same_weights": [{"weights", "models": [{"dump", "model"}]}]}. `weights`
    is a SHA-256 of names, types, shapes and hashes of a model's state_dict: it is the same for the same model on several hosts.
    """
    out, dumps = pathlib.Path(out), [os.fspath(dump) for dump in dumps]
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if executor is None:
            executor = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        jobs = [executor.submit(_recover, dump, str(out / _folder(dump)), list(options), overwrite) for dump in dumps]
        rows = [job.result() for job in jobs]
    summary = {"dumps": rows, "same_weights": _same_weights(rows)}
    _write(out / "summary.json", lambda file: json.dump(summary, file, indent=1))
    _write(out / "summary.csv", lambda file: _write_csv(file, rows))
    return summary


def _folder(dump):
    """The folder of a dump: dumps of several hosts may have the same file name."""
    name = dump.rstrip("/").rpartition("/")[2]
    safe = "".join(character if character.isalnum() or character in "._-" else "_" for character in name)
    return "%s-%s" % (safe.lstrip(".")[:80] or "dump", hashlib.sha256(os.fsencode(dump)).hexdigest()[:12])


def _recover(dump, folder, options, overwrite):
    """Recovers one dump, wherever the executor runs: its row of the summary."""
    # Written beside the folder, which belongs to the command.
    record, row = folder + ".json", {"dump": dump, "folder": os.path.basename(folder)}
    size = os.stat(dump).st_size if os.path.exists(dump) else None
    if not overwrite and os.path.exists(os.path.join(folder, "recovery.json")) and os.path.exists(record):
        with open(record) as file:
            known = json.load(file)
        if known["size"] == size and known["options"] == options:
            return dict(row, **known["row"])
    try:
        with _local(dump) as path:
            command = [sys.executable, "-c", _COMMAND, "recover", path, "-o", folder, "--overwrite", "--no-index", "-q",
                       "--format", "csv", *options]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                  universal_newlines=True, errors="replace")
    except OSError as error:
        return dict(row, **_failed(str(error)))
    if done.returncode not in _STATUS:
        text = " ".join(done.stderr.split()) or "the process ended with the status %d" % done.returncode
        return dict(row, **_failed(text.removeprefix("error: ") if hasattr(str, "removeprefix") else text))
    found = dict(_described(folder), status=_STATUS[done.returncode], error=None)
    _write(pathlib.Path(record), lambda file: json.dump({"size": size, "options": options, "row": found}, file))
    return dict(row, **found)


def _failed(error):
    return {"status": "error", "error": error, "processes": 0, "models": []}


@contextlib.contextmanager
def _local(dump):
    """The path of a dump, which is a copy if it is elsewhere."""
    if "://" not in dump or os.path.exists(dump):
        yield dump
        return
    fsspec = _workers.fsspec_for(dump)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, dump.rpartition("/")[2] or "dump")
        try:
            with fsspec.open(dump, "rb") as source, open(path, "wb") as copy:
                while True:
                    block = source.read(16 << 20)
                    if not block:
                        break
                    copy.write(block)
        except Exception as error:
            # Each file system has errors of its own.
            raise OSError("%s can't be read: %s" % (dump, error)) from error
        yield path


def _described(folder):
    """What the summary says of an output folder."""
    with open(os.path.join(folder, "recovery.json")) as file:
        processes = json.load(file)["processes"]
    models = [{
        "model": model["dir"].rpartition("/")[2],
        "pid": process["pid"],
        "class": model["class"],
        "kind": model["kind"],
        "complete": not model["problems"] and all(row["status"] == "complete" for row in model["tensors"]),
        "weights": _weights(model),
    } for process in processes for model in process["models"]]
    return {"processes": len(processes), "models": models}


def _weights(model):
    """A hash of a model's state_dict; None if a tensor of it has no bytes."""
    rows = [[row["name"], row["dtype"], row["shape"], row["sha256"]] for row in model["tensors"] if row["persistent"]]
    if not rows or any(digest is None for *_, digest in rows):
        return None
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _same_weights(rows):
    """Weights that several models have."""
    found = {}
    for row in rows:
        for model in row["models"]:
            if model["weights"]:
                found.setdefault(model["weights"], []).append({"dump": row["dump"], "model": model["model"]})
    return [{"weights": weights, "models": models} for weights, models in sorted(found.items()) if len(models) > 1]


def _write_csv(file, rows):
    writer = csv.writer(file)
    writer.writerow(_COLUMNS)
    for row in rows:
        models = row["models"]
        weights = " ".join(model["weights"] or "?" for model in models)
        cells = [row["dump"], row["status"], row["processes"], len(models), sum(model["complete"] for model in models),
                 weights, row["folder"], row["error"] or ""]
        # Spreadsheets take such a cell for a formula.
        writer.writerow(["'" + cell if isinstance(cell, str) and cell[:1] in tuple("=+-@") else cell for cell in cells])


def _write(path, write):
    """Writes a file as a whole, or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False) as file:
        write(file)
    os.replace(file.name, path)


def _main():
    """The command `tensorcarve-distributed`."""
    parser = argparse.ArgumentParser(
        prog="tensorcarve-distributed", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Recovers the neural networks in dumps, by several workers.",
        epilog="exit codes: 0 models were found whole, 1 nothing was found, 2 error, 3 something is missing")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    one = commands.add_parser("recover", help="one dump, divided among the workers")
    one.add_argument("url", metavar="URL", help="the dump: a path, or a URL that fsspec reads, such as s3://bucket/host.raw")
    one.add_argument("-o", "--output-dir", required=True, metavar="DIR", help="output folder")
    one.add_argument("--shard", type=_bytes, metavar="SIZE", help="bytes that a worker searches at a time, such as 1GiB")
    one.add_argument("--overwrite", action="store_true", help="replace the output of an earlier run in the folder")
    one.add_argument("--no-hash", action="store_true", help="do not hash the dump")
    one.add_argument("--storage-option", action="append", default=[], type=_pair, metavar="NAME=VALUE",
                     help="what fsspec needs to reach the URL, such as anon=true; VALUE is JSON or text")
    one.add_argument("--signatures", metavar="PATH", help="signature file or folder that adds to the built-in signatures")
    one.add_argument("--input-format", choices=["raw", "lime", "elf"], help="format of the dump, instead of detecting it")
    one.add_argument("--spool-dir", metavar="DIR", help="folder for what is read of the dump")
    many = commands.add_parser("recover-many", help="many dumps, each by one worker")
    many.add_argument("dumps", nargs="+", metavar="DUMP", help="paths, or URLs that fsspec reads")
    many.add_argument("-o", "--output-dir", required=True, metavar="DIR", help="folder for an output folder each, and summary.json")
    many.add_argument("--overwrite", action="store_true", help="recover dumps again that were recovered before")
    for command in (one, many):
        where = command.add_mutually_exclusive_group()
        where.add_argument("--local", type=int, metavar="N", help="N worker processes on this computer [default: one for each core]")
        where.add_argument("--scheduler", metavar="ADDRESS", help="Dask's scheduler, such as tcp://host:8786")
        command.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    arguments = parser.parse_args()
    try:
        with contextlib.ExitStack() as stack:
            run = _run_one if arguments.command == "recover" else _run_many
            sys.exit(run(arguments, stack))
    except (_tensorcarve.Error, OSError) as error:
        sys.stderr.write("error: %s\n" % error)
        if getattr(error, "hint", None):
            sys.stderr.write("hint: %s\n" % error.hint)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _run_one(arguments, stack):
    done = recover(
        arguments.url, arguments.output_dir, _client(arguments, stack) or arguments.local, shard=arguments.shard,
        storage_options=dict(arguments.storage_option), overwrite=arguments.overwrite, hash=not arguments.no_hash,
        signatures=arguments.signatures, input_format=arguments.input_format, spool_dir=arguments.spool_dir,
        progress=not arguments.quiet and sys.stderr.isatty())
    for warning in done["warnings"]:
        sys.stderr.write("warning: %s\n" % warning)
    division = done["division"]
    sys.stderr.write("%d models; %d workers, %d questions asked again, %d MB read and %d MB answered; see %s\n" % (
        done["models"], len(division["workers"]), division["repeated"], division["bytes_read"] // 10**6,
        division["bytes_answered"] // 10**6, arguments.output_dir))
    return _EXIT[done["status"]]


def _run_many(arguments, stack):
    executor = _client(arguments, stack)
    if executor:
        executor = executor.get_executor(pure=False)
    elif arguments.local:
        executor = stack.enter_context(concurrent.futures.ThreadPoolExecutor(arguments.local))
    summary = recover_many(arguments.dumps, arguments.output_dir, executor, overwrite=arguments.overwrite)
    for row in summary["dumps"]:
        print("%-8s %3d models  %s%s" % (row["status"], len(row["models"]), row["dump"], ": " + row["error"] if row["error"] else ""))
    statuses = {row["status"] for row in summary["dumps"]}
    return 3 if "error" in statuses or "partial" in statuses else 0 if "found" in statuses else 1


def _client(arguments, stack):
    """A client of Dask's scheduler, if one is named."""
    if not arguments.scheduler:
        return None
    try:
        import distributed
    except ImportError as error:
        raise OSError("--scheduler needs the package distributed (pip install 'dask[distributed]')") from error
    return stack.enter_context(distributed.Client(arguments.scheduler))


def _bytes(text):
    """A size such as 64MiB or 4 GiB."""
    number = text.strip().lower()
    for unit, factor in _UNITS.items():
        if number.endswith(unit):
            number, scale = number[:-len(unit)], factor
            break
    else:
        scale = 1
    try:
        size = int(float(number) * scale)
    except ValueError:
        size = 0
    if size <= 0:
        raise argparse.ArgumentTypeError("%r is no size such as 64MiB" % text)
    return size


def _pair(text):
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError("%r is not of the form NAME=VALUE" % text)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
