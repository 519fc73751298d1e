//! CPython, read through an address space.
//!
//! `type` is its own type: the scan finds its candidates by that, [`candidates`] asks the page tables and the
//! layouts, [`read_debug_offsets`] what the interpreter tells of itself, [`interpreters`] finds all types, chooses the layout that
//! reads them best or makes one, and finds all objects of the types that matter. [`Objects`] reads single objects.

mod candidate;
mod debug_offsets;
mod dict;
mod holders;
mod infer;
mod layout;
mod modules;
mod object;
mod process;
mod references;
mod runtime;
mod selection;
mod sweeper;
mod text;
mod types;
mod value;

pub use crate::layout::{Change, LayoutSource};
pub use candidate::{Candidate, candidates};
pub use debug_offsets::{UnsoundOffset, read_debug_offsets};
pub use dict::{Attributes, UNREADABLE};
pub(crate) use holders::{Holders, Shape, Step};
pub use layout::{Layout, layouts};
pub use modules::{Builtins, Modules, attribute_str, python_version};
pub(crate) use object::DIGIT_BITS;
pub use object::{ObjectError, Objects};
pub use process::{Instances, Interpreter, interpreters};
pub use runtime::{
    BrokenLink, Census, Collector, Frame, Generation, GeneratorState, HeldObject, ImportedModule, ObjectDetails,
    ObjectRow, Repr, RunningInterpreters, Runtime, RuntimeLayout, Suspended, SuspendedKind, Thread, TypeCount,
    TypeNames, Unlisted, all_types, collected_types, runtime_layouts, wanted_types,
};
pub use selection::LayoutScore;
pub(crate) use sweeper::LiveSweep;
pub use sweeper::Sweeper;
pub(crate) use text::bounded;
pub use types::{TypeInfo, Types};
pub use value::Value;
