//! A dump made by hand: one page table, tensors behind it, and a network that owns them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tensorcarve::addr::{FileOffset, PhysAddr, VirtAddr};
use tensorcarve::cpython::{Change, LayoutScore, LayoutSource, Value};
use tensorcarve::diagnostic::{Code, Diagnostic};
use tensorcarve::dump::{Addresses, Dump, Format, MemoryRange, PhysicalMemory};
use tensorcarve::framework::Facts;
use tensorcarve::framework::torch::{self, TensorScore};
use tensorcarve::model::{Model, Module, NamedTensor, Reading, Sighting, StandaloneTensors, Status, TensorKind};
use tensorcarve::paging::{AddressSpace, Discovery, Space, SpaceKind};
use tensorcarve::progress::{Observer, Phase};
use tensorcarve::recover::{Process, PythonProcess, Recovery};
use tensorcarve::report::Run;
use tensorcarve::signature::{Mmu, Signatures};
use tensorcarve::tensor::{Form, Holes, Raw, ScalarType, TensorInfo, TooLarge, gather};

/// The top table; the three below it and the data follow it.
pub const ROOT: PhysAddr = PhysAddr(0x1000);
const TABLE: u64 = 0x4000;
const DATA: u64 = 0x5000;
/// Where the data are mapped: one last-level table, 2 MiB.
const BASE: u64 = 0x7f00_0000_0000;
const PAGE: usize = 0x1000;

pub struct Quiet;

impl Observer for Quiet {
    fn begin(&self, _: Phase, _: u64) {}
    fn advance(&self, _: u64) {}
}

/// A network in the making.
pub struct Victim {
    /// Bytes from [`BASE`] on.
    data: Vec<u8>,
    missing: Vec<usize>,
    pub model: Model,
}

/// A type that safetensors has not, with PyTorch's method that gives what it consists of.
pub fn raw(name: &str, size: u64, method: &str, safetensors: &str) -> ScalarType {
    let raw = Raw { name: method.to_owned(), safetensors: safetensors.to_owned() };
    ScalarType { raw: Some(raw), ..scalar(name, size, None) }
}

/// A type of elements by its name in safetensors, as a layout file declares it.
pub fn scalar(name: &str, size: u64, safetensors: Option<&str>) -> ScalarType {
    ScalarType { name: name.to_owned(), size, safetensors: safetensors.map(str::to_owned), raw: None }
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub fn ints(values: &[i128]) -> Value {
    Value::Tuple(values.iter().map(|value| Value::Int(*value)).collect())
}

/// Strides of the contiguous tensor of that shape.
pub fn contiguous(shape: &[u64]) -> Vec<u64> {
    (0..shape.len()).map(|dim| shape[dim + 1..].iter().product()).collect()
}

impl Victim {
    pub fn new(class: &str) -> Self {
        let model = Model {
            id: "m0".to_owned(),
            class: Some(class.to_owned()),
            object: VirtAddr(0x7f11_0000_0000),
            chain: None,
            sightings: vec![Sighting { root: Some(ROOT), object: VirtAddr(0x7f11_0000_0000) }],
            modules: Vec::new(),
            tensors: Vec::new(),
            training: Vec::new(),
            optimizers: Vec::new(),
            problems: Vec::new(),
        };
        Self { data: Vec::new(), missing: Vec::new(), model }
    }

    /// Adds a module; `class` names it, and for the user's own also the class of PyTorch above it.
    pub fn module(&mut self, name: &str, class: (&str, Option<&str>), hyper: Vec<(&str, Value)>) {
        let mut all = vec![("training".to_owned(), Value::Bool(false))];
        all.extend(hyper.into_iter().map(|(name, value)| (name.to_owned(), value)));
        self.model.modules.push(Module {
            name: name.to_owned(),
            class: Some(class.0.to_owned()),
            framework_class: class.1.map(str::to_owned),
            training: Some(false),
            hyperparameters: all,
            private: Vec::new(),
            parameters: Vec::new(),
            buffers: Vec::new(),
            unset: Vec::new(),
            object: VirtAddr(0x7f11_0000_0000 + 0x100 * self.model.modules.len() as u64),
        });
    }

    pub fn private(&mut self, name: &str, value: Value) {
        self.model.modules.last_mut().unwrap().private.push((name.to_owned(), value));
    }

    /// Adds a tensor with these bytes in its storage to the last module.
    pub fn strided(&mut self, name: &str, kind: TensorKind, dtype: ScalarType, dims: (&[u64], &[u64]), bytes: &[u8]) {
        let module = self.model.modules.last_mut().unwrap();
        let full = if module.name.is_empty() { name.to_owned() } else { format!("{}.{name}", module.name) };
        match kind {
            TensorKind::Parameter => module.parameters.push(full.clone()),
            TensorKind::Buffer => module.buffers.push(full.clone()),
            TensorKind::Gradient | TensorKind::Optimizer | TensorKind::Other | TensorKind::Array => {}
        }
        // Like an allocator: aligned, never at the start of a page.
        self.data.resize(self.data.len().next_multiple_of(64) + 64, 0xcc);
        let data = VirtAddr(if bytes.is_empty() { 0 } else { BASE + self.data.len() as u64 });
        self.data.extend(bytes);
        let number = self.model.all_tensors().count() as u64;
        let header = VirtAddr(0x7f13_0000_0000 + 0x100 * number);
        let info = TensorInfo {
            object: VirtAddr(0x7f12_0000_0000 + 0x100 * number),
            stride: dims.1.to_vec(),
            storage: data,
            storage_bytes: bytes.len() as u64,
            requires_grad: kind == TensorKind::Parameter,
            ..TensorInfo::contiguous(header, &dtype, dims.0, data)
        };
        let tensors = match kind {
            TensorKind::Parameter | TensorKind::Buffer => &mut self.model.tensors,
            TensorKind::Gradient | TensorKind::Optimizer | TensorKind::Other | TensorKind::Array => {
                &mut self.model.training
            }
        };
        tensors.push(NamedTensor {
            name: full,
            kind,
            persistent: matches!(kind, TensorKind::Parameter | TensorKind::Buffer),
            object: info.object,
            same_as: None,
            class: None,
            info: Some(info),
            inferred: false,
            parts: Vec::new(),
            reading: Reading::default(),
            attributes: Vec::new(),
            inner: Vec::new(),
            elsewhere: Vec::new(),
            status: Status::Complete,
            holes: Holes::default(),
            sources: Vec::new(),
            sha256: None,
            problem: None,
        });
    }

    pub fn parameter(&mut self, name: &str, shape: &[u64], values: &[f32]) {
        let dims = (shape, &contiguous(shape)[..]);
        self.strided(name, TensorKind::Parameter, scalar("Float", 4, Some("F32")), dims, &f32_bytes(values));
    }

    pub fn buffer(&mut self, name: &str, dtype: ScalarType, shape: &[u64], bytes: &[u8]) {
        self.strided(name, TensorKind::Buffer, dtype, (shape, &contiguous(shape)), bytes);
    }

    pub fn last(&mut self) -> &mut NamedTensor {
        self.model.tensors.last_mut().unwrap()
    }

    pub fn form(&mut self, form: Form) {
        self.last().info.as_mut().unwrap().form = form;
    }

    /// Makes the last buffer a part of the one before it.
    pub fn make_part(&mut self, name: &str) -> TensorInfo {
        let mut part = self.model.tensors.pop().unwrap();
        self.model.modules.last_mut().unwrap().buffers.pop();
        part.name = format!("{}.{name}", self.last().name);
        let info = part.info.clone().unwrap();
        self.last().parts.push(part);
        info
    }

    /// Starts a new page for the next tensor.
    pub fn new_page(&mut self) {
        self.data.resize(self.data.len().next_multiple_of(PAGE), 0xcc);
    }

    /// Takes the page that the next byte would lie in out of the dump.
    pub fn lose_page_at(&mut self, offset: usize) {
        self.missing.push((self.data.len() + offset) / PAGE);
    }

    /// The dump, and what was found in it; tensors are hashed as the real thing does it.
    pub fn finish(mut self) -> (Dump, Recovery) {
        self.data.resize(self.data.len().next_multiple_of(PAGE), 0);
        let mut bytes = vec![0; DATA as usize];
        let mut entry = |at: u64, value: u64| {
            bytes[at as usize..at as usize + 8].copy_from_slice(&(value | 7).to_le_bytes());
        };
        entry(ROOT.0 + 8 * (BASE >> 39), 0x2000);
        entry(0x2000, 0x3000);
        entry(0x3000, TABLE);
        for page in (0..self.data.len() / PAGE).filter(|page| !self.missing.contains(page)) {
            entry(TABLE + 8 * page as u64, DATA + (page * PAGE) as u64);
        }
        bytes.extend(&self.data);
        let size = bytes.len() as u64;
        let range = MemoryRange { start: PhysAddr(0), end: PhysAddr(size), offset: FileOffset(0) };
        let memory = PhysicalMemory::owned(bytes, vec![range]).unwrap();
        let signatures = Signatures::load(None).unwrap();
        let shared = Arc::new(memory.clone());
        let mmu = Arc::new(signatures.mmu().unwrap().clone());
        let space = AddressSpace::new(&shared, &mmu, ROOT, 4);
        for tensor in self.model.tensors.iter_mut().chain(&mut self.model.training) {
            for part in &mut tensor.parts {
                hash(part, &space);
            }
            hash(tensor, &space);
        }
        let dump = Dump {
            memory,
            addresses: Addresses::Physical,
            format: Format::Raw,
            compression: None,
            file_size: size,
            size,
            warnings: vec![warning("made by hand")],
            damaged: false,
        };
        let recovery = recovery((shared, mmu), space, vec![self.model]);
        (dump, recovery)
    }
}

/// Fills in what a tensor's bytes tell.
fn hash(tensor: &mut NamedTensor, space: &AddressSpace) {
    let info = tensor.info.as_ref().filter(|_| tensor.status == Status::Complete);
    let elements = match &tensor.reading {
        Reading::Storage(stored) => Some(stored.elements.clone()),
        _ => info.and_then(TensorInfo::elements),
    };
    let Some(elements) = elements.filter(|_| info.is_some()) else { return };
    let mut hasher = Sha256::new();
    let holes = gather::<TooLarge>(space, &elements, 1 << 30, |bytes| {
        hasher.update(bytes);
        Ok(())
    });
    tensor.holes = holes.unwrap();
    tensor.sha256 = Some(hex::encode(hasher.finalize()));
    if !tensor.holes.is_empty() {
        tensor.status = Status::Partial;
    }
}

/// One process with these models.
fn recovery((memory, mmu): (Arc<PhysicalMemory>, Arc<Mmu>), space: AddressSpace, models: Vec<Model>) -> Recovery {
    let python = LayoutScore {
        readable: 9,
        sampled: 10,
        size_matches: true,
        version: "3.11".to_owned(),
        source: LayoutSource::Inferred,
        changes: vec![Change { number: "list.ob_item", from: Some(24), to: Some(32) }],
    };
    let torch = TensorScore {
        readable: 5,
        exact_storages: 5,
        contradicted: 0,
        same_abi: 5,
        requiring_grad: 4,
        tried: 5,
        standalone: 0,
        version: "1.13".to_owned(),
        is_of_version: false,
        rivals: Vec::new(),
        inferred: true,
        changes: vec![Change { number: "tensor.numel", from: Some(168), to: Some(184) }],
    };
    let process = Process {
        space,
        pid: None,
        comm: None,
        python: Some(PythonProcess {
            type_object: (VirtAddr(0x95_0000), Some(PhysAddr(0x10_0000))),
            version: Some("3.11.2".to_owned()),
            layout: (python.clone(), Some(LayoutScore { readable: 2, version: "3.12".to_owned(), ..python })),
            type_count: 1234,
        }),
        frameworks: Vec::new(),
        facts: Facts {
            torch: Some(torch::Facts { layout: Some((torch, None)), ..Default::default() }),
            ..Default::default()
        },
        module_count: 7,
        models,
        shared_models: Vec::new(),
        standalone: StandaloneTensors::default(),
        headers: None,
    };
    let space = Space { root: ROOT, levels: 4, kind: SpaceKind::Process, kpti_user_root: None };
    let discovery = Discovery { spaces: vec![space], ..Discovery::default() };
    Recovery {
        memory,
        mmu,
        discovery,
        processes: vec![process],
        other_pythons: Vec::new(),
        warnings: vec![warning("a \"warning\"\n")],
    }
}

fn warning(message: &str) -> Diagnostic {
    Diagnostic::new(Code::CutOff, None, message.to_owned())
}

pub fn run() -> Run {
    Run {
        arguments: vec!["tensorcarve".to_owned(), "recover".to_owned()],
        backend: "scalar".to_owned(),
        backend_reason: "asked for".to_owned(),
        warnings: vec![warning("the GPU failed")],
        threads: 2,
        input: "memory.raw".into(),
        hashes: Vec::new(),
        started: SystemTime::UNIX_EPOCH,
        phases: vec![("scan", Duration::from_millis(1500))],
        division: None,
    }
}
