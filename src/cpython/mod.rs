//! CPython, read through an address space.
//!
//! `type` is its own type: the scan finds its candidates by that, [`confirm`] asks the page tables,
//! [`interpreters`] finds all types and chooses the layout that reads them best, [`instances`]
//! finds all objects of a type. [`Objects`] reads single objects.

mod dict;
mod layout;
mod modules;
mod object;
mod process;
mod types;
mod value;

pub use dict::Attributes;
pub(crate) use layout::layout_struct;
pub use layout::{Layout, MissingField, layouts};
pub use modules::{Builtins, Modules, attribute_str, python_version};
pub use object::{ObjectError, Objects};
pub use process::{
    Candidate, Instances, Interpreter, LayoutScore, Sweeper, confirm, instances, interpreters, is_type_type,
};
pub use types::{TypeInfo, Types};
pub use value::Value;
