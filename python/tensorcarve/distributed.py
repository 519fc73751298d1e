"""Many dumps: each is recovered by a process of its own, on any executor of `concurrent.futures` or like it (Dask's, Ray's).

    from tensorcarve.distributed import recover_many
    summary = recover_many(["a.lime", "b.elf.zst", "s3://evidence/c.raw"], "out")
"""
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

__all__ = ["recover_many"]

# What the exit codes of `tensorcarve recover` mean.
_STATUS = {0: "found", 1: "nothing", 3: "partial"}
_COMMAND = "import sys, tensorcarve; sys.argv[0] = 'tensorcarve'; tensorcarve._main()"
_COLUMNS = ["dump", "status", "processes", "models", "complete_models", "weights", "folder", "error"]


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
    try:
        import fsspec
    except ImportError as error:
        raise OSError("%s can't be read without the package fsspec" % dump) from error
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
