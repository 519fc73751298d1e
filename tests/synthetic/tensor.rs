//! Tensors: the Python object, `TensorImpl`, `StorageImpl` and data, by the numbers of a layout file.

use sha2::{Digest, Sha256};
use tensorcarve::framework::torch::{KeyTable, key_tables};
use tensorcarve::signature::Layout;

use super::SIGNATURES;
use super::python::Python;

/// What a tensor is to be.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// PyTorch's name of the scalar type.
    pub dtype: &'static str,
    pub shape: Vec<u64>,
    pub stride: Vec<u64>,
    pub offset: u64,
    pub device: &'static str,
    pub device_index: i8,
    pub requires_grad: bool,
    pub grad_fn: bool,
}

impl Tensor {
    /// Contiguous, on the CPU.
    pub fn new(dtype: &'static str, shape: &[u64]) -> Self {
        let mut stride = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            stride[i - 1] = stride[i] * shape[i].max(1);
        }
        Self {
            dtype,
            shape: shape.to_vec(),
            stride,
            offset: 0,
            device: "cpu",
            device_index: -1,
            requires_grad: false,
            grad_fn: false,
        }
    }

    pub fn f32(shape: &[u64]) -> Self {
        Self::new("Float", shape)
    }

    pub fn strided(self, stride: &[u64]) -> Self {
        Self { stride: stride.to_vec(), ..self }
    }

    pub fn at_offset(self, offset: u64) -> Self {
        Self { offset, ..self }
    }

    pub fn on(self, device: &'static str, device_index: i8) -> Self {
        Self { device, device_index, ..self }
    }

    pub fn learned(self) -> Self {
        Self { requires_grad: true, ..self }
    }

    pub fn numel(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Elements that the storage has to have.
    fn reach(&self) -> u64 {
        if self.numel() == 0 {
            return 0;
        }
        self.offset + 1 + self.shape.iter().zip(&self.stride).map(|(size, stride)| (size - 1) * stride).sum::<u64>()
    }

    /// Index in the storage of every element, in row-major order.
    pub fn elements(&self) -> impl Iterator<Item = u64> {
        (0..self.numel()).map(|mut rest| {
            let mut at = self.offset;
            for (size, stride) in self.shape.iter().zip(&self.stride).rev() {
                at += rest % size * stride;
                rest /= size;
            }
            at
        })
    }
}

/// A tensor in memory.
#[derive(Clone, Debug)]
pub struct Placed {
    pub spec: Tensor,
    pub object: u64,
    pub tensor_impl: u64,
    pub storage: u64,
    /// The storage's first byte.
    pub base: u64,
    pub element_size: u64,
    /// The contiguous bytes.
    pub logical: Vec<u8>,
}

/// The numbers and tables of a PyTorch layout.
pub struct Numbers(pub Layout);

impl Numbers {
    pub fn at(&self, key: &str) -> u64 {
        self.0.get(key).unwrap_or_else(|| panic!("the layout has no {key}")).cast_unsigned()
    }

    fn row(&self, table: &str, name: &str) -> &toml::Table {
        let rows = self.0.table(table).unwrap().as_array().unwrap();
        let is_wanted = |row: &&toml::Table| row["name"].as_str() == Some(name);
        rows.iter().map(|row| row.as_table().unwrap()).find(is_wanted).unwrap()
    }

    fn number(&self, table: &str, name: &str, key: &str) -> u64 {
        self.row(table, name)[key].as_integer().unwrap().cast_unsigned()
    }

    /// The dispatch keys of the release.
    pub fn keys(&self) -> KeyTable {
        let number =
            |version: &str| -> Vec<u64> { version.split(['.', '-']).map_while(|part| part.parse().ok()).collect() };
        let mut tables = key_tables(&SIGNATURES).unwrap().into_iter();
        tables.rfind(|keys| number(&keys.version) <= number(&self.0.version)).unwrap()
    }

    /// The dispatch keys of an ordinary tensor, and these.
    pub fn key_set(&self, also: &[&str]) -> u64 {
        let keys = self.keys();
        keys.ordinary()[0] | keys.set(also.iter().copied()).unwrap()
    }

    pub fn element_size(&self, dtype: &str) -> u64 {
        self.number("scalar_types", dtype, "size")
    }

    pub fn scalar_index(&self, dtype: &str) -> u64 {
        self.number("scalar_types", dtype, "index")
    }

    pub fn device_index(&self, device: &str) -> u64 {
        self.number("device_types", device, "index")
    }

    /// The name that a recovered tensor is to have for its type.
    pub fn label(&self, dtype: &str) -> String {
        let row = self.row("scalar_types", dtype);
        row.get("safetensors").map_or(dtype, |name| name.as_str().unwrap()).to_owned()
    }

    /// Writes a tensor with a storage of random bytes, at `base` or where there is room.
    pub fn tensor(&self, python: &Python, class: u64, spec: &Tensor, base: Option<u64>) -> Placed {
        let size = self.element_size(spec.dtype);
        let bytes = spec.reach() * size;
        let is_here = spec.device == "cpu";
        let base = match bytes {
            _ if base.is_some() => base.unwrap(),
            0 => 0,
            _ if !is_here => 0x7f00_1234_0000,
            // malloc() gives large blocks pages of their own, behind its head.
            4096.. => python.process.alloc_pages(bytes + 0x40) + 0x40,
            _ => python.process.alloc(bytes),
        };
        if is_here {
            let random = |_| python.process.machine.borrow_mut().random.next().to_le_bytes();
            let noise: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(random).take(bytes as usize).collect();
            python.process.write(base, &noise);
        }
        let storage = python.process.alloc(128);
        let put = |key: &str, word| python.process.put(storage + self.at(key), word);
        put("storage.data", if spec.device == "meta" { 0 } else { base });
        put("storage.size_bytes", bytes);
        let device = [self.number("device_types", spec.device, "index") as u8, spec.device_index.cast_unsigned()];
        python.process.write(storage + self.at("storage.device_type"), &device[..1]);
        python.process.write(storage + self.at("storage.device_index"), &device[1..]);
        self.over(python, class, spec, storage, base)
    }

    /// Writes a tensor over the storage of another.
    pub fn view(&self, python: &Python, class: u64, spec: &Tensor, of: &Placed) -> Placed {
        self.over(python, class, spec, of.storage, of.base)
    }

    fn over(&self, python: &Python, class: u64, spec: &Tensor, storage: u64, base: u64) -> Placed {
        let process = &python.process;
        let object = python.object(class, python.get(class, "type.tp_basicsize").max(64));
        let tensor_impl = process.alloc(256);
        let put = |key: &str, word| process.put(tensor_impl + self.at(key), word);
        // The number is for the header of a release build, two words.
        let grown = python.at("object.sizeof") - 16;
        process.put(object + grown + self.at("thp.tensor_impl_pointer"), tensor_impl);
        // Virtual table and counts.
        process.put(tensor_impl, 0x7f55_5555_0010);
        process.put(tensor_impl + 8, 0x1_0000_0001);
        put("tensor.storage_pointer", storage);
        put("tensor.pyobj", object);
        self.put_shape(python, tensor_impl, spec);
        put("tensor.storage_offset", spec.offset);
        put("tensor.numel", spec.numel());
        self.put_dtype(python, tensor_impl, spec.dtype);
        put("tensor.key_set", self.key_set(&[]));
        if spec.requires_grad || spec.grad_fn {
            put("tensor.autograd_meta", self.autograd(python, spec));
        }
        let size = self.element_size(spec.dtype);
        let logical = match spec.device {
            "cpu" => spec.elements().flat_map(|at| process.read(base + at * size, size)).collect(),
            _ => Vec::new(),
        };
        Placed { spec: spec.clone(), object, tensor_impl, storage, base, element_size: size, logical }
    }

    /// Makes a tensor of one with elements: without a storage, and with these words in the fields that a class
    /// derived from `TensorImpl` adds.
    pub fn derive(&self, python: &Python, tensor: &Placed, keeps_storage: bool, words: &[u64]) {
        let process = &python.process;
        if !keeps_storage {
            process.put(tensor.tensor_impl + self.at("tensor.storage_pointer"), 0);
            let cpu = self.device_index("cpu") as u8;
            process.write(tensor.tensor_impl + self.at("tensor.device_type"), &[cpu]);
        }
        // The set of dispatch keys is the last field of the class.
        let first = tensor.tensor_impl + self.at("tensor.key_set") + 8;
        (first..).step_by(8).zip(words).for_each(|(at, word)| process.put(at, *word));
    }

    /// Writes sizes and strides in the form that the layout has.
    fn put_shape(&self, python: &Python, tensor_impl: u64, spec: &Tensor) {
        let process = &python.process;
        let put = |key: &str, word| process.put(tensor_impl + self.at(key), word);
        if self.0.get("tensor.sizes_begin").is_some() {
            // One block for both, the strides behind the sizes.
            let begin = process.words(&[spec.shape.as_slice(), &spec.stride, &[0]].concat());
            let end = begin + 8 * spec.shape.len() as u64;
            put("tensor.sizes_begin", begin);
            put("tensor.sizes_end", end);
            put("tensor.strides_begin", end);
            return;
        }
        put("tensor.dim", spec.shape.len() as u64);
        if spec.shape.len() as u64 > self.at("tensor.inline_max_dims") {
            put("tensor.out_of_line_pointer", process.words(&[spec.shape.as_slice(), &spec.stride].concat()));
            return;
        }
        for (i, (size, stride)) in (0..).step_by(8).zip(spec.shape.iter().zip(&spec.stride)) {
            process.put(tensor_impl + self.at("tensor.sizes_inline") + i, *size);
            process.put(tensor_impl + self.at("tensor.strides_inline") + i, *stride);
        }
    }

    /// Writes the type of the elements in the form that the layout has.
    fn put_dtype(&self, python: &Python, tensor_impl: u64, dtype: &str) {
        let process = &python.process;
        let Some(pointer) = self.0.get("tensor.type_meta_pointer") else {
            // Device and flags follow the type in its word.
            let index = self.number("scalar_types", dtype, "index");
            process.put(tensor_impl + self.at("tensor.dtype_index"), index | 0xff01_0000);
            return;
        };
        let described = process.alloc(128);
        process.put(described + self.at("type_meta.item_size"), self.element_size(dtype));
        process.put(described + self.at("type_meta.id"), self.number("scalar_types", dtype, "type_id"));
        process.put(tensor_impl + pointer.cast_unsigned(), described);
    }

    fn autograd(&self, python: &Python, spec: &Tensor) -> u64 {
        let process = &python.process;
        let meta = process.alloc(256);
        process.put(meta, 0x7f55_5555_1010);
        let own = meta + self.at("autograd.name") + 16;
        // An empty name: in the object itself, or the one that all empty strings share.
        let name = if self.at("autograd.name_is_inline") == 1 { own } else { 0x7f55_5556_0018 };
        process.put(meta + self.at("autograd.name"), name);
        process.write(meta + self.at("autograd.requires_grad"), &[u8::from(spec.requires_grad)]);
        let node = if spec.grad_fn { process.alloc(64) } else { 0 };
        process.put(meta + self.at("autograd.grad_fn"), node);
        meta
    }
}

/// The digest that reports give.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
