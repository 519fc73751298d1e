//! The Python interpreters of a case, with their objects and threads.

use std::sync::Arc;

use super::{Case, CaseError, Process, Pythons};
use crate::addr::VirtAddr;
use crate::cpython::{HeldObject, Interpreter, ObjectRow, Objects, Runtime, Thread};

/// A Python interpreter in a process.
#[derive(Clone)]
pub struct Python {
    case: Case,
    pythons: Arc<Pythons>,
    index: usize,
}

/// An object of a Python interpreter.
#[derive(Clone)]
pub struct Object {
    python: Python,
    row: ObjectRow,
}

impl Process {
    /// The Python interpreters that run in it.
    ///
    /// # Errors
    /// As for [`Case::spaces`].
    pub fn interpreters(&self) -> Result<Vec<Python>, CaseError> {
        let case = self.case();
        let pythons = case.pythons()?;
        let all = pythons.interpreters.iter().enumerate();
        let here = all.filter(|(_, interpreter)| interpreter.space().root() == self.root());
        let python = |(index, _)| Python { case: case.clone(), pythons: Arc::clone(&pythons), index };
        Ok(here.map(python).collect())
    }
}

impl Python {
    /// The interpreter: its types, its layout, and a reader of its objects.
    pub fn data(&self) -> &Interpreter {
        #[expect(clippy::indexing_slicing, reason = "the index is from this list, which does not change")]
        &self.pythons.interpreters[self.index]
    }

    /// A reader of its objects.
    pub fn objects(&self) -> Objects<'_> {
        self.data().objects()
    }

    /// The type of that full name (`module.qualname`), which a class statement made.
    pub fn types(&self, name: &str) -> Vec<VirtAddr> {
        // A qualified name may have dots as well: each of them could end the module's.
        let splits = name.match_indices('.').map(|(dot, _)| (name.get(..dot), name.get(dot + 1..)));
        let names = splits.filter_map(|(module, qualname)| Some((module?, qualname?)));
        names.flat_map(|(module, qualname)| self.data().heap_type(module, qualname)).collect()
    }

    /// The objects of the types with this name: the full name (`module.qualname`), or its last part. They are those that
    /// `tensorcarve objects --type` lists.
    ///
    /// # Errors
    /// As for [`Case::spaces`].
    pub fn instances(&self, name: &str) -> Result<Vec<Object>, CaseError> {
        let rows = self.with_runtime(|runtime| {
            let census = runtime.census(&runtime.collector());
            runtime.instances(&census, name, usize::MAX)
        })?;
        let object = |row| Object { python: self.clone(), row };
        Ok(rows.unwrap_or_default().into_iter().map(object).collect())
    }

    /// Its threads with their frames and the variables of these, as `tensorcarve stack --locals` prints them.
    ///
    /// # Errors
    /// As for [`Case::spaces`].
    pub fn threads(&self) -> Result<Vec<Thread>, CaseError> {
        Ok(self.with_runtime(|runtime| runtime.threads(true))?.unwrap_or_default())
    }

    /// Calls `read` with its running state, in which the instances of all types are known; `None` if no layout of a
    /// running state is known.
    ///
    /// # Errors
    /// As for [`Case::spaces`].
    pub fn with_runtime<T>(&self, read: impl FnOnce(&Runtime<'_>) -> T) -> Result<Option<T>, CaseError> {
        let all = self.case.all_objects()?;
        let key = |interpreter: &Interpreter| (interpreter.space().root(), interpreter.type_object);
        let wanted = key(self.data());
        let index = all.interpreters().iter().position(|interpreter| key(interpreter) == wanted);
        Ok(index.and_then(|index| all.runtime(index)).map(|runtime| read(&runtime)))
    }
}

impl Object {
    /// Its address, the name of its type, a short representation, and its size.
    pub fn data(&self) -> &ObjectRow {
        &self.row
    }

    /// Its attributes by name: those of its `__dict__` and of its `__slots__`. There are none if the object can't be read.
    ///
    /// # Errors
    /// As for [`Case::spaces`].
    pub fn attributes(&self) -> Result<Vec<HeldObject>, CaseError> {
        let details = self.python.with_runtime(|runtime| runtime.details(self.row.address))?;
        Ok(details.flatten().map(|details| details.attributes).unwrap_or_default())
    }
}
