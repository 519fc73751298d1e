"""One dump, divided among workers: the same output as that of the command, wherever the dump lies and whoever is killed."""
import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

import tensorcarve
from tensorcarve import _workers
from tensorcarve.distributed import recover

try:
    import distributed
except ImportError:
    distributed = None
try:
    import moto.server
    import s3fs
except ImportError:
    s3fs = None

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKED = ROOT / "tests" / "data" / "cifar10-pdb.lime.zst"
SHARED = ROOT.parent / "shared" / "dumps" / "residual.elf.zst"
SHARD = 16 << 20
# The kinds of questions of the three phases in which workers are lost.
SCAN, SWEEP, GATHER = "scan", "sweep of live objects", "parts"


def unpack(packed, path):
    """Unpacks a dump with what this computer has."""
    if shutil.which("zstd"):
        subprocess.run(["zstd", "-q", "-d", "--long=31", str(packed), "-o", str(path)], check=True)
        return
    try:
        import zstandard
    except ImportError:
        raise unittest.SkipTest("neither the command zstd nor the package zstandard is here, to unpack the dump")
    with open(str(packed), "rb") as source, open(str(path), "wb") as target:
        zstandard.ZstdDecompressor(max_window_size=1 << 31).copy_stream(source, target)


def content(folder):
    """All files of an output folder but the manifest."""
    files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def is_alive(pid):
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Shards(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, str(cls.folder))
        cls.dump = cls.folder / "memory"
        unpack(PACKED, cls.dump)
        cls.whole = cls.recovered(cls.dump)

    @classmethod
    def recovered(cls, dump):
        """What the command finds in a dump, and how it says it ended."""
        out = cls.folder / (dump.name + ".whole")
        code = "import sys, tensorcarve; sys.argv[0] = 'tensorcarve'; tensorcarve._main()"
        done = subprocess.run([sys.executable, "-c", code, "recover", str(dump), "-o", str(out), "-q", "--no-index"],
                              stdout=subprocess.DEVNULL)
        return done.returncode, content(out), json.loads((out / "manifest.json").read_text())

    def check(self, url, executor, whole=None, **options):
        returncode, expected, manifest = whole or self.whole
        with tempfile.TemporaryDirectory() as out:
            done = recover(url, out, executor, shard=SHARD, **options)
            self.assertEqual({"found": 0, "nothing": 1, "partial": 3}[done["status"]], returncode)
            found = content(out)
            self.assertEqual(sorted(found), sorted(expected))
            for name in expected:
                self.assertEqual(found[name], expected[name], name)
            division = json.loads((pathlib.Path(out) / "manifest.json").read_text())
            self.assertEqual(division["input"]["hashes"], manifest["input"]["hashes"])
            self.assertEqual(division["division"]["shard_size"], SHARD)
            return done["division"]

    def test_processes(self):
        division = self.check(self.dump, 2)
        self.assertEqual(len(division["workers"]), 2)
        self.assertEqual(division["repeated"], 0)
        self.check("file://%s" % self.dump, 1)

    def test_any_executor(self):
        with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
            self.check(self.dump, executor)
        with concurrent.futures.ThreadPoolExecutor(2) as executor:
            self.check(self.dump, executor)

    @contextlib.contextmanager
    def killing(self, kind, victims):
        """The first worker that is asked a question of a kind is killed at once; `victims(workers, number)` gives its process id."""
        submit, killed = _workers.Dump._submit, []

        def submit_and_kill(dump, name, number, *arguments):
            future = submit(dump, name, number, *arguments)
            if name == kind and not killed:
                killed.append(victims(dump.workers, number))
                os.kill(killed[0], signal.SIGKILL)
            return future

        with mock.patch.object(_workers.Dump, "_submit", submit_and_kill):
            yield
        self.assertEqual(len(killed), 1, "no question of this kind was asked")
        deadline = time.monotonic() + 10
        while is_alive(killed[0]) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertFalse(is_alive(killed[0]))

    def test_a_process_that_is_killed(self):
        def victim(workers, number):
            pid, = workers.pools[number % len(workers.pools)]._processes
            return pid

        for kind in (SCAN, SWEEP, GATHER):
            with self.subTest(kind), self.killing(kind, victim):
                self.assertGreater(self.check(self.dump, 2)["repeated"], 0)

    @unittest.skipIf(distributed is None, "the package distributed (Dask) is not installed")
    def test_dask_and_a_worker_that_is_killed(self):
        with distributed.LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as cluster:
            with distributed.Client(cluster) as client:
                self.assertEqual(len(self.check(self.dump, client)["workers"]), 3)

                for kind in (SCAN, SWEEP, GATHER):
                    # The worker that was killed before was replaced.
                    deadline = time.monotonic() + 60
                    pids = {}
                    while len(pids) < 3 and time.monotonic() < deadline:
                        with contextlib.suppress(Exception):
                            pids = client.run(os.getpid)
                    addresses = sorted(pids)
                    with self.subTest(kind), self.killing(kind, lambda workers, number: pids[addresses[number % 3]]):
                        self.check(self.dump, client)

    @unittest.skipIf(s3fs is None, "the packages moto and s3fs are not installed")
    def test_object_storage(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        options = {"key": "key", "secret": "secret", "endpoint_url": "http://127.0.0.1:%d" % port}
        storage = s3fs.S3FileSystem(**options)
        storage.mkdir("evidence")
        storage.put(str(self.dump), "evidence/host.raw")
        division = self.check("s3://evidence/host.raw", 2, storage_options=options)
        read = sum(worker["bytes_read"] for worker in division["workers"].values())
        # Each shard is read once, with its margins.
        self.assertLess(read, self.dump.stat().st_size * 1.01)

    @unittest.skipUnless(SHARED.exists(), "the shared dump is not here")
    def test_the_shared_dump(self):
        dump = self.folder / "residual"
        unpack(SHARED, dump)
        self.check(dump, 2, self.recovered(dump))

    def test_what_cannot_be_divided(self):
        with tempfile.TemporaryDirectory() as out:
            out = pathlib.Path(out) / "out"
            with self.assertRaises(tensorcarve.Error) as caught:
                recover(PACKED, out, 1)
            self.assertIn("unpack it first", caught.exception.hint)
            with self.assertRaises(OSError):
                recover(self.folder / "missing", out, 1)
            self.assertFalse(out.exists())

    def test_workers_that_cannot_answer(self):
        with tempfile.TemporaryDirectory() as out, concurrent.futures.ThreadPoolExecutor(1) as executor:
            out = pathlib.Path(out) / "out"
            with mock.patch.object(_workers, "Shard", **{"of_file.side_effect": OSError("the disk is gone")}):
                with mock.patch.dict(_workers._kept, clear=True), self.assertRaises(tensorcarve.Error) as caught:
                    recover(self.dump, out, executor)
            self.assertIn("the disk is gone (asked 4 times)", str(caught.exception))
            self.assertFalse(out.exists())

    def test_the_command(self):
        with tempfile.TemporaryDirectory() as out:
            code = "import sys, tensorcarve.distributed as d; sys.argv[0] = 'tensorcarve-distributed'; d._main()"
            command = [sys.executable, "-c", code, "recover", str(self.dump), "-o", out, "--local", "1", "--shard", "64MiB", "-q"]
            done = subprocess.run(command, stderr=subprocess.PIPE, universal_newlines=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("1 models; 1 workers", done.stderr)
            self.assertEqual(content(out), self.whole[1])
            done = subprocess.run(command, stderr=subprocess.PIPE, universal_newlines=True)
            self.assertEqual(done.returncode, 2)
            self.assertIn("hint: ", done.stderr)


if __name__ == "__main__":
    unittest.main()
