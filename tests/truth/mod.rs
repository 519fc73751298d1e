//! What a victim said of itself, for tests of whole runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// All files below a folder: path within it and content.
pub fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            files.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap());
        }
    }
    files
}

/// A Python that can import PyTorch, if this machine has one.
pub fn python_with_torch() -> Option<PathBuf> {
    let candidates = ["python3", "/usr/bin/python3"];
    let can_import = |python: &&str| {
        let mut command = Command::new(python);
        command.args(["-c", "import torch"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    candidates.into_iter().find(can_import).map(PathBuf::from)
}

/// What the victims of a dump printed before it was taken.
pub struct Truth(Value);

impl Truth {
    pub fn read(path: &Path) -> Self {
        Self(serde_json::from_slice(&fs::read(path).unwrap()).unwrap())
    }

    /// Holds a recovery folder against the truth: tensors, classes, hyper-parameters, gradients, optimizers,
    /// versions, and that nothing else is called a model.
    pub fn check(&self, folder: &Path) {
        let recovery: Value = serde_json::from_slice(&fs::read(folder.join("recovery.json")).unwrap()).unwrap();
        let processes = recovery["processes"].as_array().unwrap();
        let found: Vec<(&Value, &Value)> = processes
            .iter()
            .flat_map(|process| process["models"].as_array().unwrap().iter().map(move |model| (process, model)))
            .collect();
        let victims = self.0["processes"].as_array().unwrap();
        let classes = |models: Vec<&Value>| {
            let mut classes: Vec<_> = models.into_iter().map(|model| model["class"].clone().to_string()).collect();
            classes.sort();
            classes
        };
        assert_eq!(classes(found.iter().map(|(_, model)| *model).collect()), classes(victims.iter().collect()));
        for victim in victims {
            let (process, model) = found.iter().find(|(_, model)| model["class"] == victim["class"]).unwrap();
            assert_eq!((&process["pid"], process["comm"].as_str()), (&victim["pid"], Some("python3")));
            for part in ["python", "torch"] {
                assert_eq!(process[part]["version"], victim[part], "version of {part}");
            }
            check_tensors(folder, model, victim["state_dict"].as_object().unwrap());
            check_modules(folder, model, victim["modules"].as_object().unwrap());
            check_training(folder, model, victim);
        }
    }
}

fn check_tensors(folder: &Path, model: &Value, truth: &serde_json::Map<String, Value>) {
    let rows = model["tensors"].as_array().unwrap();
    let persistent: Vec<&str> =
        rows.iter().filter(|row| row["persistent"] == true).map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(persistent, truth.keys().collect::<Vec<_>>(), "the names and their order");
    let bytes = fs::read(folder.join(model["dir"].as_str().unwrap()).join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), truth.len());
    for (name, said) in truth {
        let row = rows.iter().find(|row| row["name"] == *name).unwrap();
        assert_eq!(row["status"], "complete", "{name}");
        for key in ["shape", "stride", "requires_grad"] {
            let is_empty = said["shape"].as_array().unwrap().contains(&0.into());
            assert!(row[key] == said[key] || (key == "stride" && is_empty), "{key} of {name}");
        }
        assert_eq!(row["storage_offset"], said["offset"], "{name}");
        assert_eq!(row["sha256"], said["sha256"], "{name}");
        if said["data_ptr"] != "0x0" {
            assert_eq!(row["data"], said["data_ptr"], "{name}");
        }
        let view = file.tensor(name).unwrap();
        assert_eq!(serde_json::to_value(view.shape()).unwrap(), said["shape"], "{name}");
        assert_eq!(torch_name(&view.dtype().to_string()), said["dtype"], "{name}");
        let hash: String = Sha256::digest(view.data()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, said["sha256"], "bytes of {name} in model.safetensors");
    }
}

fn torch_name(safetensors: &str) -> &str {
    match safetensors {
        "F64" => "float64",
        "F32" => "float32",
        "F16" => "float16",
        "BF16" => "bfloat16",
        "I64" => "int64",
        "BOOL" => "bool",
        other => other,
    }
}

fn check_modules(folder: &Path, model: &Value, truth: &serde_json::Map<String, Value>) {
    let path = folder.join(model["dir"].as_str().unwrap()).join("model.json");
    let document: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let modules = document["modules"].as_array().unwrap();
    let names: Vec<&str> = modules.iter().map(|module| module["name"].as_str().unwrap()).collect();
    assert_eq!(names, truth.keys().collect::<Vec<_>>(), "the modules and their order");
    for module in modules {
        let said = &truth[module["name"].as_str().unwrap()];
        assert_eq!(module["class"], said["class"]);
        assert_eq!(module["object"], said["id"]);
        for (name, value) in said["hyper"].as_object().unwrap() {
            assert_eq!(module["hyper"][name], *value, "{name} of {}", module["name"]);
        }
    }
}

/// Gradients and the optimizer: these tensors and no others, and its class and plain settings.
fn check_training(folder: &Path, model: &Value, victim: &Value) {
    let folder = folder.join(model["dir"].as_str().unwrap());
    let optimizer = &victim["optimizer"];
    let mut state = serde_json::Map::new();
    for (parameter, values) in optimizer["state"].as_object().unwrap() {
        let tensors = values.as_object().unwrap().iter().filter(|(_, value)| value.is_object());
        state.extend(tensors.map(|(key, value)| (format!("{parameter}.{key}"), value.clone())));
    }
    for (name, truth) in [("grads", victim["grads"].as_object().unwrap()), ("optimizer", &state)] {
        let bytes = fs::read(folder.join(format!("{name}.safetensors"))).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert!(!truth.is_empty());
        assert_eq!(file.len(), truth.len(), "{name}");
        for (tensor, said) in truth {
            let view = file.tensor(tensor).unwrap();
            assert_eq!(serde_json::to_value(view.shape()).unwrap(), said["shape"], "{name}: {tensor}");
            assert_eq!(torch_name(&view.dtype().to_string()), said["dtype"], "{name}: {tensor}");
            let hash: String = Sha256::digest(view.data()).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hash, said["sha256"], "{name}: {tensor}");
        }
    }
    let document: Value = serde_json::from_slice(&fs::read(folder.join("model.json")).unwrap()).unwrap();
    let [found] = document["optimizers"].as_array().unwrap().as_slice() else { panic!("one optimizer") };
    let class = found["class"].as_str().unwrap();
    assert_eq!(class.rsplit('.').next(), optimizer["class"].as_str());
    let groups = found["groups"].as_array().unwrap();
    let said = optimizer["param_groups"].as_array().unwrap();
    assert_eq!(groups.len(), said.len());
    for (group, said) in groups.iter().zip(said) {
        for (name, value) in said.as_object().unwrap() {
            assert_eq!(group["settings"][name], *value, "{name} of {class}");
        }
    }
}
