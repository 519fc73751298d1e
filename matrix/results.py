"""Rows of the matrix: the file that keeps them, the table that shows them."""
import collections
import datetime
import hashlib
import json
import pathlib

import guests
from images import CAPTURES
from machine import say


class Results:
    """Rows by pair, victim and capture in a file, so that a run that was cut short goes on where it stopped."""

    def __init__(self, path, tool):
        self.path = path
        self.tool = hashlib.sha256(pathlib.Path(tool).read_bytes()).hexdigest()[:16]
        rows = json.loads(path.read_text()) if path.exists() else []
        self.rows = {(row["asked"], row["victim"], row["capture"]): row for row in rows}
        self.left_out, self.is_broken = [], False

    def done(self, asked, victim, capture):
        """Whether this build of the tool has that row."""
        return self.rows.get((asked, victim, capture), {}).get("tool") == self.tool

    def add(self, row):
        row.update(tool=self.tool, date=datetime.date.today().isoformat())
        self.rows[row["asked"], row["victim"], row["capture"]] = row
        self.path.write_text(json.dumps(list(self.rows.values()), indent=1))

    def leave_out(self, what, reason):
        say("left out:", what + ":", reason)
        self.left_out.append("%s: %s" % (what, reason))

    def fail(self, what, reason):
        """The matrix itself does not work there."""
        self.leave_out(what, "FAILED: " + reason)
        self.is_broken = True


def table(rows):
    """A row per pair and victim, a column per capture; below, what falls short."""
    captures = [capture for capture in CAPTURES + guests.CAPTURES if any(row["capture"] == capture for row in rows)]
    cells = collections.OrderedDict()
    for row in rows:
        cells.setdefault((row["pair"], row["victim"]), {})[row["capture"]] = row
    lines = ["| Python:PyTorch | victim | models | tensors | %s | seconds | MiB | date |" % " | ".join(captures),
             "|" + "---|" * (len(captures) + 7)]
    for (pair, victim), by_capture in cells.items():
        first = next(iter(by_capture.values()))
        words = [cell(by_capture[capture]) if capture in by_capture else "–" for capture in captures]
        slowest = max(by_capture.values(), key=lambda row: row["seconds"])
        lines.append("| %s | %s | %d | %d | %s | %.1f | %d | %s |" % (
            pair, victim, first["models"], first["tensors"], " | ".join(words), slowest["seconds"],
            max(row["image_mib"] for row in by_capture.values()), max(row["date"] for row in by_capture.values())))
    short = [row for row in rows if row["shortfalls"]]
    lines += ["", "%d of %d images without shortfalls." % (len(rows) - len(short), len(rows))]
    for row in short:
        head = "- %s %s %s: %d shortfalls, the first: " % (
            row["pair"], row["victim"], row["capture"], len(row["shortfalls"]))
        lines.append(head + "; ".join(row["shortfalls"][:3]))
    return "\n".join(lines)


def cell(row):
    return "%d short" % len(row["shortfalls"]) if row["shortfalls"] else "exact"
