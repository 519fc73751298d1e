//! Real dumps against what their victims said of themselves before the capture.
//!
//! The first dump is part of the project. The second is larger and lies beside the checkout on the
//! project's own machines (`../shared/dumps`); its tests say that they skip where it is not there.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may simply fail")]

mod program;
mod truth;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use program::program;
use tempfile::TempDir;
use truth::{Truth, tree};

/// The shipped dump, unpacked once for all tests of this file.
fn lime() -> &'static Path {
    static UNPACKED: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = UNPACKED.get_or_init(|| unpack(&PathBuf::from("tests/data/cifar10-pdb.lime.zst")));
    path
}

fn unpack(packed: &Path) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holiday.jpg"); // what it is called must not matter
    let mut decoder = zstd::Decoder::new(File::open(packed).unwrap()).unwrap();
    decoder.window_log_max(31).unwrap();
    std::io::copy(&mut decoder, &mut File::create(&path).unwrap()).unwrap();
    (folder, path)
}

/// Recovers `dump` with the command line; the folder that came out.
fn recover(dump: &Path, options: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let output = program()
        .args(["recover", "-q", "-o"])
        .arg(folder.path())
        .args(options)
        .arg(dump)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    folder
}

fn cifar_truth() -> Truth {
    Truth::read(Path::new("tests/data/cifar10-pdb.truth.json"))
}

#[test]
fn the_packed_dump_gives_what_the_victim_had() {
    cifar_truth().check(recover(Path::new("tests/data/cifar10-pdb.lime.zst"), &[]).path());
}

#[test]
fn the_plain_dump_gives_it_whatever_its_name() {
    cifar_truth().check(recover(lime(), &[]).path());
}

#[test]
fn tensors_tell_their_layout_where_no_table_has_it() {
    let inferred = recover(lime(), &["--signatures", only_pytorch("2.14").path().to_str().unwrap()]);
    cifar_truth().check(inferred.path());
    let report = |folder: &TempDir| -> serde_json::Value {
        serde_json::from_slice(&fs::read(folder.path().join("recovery.json")).unwrap()).unwrap()
    };
    let (inferred, known) = (report(&inferred), report(&recover(lime(), &[])));
    assert!(inferred["warnings"].to_string().contains("10 of 10 tensors"), "{}", inferred["warnings"]);
    let layout = |report: &serde_json::Value| report["processes"][1]["torch"]["layout"]["inferred"].clone();
    assert_eq!((layout(&inferred), layout(&known)), (true.into(), false.into()));
    // All but the mark of the inferred layout is the same.
    let models = |report: &serde_json::Value| {
        let mut models = report["processes"][1]["models"].clone();
        unmark(&mut models);
        models
    };
    assert_eq!(models(&inferred), models(&known));
}

/// Takes away what says that a layout was inferred.
fn unmark(value: &mut serde_json::Value) {
    if let Some(object) = value.as_object_mut() {
        object.remove("inferred");
        object.values_mut().for_each(unmark);
    } else if let Some(items) = value.as_array_mut() {
        items.iter_mut().for_each(unmark);
    }
}

/// Signature files that leave one layout of PyTorch: all others become copies of it.
fn only_pytorch(version: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir("signatures/layouts").unwrap().map(|file| file.unwrap().file_name().into_string().unwrap())
    {
        let other = file.strip_prefix("pytorch-").and_then(|name| name.strip_suffix(".toml"));
        if let Some(other) = other.filter(|other| *other != version) {
            let layout = format!("[layout]\nfamily = \"pytorch\"\nversion = \"{other}\"\ninherits = \"{version}\"\n");
            fs::write(folder.path().join(file), layout).unwrap();
        }
    }
    folder
}

/// The ranges of a LiME file: physical address, file offset, length.
fn lime_ranges(file: &mut File) -> Vec<(u64, u64, u64)> {
    let mut ranges = Vec::new();
    let mut header = [0; 32];
    let mut at = 0;
    while file.seek(SeekFrom::Start(at)).is_ok() && file.read_exact(&mut header).is_ok() {
        let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
        let len = word(16) - word(8) + 1;
        ranges.push((word(8), at + 32, len));
        at += 32 + len;
    }
    ranges
}

#[test]
fn a_raw_dump_without_headers_gives_it() {
    let mut lime = File::open(lime()).unwrap();
    let (mut padded, mut joined) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    for (address, offset, len) in lime_ranges(&mut lime) {
        for (raw, at) in [(&mut padded, SeekFrom::Start(address)), (&mut joined, SeekFrom::End(0))] {
            raw.seek(at).unwrap();
            lime.seek(SeekFrom::Start(offset)).unwrap();
            std::io::copy(&mut Read::by_ref(&mut lime).take(len), raw).unwrap();
        }
    }
    // With the holes as zeros, as `dd` and LiME's "padded" write it.
    cifar_truth().check(recover(padded.path(), &[]).path());
    // One range after another, as LiME's "raw" writes it: no address is where the file says.
    cifar_truth().check(recover(joined.path(), &[]).path());
}

#[test]
fn a_dump_that_is_cut_is_used_as_far_as_it_goes() {
    let mut cut = tempfile::NamedTempFile::new().unwrap();
    let size = fs::metadata(lime()).unwrap().len();
    std::io::copy(&mut File::open(lime()).unwrap().take(size - (1 << 20)), &mut cut).unwrap();
    cut.flush().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = program().args(["recover", "-o"]).arg(folder.path()).arg(cut.path()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("1048576 bytes"), "{stderr}");
    // The last mebibyte holds the roots of both Python processes.
    assert!([Some(1), Some(3)].contains(&output.status.code()), "{stderr}");
    assert!(folder.path().join("recovery.json").exists());
}

#[test]
fn the_output_is_the_same_however_it_is_made() {
    let mut first: Option<(String, BTreeMap<PathBuf, Vec<u8>>)> = None;
    let mut ways = vec![vec![], vec![], vec!["-j", "1"], vec!["-j", "2"], vec!["--hash", "none"]];
    for backend in tensorcarve::scan::Backend::available() {
        ways.push(vec!["--backend".to_owned().leak(), backend.to_string().to_lowercase().replace('-', "").leak()]);
    }
    for name in ["simd", "gpu"] {
        match name.parse::<tensorcarve::scan::BackendChoice>().unwrap().resolve() {
            Ok(_) => ways.push(vec!["--backend", name]),
            Err(error) => {
                assert!(std::env::var_os("TENSORCARVE_REQUIRE_GPU").is_none() || name != "gpu", "{error}");
                eprintln!("skipped: {error}");
            }
        }
    }
    for way in ways {
        let folder = recover(lime(), &way);
        let mut files = tree(folder.path());
        assert!(files.remove(Path::new("manifest.json")).is_some());
        match &first {
            None => first = Some((format!("{way:?}"), files)),
            Some((reference, expected)) => assert!(files == *expected, "{way:?} differs from {reference}"),
        }
    }
}

#[test]
fn the_models_compute_what_the_victims_computed() {
    let Some(python) = truth::python_with_torch() else {
        eprintln!("skipped: no Python with PyTorch here (Debian: apt-get install python3-torch)");
        return;
    };
    let folder = recover(lime(), &[]);
    let model = folder.path().join("models/m0");
    let script = r#"
import json, sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
from load import load
import torch
net = load()
said = json.load(open(sys.argv[2]))["processes"][0]
x = torch.tensor(said["probe"])
with torch.no_grad():
    x = net.pool(torch.relu(net.conv1(x)))
    x = net.pool(torch.relu(net.conv2(x)))
    x = torch.relu(net.fc1(torch.flatten(x, 1)))
    x = net.fc3(torch.relu(net.fc2(x)))
difference = (x - torch.tensor(said["probe_out"])).abs().max().item()
print("largest difference", difference)
sys.exit(difference > 1e-5)
"#;
    let truth = Path::new("tests/data/cifar10-pdb.truth.json");
    let probe = Command::new(&python).args(["-c", script]).arg(&model).arg(truth).output().unwrap();
    assert!(probe.status.success(), "{}", String::from_utf8_lossy(&probe.stderr));
    let loader = Command::new(&python).arg("-B").arg(model.join("load.py")).output().unwrap();
    let stdout = String::from_utf8_lossy(&loader.stdout);
    assert!(loader.status.success() && stdout.contains("all keys matched"), "{stdout}");
}

/// What a dump gives by the headers of tensors alone: the document, and the hashes of all tensors that are complete.
fn by_headers(dump: &Path) -> (TempDir, serde_json::Value, Vec<String>) {
    let folder = recover(dump, &["--without-python"]);
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(folder.path().join(name)).unwrap()).unwrap()
    };
    let recovery = read("recovery.json");
    let models =
        recovery["processes"].as_array().unwrap().iter().flat_map(|process| process["models"].as_array().unwrap());
    let rows = models.flat_map(|model| [&model["tensors"], &model["training"]]).cloned();
    let rows: Vec<serde_json::Value> = rows.chain([read("tensors.json")["tensors"].clone()]).collect();
    let complete = rows.iter().flat_map(|rows| rows.as_array().unwrap()).filter(|row| row["status"] == "complete");
    let hashes = complete.map(|row| row["sha256"].as_str().unwrap().to_owned()).collect();
    (folder, recovery, hashes)
}

/// The hashes of all tensors of the victims that have bytes: weights, gradients and what optimizers keep.
fn hashes(truth: &serde_json::Value) -> Vec<&str> {
    match truth {
        serde_json::Value::Object(keys) => {
            let own = keys.get("sha256").and_then(|hash| hash.as_str());
            own.into_iter().chain(keys.values().flat_map(hashes)).collect()
        }
        serde_json::Value::Array(items) => items.iter().flat_map(hashes).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn headers_alone_give_every_tensor_and_the_network_as_a_chain() {
    let truth: serde_json::Value =
        serde_json::from_slice(&fs::read("tests/data/cifar10-pdb.truth.json").unwrap()).unwrap();
    let (folder, recovery, found) = by_headers(lime());
    let wanted = hashes(&truth["processes"]);
    assert_eq!(wanted.len(), 30, "weights, gradients and momenta");
    assert!(wanted.iter().all(|hash| found.iter().any(|found| found == hash)));
    let [process] = recovery["processes"].as_array().unwrap().as_slice() else { panic!("{recovery}") };
    assert!(process["python"].is_null() && process["pid"] == truth["processes"][0]["pid"]);
    let [chain] = process["models"].as_array().unwrap().as_slice() else { panic!("{recovery}") };
    assert_eq!((&chain["kind"], &chain["class"]), (&"chain".into(), &serde_json::Value::Null));
    // The order of the layers, by what their tensors hold.
    let state = truth["processes"][0]["state_dict"].as_object().unwrap();
    let name = |row: &serde_json::Value| {
        let of_same = state.iter().find(|(_, tensor)| tensor["sha256"] == row["sha256"]);
        of_same.map(|(name, _)| name.as_str()).unwrap_or_default().to_owned()
    };
    let names: Vec<String> = chain["tensors"].as_array().unwrap().iter().map(name).collect();
    let layers = ["conv1", "conv2", "fc1", "fc2", "fc3"];
    let expected: Vec<String> =
        layers.iter().flat_map(|layer| [format!("{layer}.weight"), format!("{layer}.bias")]).collect();
    assert_eq!(names, expected);
    let Some(python) = truth::python_with_torch() else {
        eprintln!("skipped: no PyTorch here");
        return;
    };
    let script = r#"
import json, sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
from load import load
import torch
net = load(activation="relu", pool="max2", input="3x32x32")
said = json.load(open(sys.argv[2]))["processes"][0]
with torch.no_grad():
    difference = (net(torch.tensor(said["probe"])) - torch.tensor(said["probe_out"])).abs().max().item()
print("largest difference", difference)
sys.exit(difference > 1e-5)
"#;
    let truth = Path::new("tests/data/cifar10-pdb.truth.json");
    let model = folder.path().join("models/m0");
    let probe = Command::new(&python).args(["-c", script]).arg(&model).arg(truth).output().unwrap();
    assert!(
        probe.status.success(),
        "{}{}",
        String::from_utf8_lossy(&probe.stdout),
        String::from_utf8_lossy(&probe.stderr)
    );
}

#[test]
fn what_python_leads_to_is_found_by_its_headers_as_well() {
    let packed = Path::new("../shared/dumps/residual.elf.zst");
    if !packed.exists() {
        eprintln!("skipped: {} is not there", packed.display());
        return;
    }
    let truth: serde_json::Value =
        serde_json::from_slice(&fs::read("../shared/dumps/residual.truth.json").unwrap()).unwrap();
    let (_, _, found) = by_headers(packed);
    let wanted = hashes(&truth["processes"]);
    assert!(wanted.len() >= 80 && wanted.iter().all(|hash| found.iter().any(|found| found == hash)));
    let folder = recover(packed, &[]);
    let recovery: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.path().join("recovery.json")).unwrap()).unwrap();
    let headers = recovery["processes"].as_array().unwrap().iter().map(|process| &process["headers"]);
    let headers: Vec<&serde_json::Value> = headers.filter(|headers| !headers.is_null()).collect();
    let [headers] = headers.as_slice() else { panic!("{recovery}") };
    assert_eq!((&headers["differing"], &headers["not_found"]), (&serde_json::json!([]), &serde_json::json!([])));
    assert_eq!(headers["found"], headers["of_python"]);
}

#[test]
fn five_levels_of_page_tables_and_everything_a_state_dict_can_hold() {
    let packed = Path::new("../shared/dumps/residual.elf.zst");
    if !packed.exists() {
        eprintln!("skipped: {} is not there", packed.display());
        return;
    }
    let truth = Truth::read(Path::new("../shared/dumps/residual.truth.json"));
    truth.check(recover(packed, &[]).path());
    let (_folder, plain) = unpack(packed);
    truth.check(recover(&plain, &["-j", "1"]).path());
}
