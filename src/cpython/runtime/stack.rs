//! Stacks: the threads of an interpreter with their frames, and the frames of generators that do not run.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use serde::Serialize;

use super::Runtime;
use super::code::Code;
use super::frame::{Chain, RawFrame};
use super::state::{self, pointer};
use crate::addr::{VirtAddr, field};
use crate::cpython::bounded;
use crate::words::printable;

/// Maximum number of frames of one thread, and of all threads of an interpreter.
const MAX_FRAMES: usize = 1 << 16;
const MAX_ALL_FRAMES: usize = 1 << 16;
/// Maximum length of the name of a variable, in bytes; longer names are cut.
const MAX_NAME: usize = 256;

/// A thread of an interpreter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Thread {
    /// Its id in the operating system, if the interpreter keeps it.
    pub tid: Option<u64>,
    /// `threading.Thread.name`.
    pub name: Option<String>,
    /// Its identifier within the process: `threading.get_ident()`.
    pub ident: Option<u64>,
    /// The address of its thread state.
    pub address: VirtAddr,
    /// Its frames, innermost first.
    frames: Vec<Frame>,
    /// The reason if the chain of frames ends early.
    pub problem: Option<String>,
}

impl Thread {
    /// Its frames, innermost first.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }
}

/// A frame of Python code. It prints as in a traceback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// `co_name`.
    pub function: Option<String>,
    /// `co_qualname`; before 3.11 the `__qualname__` of a function with this code.
    pub qualname: Option<String>,
    /// `co_filename`.
    pub file: Option<String>,
    /// The current line; `None` also if the instruction belongs to no line.
    pub line: Option<i64>,
    /// Its address.
    pub address: VirtAddr,
    /// The variables that are set, with short representations; `None` if they were not requested, or are too many.
    #[serde(serialize_with = "as_map")]
    pub locals: Option<Vec<(String, String)>>,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |text: Option<&String>| text.map_or("?".to_owned(), |text| printable(text));
        let line = self.line.map_or("?".to_owned(), |line| line.to_string());
        let name = text(self.qualname.as_ref().or(self.function.as_ref()));
        write!(f, "File \"{}\", line {line}, in {name}", text(self.file.as_ref()))
    }
}

/// Pairs as a JSON object.
fn as_map<S: serde::Serializer>(pairs: &Option<Vec<(String, String)>>, serializer: S) -> Result<S::Ok, S::Error> {
    match pairs {
        Some(pairs) => serializer.collect_map(pairs.iter().map(|(name, value)| (name, value))),
        None => serializer.serialize_none(),
    }
}

/// Kinds of objects that own a frame.
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
pub(super) const SUSPENDED: [(&str, SuspendedKind); 3] = [
    ("generator", SuspendedKind::Generator),
    ("coroutine", SuspendedKind::Coroutine),
    ("async_generator", SuspendedKind::AsyncGenerator),
];

/// The state of a generator that is not running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GeneratorState {
    /// It has not started.
    Created,
    /// It waits at a `yield` or an `await`.
    Suspended,
}

/// A generator or a coroutine that is neither running nor finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Suspended {
    /// Its kind.
    pub kind: SuspendedKind,
    /// Its state.
    pub state: GeneratorState,
    /// Its address.
    pub address: VirtAddr,
    /// Its frame.
    pub frame: Frame,
}

impl Runtime<'_> {
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

    /// Generators and coroutines that are neither running nor finished, sorted by address.
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

    /// The frame of a generator, and its state; `None` if it is running, has finished, or can't be read.
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
        // In 3.10 zero is the state of a running frame. Earlier versions have a flag.
        let is_waiting = match signed(at, layout.frame_state) {
            Some(state) => state < 0,
            None => signed(at, layout.frame_executing)? == 0,
        };
        let frame = frames.object(at).ok().filter(|_| is_waiting)?;
        let is_created = frame.instruction.is_some_and(|instruction| instruction < 0);
        Some((if is_created { GeneratorState::Created } else { GeneratorState::Suspended }, frame))
    }

    fn describe(&self, frame: &RawFrame, qualname: Option<VirtAddr>, with_locals: bool) -> Frame {
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        let read = || Arc::new(Code::read(&self.objects, &self.layout, frame.code));
        let code = Arc::clone(codes.entry(frame.code).or_insert_with(read));
        drop(codes);
        let qualname = qualname.or_else(|| self.qualnames.get(&frame.code).copied());
        let qualname = || qualname.and_then(|name| self.objects.str(name).ok());
        let locals = (with_locals && self.room.load(Ordering::Relaxed) > 0).then(|| {
            let locals = self.frames().map(|frames| frames.locals(frame)).unwrap_or_default();
            let locals = locals.into_iter().map(|(name, value)| (bounded(name, MAX_NAME), self.repr(value)));
            let locals: Vec<(String, String)> = locals.collect();
            let text: usize = locals.iter().map(|(name, value)| name.len() + value.len()).sum();
            let take = |room: usize| Some(room.saturating_sub(text));
            let _ = self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
            locals
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
