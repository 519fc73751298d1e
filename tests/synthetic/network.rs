//! Modules of `torch::nn` in C++, and what an optimizer of C++ keeps for a parameter, by the numbers of the layout files.

use super::script::Script;

/// Virtual tables that no test reads.
const MODULE_TABLE: u64 = 0x7f55_5555_6010;
const STATE_TABLE: u64 = 0x7f55_5555_7010;
/// Where a module lies in an object of a class that derives from it virtually.
const INSIDE: u64 = 48;

/// The items of a module's dictionaries: names with headers, and names with modules.
#[derive(Default)]
pub struct Dictionaries<'a> {
    pub parameters: &'a [(&'a str, u64)],
    pub buffers: &'a [(&'a str, u64)],
    pub children: &'a [(&'a str, u64)],
}

impl Script<'_> {
    /// A `torch::nn::Module` somewhere in an object.
    pub fn network(&self, training: bool, dictionaries: &Dictionaries<'_>) -> u64 {
        let process = &self.torch.python.process;
        let module = process.alloc(600) + INSIDE;
        process.put(module, MODULE_TABLE);
        let Dictionaries { parameters, buffers, children } = *dictionaries;
        for (name, items, kind) in [
            ("parameters", parameters, "tensor_item"),
            ("buffers", buffers, "tensor_item"),
            ("children", children, "module_item"),
        ] {
            self.dictionary(module + self.at(&format!("module.{name}")), kind, items);
        }
        process.write(module + self.at("module.training"), &[u8::from(training)]);
        module
    }

    /// The vector of items of the dictionary of that name in a module.
    pub fn items(&self, module: u64, name: &str) -> u64 {
        module + self.at(&format!("module.{name}")) + self.at("ordered_dict.items")
    }

    /// An `OrderedDict` at `dict`.
    fn dictionary(&self, dict: u64, kind: &str, items: &[(&str, u64)]) {
        let process = &self.torch.python.process;
        let (count, size) = (items.len() as u64, self.at(&format!("{kind}.sizeof")));
        process.put(dict + self.at("ordered_dict.elements"), count);
        self.string(dict + self.at("ordered_dict.description"), "Key");
        if items.is_empty() {
            return;
        }
        let begin = self.vector(dict + self.at("ordered_dict.items"), count, size);
        for ((name, value), item) in items.iter().zip((begin..).step_by(size as usize)) {
            self.string(item, name);
            process.put(item + self.at(&format!("{kind}.value")), *value);
        }
    }

    /// What an optimizer keeps for a parameter: `fields` behind a virtual table. The key is text if `as_text` says so.
    pub fn state(&self, parameter: u64, fields: &[u64], as_text: bool) {
        let process = &self.torch.python.process;
        let state = process.words(&[&[STATE_TABLE], fields].concat());
        let entry = process.alloc(64);
        if as_text {
            self.string(entry, &format!("{parameter:#x}"));
            process.put(entry + self.at("string.sizeof"), state);
        } else {
            process.put(entry, parameter);
            process.put(entry + 8, state);
        }
    }
}
