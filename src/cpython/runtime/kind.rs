//! What the collector and the census need of each type, read once for all its objects.

use std::collections::HashMap;

use super::layout::RuntimeLayout;
use crate::addr::VirtAddr;
use crate::cpython::Interpreter;

/// What is the same for all objects of a type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// `tp_flags`.
    pub(super) flags: u64,
    /// Whether the collector tracks objects of the type (`Py_TPFLAGS_HAVE_GC`).
    pub(super) is_collected: bool,
    /// `tp_basicsize` and `tp_itemsize`; `None` if they can't be read.
    pub(super) sizes: Option<(u64, i64)>,
}

impl Kind {
    /// Whether a flag of a layout is set.
    pub(super) fn has(&self, flag: i64) -> bool {
        self.flags & flag.cast_unsigned() != 0
    }
}

/// The types of an interpreter.
pub(super) struct Kinds(HashMap<VirtAddr, Kind>);

impl Kinds {
    /// Reads all types that are known.
    pub(super) fn read(interpreter: &Interpreter, layout: &RuntimeLayout) -> Self {
        let objects = interpreter.objects();
        let collected = layout.flag_collected.unwrap_or_default().cast_unsigned();
        let kind = |(address, flags): (VirtAddr, u64)| {
            let word = |offset| objects.word(address, offset).ok();
            let basic = word(objects.layout().tp_basicsize);
            let item = word(objects.layout().tp_itemsize).map(u64::cast_signed);
            (address, Kind { flags, is_collected: flags & collected != 0, sizes: basic.zip(item) })
        };
        Self(interpreter.types.iter().map(|(address, info)| kind((*address, info.flags))).collect())
    }

    /// What is known of a type.
    pub(super) fn get(&self, type_object: VirtAddr) -> Option<&Kind> {
        self.0.get(&type_object)
    }
}
