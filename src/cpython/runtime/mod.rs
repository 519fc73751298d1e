//! What an interpreter was doing: its threads with their frames, suspended generators, the collector's lists, all objects.
//!
//! [`Runtime::find`] looks for the interpreter states of several interpreters at once, without symbols.

mod census;
mod code;
mod details;
mod frame;
mod gc;
mod layout;
mod names;
mod repr;
mod state;
mod text;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use serde::Serialize;

use self::code::Code;
use self::frame::{Chain, Frames, KnownTypes, RawFrame};
use self::state::{State, pointer};
use super::{Interpreter, Modules, Objects, Sweeper, field};
use crate::addr::VirtAddr;

pub use census::{Census, TypeCount, all_types};
pub use details::{HeldObject, ImportedModule, ObjectDetails, ObjectRow};
pub use gc::{BrokenLink, Collector, Generation, Unlisted};
pub use layout::{RuntimeLayout, runtime_layouts};
pub use names::TypeNames;
pub use repr::Repr;

/// Frames of one thread, and of all threads of an interpreter.
const MAX_FRAMES: usize = 1 << 16;
const MAX_ALL_FRAMES: usize = 1 << 18;
/// Frames of a thread that are read to choose a layout.
const SAMPLE: usize = 64;

/// A thread of an interpreter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Thread {
    /// The id that the operating system gave it, where the interpreter keeps it.
    pub tid: Option<u64>,
    /// `threading.Thread.name`.
    pub name: Option<String>,
    /// Its identifier within the process: `threading.get_ident()`.
    pub ident: Option<u64>,
    /// Its thread state.
    pub address: VirtAddr,
    /// The innermost comes first.
    pub frames: Vec<Frame>,
    /// Why there are no more frames, if something is wrong.
    pub problem: Option<String>,
}

/// A frame of Python code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// `co_name`.
    pub function: Option<String>,
    /// `co_qualname`; before 3.11 that of a function with this code.
    pub qualname: Option<String>,
    /// `co_filename`.
    pub file: Option<String>,
    /// The line that runs; `None` also where the instruction belongs to no line.
    pub line: Option<i64>,
    /// Where it lies.
    pub address: VirtAddr,
    /// Variables that are set, with short representations; `None` if they were not asked for.
    #[serde(serialize_with = "as_map")]
    pub locals: Option<Vec<(String, String)>>,
}

/// Pairs as a JSON object.
fn as_map<S: serde::Serializer>(pairs: &Option<Vec<(String, String)>>, serializer: S) -> Result<S::Ok, S::Error> {
    match pairs {
        Some(pairs) => serializer.collect_map(pairs.iter().map(|(name, value)| (name, value))),
        None => serializer.serialize_none(),
    }
}

/// Kinds of objects that hold a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SuspendedKind {
    /// A generator.
    Generator,
    /// A coroutine.
    Coroutine,
    /// An asynchronous generator.
    AsyncGenerator,
}

/// The names of their types.
const SUSPENDED: [(&str, SuspendedKind); 3] = [
    ("generator", SuspendedKind::Generator),
    ("coroutine", SuspendedKind::Coroutine),
    ("async_generator", SuspendedKind::AsyncGenerator),
];

/// How far a generator that does not run has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GeneratorState {
    /// It has not begun.
    Created,
    /// It waits at a `yield` or an `await`.
    Suspended,
}

/// A generator or a coroutine that does not run and has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Suspended {
    /// What it is.
    pub kind: SuspendedKind,
    /// How far it has got.
    pub state: GeneratorState,
    /// The object.
    pub address: VirtAddr,
    /// Its frame.
    pub frame: Frame,
}

/// The types of an interpreter whose instances [`Runtime`] needs: modules, generators, and functions where code objects do
/// not tell their full names. To be asked for again when more types are known.
pub fn wanted_types(interpreter: &Interpreter) -> BTreeSet<VirtAddr> {
    let mut wanted = interpreter.module_types();
    let modules = interpreter.modules(&wanted);
    let names = TypeNames::new(interpreter, &modules);
    let kinds = SUSPENDED.iter().map(|(name, _)| *name).chain(["function"]);
    wanted.extend(kinds.filter_map(|name| names.find(name)));
    wanted
}

/// The running state of an interpreter.
pub struct Runtime<'i> {
    interpreter: &'i Interpreter,
    objects: Objects<'i>,
    layout: RuntimeLayout,
    modules: Modules,
    names: TypeNames<'i>,
    repr: Repr<'i>,
    /// `None` where no code object is known.
    types: Option<KnownTypes>,
    states: Vec<State>,
    codes: RefCell<HashMap<VirtAddr, Rc<Code>>>,
    /// Full names of functions by their code, where that does not have them.
    qualnames: HashMap<VirtAddr, VirtAddr>,
}

impl<'i> Runtime<'i> {
    /// Finds the states of interpreters; `tables` are the layouts of all versions.
    pub fn find(interpreters: &'i [Interpreter], sweeper: &Sweeper, tables: &[RuntimeLayout]) -> Vec<Self> {
        let Some(newest) = tables.last() else { return Vec::new() };
        let own = |interpreter| own_layout(interpreter, tables, newest);
        let layouts: Vec<RuntimeLayout> = interpreters.iter().map(own).collect();
        let states = state::find(interpreters, sweeper, &layouts);
        let runtimes = interpreters.iter().zip(layouts).zip(states);
        runtimes.map(|((interpreter, layout), states)| Self::new(interpreter, layout, states, tables)).collect()
    }

    fn new(interpreter: &'i Interpreter, layout: RuntimeLayout, states: Vec<State>, tables: &[RuntimeLayout]) -> Self {
        let objects = interpreter.objects();
        let modules = interpreter.modules(&interpreter.module_types());
        let names = TypeNames::new(interpreter, &modules);
        let code = names.find("code").or_else(|| code_type(&objects, &layout, &modules, &names));
        let types = code.map(|code| KnownTypes { code, cell: names.find("cell") });
        let layout = types.map_or(layout.clone(), |types| choose(objects, types, &states, layout, tables));
        let repr = Repr::new(interpreter, &modules, &layout);
        let qualnames = match layout.code_qualname {
            Some(_) => HashMap::new(),
            None => qualnames(interpreter, &layout, names.find("function")),
        };
        let codes = RefCell::default();
        Self { interpreter, objects, layout, modules, names, repr, types, states, codes, qualnames }
    }

    /// The interpreter.
    pub fn interpreter(&self) -> &'i Interpreter {
        self.interpreter
    }

    /// The imported modules.
    pub fn modules(&self) -> &Modules {
        &self.modules
    }

    /// What an analyst should know of what could not be read.
    pub fn warnings(&self) -> Vec<String> {
        let place = self.interpreter.type_object;
        let mut warnings = Vec::new();
        if self.states.is_empty() {
            warnings.push(format!(
                "the CPython whose `type` is at {place}: its interpreter state was not found, so its threads are not known"
            ));
        } else if self.types.is_none() {
            warnings.push(format!(
                "the CPython whose `type` is at {place}: the type of code objects was not found, so frames can't be read"
            ));
        }
        if self.states.iter().any(|state| !state.is_whole) {
            warnings.push(format!(
                "the CPython whose `type` is at {place}: its list of threads breaks off, there may be more of them"
            ));
        }
        warnings
    }

    fn frames(&self) -> Option<Frames<'_>> {
        Some(Frames { objects: self.objects, layout: &self.layout, types: self.types? })
    }

    /// The names of its types.
    pub fn names(&self) -> &TypeNames<'i> {
        &self.names
    }

    /// The short representation of an object.
    pub fn repr(&self, object: VirtAddr) -> String {
        self.repr.of(object, &self.names)
    }

    /// Whether the operating system gave one of its threads this id, as far as the interpreter keeps it.
    pub fn has_thread(&self, tid: u64) -> bool {
        let native = |thread: &VirtAddr| pointer(&self.objects, *thread, self.layout.native_thread_id);
        let mut threads = self.states.iter().flat_map(|state| &state.threads);
        threads.any(|thread| native(thread) == Some(VirtAddr(tid)))
            || state::names(&self.objects, &self.modules).iter().any(|(.., known)| *known == Some(tid))
    }

    /// The threads of all interpreter states, with their frames.
    pub fn threads(&self, with_locals: bool) -> Vec<Thread> {
        let known: HashMap<u64, (Option<String>, Option<u64>)> = state::names(&self.objects, &self.modules)
            .into_iter()
            .map(|(ident, name, tid)| (ident, (name, tid)))
            .collect();
        let mut left = MAX_ALL_FRAMES;
        let states = self.states.iter().flat_map(|state| &state.threads);
        let thread = |address: &VirtAddr| {
            let word = |offset: Option<i64>| pointer(&self.objects, *address, offset).map(|word| word.0);
            let ident = word(self.layout.thread_id);
            let (name, tid) = ident.and_then(|ident| known.get(&ident).cloned()).unwrap_or_default();
            let (frames, problem): Chain = match self.frames() {
                Some(frames) => frames.of_thread(*address, MAX_FRAMES.min(left)),
                None => Chain::default(),
            };
            left = left.saturating_sub(frames.len());
            let frames = frames.iter().map(|frame| self.describe(frame, None, with_locals)).collect();
            let tid = word(self.layout.native_thread_id).filter(|tid| *tid != 0).or(tid);
            Thread { tid, name, ident, address: *address, frames, problem }
        };
        states.map(thread).collect()
    }

    /// Generators and coroutines that do not run and have not ended, in the order of their addresses.
    pub fn suspended(&self, with_locals: bool) -> Vec<Suspended> {
        let mut found = Vec::new();
        for (name, kind) in SUSPENDED {
            let instances = self.names.find(name).and_then(|found| self.interpreter.instances.get(&found));
            for object in instances.into_iter().flatten() {
                if let Some((state, frame)) = self.suspended_frame(*object) {
                    let qualname = pointer(&self.objects, *object, self.layout.generator_qualname);
                    let frame = self.describe(&frame, qualname, with_locals);
                    found.push(Suspended { kind, state, address: *object, frame });
                }
            }
        }
        found.sort_by_key(|suspended| suspended.address);
        found.dedup_by_key(|suspended| suspended.address);
        found.truncate(MAX_ALL_FRAMES);
        found
    }

    /// The frame of a generator, and how far it has got; `None` if it runs, has ended, or can't be read.
    fn suspended_frame(&self, object: VirtAddr) -> Option<(GeneratorState, RawFrame)> {
        let (objects, layout, frames) = (&self.objects, &self.layout, self.frames()?);
        let signed = |address, offset: Option<i64>| Some(objects.byte(address, offset?).ok()?.cast_signed());
        if let Some(place) = layout.generator_inline_frame {
            let state = i64::from(signed(object, layout.generator_state)?);
            let is_created = layout.state_created == Some(state);
            let frame = frames.structure(field(object, place)).ok().filter(|_| state < 0)?;
            return Some((if is_created { GeneratorState::Created } else { GeneratorState::Suspended }, frame));
        }
        let at = pointer(objects, object, layout.generator_frame).filter(|frame| frame.0 != 0)?;
        // Zero is a frame that runs, in 3.10; a flag says so before.
        let is_waiting = match signed(at, layout.frame_state) {
            Some(state) => state < 0,
            None => signed(at, layout.frame_executing)? == 0,
        };
        let frame = frames.object(at).ok().filter(|_| is_waiting)?;
        let is_created = frame.instruction.is_some_and(|instruction| instruction < 0);
        Some((if is_created { GeneratorState::Created } else { GeneratorState::Suspended }, frame))
    }

    fn describe(&self, frame: &RawFrame, qualname: Option<VirtAddr>, with_locals: bool) -> Frame {
        let mut codes = self.codes.borrow_mut();
        let read = || Rc::new(Code::read(&self.objects, &self.layout, frame.code));
        let code = Rc::clone(codes.entry(frame.code).or_insert_with(read));
        drop(codes);
        let qualname = qualname.or_else(|| self.qualnames.get(&frame.code).copied());
        let qualname = || qualname.and_then(|name| self.objects.str(name).ok());
        let locals = with_locals.then(|| {
            let locals = self.frames().map(|frames| frames.locals(frame)).unwrap_or_default();
            locals.into_iter().map(|(name, value)| (name, self.repr.of(value, &self.names))).collect()
        });
        Frame {
            function: code.name.clone(),
            qualname: code.qualname.clone().or_else(qualname),
            file: code.file.clone(),
            line: frame.instruction.and_then(|instruction| code.line(instruction)),
            address: frame.address,
            locals,
        }
    }
}

/// The numbers for an interpreter: those of its version's table, and in place of them what it tells of itself.
fn own_layout(interpreter: &Interpreter, tables: &[RuntimeLayout], newest: &RuntimeLayout) -> RuntimeLayout {
    let own = tables.iter().find(|table| table.version == interpreter.layout.version);
    let mut layout = own.unwrap_or(newest).clone();
    for (number, value) in interpreter.told.iter().flat_map(|told| told.numbers()) {
        layout.set(number, Some(*value));
    }
    layout
}

/// The layout that reads most frames: the own one, or that of another version.
fn choose(
    objects: Objects<'_>,
    types: KnownTypes,
    states: &[State],
    own: RuntimeLayout,
    tables: &[RuntimeLayout],
) -> RuntimeLayout {
    let threads: Vec<VirtAddr> = states.iter().flat_map(|state| &state.threads).copied().take(SAMPLE).collect();
    // Frames that are read, and threads whose frames end as they should.
    let score = |layout: &RuntimeLayout| -> usize {
        let frames = Frames { objects, layout, types };
        let of_thread = |thread: &VirtAddr| {
            let (frames, problem) = frames.of_thread(*thread, SAMPLE);
            if frames.is_empty() { 0 } else { frames.len() + usize::from(problem.is_none()) * SAMPLE }
        };
        threads.iter().map(of_thread).sum()
    };
    let mut best = (score(&own), own);
    if best.0 > 0 {
        return best.1;
    }
    for table in tables {
        let found = score(table);
        if found > best.0 {
            best = (found, table.clone());
        }
    }
    best.1
}

/// The type of code objects, where the module `types` is not imported: what the functions of the import system refer to.
fn code_type(
    objects: &Objects<'_>,
    layout: &RuntimeLayout,
    modules: &Modules,
    names: &TypeNames<'_>,
) -> Option<VirtAddr> {
    let bootstrap = objects.str_dict(*modules.get("_frozen_importlib")?).ok()?;
    let function = names.find("function");
    let mut counts: HashMap<VirtAddr, usize> = HashMap::new();
    for (_, object) in bootstrap {
        if function.is_none_or(|function| objects.type_of(object) == Ok(function)) {
            let code = pointer(objects, object, layout.function_code).and_then(|code| objects.type_of(code).ok());
            code.into_iter().for_each(|found| *counts.entry(found).or_default() += 1);
        }
    }
    counts.into_iter().max_by_key(|(found, count)| (*count, *found)).map(|(found, _)| found)
}

/// The full names of functions by their code.
fn qualnames(
    interpreter: &Interpreter,
    layout: &RuntimeLayout,
    function: Option<VirtAddr>,
) -> HashMap<VirtAddr, VirtAddr> {
    let objects = interpreter.objects();
    let functions = function.and_then(|function| interpreter.instances.get(&function)).into_iter().flatten();
    let names = functions.filter_map(|object| {
        let code = pointer(&objects, *object, layout.function_code)?;
        Some((code, pointer(&objects, *object, layout.function_qualname)?))
    });
    names.collect()
}

/// The bytes of a `bytes` object of no more than `most`.
fn bytes(objects: &Objects<'_>, layout: &RuntimeLayout, object: VirtAddr, most: u64) -> Option<Vec<u8>> {
    let length = objects.word(object, layout.bytes_size?).ok().filter(|length| *length <= most)?;
    let mut bytes = vec![0; length as usize];
    objects.memory().read(field(object, layout.bytes_data?), &mut bytes).ok()?;
    Some(bytes)
}
