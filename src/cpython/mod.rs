//! CPython, read through an address space.
//!
//! `type` is its own type: the scan finds its candidates by that, [`confirm`] asks the page tables,
//! [`interpreters`] finds all types, chooses the layout that reads them best, and finds all objects of
//! the types that matter. [`Objects`] reads single objects.

mod dict;
mod layout;
mod modules;
mod object;
mod process;
mod sweeper;
mod types;
mod value;

pub use dict::{Attributes, UNREADABLE};
pub(crate) use layout::layout_struct;
pub use layout::{Layout, MissingField, layouts};
pub use modules::{Builtins, Modules, attribute_str, python_version};
pub(crate) use object::field;
pub use object::{ObjectError, Objects};
pub use process::{Candidate, Instances, Interpreter, LayoutScore, confirm, interpreters, is_type_type};
pub use sweeper::Sweeper;
pub use types::{TypeInfo, Types};
pub use value::Value;
