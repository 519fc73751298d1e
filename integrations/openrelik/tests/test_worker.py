"""The task, run through a real Redis server and a real Celery worker."""
import base64
import gc
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest

WORKER = pathlib.Path(__file__).resolve().parents[1]
DUMP = WORKER.parents[1] / "tests" / "data" / "cifar10-pdb.lime.zst"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@unittest.skipUnless(shutil.which("redis-server"), "redis-server is not installed")
class Worker(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        port = free_port()
        os.environ["REDIS_URL"] = "redis://127.0.0.1:%d/0" % port
        cls.start(["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(cls.folder)])
        # The command beside this Python is the one of the package that is tested.
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
        command = [sys.executable, "-m", "celery", "--app=src.app", "worker", "--concurrency=1", "--loglevel=WARNING",
                   "-Q", "openrelik-worker-tensorcarve"]
        cls.start(command, cwd=str(WORKER), env=dict(os.environ, PATH=path))
        sys.path.insert(0, str(WORKER))
        from src.app import celery
        cls.celery = celery
        # Results that nobody holds any more ask the server once again: before it ends.
        cls.addClassCleanup(gc.collect)
        deadline = time.monotonic() + 60
        while not cls.is_up():
            if time.monotonic() > deadline:
                raise RuntimeError("the worker did not start")
            time.sleep(0.2)

    @classmethod
    def start(cls, command, **options):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **options)
        cls.addClassCleanup(process.wait)
        cls.addClassCleanup(process.terminate)

    @classmethod
    def is_up(cls):
        try:
            return bool(cls.celery.control.inspect(timeout=1).ping())
        except Exception:
            return False

    def run_task(self, paths, **config):
        """The result of the task for files, as OpenRelik's server sends it and reads it."""
        output = pathlib.Path(tempfile.mkdtemp(dir=str(self.folder)))
        files = [{"id": number, "uuid": "%032x" % number, "display_name": path.name, "extension": path.suffix, "data_type": "file",
                  "mime_type": "application/octet-stream", "path": str(path)} for number, path in enumerate(paths, 1)]
        arguments = {"input_files": files, "output_path": str(output), "workflow_id": "7", "task_config": config}
        task = self.celery.signature("openrelik-worker-tensorcarve.tasks.recover", kwargs=arguments,
                                     queue="openrelik-worker-tensorcarve")
        waiting = task.apply_async()
        try:
            text = waiting.get(timeout=120)
        finally:
            waiting.forget()
        return output, json.loads(base64.b64decode(text))

    def test_the_shipped_dump(self):
        notes = self.folder / "notes.txt"
        notes.write_text("not a dump\n" * 1000)
        output, result = self.run_task([DUMP, notes])
        self.assertEqual(result["workflow_id"], "7")
        names = {file["display_name"]: file for file in result["output_files"]}
        # No file is left that OpenRelik is not told of.
        self.assertEqual(sorted(os.listdir(str(output))), sorted(os.path.basename(file["path"]) for file in names.values()))
        self.assertEqual({file["source_file_id"] for file in names.values()}, {1})
        whole = self.folder / "whole"
        command = [str(pathlib.Path(sys.executable).parent / "tensorcarve"), "recover", "-q", "--no-index", "-o", str(whole), str(DUMP)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        written = {str(path.relative_to(whole)): path for path in whole.rglob("*") if path.is_file()}
        self.assertEqual(sorted(names), sorted("%s.%s" % (DUMP.name, name.replace("/", ".")) for name in written))
        for name, path in written.items():
            if name != "manifest.json":
                file = names["%s.%s" % (DUMP.name, name.replace("/", "."))]
                self.assertEqual(pathlib.Path(file["path"]).read_bytes(), path.read_bytes(), name)
                self.assertEqual(file["original_path"], name)
        report = result["task_report"]
        self.assertEqual(report["summary"], "1 neural network found")
        self.assertIn("|cifar10-pdb.lime.zst|188|\\_\\_main\\_\\_.SimpleCNN|10/10|", report["content"])
        self.assertIn("notes.txt: ", report["content"])
        self.assertIn("text file", report["content"])

    def test_the_configuration(self):
        _, result = self.run_task([DUMP], hash="md5", without_python=True)
        self.assertIn("--hash=md5 --without-python", result["command"])
        manifest = next(file for file in result["output_files"] if file["original_path"] == "manifest.json")
        hashes = json.loads(pathlib.Path(manifest["path"]).read_text())["input"]["hashes"]
        self.assertEqual([row["algorithm"] for row in hashes], ["md5"])

    def test_no_dump_at_all(self):
        notes = self.folder / "other.txt"
        notes.write_text("not a dump\n" * 1000)
        with self.assertRaises(Exception) as caught:
            self.run_task([notes])
        self.assertIn("other.txt", str(caught.exception))

    def test_metadata(self):
        tasks = self.celery.control.inspect(timeout=5).registered("metadata")
        self.assertTrue(any("recover neural networks" in task for task in next(iter(tasks.values()))))


if __name__ == "__main__":
    unittest.main()
