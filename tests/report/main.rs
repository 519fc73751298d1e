//! The output folder: what is in it, when it is refused, and that a failure leaves no trace.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may simply fail")]

mod chain;
mod fixture;
mod load;
#[path = "../mounted/mod.rs"]
mod mounted;
mod names;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fixture::{Quiet, Victim, f32_bytes, run, scalar};
use mounted::Mounted;
use safetensors::SafeTensors;
use serde_json::{Value as Json, json};
use tensorcarve::cpython::Value;
use tensorcarve::dump::Dump;
use tensorcarve::model::{Model, NamedTensor, Referrer, Sighting, StandaloneTensor, Status, TensorKind};
use tensorcarve::recover::Recovery;
use tensorcarve::report::{self, OutputError, OutputFolder};
use tensorcarve::tensor::ArrayInfo;

/// Writes a recovery to a folder.
fn write(path: &Path, overwrite: bool, found: &(Dump, Recovery)) -> Result<(), OutputError> {
    let folder = OutputFolder::create(path, overwrite)?;
    report::write(folder, &found.0, &found.1, &Quiet, run)
}

/// Every file below a folder with its bytes.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(tree(&path));
            files.insert(path, Vec::new());
        } else {
            files.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    files
}

fn json(path: PathBuf) -> Json {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Types of all sizes, strides, a tied weight, and each status.
fn mixed_victim() -> Victim {
    let mut victim = Victim::new("__main__.Net");
    victim.module("", ("__main__.Net", Some("torch.nn.modules.module.Module")), vec![("rate", Value::Float(0.5))]);
    victim.module("fc", ("torch.nn.modules.linear.Linear", None), vec![("kernel", fixture::ints(&[2, 3]))]);
    victim.buffer("flags", scalar("Bool", 1, Some("BOOL")), &[3], &[1, 0, 1]);
    // Stored by columns.
    let float = || scalar("Float", 4, Some("F32"));
    victim.strided("weight", TensorKind::Parameter, float(), (&[2, 3], &[1, 2]), &f32_bytes(&[1., 4., 2., 5., 3., 6.]));
    victim.parameter("bias", &[2], &[0.5, -0.5]);
    victim.buffer("count", scalar("Long", 8, Some("I64")), &[], &7i64.to_le_bytes());
    victim.buffer("empty", scalar("BFloat16", 2, Some("BF16")), &[0, 4], &[]);
    victim.buffer("cache", float(), &[2], &f32_bytes(&[8., 9.]));
    victim.last().persistent = false;
    victim.buffer("odd", scalar("ComplexDouble", 16, None), &[1], &[0; 16]);
    victim.new_page();
    victim.lose_page_at(0x1000);
    victim.parameter("torn", &[1024], &[1.0; 1024]);
    victim.parameter("gone", &[4], &[0.0; 4]);
    victim.last().status = Status::Missing;
    victim.new_page();
    victim.parameter("twin", &[2], &[0.5, -0.5]);
    victim.last().same_as = Some("fc.bias".to_owned());
    victim
}

fn mixed() -> (Dump, Recovery) {
    mixed_victim().finish()
}

#[test]
fn weights_are_what_state_dict_holds() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a/b/out");
    write(&out, false, &mixed()).unwrap();
    let bytes = fs::read(out.join("models/m0/model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(length % 8, 0);
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    // Large types first, each in the order of state_dict.
    let order = ["fc.count", "fc.weight", "fc.bias", "fc.twin", "fc.empty", "fc.flags"];
    assert_eq!(metadata.offset_keys(), order);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("fc.weight").unwrap().data(), f32_bytes(&[1., 2., 3., 4., 5., 6.]));
    assert_eq!(tensors.tensor("fc.weight").unwrap().shape(), [2, 3]);
    assert_eq!(tensors.tensor("fc.count").unwrap().data(), 7i64.to_le_bytes());
    assert_eq!(tensors.tensor("fc.empty").unwrap().shape(), [0, 4]);
    let buffers = fs::read(out.join("models/m0/buffers.safetensors")).unwrap();
    assert_eq!(SafeTensors::deserialize(&buffers).unwrap().names(), ["fc.cache"]);
    let partial = fs::read(out.join("models/m0/partial.safetensors")).unwrap();
    let partial = SafeTensors::deserialize(&partial).unwrap();
    let torn = partial.tensor("fc.torn").unwrap();
    assert_eq!(torn.data()[..0xfc0], f32_bytes(&[1.0; 0x3f0]));
    assert!(torn.data()[0xfc0..].iter().all(|byte| *byte == 0));
}

#[test]
fn what_training_left_goes_to_files_of_its_own() {
    let mut victim = mixed_victim();
    let float = || scalar("Float", 4, Some("F32"));
    victim.strided("weight", TensorKind::Gradient, float(), (&[2], &[1]), &f32_bytes(&[0.25, 4.]));
    victim.strided("weight.step", TensorKind::Optimizer, float(), (&[], &[]), &f32_bytes(&[3.]));
    victim.new_page();
    victim.lose_page_at(0x1000);
    victim.strided("torn", TensorKind::Gradient, float(), (&[1024], &[1]), &f32_bytes(&[2.; 1024]));
    victim.strided("torn.momentum", TensorKind::Optimizer, float(), (&[2], &[1]), &f32_bytes(&[5., 6.]));
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), false, &victim.finish()).unwrap();
    let folder = dir.path().join("models/m0");
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    for (file, name, values) in
        [("grads.safetensors", "fc.weight", &[0.25, 4.][..]), ("optimizer.safetensors", "fc.weight.step", &[3.])]
    {
        let bytes = read(file);
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.tensor(name).unwrap().data(), f32_bytes(values), "{file}");
    }
    for (file, name) in [("partial_grads", "fc.torn"), ("partial_optimizer", "fc.torn.momentum")] {
        let bytes = read(&format!("{file}.safetensors"));
        assert_eq!(SafeTensors::deserialize(&bytes).unwrap().names(), [name]);
    }
    // The weights are as without them.
    let alone = tempfile::tempdir().unwrap();
    write(alone.path(), false, &mixed()).unwrap();
    assert_eq!(read("model.safetensors"), fs::read(alone.path().join("models/m0/model.safetensors")).unwrap());
    let row = json(dir.path().join("recovery.json"))["processes"][0]["models"][0].clone();
    assert_eq!((&row["totals"]["gradients"], &row["totals"]["optimizer_tensors"]), (&json!(2), &json!(2)));
    // All of it is ours to replace.
    write(dir.path(), true, &mixed()).unwrap();
    assert!(!folder.join("partial_grads.safetensors").exists());
}

/// The training tensors of a victim, as tensors of no model.
fn others(victim: Victim, referrers: &[Referrer]) -> (Dump, Recovery) {
    let (dump, mut recovery) = victim.finish();
    let process = &mut recovery.processes[0];
    let taken = std::mem::take(&mut process.models[0].training);
    let other = |tensor: NamedTensor| StandaloneTensor {
        sightings: vec![Sighting { root: process.root(), object: tensor.object }],
        tensor: NamedTensor { kind: TensorKind::Other, name: format!("0x1000.{}", tensor.object), ..tensor },
        array: None,
        referrers: referrers.to_vec(),
        is_left_out: false,
    };
    process.standalone.found = taken.into_iter().map(other).collect();
    (dump, recovery)
}

#[test]
fn tensors_of_no_model_stand_beside_the_models() {
    let mut victim = mixed_victim();
    let float = || scalar("Float", 4, Some("F32"));
    victim.strided("a", TensorKind::Gradient, float(), (&[2], &[1]), &f32_bytes(&[0.25, 4.]));
    victim.new_page();
    victim.lose_page_at(0x1000);
    victim.strided("b", TensorKind::Gradient, float(), (&[1024], &[1]), &f32_bytes(&[2.; 1024]));
    let module = victim.model.modules[1].object;
    let referrers = [
        Referrer::Module { object: module, path: "cache[0]".to_owned() },
        Referrer::Module { object: tensorcarve::addr::VirtAddr(0x77), path: "x".to_owned() },
        Referrer::Global { path: "__main__.batch".to_owned() },
    ];
    let mut found = others(victim, &referrers);
    let array = ArrayInfo {
        object: tensorcarve::addr::VirtAddr(0x99),
        dtype: scalar(">f4", 4, None),
        shape: vec![2],
        strides: vec![-4],
        data: found.1.processes[0].standalone.found[0].tensor.info.as_ref().unwrap().data.checked_add(4).unwrap(),
        base: None,
        fields: Vec::new(),
        holds_objects: false,
        is_undecided: false,
    };
    let first = found.1.processes[0].standalone.found[0].clone();
    let tensor = NamedTensor {
        kind: TensorKind::Array,
        name: "0x1000.0x99".to_owned(),
        info: None,
        sha256: None,
        ..first.tensor.clone()
    };
    found.1.processes[0].standalone.found.push(StandaloneTensor { tensor, array: Some(array), ..first });
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), false, &found).unwrap();
    let document = json(dir.path().join("tensors.json"));
    let [whole, torn] = &document["tensors"].as_array().unwrap()[..] else { panic!("{document}") };
    assert_eq!((&whole["file"], &whole["status"]), (&json!("tensors.safetensors"), &json!("complete")));
    assert_eq!(whole["referrers"], json!(["m0: fc.cache[0]", "module at 0x77: x", "__main__.batch"]));
    assert_eq!((&torn["file"], &torn["sha256"]), (&json!("partial_tensors.safetensors"), &Json::Null));
    let row = &document["arrays"][0];
    assert_eq!((&row["numpy_dtype"], &row["strides"]), (&json!(">f4"), &json!([-4])));
    assert_eq!(row["parts"][0]["name"], "0x1000.0x99.bytes");
    let bytes = fs::read(dir.path().join("tensors.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor(whole["name"].as_str().unwrap()).unwrap().data(), f32_bytes(&[0.25, 4.]));
    let backwards = tensors.tensor("0x1000.0x99.bytes").unwrap();
    assert_eq!((backwards.shape(), backwards.data()), (&[2, 4][..], &f32_bytes(&[4., 0.25])[..]));
    let model = json(dir.path().join("models/m0/model.json"));
    let held = json!({"attribute": "cache[0]", "name": whole["name"]});
    assert_eq!(model["modules"][1]["other_tensors"][0], held);
    assert_eq!(model["modules"][0]["other_tensors"], json!([]));
    let process = &json(dir.path().join("recovery.json"))["processes"][0];
    assert_eq!((&process["other_tensors"], &process["arrays"]), (&json!(2), &json!(1)));
    write(dir.path(), true, &mixed()).unwrap();
    for name in ["tensors.json", "tensors.safetensors", "partial_tensors.safetensors"] {
        assert!(!dir.path().join(name).exists(), "{name}");
    }
}

#[test]
fn documents_say_what_was_found() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), false, &mixed()).unwrap();
    let recovery = json(dir.path().join("recovery.json"));
    assert_eq!(recovery["schema_version"], 1);
    assert_eq!(recovery["dump"]["format"], "raw");
    assert_eq!(recovery["dump"]["ranges"][0]["start"], "0x0");
    assert_eq!(
        recovery["spaces"][0],
        json!({"root": "0x1000", "levels": 4, "kind": "process", "kpti_user_root": null})
    );
    let process = &recovery["processes"][0];
    assert_eq!(
        (&process["pid"], &process["comm"], &process["torch"]["version"]),
        (&Json::Null, &Json::Null, &Json::Null)
    );
    assert_eq!(process["python"]["layout"]["runner_up"]["version"], "3.12");
    assert_eq!(process["python"]["layout"]["source"], "inferred");
    let change = json!({"number": "list.ob_item", "from": 24, "to": 32});
    assert_eq!(process["python"]["layout"]["changes"], json!([change]));
    let torch = &process["torch"]["layout"];
    assert_eq!((&torch["inferred"], &torch["runner_up"]), (&json!(true), &Json::Null));
    assert_eq!(torch["changes"], json!([{"number": "tensor.numel", "from": 168, "to": 184}]));
    let model = &process["models"][0];
    assert_eq!((&model["dir"], &model["class"]), (&json!("models/m0"), &json!("__main__.Net")));
    let row = |name: &str| {
        let rows = model["tensors"].as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).unwrap().clone()
    };
    let weight = row("fc.weight");
    assert_eq!((&weight["dtype"], &weight["stride"]), (&json!("F32"), &json!([1, 2])));
    assert_eq!(weight["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(row("fc.empty")["data"], Json::Null);
    assert_eq!((&row("fc.torn")["status"], &row("fc.torn")["sha256"]), (&json!("partial"), &Json::Null));
    assert_eq!(row("fc.torn")["holes"][0]["start"], 0xfc0);
    assert_eq!(row("fc.gone")["status"], "missing");
    let odd = row("fc.odd");
    assert_eq!((&odd["file"], &odd["dtype"]), (&json!("parts.safetensors"), &json!("ComplexDouble")));
    let part = &odd["parts"][0];
    assert_eq!((&part["name"], &part["dtype"]), (&json!("fc.odd.bytes"), &json!("U8")));
    assert_eq!((&part["shape"], &part["sha256"]), (&json!([1, 16]), &odd["sha256"]));
    let model = json(dir.path().join("models/m0/model.json"));
    assert_eq!(model["modules"][1]["hyper"]["kernel"], json!([2, 3]));
    assert_eq!(model["modules"][1]["python_types"], json!([["tuple", "hyper", "kernel"]]));
    let manifest = json(dir.path().join("manifest.json"));
    assert_eq!(manifest["started"], "1970-01-01T00:00:00Z");
    assert_eq!((&manifest["seconds"]["scan"], &manifest["input"]["sha256"]), (&json!(1.5), &Json::Null));
    assert_eq!(manifest["warnings"], json!(["made by hand", "a \"warning\"\n", "the GPU failed"]));
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let write_to = |name: &str| {
        write(&dir.path().join(name), false, &mixed()).unwrap();
        let files = tree(&dir.path().join(name)).into_iter();
        let relative = files.map(|(path, bytes)| (path.strip_prefix(dir.path().join(name)).unwrap().to_owned(), bytes));
        relative.filter(|(path, _)| path != Path::new("manifest.json")).collect::<Vec<_>>()
    };
    assert_eq!(write_to("a"), write_to("b"));
}

#[test]
fn a_failure_leaves_the_folder_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut found = mixed();
    found.1.processes[0].models[0].tensors[1].sha256 = Some("0".repeat(64));
    let out = dir.path().join("new/out");
    let error = write(&out, false, &found).unwrap_err();
    assert!(matches!(&error, OutputError::Changed { tensor, .. } if tensor == "fc.weight"), "{error}");
    assert!(!dir.path().join("new").exists());
    // With an earlier output in it, that stays.
    write(&out, false, &mixed()).unwrap();
    let before = tree(&out);
    write(&out, true, &found).unwrap_err();
    assert_eq!(tree(&out), before);
}

#[test]
fn a_full_disk_is_found_out_before_or_while_writing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mounted) = Mounted::new(dir.path(), "size=24k") else { return };
    let mut large = Victim::new("__main__.Net");
    large.module("", ("__main__.Net", None), vec![]);
    large.parameter("weight", &[8192], &[1.0; 8192]);
    let error = write(&dir.path().join("out"), false, &large.finish()).unwrap_err();
    assert!(matches!(error, OutputError::NoSpace { need: Some(0x8000), .. }), "{error}");
    // The weights fit, the documents do not.
    let error = write(&dir.path().join("out"), false, &mixed()).unwrap_err();
    assert!(matches!(error, OutputError::NoSpace { need: None, .. }), "{error}");
    assert!(tree(dir.path()).is_empty());
}

#[test]
fn only_what_we_wrote_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    fs::write(out.join("notes.txt"), "mine").unwrap();
    let is_refused = |overwrite, wanted: fn(&OutputError) -> bool| {
        let before = tree(out);
        let error = write(out, overwrite, &mixed()).unwrap_err();
        assert!(wanted(&error), "{error}");
        assert_eq!(tree(out), before);
    };
    is_refused(false, |error| matches!(error, OutputError::NotEmpty(_)));
    is_refused(true, |error| matches!(error, OutputError::NotOurs(_)));
    // Documents that only begin like ours.
    fs::write(out.join("recovery.json"), "{\"schema_version\": 1, \"tool\": \"tensorcarve\", \"x\": 1}").unwrap();
    is_refused(true, |error| matches!(error, OutputError::NotOurs(_)));
    fs::write(out.join("manifest.json"), "{\"schema_version\": 1, \"tool\": \"tensorcarve\", \"output\": {").unwrap();
    is_refused(true, |error| matches!(error, OutputError::NotOurs(_)));
    for name in ["recovery.json", "manifest.json", "notes.txt"] {
        fs::remove_file(out.join(name)).unwrap();
    }
    write(out, false, &mixed()).unwrap();
    is_refused(false, |error| matches!(error, OutputError::NotEmpty(_)));
    // Foreign files under names that are ours: a model that we did not write, and files of a model that somebody made.
    for name in ["models/m0/notes.txt", "models/m9/model.json", "models/m0/grads.safetensors", "notes.txt"] {
        fs::create_dir_all(out.join(name).parent().unwrap()).unwrap();
        fs::write(out.join(name), "mine").unwrap();
        let error = write(out, true, &mixed()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("would be lost"), "{error}");
        assert_eq!(fs::read(out.join(name)).unwrap(), b"mine");
        fs::remove_file(out.join(name)).unwrap();
        let _ = fs::remove_dir(out.join("models/m9"));
    }
    // A file of ours that somebody changed.
    let load = fs::read(out.join("models/m0/load.py")).unwrap();
    fs::write(out.join("models/m0/load.py"), [&load[..], b"# forward: see my notes"].concat()).unwrap();
    is_refused(true, |error| matches!(error, OutputError::Foreign(path) if path.ends_with("models/m0/load.py")));
    fs::write(out.join("models/m0/load.py"), load).unwrap();
    let (dump, mut recovery) = mixed();
    recovery.processes[0].models.clear();
    write(out, true, &(dump, recovery)).unwrap();
    let names: Vec<_> = tree(out).into_keys().map(|path| path.strip_prefix(out).unwrap().to_owned()).collect();
    assert_eq!(names, ["manifest.json", "recovery.json"].map(PathBuf::from));
}

#[test]
fn an_interrupted_run_is_undone_or_can_be_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let folder = OutputFolder::create(&out, false).unwrap();
    let second = OutputFolder::create(&out, false).map(drop);
    assert!(matches!(second, Err(OutputError::Busy(_))));
    let second = OutputFolder::create(&out, true).map(drop);
    assert!(matches!(second, Err(OutputError::Busy(_))));
    folder.cleanup().run();
    assert!(!out.exists());
    drop(folder);
    // Killed: nobody could clean up.
    fs::create_dir_all(out.join(".tensorcarve-incomplete/models")).unwrap();
    fs::write(out.join(".tensorcarve-incomplete/README"), "interrupted").unwrap();
    assert!(matches!(write(&out, false, &mixed()), Err(OutputError::NotEmpty(_))));
    write(&out, true, &mixed()).unwrap();
    assert!(out.join("recovery.json").exists());
}

#[test]
fn an_interruption_while_files_are_written_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (dump, mut recovery) = mixed();
    let model = recovery.processes[0].models[0].clone();
    let numbered = |number: usize| Model { id: format!("m{number}"), ..model.clone() };
    recovery.processes[0].models = (0..2000).map(numbered).collect();
    let out = dir.path().join("out");
    let folder = OutputFolder::create(&out, false).unwrap();
    let cleanup = folder.cleanup();
    // The thread waits for the end of the process.
    std::thread::spawn(move || report::write(folder, &dump, &recovery, &Quiet, run));
    while !out.join(".tensorcarve-incomplete/models").exists() {
        std::thread::yield_now();
    }
    assert!(cleanup.run_for_good());
    std::thread::sleep(Duration::from_millis(50));
    assert!(!out.exists(), "{:?}", tree(&out).into_keys().collect::<Vec<_>>());
}

#[test]
fn lines_and_tables_hold_what_was_found() {
    let (dump, mut recovery) = mixed();
    recovery.processes[0].models[0].class = Some("__main__.\u{1b}[31mNet".to_owned());
    let print = |print: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        print(&mut out);
        String::from_utf8(out).unwrap()
    };
    let jsonl = print(&|out| report::print_jsonl(out, &recovery).unwrap());
    let line: Json = serde_json::from_str(jsonl.trim_end()).unwrap();
    assert_eq!((&line["id"], &line["root"]), (&json!("m0"), &json!("0x1000")));
    let csv = print(&|out| report::print_csv(out, &recovery).unwrap());
    assert_eq!(csv.lines().count(), 1 + 10);
    assert!(csv.contains("fc.weight,parameter,true,F32,2x3,1x2,0,0x7f00"), "{csv}");
    let document = print(&|out| report::print_json(out, &dump, &recovery).unwrap());
    assert!(
        document.lines().any(|line| line.contains("\"name\": \"fc.weight\"") && line.contains("\"stride\": [1, 2]"))
    );
    let table = report::models_table(&recovery);
    assert!(table.contains("__main__.\\u{1b}[31mNet") && table.contains("8/10"), "{table}");
    assert!(table.contains("1 partial, 1 missing"), "{table}");
    assert!(!report::is_whole(&recovery));
}

#[test]
fn what_only_an_inferred_layout_reads_is_marked() {
    let mut victim = Victim::new("__main__.Net");
    victim.module("", ("__main__.Net", Some("torch.nn.modules.module.Module")), vec![]);
    victim.parameter("a", &[2], &[1., 2.]);
    victim.parameter("b", &[2], &[3., 4.]);
    victim.last().inferred = true;
    let (dump, mut recovery) = victim.finish();
    let dir = tempfile::tempdir().unwrap();
    assert!(report::models_table(&recovery).contains("complete, 1 with an inferred layout"));
    recovery.processes[0].models[0].tensors[0].inferred = true;
    assert!(report::models_table(&recovery).contains("complete, inferred layout"));
    recovery.processes[0].models[0].tensors[0].inferred = false;
    write(dir.path(), false, &(dump, recovery)).unwrap();
    let model = json(dir.path().join("recovery.json"))["processes"][0]["models"][0].clone();
    assert_eq!(model["totals"]["inferred"], 1);
    let rows: Vec<_> = model["tensors"].as_array().unwrap().iter().collect();
    assert_eq!((rows[0].get("inferred"), rows[1].get("inferred")), (None, Some(&json!(true))));
    assert_eq!(rows[1]["status"], "complete");
    let tree = json(dir.path().join("models/m0/model.json"));
    assert_eq!(tree["tensors"][1]["inferred"], true);
}
