"""Many dumps at a time, and a run that is killed and started again."""
import concurrent.futures
import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from tensorcarve.distributed import recover_many

DUMP = pathlib.Path(__file__).resolve().parents[2] / "tests" / "data" / "cifar10-pdb.lime.zst"
PROGRAM = """
import sys
from tensorcarve.distributed import recover_many
if __name__ == "__main__":
    recover_many(sys.argv[2:], sys.argv[1])
"""


def ten_dumps(folder):
    """Eight that are one, and two that are none."""
    dumps = [folder / ("host%d.lime.zst" % number) for number in range(8)]
    for dump in dumps:
        dump.symlink_to(DUMP)
    (folder / "notes.txt").write_text("not a dump\n" * 1000)
    (folder / "=empty.raw").touch()
    return [str(dump) for dump in dumps[:4] + [folder / "notes.txt", folder / "=empty.raw"] + dumps[4:]]


class Many(unittest.TestCase):
    def test_a_run_that_was_killed_goes_on(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            dumps = ten_dumps(folder)
            child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder / "out"), *dumps], start_new_session=True)
            while len(list((folder / "out").glob("*.json"))) < 2:
                self.assertIsNone(child.poll())
                time.sleep(0.02)
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            times = {path.name: path.stat().st_mtime_ns for path in (folder / "out").glob("host*.json")}
            self.assertIn(len(times), range(2, 8))
            summary = recover_many(dumps, folder / "out")
            again = {path.name: path.stat().st_mtime_ns for path in (folder / "out").glob("host*.json")}
            self.assertEqual(times, {name: again[name] for name in times}, "these were not recovered again")
            with concurrent.futures.ProcessPoolExecutor(2) as executor:
                whole = recover_many(dumps, folder / "other", executor)
            self.assertEqual(summary, whole)
            for name in ("summary.json", "summary.csv"):
                self.assertEqual((folder / "out" / name).read_bytes(), (folder / "other" / name).read_bytes())
            self.check(folder, dumps, summary)

    def check(self, folder, dumps, summary):
        rows = summary["dumps"]
        self.assertEqual([row["dump"] for row in rows], dumps)
        self.assertEqual([row["status"] for row in rows].count("found"), 8)
        self.assertEqual([row["status"] for row in rows[4:6]], ["error", "error"])
        self.assertIn("text file", rows[4]["error"])
        same, = summary["same_weights"]
        self.assertEqual([place["dump"] for place in same["models"]], dumps[:4] + dumps[6:])
        self.assertTrue(all(model["complete"] for row in rows for model in row["models"]))
        with open(str(folder / "out" / "summary.csv"), newline="") as file:
            table = list(csv.DictReader(file))
        self.assertEqual([row["models"] for row in table], ["1"] * 4 + ["0"] * 2 + ["1"] * 4)
        saved, = (folder / "out" / rows[0]["folder"]).rglob("model.safetensors")
        self.assertGreater(saved.stat().st_size, 200_000)
        self.assertEqual(json.loads((folder / "out" / "summary.json").read_text()), summary)

    def test_a_dump_that_changed_or_other_options_are_recovered_again(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            dump = folder / "host.lime.zst"
            dump.write_bytes(DUMP.read_bytes())
            first = recover_many([dump], folder / "out", options=["--hash", "none"])
            manifest, = (folder / "out").rglob("manifest.json")
            before = manifest.stat().st_mtime_ns
            self.assertEqual(recover_many([dump], folder / "out", options=["--hash", "none"]), first)
            self.assertEqual(manifest.stat().st_mtime_ns, before)
            self.assertEqual(recover_many([dump], folder / "out", options=["--hash", "md5"]), first)
            self.assertGreater(manifest.stat().st_mtime_ns, before)
            dump.write_bytes(b"no dump any more")
            self.assertEqual(recover_many([dump], folder / "out", options=["--hash", "md5"])["dumps"][0]["status"], "error")


if __name__ == "__main__":
    unittest.main()
