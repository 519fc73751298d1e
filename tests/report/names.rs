//! Names and sizes that the format has no room for: everything is written, or said not to be.

use safetensors::SafeTensors;
use serde_json::{Value as Json, json};
use tensorcarve::addr::VirtAddr;
use tensorcarve::model::{NamedTensor, Reading, StandaloneTensor, Status, TensorKind};
use tensorcarve::report;
use tensorcarve::tensor::ArrayInfo;

use super::fixture::{Victim, f32_bytes, raw, scalar};
use super::load::{python, python_with_torch, text};
use super::{mixed, others, write};

/// Names that are reserved, occur twice, look like a key that was made up, or like a part of another tensor.
fn odd_names() -> Victim {
    let mut victim = Victim::new("__main__.Net");
    victim.module("", ("__main__.Net", None), vec![]);
    victim.parameter("__metadata__", &[1], &[1.0]);
    victim.parameter("a.b", &[2], &[2.0; 2]);
    victim.parameter("", &[3], &[3.0; 3]);
    victim.parameter("nul\0in", &[4], &[4.0; 4]);
    victim.buffer("phase", raw("ComplexDouble", 16, "view_as_real", "F64"), &[1], &[0; 16]);
    victim.parameter("phase.view_as_real", &[5], &[5.0; 5]);
    victim.module("a", ("__main__.Net", None), vec![]);
    victim.parameter("b", &[6], &[6.0; 6]);
    victim.parameter("b~2", &[7], &[7.0; 7]);
    victim
}

fn document(path: std::path::PathBuf) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn row(rows: &Json, number: usize) -> (&Json, &Json, &Json) {
    (&rows[number]["name"], &rows[number]["file_name"], &rows[number]["status"])
}

#[test]
fn every_name_gets_a_key_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let found = odd_names().finish();
    assert!(report::is_whole(&found.1));
    write(dir.path(), false, &found).unwrap();
    let folder = dir.path().join("models/m0");
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let keys = ["__metadata__~2", "a.b", "", "nul\0in", "phase.view_as_real", "a.b~3", "a.b~2"];
    for (key, value) in keys.into_iter().zip([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) {
        assert_eq!(tensors.tensor(key).unwrap().data(), f32_bytes(&vec![value; value as usize]), "{key:?}");
    }
    assert_eq!(tensors.len(), keys.len());
    let model = document(folder.join("model.json"));
    let rows = &model["tensors"];
    let complete = json!("complete");
    assert_eq!(row(rows, 0), (&json!("__metadata__"), &json!("__metadata__~2"), &complete));
    assert_eq!(row(rows, 1), (&json!("a.b"), &Json::Null, &complete));
    assert_eq!(row(rows, 6), (&json!("a.b"), &json!("a.b~3"), &complete));
    let part = &rows[4]["parts"][0];
    assert_eq!((&part["name"], &part["file_name"]), (&json!("phase.view_as_real"), &json!("phase.view_as_real~2")));
    let totals = &document(dir.path().join("recovery.json"))["processes"][0]["models"][0]["totals"];
    assert_eq!((&totals["complete"], &totals["tensors"]), (&json!(8), &json!(8)));
    let Some(interpreter) = python_with_torch() else { return };
    let check = "import torch; from load import load; net = load()\n\
                 assert net._parameters['__metadata__'].tolist() == [1] and net._parameters['a.b'].tolist() == [2] * 2\n\
                 assert net._parameters[''].tolist() == [3] * 3 and net.phase.tolist() == [0]\n\
                 assert net._parameters['phase.view_as_real'].tolist() == [5] * 5\n\
                 assert net.a.b.tolist() == [6] * 6 and net.a._parameters['b~2'].tolist() == [7] * 7\n\
                 print('checks passed')";
    let output = python(interpreter, &folder, &["-c", check]);
    assert!(output.status.success() && text(&output).contains("checks passed"), "{}", text(&output));
}

#[test]
fn sizes_that_the_format_cannot_count_are_listed_and_the_rest_is_written() {
    let mut victim = odd_names();
    victim.strided("x", TensorKind::Gradient, scalar("Float", 4, Some("F32")), (&[1], &[1]), &f32_bytes(&[0.5]));
    let mut found = others(victim, &[]);
    let array = |address: u64, shape: &[u64]| {
        let info = ArrayInfo {
            object: VirtAddr(address),
            dtype: scalar("|V0", 0, None),
            shape: shape.to_vec(),
            strides: vec![0; shape.len()],
            data: VirtAddr(0x1000),
            base: None,
            fields: Vec::new(),
            holds_objects: false,
            is_undecided: false,
        };
        let first = &found.1.processes[0].standalone.found[0];
        let name = format!("0x1000.{address:#x}");
        let tensor = NamedTensor { kind: TensorKind::Array, name, info: None, sha256: None, ..first.tensor.clone() };
        StandaloneTensor { tensor, array: Some(info), ..first.clone() }
    };
    let arrays = [array(0x98, &[1 << 40, 1 << 40]), array(0x99, &[3, 3])];
    found.1.processes[0].standalone.found.extend(arrays);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), false, &found).unwrap();
    let listed = document(dir.path().join("tensors.json"));
    let [huge, plain] = &listed["arrays"].as_array().unwrap()[..] else { panic!("{listed}") };
    assert_eq!((&huge["status"], &huge["file"]), (&json!("missing"), &Json::Null));
    assert_eq!((&huge["problem_code"], &plain["problem_code"]), (&json!("not-written"), &Json::Null));
    assert!(huge["problem"].as_str().unwrap().contains("more elements than a safetensors file can count"), "{huge}");
    assert_eq!((&plain["status"], &plain["file"]), (&json!("complete"), &json!("tensors.safetensors")));
    let bytes = std::fs::read(dir.path().join("tensors.safetensors")).unwrap();
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().len(), 2);
}

#[test]
fn a_tensor_without_elements_in_the_dump_takes_no_memory_to_load() {
    let Some(interpreter) = python_with_torch() else { return };
    let mut victim = Victim::new("__main__.Net");
    victim.module("", ("__main__.Net", None), vec![]);
    victim.parameter("gone", &[1 << 40, 2], &[0.0]);
    victim.last().status = Status::Missing;
    victim.parameter("small", &[2], &[0.0]);
    victim.last().status = Status::Missing;
    victim.buffer("endless", scalar("Long", 8, Some("I64")), &[u64::MAX], &[0; 8]);
    victim.last().status = Status::Missing;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), false, &victim.finish()).unwrap();
    let check = "import resource; resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n\
                 import torch; from load import load; net = load(partial=True)\n\
                 assert net.gone.shape == (1 << 40, 2) and net.gone[7].isnan().all() and net.endless is None\n\
                 net.small.data[0] = 1; assert net.small[1].isnan() and net.small[0] == 1\n\
                 print('checks passed')";
    let output = python(interpreter, &dir.path().join("models/m0"), &["-c", check]);
    assert!(output.status.success() && text(&output).contains("checks passed"), "{}", text(&output));
}

#[test]
fn errors_of_pytorch_do_not_steer_the_terminal() {
    let Some(interpreter) = python_with_torch() else { return };
    let mut victim = Victim::new("__main__.Net");
    victim.module("", ("__main__.Net", None), vec![]);
    victim.module("\u{1b}]0;title\u{7}", ("torch.nn.modules.batchnorm.BatchNorm2d", None), vec![]);
    victim.parameter("weight", &[2], &[1.0; 2]);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), false, &victim.finish()).unwrap();
    let output = text(&python(interpreter, &dir.path().join("models/m0"), &["load.py"]));
    assert!(!output.contains(['\u{1b}', '\u{7}']) && output.contains("title"), "{output:?}");
}

#[test]
fn a_storage_is_written_for_elements_that_share_it_and_once_for_names_of_one_tensor() {
    let mut victim = Victim::new("__main__.Net");
    victim.module("", ("__main__.Net", None), vec![]);
    victim.parameter("row", &[2], &[1.0, 2.0]);
    let object = victim.last().object;
    victim.parameter("twin", &[2], &[1.0, 2.0]);
    let twin = victim.last();
    (twin.object, twin.same_as, twin.reading) = (object, Some("row".to_owned()), Reading::SameAsFirst);
    let mut repeat = |name: &str, shape: &[u64], stride: &[u64], values: &[f32]| {
        victim.parameter(name, &[values.len() as u64], values);
        let info = victim.last().info.as_mut().unwrap();
        (info.shape, info.stride) = (shape.to_vec(), stride.to_vec());
        victim.last().reading =
            Reading::Storage(victim.last().info.as_ref().unwrap().elements().unwrap().stored().unwrap());
    };
    repeat("wide", &[1 << 40, 2], &[0, 1], &[3.0, 4.0]);
    repeat("windows", &[3, 2], &[1, 1], &[5.0, 6.0, 7.0, 8.0]);
    let dir = tempfile::tempdir().unwrap();
    let found = victim.finish();
    assert!(report::is_whole(&found.1));
    write(dir.path(), false, &found).unwrap();
    let folder = dir.path().join("models/m0");
    let rows = &document(folder.join("model.json"))["tensors"];
    assert_eq!((&rows[1]["file"], &rows[1]["file_name"]), (&json!("model.safetensors"), &json!("row")));
    let [wide, windows] = [&rows[2], &rows[3]];
    assert_eq!(
        (&wide["status"], &wide["sha256"], &wide["file"]),
        (&json!("complete"), &Json::Null, &json!("parts.safetensors"))
    );
    assert_eq!(wide["form"], json!({"name": "overlapping", "offset": 0, "stride": [0, 1]}));
    assert_eq!((&wide["parts"][0]["name"], &wide["parts"][0]["shape"]), (&json!("wide.storage"), &json!([1, 2])));
    assert_eq!(windows["form"]["stride"], json!([1, 1]));
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().names(), ["row"]);
    let Some(interpreter) = python_with_torch() else { return };
    let check = "import torch; from load import load; net = load()\n\
                 assert net.twin is net.row and net.row.tolist() == [1, 2]\n\
                 assert net.wide.shape == (1 << 40, 2) and net.wide[12345].tolist() == [3, 4]\n\
                 assert net.windows.tolist() == [[5, 6], [6, 7], [7, 8]]\n\
                 print('checks passed')";
    let output = python(interpreter, &folder, &["-c", check]);
    assert!(output.status.success() && text(&output).contains("checks passed"), "{}", text(&output));
}

#[test]
fn an_ordinary_row_has_no_key_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), false, &mixed()).unwrap();
    let text = std::fs::read_to_string(dir.path().join("recovery.json")).unwrap();
    assert!(!text.contains("file_name"));
}
