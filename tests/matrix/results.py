"""Rows of the matrix: the file that keeps them, the table that shows them."""
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
    """A row per pair, a column per victim with its images, those that fall short in brackets; below, how they do."""
    victims = sorted({row["victim"] for row in rows})
    lines = ["| Python:PyTorch | %s | slowest, s | largest, MiB | date |" % " | ".join(victims),
             "|" + "---|" * (len(victims) + 4)]
    for pair in sorted({row["pair"] for row in rows}, key=in_numbers):
        of_pair = [row for row in rows if row["pair"] == pair]
        words = [images([row for row in of_pair if row["victim"] == victim]) for victim in victims]
        lines.append("| %s | %s | %.1f | %d | %s |" % (
            pair, " | ".join(words), max(row["seconds"] for row in of_pair), max(row["image_mib"] for row in of_pair),
            max(row["date"] for row in of_pair)))
    used = [capture for capture in CAPTURES + guests.CAPTURES if any(row["capture"] == capture for row in rows)]
    short = [row for row in rows if row["shortfalls"]]
    lines += ["", "%s. %d of %d without shortfalls; %d of %d tensors exact." % (
        ", ".join("%s is %s" % (letter(capture), capture) for capture in used), len(rows) - len(short), len(rows),
        sum(row["exact"] for row in rows), sum(row["tensors"] for row in rows))]
    for row in short:
        head = "- %s %s %s: %d shortfalls, the first: " % (
            row["pair"], row["victim"], row["capture"], len(row["shortfalls"]))
        lines.append(head + "; ".join(row["shortfalls"][:3]))
    return "\n".join(lines)


def in_numbers(pair):
    return [int(part) if part.isdigit() else 0 for part in pair.replace(":", ".").split(".")], pair


def images(rows):
    """The images of one victim, a letter each; those that fall short in brackets."""
    rows = sorted(rows, key=lambda row: (CAPTURES + guests.CAPTURES).index(row["capture"]))
    letters = [letter(row["capture"]) if not row["shortfalls"] else "[%s]" % letter(row["capture"]) for row in rows]
    return "".join(letters) or "–"


def letter(capture):
    """The first letter of most; two captures begin with that of gcore."""
    return "a" if capture == "gcore-all" else capture[0]


def cell(row):
    return "%d short" % len(row["shortfalls"]) if row["shortfalls"] else "exact"
