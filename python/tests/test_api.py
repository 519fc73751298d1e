"""The package on the shipped dump and on the memory of a victim. Only NumPy is needed; what needs PyTorch or pandas is skipped without.

    python3 -m unittest discover python/tests
"""
import ctypes
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import numpy as np
import tensorcarve

DATA = pathlib.Path(__file__).resolve().parents[2] / "tests" / "data"
DUMP = DATA / "cifar10-pdb.lime.zst"
TRUTH = next(process for process in json.loads((DATA / "cifar10-pdb.truth.json").read_text())["processes"]
             if process.get("state_dict"))
HAS_TORCH, HAS_PANDAS = (importlib.util.find_spec(name) is not None for name in ("torch", "pandas"))


def command(*arguments):
    """The command of the package: its exit code and what it prints."""
    program = "import sys, tensorcarve; sys.argv[0] = 'tensorcarve'; tensorcarve._main()"
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True)
    return done.returncode, done.stdout, done.stderr


class ShippedDump(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.phases = []
        cls.case = tensorcarve.open(DUMP, index=False, progress=lambda *state: cls.phases.append(state))
        cls.model, = cls.case.models

    def test_state_dict_is_the_victims(self):
        state = self.model.state_dict()
        self.assertEqual(list(state), list(TRUTH["state_dict"]))
        for name, entry in TRUTH["state_dict"].items():
            tensor = self.model.tensors[name]
            self.assertEqual((tensor.shape, tensor.status, tensor.holes), (tuple(entry["shape"]), "complete", []))
            self.assertEqual((tensor.sha256, tensor.address), (entry["sha256"], int(entry["data_ptr"], 16)))
            self.assertEqual((state[name].dtype, state[name].shape), (np.float32, tensor.shape))
            self.assertEqual(state[name].tobytes(), tensor.tobytes())
            np.testing.assert_array_equal(np.asarray(tensor), state[name])
        self.assertEqual(self.model.class_name, TRUTH["class"])

    def test_training_state_has_the_shapes_of_the_parameters(self):
        gradient = self.model.training["conv1.weight.grad"]
        self.assertEqual((gradient.kind, gradient.shape), ("gradient", self.model.tensors["conv1.weight"].shape))
        self.assertTrue(np.asarray(gradient).any())

    def test_arrays_follow_the_protocol(self):
        tensor = self.model.tensors["fc1.bias"]
        self.assertEqual(np.asarray(tensor, dtype=np.float64).dtype, np.float64)
        with self.assertRaises(ValueError):
            tensor.__array__(copy=False)

    def test_processes_are_those_of_the_command(self):
        code, out, _ = command("ps", DUMP, "--no-index", "--format", "json")
        rows = [row for row in json.loads(out)["processes"] if row["kind"] == "process"]
        processes = self.case.processes
        self.assertEqual((code, [process.pid for process in processes]), (0, [row["pid"] for row in rows]))
        for process, row in zip(processes, rows):
            self.assertEqual((process.comm, process.cmdline, process.python), (row["comm"], row["cmdline"], row["python"]))
            self.assertEqual(len(process.models), row["models"])

    def test_questions_to_a_process_have_the_answers_of_the_command(self):
        process, = [process for process in self.case.processes if process.models]
        self.assertEqual(process.pid, TRUTH["pid"])
        which = (DUMP, "--pid", process.pid, "--no-index", "--format", "json")
        stack = json.loads(command("stack", *which, "--locals")[1])
        self.assertEqual(process.stack(locals=True), {key: stack[key] for key in ("threads", "suspended")})
        maps = json.loads(command("maps", *which)[1])["mappings"]
        self.assertEqual([hex(row["start"]) for row in process.maps()], [row["start"] for row in maps])
        self.assertEqual([row["file"] for row in process.maps()], [row["file"] for row in maps])
        layers = process.objects("torch.nn.modules.conv.Conv2d")
        self.assertEqual(len(layers), 2)
        self.assertIn("in_channels", [attribute["name"] for attribute in layers[0]["attributes"]])

    def test_a_saved_model_and_a_core_are_those_of_the_command(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            self.assertEqual(command("recover", DUMP, "-o", folder / "out", "--no-index", "-q")[0], 0)
            self.model.save(folder / "saved")
            for file in ("model.safetensors", "model.json", "grads.safetensors", "optimizer.safetensors", "load.py"):
                saved, = (folder / "saved").rglob(file)
                self.assertEqual(saved.read_bytes(), (folder / "out" / "models" / "m0" / file).read_bytes(), file)
            process, = [process for process in self.case.processes if process.models]
            process.core(folder / "core")
            code = command("core", DUMP, "--pid", process.pid, "-o", folder / "other", "--no-index", "-q")[0]
            self.assertIn(code, (0, 3))
            self.assertEqual((folder / "core").read_bytes(), (folder / "other").read_bytes())
            for path, overwrite in ((folder / "core", False), (DUMP, True)):
                with self.assertRaises(tensorcarve.Error) as caught:
                    process.core(path, overwrite=overwrite)
                self.assertTrue(caught.exception.hint)

    def test_hits_are_those_of_the_command(self):
        rows = json.loads(command("scan", DUMP, "--format", "json")[1])["hits"]
        hits = tensorcarve.scan(DUMP)
        self.assertEqual([(hit.signature, hex(hit.address), hit.tested) for hit in hits],
                         [(row["signature"], row["address"], row["tested"]) for row in rows])
        self.assertEqual(len(tensorcarve.scan(DUMP, max_hits=3)), 3)

    def test_a_signature_file_adds_to_the_built_in_ones(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "my.toml"
            file.write_text('[[needle]]\nname = "my.needle"\ntext = "torch.nn.modules"\n')
            hits = tensorcarve.scan(DUMP, signatures=file, names=["my.needle"])
            self.assertEqual({hit.signature for hit in hits}, {"my.needle"})
            with self.assertRaises(tensorcarve.Error):
                tensorcarve.scan(DUMP, signatures=file, names=["another"])

    def test_progress_names_the_phases(self):
        self.assertIn("unpack", [phase for phase, _, _ in self.phases])
        self.assertTrue(all(done <= total or not total for _, done, total in self.phases))

    @unittest.skipUnless(HAS_PANDAS, "no pandas")
    def test_tables(self):
        self.assertEqual(list(self.case.to_dataframe("models")["class"]), [TRUTH["class"]])
        tensors = self.case.to_dataframe("tensors")
        self.assertEqual(list(tensors[tensors["kind"] == "parameter"]["name"]), list(TRUTH["state_dict"]))
        self.assertIn(TRUTH["pid"], list(self.case.to_dataframe("processes")["pid"]))

    @unittest.skipUnless(HAS_TORCH, "no PyTorch")
    def test_torch_loads_the_tensors(self):
        import torch
        state = self.model.torch()
        self.assertEqual({name: tuple(value.shape) for name, value in state.items()},
                         {name: tensor.shape for name, tensor in self.model.tensors.items()})
        layer = torch.nn.Conv2d(3, 6, 5)
        layer.load_state_dict({key: state["conv1." + key] for key in ("weight", "bias")})

    def test_tables_for_notebooks_are_escaped(self):
        self.assertIn("<td>" + TRUTH["class"] + "</td>", self.case._repr_html_())
        self.assertIn("<td>conv1.weight</td>", self.model._repr_html_())


class Errors(unittest.TestCase):
    def test_what_is_no_dump_is_refused_with_a_hint(self):
        for path in (__file__, "/no/such/file"):
            with self.assertRaises(tensorcarve.Error) as caught:
                tensorcarve.open(path)
            self.assertIn(str(path), str(caught.exception))
            self.assertTrue(caught.exception.hint)

    def test_the_command_has_its_exit_codes(self):
        self.assertEqual(command("--version")[:2], (0, "tensorcarve %s\n" % tensorcarve.__version__))
        code, _, err = command("info", "/no/such/file")
        self.assertEqual(code, 2)
        self.assertIn("hint: ", err)

    def test_ctrl_c_ends_long_work_at_once(self):
        # A million pages of zeros take a while.
        program = ("import sys, time, tensorcarve\n"
                   "case = tensorcarve.open(sys.argv[1], index=False)\n"
                   "print('go', flush=True)\n"
                   "try:\n    case.models; print('done')\n"
                   "except KeyboardInterrupt:\n    print('stopped', time.time(), flush=True)\n"
                   "import os; os._exit(0)\n")
        with tempfile.TemporaryDirectory() as folder:
            dump = os.path.join(folder, "zeros.raw")
            with open(dump, "wb") as file:
                file.write(os.urandom(4096))
                file.truncate(16 << 30)
            # A shell that runs the tests in the background has them ignore SIGINT.
            child = subprocess.Popen([sys.executable, "-c", program, dump], stdout=subprocess.PIPE, universal_newlines=True,
                                     preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
            self.assertEqual(child.stdout.readline(), "go\n")
            time.sleep(0.3)
            sent = time.time()
            child.send_signal(signal.SIGINT)
            words = child.communicate()[0].split()
        self.assertEqual(words[:1], ["stopped"])
        # Ten times what is promised: the machine may be busy.
        self.assertLess(float(words[1]) - sent, 1)


VICTIM = """
import time, torch
net = torch.nn.Module()
values = torch.arange(-6, 6).reshape(3, 4)
for name in ("bfloat16", "float16", "float64", "int8", "uint8", "bool", "complex64", "float8_e4m3fn", "float8_e5m2"):
    if hasattr(torch, name):
        net.register_buffer("in_" + name, values.to(getattr(torch, name)))
net.register_parameter("weight", torch.nn.Parameter(values.float().t()))
torch.save(net.state_dict(), PATH)
print("READY", flush=True)
time.sleep(1000)
"""


def copy_memory(pid, folder):
    """Copies the memory of a process as `tensorcarve recover --help` says; the copy and its list of mappings."""
    mem, maps = folder / "mem", folder / "maps"
    os.kill(pid, signal.SIGSTOP)
    maps.write_bytes(pathlib.Path("/proc/%d/maps" % pid).read_bytes())
    with open("/proc/%d/mem" % pid, "rb", buffering=0) as source, open(mem, "wb") as copy:
        for line in maps.read_text().splitlines():
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            if not line.split()[1].startswith("r") or line.startswith("ffffffff"):
                continue
            for at in range(start, end, 1 << 20):
                size = min(1 << 20, end - at)
                try:
                    source.seek(at)
                    data = source.read(size)
                except OSError:
                    data = b""
                copy.write(data.ljust(size, b"\0"))
    return mem, maps


@unittest.skipUnless(HAS_TORCH, "no PyTorch")
class Types(unittest.TestCase):
    def test_every_type_comes_back(self):
        import torch
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            program = VICTIM.replace("PATH", repr(str(folder / "state.pt")))
            victim = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, universal_newlines=True)
            try:
                self.assertEqual(victim.stdout.readline(), "READY\n")
                mem, maps = copy_memory(victim.pid, folder)
            finally:
                victim.kill()
                victim.communicate()
            expected = torch.load(str(folder / "state.pt"))
            model, = tensorcarve.open(mem, maps=maps, index=False).models
            state = model.torch()
            self.assertEqual(set(state), set(expected))
            for name, want in expected.items():
                self.assertEqual((state[name].dtype, state[name].shape), (want.dtype, want.shape))
                have, want = state[name].contiguous(), want.contiguous()
                size = want.numel() * want.element_size()
                self.assertEqual(ctypes.string_at(have.data_ptr(), size), ctypes.string_at(want.data_ptr(), size), name)
                array = model.tensors[name].numpy()
                self.assertEqual((array.shape, array.tobytes()), (tuple(want.shape), model.tensors[name].tobytes()))


if __name__ == "__main__":
    unittest.main()
