"""One recovery: the tool's run on an image, its cost, what the judge says of it; images that are kept for later."""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

from machine import run

HERE = pathlib.Path(__file__).resolve().parent
SECONDS_TO_RECOVER = 900


# Captures that leave mapped files out.
WITHOUT_FILES = ["gcore", "gcore-all", "kernel"]


def recover(tool, image, files=()):
    """Runs the tool: seconds, its largest resident set in MiB, and why there is no output, if so."""
    out, log, maps = image.parent / "out", image.parent / "recover.log", image.parent / "maps"
    command = [tool, "recover", str(image), "-o", str(out), "--hash", "none", "-q"]
    command += ["--maps", str(maps)] if maps.exists() else []
    command += ["--overwrite"] if out.exists() else []
    command += [word for file in files for word in ("--file", str(file))]
    start = time.monotonic()
    with open(log, "wb") as output:
        # Each image is examined once: nothing of it is worth keeping in the user's folder for caches.
        environment = dict(os.environ, XDG_CACHE_HOME=str(image.parent / "cache"))
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                   env=environment)
    pid = 0
    while not pid:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if time.monotonic() - start > SECONDS_TO_RECOVER:
            process.kill()
        time.sleep(0.01)
    process.returncode = status
    seconds = time.monotonic() - start
    problem = None
    if not (out / "recovery.json").exists():
        last = " | ".join(log.read_text(errors="replace").strip().splitlines()[-2:])
        problem = "tensorcarve wrote nothing: status %d: %s" % (status >> 8 or -status, last[-300:])
    return seconds, usage.ru_maxrss >> 10, problem


def read_once(path):
    """Seconds of one plain read, to hold those of the recovery against."""
    start, buffer = time.monotonic(), bytearray(4 << 20)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.monotonic() - start


def judge(out, truth, *options):
    """What the judge says: tensors that are exact, all tensors, models, shortfalls."""
    path = out.parent / "truth.json"
    path.write_text(json.dumps(truth))
    done = subprocess.run([sys.executable, str(HERE / "check"), str(out), str(path), "--json", *options],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    if done.returncode not in (0, 1) or not done.stdout:
        total = sum(len(model["state_dict"]) + len(model["odd"]) for model in truth["processes"])
        last = done.stderr.strip().splitlines()[-1:]
        return {"exact": 0, "tensors": total, "models": 0, "shortfalls": ["the judge failed: %s" % last]}
    return json.loads(done.stdout)


def examine(tool, image, truth):
    """Recovers one image and checks it: the figures of a row."""
    if truth["about"]["capture"] == "mem":
        # Such a copy does not say whose it is.
        truth = dict(truth, processes=[dict(model, pid=None) for model in truth["processes"]])
    before, files = [], mapped_files(truth, image.parent)
    if files:
        # What is missing must be said, before the files are given.
        _, _, problem = recover(tool, image)
        before = [problem] if problem else judge(image.parent / "out", truth, "--without-files")["shortfalls"]
    seconds, resident, problem = recover(tool, image, files)
    figures = judge(image.parent / "out", truth)
    if problem:
        figures["shortfalls"] = [problem]
    figures["shortfalls"] = before + figures["shortfalls"]
    figures.update(seconds=seconds, resident_mib=resident, image_mib=image.stat().st_size >> 20,
                   read_seconds=read_once(image))
    return figures


def mapped_files(truth, folder):
    """The files that a victim had mapped and the image leaves out: as they are, or from a kept image."""
    if truth["about"]["capture"] not in WITHOUT_FILES:
        return []
    paths = sorted({pathlib.Path(path) for model in truth["processes"] for path in model.get("mapped", {}).values()})
    return [folder / path.name if (folder / path.name).exists() else path for path in paths]


def keep(image, truth, destination):
    """Saves an image with its truth, compressed, and the files that the victim had mapped."""
    destination.mkdir(parents=True, exist_ok=True)
    for file in mapped_files(truth, image.parent):
        shutil.copy(str(file), str(destination))
    (destination / "truth.json").write_text(json.dumps(truth))
    if (image.parent / "maps").exists():
        shutil.copy(str(image.parent / "maps"), str(destination))
    run(["zstd", "-q", "-f", "-3", "-T2", image, "-o", destination / "image.zst"])


def unpack(kept, folder):
    """A kept image again: its path and its truth."""
    if (kept / "maps").exists():
        shutil.copy(str(kept / "maps"), str(folder))
    run(["zstd", "-q", "-d", kept / "image.zst", "-o", folder / "image"])
    truth = json.loads((kept / "truth.json").read_text())
    for file in mapped_files(truth, kept):
        shutil.copy(str(file), str(folder))
    return folder / "image", truth


def summed(parts):
    """The figures of several processes of one victim as those of one row."""
    row = {key: round(sum(part[key] for part in parts), 2)
           for key in ("seconds", "read_seconds", "exact", "tensors", "models")}
    row.update((key, max(part[key] for part in parts)) for key in ("resident_mib", "image_mib"))
    row["shortfalls"] = [short for part in parts for short in part["shortfalls"]]
    return row
