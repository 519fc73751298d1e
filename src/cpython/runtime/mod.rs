//! The running state of an interpreter: threads with their frames, suspended generators, the collector's lists, all objects.
//!
//! [`RunningInterpreters::find`] finds the interpreter states of several interpreters at once, without symbols.

mod census;
mod code;
mod details;
mod frame;
mod gc;
mod kind;
mod layout;
mod names;
mod repr;
mod running;
mod stack;
mod state;
mod text;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use self::code::Code;
use self::frame::{Frames, KnownTypes};
use self::kind::Kinds;
use self::stack::SUSPENDED;
use self::state::{State, pointer};
use super::{Interpreter, Modules, Objects};
use crate::addr::{VirtAddr, field};
use crate::diagnostic::{self, Diagnostic};
use crate::layout::{Ranking, StructLayout};

pub use census::{Census, TypeCount, all_types};
pub use details::{HeldObject, ImportedModule, ObjectDetails, ObjectRow};
pub use gc::{BrokenLink, Collector, Generation, Unlisted, collected_types};
pub use layout::{RuntimeLayout, runtime_layouts};
pub use names::TypeNames;
pub use repr::Repr;
pub use running::RunningInterpreters;
pub use stack::{Frame, GeneratorState, Suspended, SuspendedKind, Thread};

/// Maximum length of the text of all variables of an interpreter, in bytes.
const MAX_TEXT: usize = 1 << 26;
/// The number of frames of a thread that are read to choose a layout.
const SAMPLE: usize = 64;

/// The types of an interpreter whose instances [`Runtime`] needs: modules, generators, and functions, because code objects have no
/// full names before 3.11. The caller asks again when more types are known.
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
    /// `None` if the type of code objects is not known.
    types: Option<KnownTypes>,
    states: Vec<State>,
    codes: Mutex<HashMap<VirtAddr, Arc<Code>>>,
    /// The bytes of text of variables that may still be listed.
    room: AtomicUsize,
    /// The full names of functions by their code, if code objects do not have them.
    qualnames: HashMap<VirtAddr, VirtAddr>,
    kinds: OnceLock<Kinds>,
}

impl<'i> Runtime<'i> {
    fn new(interpreter: &'i Interpreter, layout: RuntimeLayout, states: Vec<State>, tables: &[RuntimeLayout]) -> Self {
        let objects = interpreter.objects();
        let modules = interpreter.modules(&interpreter.module_types());
        let names = TypeNames::new(interpreter, &modules);
        let code = names.find("code").or_else(|| code_type(&objects, &layout, &modules, &names));
        let types = code.map(|code| KnownTypes { code, cell: names.find("cell") });
        let layout = types.map_or(layout.clone(), |types| select_layout(objects, types, &states, layout, tables));
        let repr = Repr::new(interpreter, &modules, &layout);
        let qualnames = match layout.code_qualname {
            Some(_) => HashMap::new(),
            None => qualnames(interpreter, &layout, names.find("function")),
        };
        let (codes, room) = (Mutex::default(), AtomicUsize::new(MAX_TEXT));
        Self {
            interpreter,
            objects,
            layout,
            modules,
            names,
            repr,
            types,
            states,
            codes,
            room,
            qualnames,
            kinds: OnceLock::new(),
        }
    }

    /// The interpreter.
    pub fn interpreter(&self) -> &'i Interpreter {
        self.interpreter
    }

    /// The imported modules.
    pub fn modules(&self) -> &Modules {
        &self.modules
    }

    /// Warnings for the analyst about what could not be read.
    pub fn warnings(&self) -> Vec<Diagnostic> {
        let at = self.interpreter.type_object;
        let warning = |code: diagnostic::Code, what: &str| {
            Diagnostic::new(code, Some(at.into()), format!("the CPython whose `type` is at {at}: {what}"))
        };
        let mut warnings = Vec::new();
        if self.states.is_empty() {
            let what = "the interpreter state was not found, so the threads are not known";
            warnings.push(warning(diagnostic::Code::NoInterpreterState, what));
        } else if self.types.is_none() {
            let what = "the type of code objects was not found, so the frames can't be read";
            warnings.push(warning(diagnostic::Code::NoCodeType, what));
        }
        if self.states.iter().any(|state| !state.is_whole) {
            let what = "the list of threads has a broken link, so threads may be missing";
            warnings.push(warning(diagnostic::Code::BrokenThreadList, what));
        }
        if self.room.load(Ordering::Relaxed) == 0 {
            let what = "the variables of the last frames are not listed, because there are too many";
            warnings.push(warning(diagnostic::Code::VariablesLeftOut, what));
        }
        warnings
    }

    /// What is the same for all objects of each type; read on first use.
    fn kinds(&self) -> &Kinds {
        self.kinds.get_or_init(|| Kinds::read(self.interpreter, &self.layout))
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

    /// Whether one of its threads has this id in the operating system, as far as the interpreter keeps the ids.
    pub fn has_thread(&self, tid: u64) -> bool {
        let native = |thread: &VirtAddr| pointer(&self.objects, *thread, self.layout.native_thread_id);
        let mut threads = self.states.iter().flat_map(|state| &state.threads);
        threads.any(|thread| native(thread) == Some(VirtAddr(tid)))
            || state::names(&self.objects, &self.modules).iter().any(|(.., known)| *known == Some(tid))
    }
}

/// The numbers for an interpreter: what it tells of itself, and else those of its version's table, or of the newest one; `None`
/// without tables.
fn own_layout(interpreter: &Interpreter, tables: &[RuntimeLayout]) -> Option<RuntimeLayout> {
    let of_version = tables.iter().find(|table| table.version == interpreter.layout.version);
    let mut layout = of_version.or(tables.last())?.clone();
    for (number, value) in interpreter.debug_offsets.iter().flat_map(|offsets| offsets.numbers()) {
        layout.set(number, Some(*value));
    }
    Some(layout)
}

/// The layout that reads frames: its own or, if that reads none, the layout of the version that reads most.
fn select_layout(
    objects: Objects<'_>,
    types: KnownTypes,
    states: &[State],
    own_layout: RuntimeLayout,
    tables: &[RuntimeLayout],
) -> RuntimeLayout {
    let threads: Vec<VirtAddr> = states.iter().flat_map(|state| &state.threads).copied().take(SAMPLE).collect();
    // Counts the frames, and the threads whose chain of frames is complete.
    let score = |layout: &RuntimeLayout| -> usize {
        let frames = Frames { objects, layout, types };
        let of_thread = |thread: &VirtAddr| {
            let (frames, problem) = frames.of_thread(*thread, SAMPLE);
            if frames.is_empty() { 0 } else { frames.len() + usize::from(problem.is_none()) * SAMPLE }
        };
        threads.iter().map(of_thread).sum()
    };
    if score(&own_layout) > 0 {
        return own_layout;
    }
    let ranking: Ranking<usize, &RuntimeLayout> = tables.iter().map(|table| (score(table), table)).collect();
    ranking.best().filter(|(found, _)| **found > 0).map_or(own_layout, |(_, table)| (*table).clone())
}

/// The type of code objects, if the module `types` is not imported: the type of the code of the import system's functions.
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

/// The content of a `bytes` object with at most `most` bytes.
fn bytes(objects: &Objects<'_>, layout: &RuntimeLayout, object: VirtAddr, most: u64) -> Option<Vec<u8>> {
    let length = objects.word(object, layout.bytes_size?).ok().filter(|length| *length <= most)?;
    let mut bytes = vec![0; length as usize];
    objects.memory().read(field(object, layout.bytes_data?), &mut bytes).ok()?;
    Some(bytes)
}
