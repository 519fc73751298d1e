//! `model.json`: the tree of a model's modules, which `load.py` builds again.

use std::collections::HashMap;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::SCHEMA_VERSION;
use super::model::ProblemRows;
use super::standalone::HeldRow;
use super::tensor::TensorRow;
use crate::addr::VirtAddr;
use crate::cpython::Value;
use crate::model::{ChainFacts, Model, ModelKind, Module, Optimizer, ParamGroup, Sighting};

/// The document.
#[derive(Serialize)]
pub(super) struct TreeDocument<'a> {
    schema_version: u32,
    id: &'a str,
    kind: ModelKind,
    class: Option<&'a str>,
    object: VirtAddr,
    /// What speaks for a chain of layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<&'a ChainFacts>,
    sightings: &'a [Sighting],
    modules: Vec<ModuleRow<'a>>,
    tensors: Vec<TensorRow<'a>>,
    /// Gradients, and tensors of optimizers.
    training: Vec<TensorRow<'a>>,
    optimizers: Vec<OptimizerRow<'a>>,
    #[serde(flatten)]
    problems: ProblemRows,
}

impl<'a> TreeDocument<'a> {
    /// `held` are the tensors that modules hold beside their parameters and buffers.
    pub(super) fn new(model: &'a Model, held: &'a HashMap<VirtAddr, Vec<HeldRow<'a>>>) -> Self {
        let (tensors, training) = TensorRow::all(model);
        Self {
            schema_version: SCHEMA_VERSION,
            id: &model.id,
            kind: model.kind(),
            class: model.class.as_deref(),
            object: model.object,
            chain: model.chain.as_ref(),
            sightings: &model.sightings,
            modules: model.modules.iter().map(|module| ModuleRow::new(module, held)).collect(),
            tensors,
            training,
            optimizers: model.optimizers.iter().map(OptimizerRow::new).collect(),
            problems: ProblemRows::new(&model.problems),
        }
    }
}

/// An optimizer; its tensors are among those of the document.
#[derive(Serialize)]
struct OptimizerRow<'a> {
    class: &'a str,
    object: VirtAddr,
    groups: Vec<GroupRow<'a>>,
    state: Vec<StateRow<'a>>,
    #[serde(flatten)]
    problems: ProblemRows,
}

#[derive(Serialize)]
struct GroupRow<'a> {
    settings: Pairs<'a, Value>,
    parameters: &'a [String],
    /// Parameters that are not this model's.
    others: usize,
}

/// What an optimizer keeps for a parameter and is no tensor.
#[derive(Serialize)]
struct StateRow<'a> {
    parameter: &'a str,
    key: &'a str,
    value: &'a Value,
}

impl<'a> OptimizerRow<'a> {
    fn new(optimizer: &'a Optimizer) -> Self {
        let group = |group: &'a ParamGroup| GroupRow {
            settings: Pairs(&group.settings),
            parameters: &group.parameters,
            others: group.others,
        };
        Self {
            class: &optimizer.class,
            object: optimizer.object,
            groups: optimizer.groups.iter().map(group).collect(),
            state: optimizer.state.iter().map(|(parameter, key, value)| StateRow { parameter, key, value }).collect(),
            problems: ProblemRows::new(&optimizer.problems),
        }
    }
}

#[derive(Serialize)]
struct ModuleRow<'a> {
    name: &'a str,
    class: Option<&'a str>,
    torch_class: Option<&'a str>,
    training: Option<bool>,
    /// The public attributes in one line, as PyTorch's `extra_repr()` has some of them.
    extra_repr: String,
    #[serde(rename = "hyper")]
    hyperparameters: Pairs<'a, Value>,
    private: Pairs<'a, Value>,
    /// What the two above hold that JSON has no type for.
    python_types: Vec<Vec<Step<'a>>>,
    parameters: &'a [String],
    buffers: &'a [String],
    unset: Pairs<'a, crate::model::TensorKind>,
    /// Tensors and arrays among its other attributes, which `state_dict()` leaves out.
    other_tensors: &'a [HeldRow<'a>],
    object: VirtAddr,
}

impl<'a> ModuleRow<'a> {
    fn new(module: &'a Module, held: &'a HashMap<VirtAddr, Vec<HeldRow<'a>>>) -> Self {
        let mut python_types = Vec::new();
        for (section, values) in [("hyper", &module.hyperparameters), ("private", &module.private)] {
            for (name, value) in values {
                note_types(value, &mut vec![Step::Name(section), Step::Name(name)], &mut python_types);
            }
        }
        Self {
            name: &module.name,
            class: module.class.as_deref(),
            torch_class: module.framework_class.as_deref(),
            training: module.training,
            extra_repr: extra_repr(&module.hyperparameters),
            hyperparameters: Pairs(&module.hyperparameters),
            private: Pairs(&module.private),
            python_types,
            parameters: &module.parameters,
            buffers: &module.buffers,
            unset: Pairs(&module.unset),
            other_tensors: held.get(&module.object).map_or(&[], Vec::as_slice),
            object: module.object,
        }
    }
}

/// `name=value, …` as Python writes it; whether a module is in training mode stands elsewhere.
fn extra_repr(attributes: &[(String, Value)]) -> String {
    let shown = attributes.iter().filter(|(name, _)| name != "training");
    let texts: Vec<String> = shown.map(|(name, value)| format!("{name}={}", repr(value))).collect();
    texts.join(", ")
}

/// A value as Python writes it.
fn repr(value: &Value) -> String {
    let all = |values: &[Value]| values.iter().map(repr).collect::<Vec<_>>().join(", ");
    match value {
        Value::None => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) if value.is_nan() => "nan".to_owned(),
        Value::Float(value) => format!("{value:?}"),
        Value::Str(text) => format!("'{}'", text.escape_debug()),
        Value::Tuple(values) if values.len() == 1 => format!("({},)", all(values)),
        Value::Tuple(values) => format!("({})", all(values)),
        Value::List(values) => format!("[{}]", all(values)),
    }
}

/// A part of the way to a value: a type's name first, then the section, the attribute, and indices.
#[derive(Clone, Serialize)]
#[serde(untagged)]
enum Step<'a> {
    Name(&'a str),
    Index(usize),
}

/// Notes where a value and those in it are no JSON: outer ones first.
fn note_types<'a>(value: &Value, path: &mut Vec<Step<'a>>, out: &mut Vec<Vec<Step<'a>>>) {
    let name = match value {
        Value::Tuple(_) => Some("tuple"),
        Value::Float(value) if !value.is_finite() => Some("float"),
        Value::Int(value) if i64::try_from(*value).is_err() && u64::try_from(*value).is_err() => Some("int"),
        _ => None,
    };
    if let Some(name) = name {
        out.push([&[Step::Name(name)], path.as_slice()].concat());
    }
    if let Value::Tuple(values) | Value::List(values) = value {
        for (index, value) in values.iter().enumerate() {
            path.push(Step::Index(index));
            note_types(value, path, out);
            path.pop();
        }
    }
}

/// Pairs as an object, in their order.
struct Pairs<'a, T>(&'a [(String, T)]);

impl<T: Serialize> Serialize for Pairs<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_one_line() {
        let named = |name: &str, value| (name.to_owned(), value);
        let line = extra_repr(&[
            named("training", Value::Bool(true)),
            named("size", Value::Tuple(vec![Value::Int(5), Value::Bool(false)])),
            named("one", Value::Tuple(vec![Value::Float(0.5)])),
            named("mode", Value::Str("it's\n".to_owned())),
            named("rest", Value::List(vec![Value::None, Value::Float(f64::NEG_INFINITY)])),
        ]);
        assert_eq!(line, r"size=(5, False), one=(0.5,), mode='it\'s\n', rest=[None, -inf]");
    }

    #[test]
    fn what_json_cannot_say_is_noted() {
        let nested = Value::Tuple(vec![Value::Int(1), Value::List(vec![Value::Tuple(vec![]), Value::Float(f64::NAN)])]);
        let mut noted = Vec::new();
        note_types(&nested, &mut vec![Step::Name("hyper"), Step::Name("x")], &mut noted);
        note_types(&Value::Int(1 << 70), &mut vec![Step::Name("private"), Step::Name("y")], &mut noted);
        let text = serde_json::to_string(&noted).unwrap();
        let expected =
            r#"[["tuple","hyper","x"],["tuple","hyper","x",1,0],["float","hyper","x",1,1],["int","private","y"]]"#;
        assert_eq!(text, expected);
        assert_eq!(serde_json::to_string(&nested).unwrap(), r#"[1,[[],"NaN"]]"#);
    }
}
