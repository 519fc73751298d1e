//! PyTorch's C++ objects behind `torch.ScriptObject`, by the numbers of the layout files.

use tensorcarve::signature::Layout;

use super::SIGNATURES;
use super::python::Keeping;
use super::torch::Torch;

/// Virtual tables that no test reads.
const OBJECT_TABLE: u64 = 0x7f55_5555_2010;
const CLASS_TABLE: u64 = 0x7f55_5555_3010;
const HOLDER_TABLE: u64 = 0x7f55_5555_4010;
const MATRIX_TABLE: u64 = 0x7f55_5555_5010;
const CODE_TABLE: u64 = 0x7f55_5555_6010;

/// Tags of values: those of the layout, and two that only tests give.
pub const NONE: u64 = 0;
pub const TENSOR: u64 = 1;
pub const BOOL: u64 = 8;
pub const OBJECT: u64 = 17;
pub const CAPSULE: u64 = 20;
/// Kinds of attributes.
pub const BUFFER: u64 = 0;
pub const PARAMETER: u64 = 1;
pub const REGULAR: u64 = 2;

/// An attribute: name, kind, tag, payload.
pub type Attribute<'a> = (&'a str, u64, u64, u64);

/// A matrix as FBGEMM packs it: outputs by inputs, block sizes, and how many rows lie side by side.
pub struct Blocks {
    pub outputs: u64,
    pub inputs: u64,
    pub rows: u64,
    pub columns: u64,
    pub side_by_side: u64,
}

/// PyTorch's C++ objects in a process.
pub struct Script<'a> {
    pub torch: &'a Torch,
    pub(super) numbers: Layout,
    /// Where class, slots and attributes lie: a version has its own places.
    places: [u64; 3],
    object_class: u64,
    module_class: u64,
}

impl<'a> Script<'a> {
    /// `abi` is a version of the layouts.
    pub fn new(torch: &'a Torch, abi: &str, places: [u64; 3]) -> Self {
        let numbers = SIGNATURES.layouts("torchscript").find(|layout| layout.version == abi).unwrap().clone();
        let python = &torch.python;
        let b = python.builtin;
        let object_class = python.class(b.type_, "torch", "ScriptObject", b.object, Keeping::Dict);
        let module_class = python.class(b.type_, "torch", "ScriptModule", object_class, Keeping::Dict);
        Self { torch, numbers, places, object_class, module_class }
    }

    pub(super) fn at(&self, key: &str) -> u64 {
        self.numbers.get(key).unwrap_or_else(|| panic!("the layout has no {key}")).cast_unsigned()
    }

    /// Writes a `std::string`.
    pub(super) fn string(&self, at: u64, text: &str) {
        let process = &self.torch.python.process;
        let length = text.len() as u64;
        if self.numbers.get("string.length").is_none() {
            let head = process.alloc(24 + length + 1);
            [length, length, 0].iter().zip([0, 8, 16]).for_each(|(word, place)| process.put(head + place, *word));
            process.write(head + 24, text.as_bytes());
            process.put(at, head + 24);
            return;
        }
        let data = if length < 16 { at + 16 } else { process.alloc(length + 1) };
        process.write(data, text.as_bytes());
        process.put(at, data);
        process.put(at + self.at("string.length"), length);
    }

    /// A vector of `count` elements at `at`; its first byte.
    pub(super) fn vector(&self, at: u64, count: u64, size: u64) -> u64 {
        let process = &self.torch.python.process;
        let begin = process.alloc(count * size + 16);
        for (place, word) in [begin, begin + count * size, begin + count * size + 16].into_iter().zip(0u64..) {
            process.put(at + 8 * word, place);
        }
        begin
    }

    /// An `ivalue::Object` of a class of its own.
    pub fn object(&self, class: &str, attributes: &[Attribute<'_>]) -> u64 {
        let process = &self.torch.python.process;
        let [class_at, slots_at, attributes_at] = self.places;
        let described = process.alloc(600);
        process.put(described, CLASS_TABLE);
        self.string(described + 64, class);
        let size = self.at("class_attribute.sizeof");
        let list = self.vector(described + attributes_at, attributes.len() as u64, size);
        let object = process.alloc(112);
        process.put(object, OBJECT_TABLE);
        process.put(object + 8, 0x1_0000_0001);
        process.put(object + class_at, described);
        let slots = self.vector(object + slots_at, attributes.len() as u64, self.at("ivalue.sizeof"));
        for ((name, kind, tag, payload), index) in attributes.iter().zip(0u64..) {
            // What the compiler leaves in the padding is anything.
            process.put(list + index * size, 0x5555_0000_0000 | kind);
            self.string(list + index * size + self.at("class_attribute.name"), name);
            process.put(slots + 16 * index, *payload);
            process.put(slots + 16 * index + self.at("ivalue.tag"), tag | 0x7f55_0000_0000);
        }
        object
    }

    /// A graph of code with tensors as constants, each with the debug name of its value or none.
    pub fn graph(&self, constants: &[(&str, u64)]) -> u64 {
        let process = &self.torch.python.process;
        let graph = process.words(&[CODE_TABLE]);
        for ((name, tensor), number) in constants.iter().zip(0u64..) {
            let attribute = process.alloc(32);
            process.put(attribute, CODE_TABLE);
            // What the compiler leaves in the padding is anything.
            process.put(attribute + self.at("constant.name"), 0x5555_0000_08f4);
            process.put(attribute + self.at("constant.value"), *tensor);
            let node = process.alloc(320);
            process.put(node, CODE_TABLE);
            process.put(node + self.at("node.graph"), graph);
            let value = process.alloc(112);
            process.put(value, CODE_TABLE);
            process.put(value + self.at("value.node"), node);
            process.put(value + self.at("value.unique"), 100 + number);
            if !name.is_empty() {
                self.string(value + self.at("value.name"), name);
            }
            // Its attributes, behind what differs between versions.
            for (vector, element) in [(node + self.at("node.outputs"), value), (node + 288, attribute)] {
                let words = self.vector_words(&element.to_le_bytes());
                (vector..).step_by(8).zip(words).for_each(|(at, word)| process.put(at, word));
            }
        }
        graph
    }

    /// A method whose code is that graph.
    pub fn method(&self, class: &str, name: &str, graph: u64) {
        let process = &self.torch.python.process;
        let size = self.at("string.sizeof");
        let function = process.alloc(64 + 3 * size);
        process.put(function, CODE_TABLE);
        let texts = [&format!("{class}.{name}"), class, name];
        (function + 32..).step_by(size as usize).zip(texts).for_each(|(at, text)| self.string(at, text));
        process.put(function + 32 + 3 * size, graph);
    }

    /// A node of the graph that a forward pass records, and the nodes that its edges lead to.
    pub fn autograd_node(&self, number: u64, edges: &[u64]) -> u64 {
        let process = &self.torch.python.process;
        let node = process.alloc(256);
        process.put(node, CODE_TABLE);
        process.put(node + self.at("graph_node.self"), node);
        process.put(node + self.at("graph_node.number"), number);
        let size = self.at("edge.sizeof");
        // Behind a mutex, whose size is the system's.
        let begin = self.vector(node + 96, edges.len() as u64, size);
        (begin..).step_by(size as usize).zip(edges).for_each(|(at, edge)| process.put(at, *edge));
        node
    }

    /// An object of a class that C++ defines.
    pub fn capsule(&self, class: &str, holder: u64) -> u64 {
        self.object(class, &[("capsule", REGULAR, CAPSULE, holder)])
    }

    /// A C++ object with those words behind its virtual table and counts, in a block of the allocator.
    pub fn holder(&self, words: &[u64]) -> u64 {
        let process = &self.torch.python.process;
        let size = (8 * (2 + words.len() as u64) + 8).next_multiple_of(16);
        let block = process.alloc(size + 64) + 16;
        process.put(block - 8, size | 1);
        process.put(block, HOLDER_TABLE);
        process.put(block + 8, 0x1_0000_0001);
        (block + 16..).step_by(8).zip(words).for_each(|(at, word)| process.put(at, *word));
        block
    }

    /// The Python object of a C++ object.
    pub fn wrapper(&self, object: u64, is_module: bool) -> u64 {
        let python = &self.torch.python;
        let wrapper = python.object(if is_module { self.module_class } else { self.object_class }, 64);
        python.process.put(wrapper + python.at("object.sizeof"), python.process.words(&[object, 0]));
        wrapper
    }

    /// A vector's three words.
    pub fn vector_words(&self, bytes: &[u8]) -> [u64; 3] {
        let process = &self.torch.python.process;
        let begin = process.alloc(bytes.len() as u64 + 8);
        process.write(begin, bytes);
        let end = begin + bytes.len() as u64;
        [begin, end, end]
    }

    /// A `PackBMatrix` of a weight with those bytes, outputs by inputs.
    pub fn matrix(&self, version: &str, blocks: &Blocks, weight: &[u8]) -> u64 {
        let process = &self.torch.python.process;
        let numbers = SIGNATURES.layouts("fbgemm").find(|layout| layout.version == version).unwrap();
        let Blocks { outputs, inputs, rows, columns, side_by_side } = *blocks;
        let (row_blocks, column_blocks) = (inputs.div_ceil(rows), outputs.div_ceil(columns));
        let buffer = process.alloc(row_blocks * column_blocks * rows * columns);
        for (row, column) in (0..inputs).flat_map(|row| (0..outputs).map(move |column| (row, column))) {
            let block = row / rows * column_blocks + column / columns;
            let inside = row % rows / side_by_side * columns * side_by_side
                + column % columns * side_by_side
                + row % side_by_side;
            let byte = weight[(column * inputs + row) as usize];
            process.write(buffer + block * rows * columns + inside, &[byte]);
        }
        let matrix = process.alloc(128);
        process.put(matrix, MATRIX_TABLE);
        let last = |all: u64, block: u64| if all.is_multiple_of(block) { block } else { all % block };
        process.put(matrix + numbers.get("pack_b_matrix.buf").unwrap().cast_unsigned(), buffer);
        for (key, number) in [
            ("brow", rows),
            ("bcol", columns),
            ("nbrow", row_blocks),
            ("nbcol", column_blocks),
            ("nrows", inputs),
            ("ncols", outputs),
            ("groups", 1),
            ("row_start", 0),
            ("row_size", inputs),
            ("col_start", 0),
            ("col_size", outputs),
            ("last_brow", last(inputs, rows)),
            ("last_bcol", last(outputs, columns)),
            ("trans", 1),
            ("row_interleave", side_by_side),
        ] {
            let at = numbers.get(&format!("pack_b_matrix.{key}")).unwrap().cast_unsigned();
            process.write(matrix + at, &(number as u32).to_le_bytes());
        }
        matrix
    }
}
