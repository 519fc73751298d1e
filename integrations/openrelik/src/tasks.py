"""The task of the worker: the neural networks in dumps of physical memory."""
import json
import logging
import os
import shutil
import subprocess
import tempfile

from openrelik_worker_common.file_utils import create_output_file
from openrelik_worker_common.reporting import MarkdownTable, Priority, Report
from openrelik_worker_common.task_utils import create_task_result, get_input_files

from .app import celery

TASK_NAME = "openrelik-worker-tensorcarve.tasks.recover"
TASK_METADATA = {
    "display_name": "tensorcarve: recover neural networks",
    "description": "Recovers PyTorch models from a dump of physical memory (raw, LiME, ELF; compressed or not) or from the core of a process",
    "task_config": [{
        "name": "hash",
        "label": "Hashes of the dump",
        "description": "blake3, sha256, md5, sha256-pieces=SIZE or none; several are separated by commas. blake3 by default",
        "type": "text",
        "required": False,
    }, {
        "name": "without_python",
        "label": "By headers alone",
        "description": "Find tensors by their headers alone, as if no Python could be read",
        "type": "checkbox",
        "required": False,
    }],
}
# What the exit codes of `tensorcarve recover` mean; all others are errors.
STATUS = {0: "found", 1: "nothing", 3: "partial"}
DATA_TYPE = "tensorcarve:recover:"

logger = logging.getLogger(__name__)


@celery.task(bind=True, name=TASK_NAME, metadata=TASK_METADATA)
def recover(self, pipe_result=None, input_files=None, output_path=None, workflow_id=None, task_config=None):
    """Recovers the models of each input file. A file that is no dump is named in the report and stops nothing."""
    files = get_input_files(pipe_result, input_files or [])
    options = _options(task_config or {})
    table = MarkdownTable(["dump", "process", "class", "tensors", "bytes", "status"])
    outputs, failures, found = [], [], 0
    for number, file in enumerate(files, 1):
        self.send_event("task-progress", data={"file": number, "files": len(files)})
        with tempfile.TemporaryDirectory(dir=output_path) as folder:
            code, message = _run(file["path"], folder, options)
            if code not in STATUS:
                failures.append((file, message))
                logger.warning("%s: %s", file.get("display_name"), message)
                continue
            with open(os.path.join(folder, "recovery.json")) as recovery:
                rows = _rows(file, json.load(recovery))
            outputs.extend(_outputs(file, folder, output_path))
            found += len(rows)
            for row in rows:
                table.add_row([_cell(value) for value in row])
    if files and len(failures) == len(files):
        raise RuntimeError("; ".join("%s: %s" % (_name(file), message) for file, message in failures))
    return create_task_result(
        output_files=outputs, workflow_id=workflow_id, command=" ".join(["tensorcarve", "recover", *options]), meta={},
        task_report=_report(table, found, failures).to_dict())


def _options(config):
    options = ["--no-index", "--quiet", "--overwrite"]
    if config.get("hash"):
        options += ["--hash=%s" % config["hash"]]
    if config.get("without_python"):
        options.append("--without-python")
    return options


def _run(path, folder, options):
    """The exit code of the command, and what it said."""
    command = ["tensorcarve", "recover", *options, "--output-dir", folder, "--", path]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                          errors="replace")
    return done.returncode, " ".join(done.stderr.split()).removeprefix("error: ")


def _outputs(file, folder, output_path):
    """Moves the files that were written to where OpenRelik expects them."""
    outputs = []
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(root, name)
            inner = os.path.relpath(path, folder)
            output = create_output_file(
                output_path, display_name="%s.%s" % (_name(file), inner.replace(os.sep, ".")),
                data_type=DATA_TYPE + os.path.splitext(name)[1].lstrip("."), original_path=inner,
                source_file_id=file.get("id"))
            shutil.move(path, output.path)
            outputs.append(output.to_dict())
    return outputs


def _rows(file, recovery):
    """A row for each model."""
    rows = []
    for process in recovery["processes"]:
        for model in process["models"]:
            totals = model["totals"]
            status = "complete" if totals["complete"] == totals["tensors"] and not model["problems"] else "partial"
            rows.append([_name(file), process["pid"], model["class"] or model["kind"],
                         "%d/%d" % (totals["complete"], totals["tensors"]), totals["bytes"], status])
    return rows


def _report(table, found, failures):
    report = Report("tensorcarve")
    report.summary = "%d neural network%s found" % (found, "" if found == 1 else "s")
    report.priority = Priority.HIGH if found else Priority.LOW
    section = report.add_section()
    section.add_paragraph(report.summary + ".")
    if found:
        section.add_table(table)
    for file, message in failures:
        section.add_bullet("%s: %s" % (_cell(_name(file)), _cell(message)))
    return report


def _name(file):
    return file.get("display_name") or os.path.basename(file["path"])


def _cell(value):
    """Names come from the evidence: they must not become markup."""
    text = "".join(character if character.isprintable() else "?" for character in str(value))
    for special in "\\`*_{}[]<>|#!":
        text = text.replace(special, "\\" + special)
    return text
