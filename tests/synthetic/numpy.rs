//! NumPy arrays, written by the numbers of a layout file.

use tensorcarve::signature::Layout;

use super::SIGNATURES;
use super::python::Python;

pub struct Numpy {
    numbers: Layout,
    /// `numpy.ndarray`, whose name can't be read.
    pub array_class: u64,
    dtype_class: u64,
}

/// What an array is to be; `strides` and `data` are as NumPy has them: bytes, and the first element.
#[derive(Clone)]
pub struct Array<'a> {
    /// Byte order, kind and bytes of an element.
    pub dtype: (char, char, u64),
    pub shape: &'a [u64],
    pub strides: &'a [i64],
    pub data: u64,
    pub base: u64,
    /// `NPY_ARRAY_C_CONTIGUOUS`.
    pub is_contiguous: bool,
    /// Name, dtype object and offset.
    pub fields: Vec<(&'a str, u64, u64)>,
}

impl Numpy {
    /// Imports NumPy: the module, and its classes without names.
    pub fn new(python: &Python, version: &str) -> Self {
        let numbers = SIGNATURES.layouts("numpy").find(|layout| layout.version == version).unwrap().clone();
        let array_class = python.nameless_type();
        let dtype_class = python.nameless_type();
        python.module("numpy", &[("ndarray", array_class), ("dtype", dtype_class)]);
        Self { numbers, array_class, dtype_class }
    }

    fn at(&self, key: &str) -> u64 {
        self.numbers.get(key).unwrap().cast_unsigned()
    }

    pub fn dtype(&self, python: &Python, (order, kind, size): (char, char, u64), fields: &[(&str, u64, u64)]) -> u64 {
        let object = python.object(self.dtype_class, 192);
        let head = object + python.at("object.ob_type") + 8;
        let process = &python.process;
        // What lies beside the fields is something else.
        process.write(head + self.at("dtype.kind"), &[kind as u8, b'?', order as u8, 0xff]);
        let width = self.at("dtype.elsize_bits") as usize / 8;
        process.put(head + self.at("dtype.elsize"), 0xabcd_0000_0000_0000);
        process.write(head + self.at("dtype.elsize"), &size.to_le_bytes()[..width]);
        if !fields.is_empty() {
            let names: Vec<u64> = fields.iter().map(|(name, ..)| python.str(name)).collect();
            process.put(head + self.at("dtype.names"), python.tuple(&names));
            let value = |dtype: u64, offset: u64| python.tuple(&[dtype, python.int(offset.into())]);
            let items: Vec<(&str, u64)> = fields.iter().map(|(name, dtype, at)| (*name, value(*dtype, *at))).collect();
            process.put(head + self.at("dtype.fields"), python.dict(&items));
        }
        object
    }

    /// Lets the type of an array have elements of no size by all other layouts.
    pub fn clear_other_sizes(&self, python: &Python, array: u64) {
        let head = |object: u64| object + python.at("object.ob_type") + 8;
        let descr = head(python.process.get(head(array) + self.at("array.descr")));
        let own = self.at("dtype.elsize");
        for layout in SIGNATURES.layouts("numpy") {
            let other = layout.get("dtype.elsize").unwrap().cast_unsigned();
            if other != own {
                python.process.put(descr + other, 0);
            }
        }
    }

    pub fn array(&self, python: &Python, class: u64, spec: &Array<'_>) -> u64 {
        let object = python.object(class, 128);
        let head = object + python.at("object.ob_type") + 8;
        let put = |key: &str, word: u64| python.process.put(head + self.at(key), word);
        put("array.data", spec.data);
        // An `int`: the padding behind it is anything.
        put("array.nd", spec.shape.len() as u64 | 0x7f55_0000_0000);
        put("array.dimensions", python.process.words(spec.shape));
        let strides: Vec<u64> = spec.strides.iter().map(|stride| stride.cast_unsigned()).collect();
        put("array.strides", python.process.words(&strides));
        put("array.base", spec.base);
        put("array.descr", self.dtype(python, spec.dtype, &spec.fields));
        put("array.flags", 0xdead_0000_0500 | u64::from(spec.is_contiguous));
        object
    }
}
