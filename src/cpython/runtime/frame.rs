//! Frames: objects that refer to the frame of the caller (up to 3.10), or structures on the interpreter's own stack (from 3.11
//! on).

use std::collections::HashSet;

use super::code::{UNIT, int32};
use super::layout::RuntimeLayout;
use super::state::pointer;
use crate::addr::{VirtAddr, field};
use crate::cpython::{ObjectError, Objects};

/// Tag bits of a reference on the interpreter's stack (`_PyStackRef`, from 3.14 on). Objects are aligned to at least 8 bytes.
const TAGS: u64 = 7;
/// Maximum number of variables of one frame.
const MAX_VARIABLES: usize = 1 << 12;
/// Maximum size of a table of variable kinds, in bytes.
const MAX_KINDS: u64 = MAX_VARIABLES as u64;
/// Maximum number of copies of one function's bytecode: in free-threaded builds each thread has its own.
const MAX_COPIES: u64 = 1 << 16;
/// The owner of a frame that is part of a generator (`FRAME_OWNED_BY_GENERATOR`).
const GENERATOR: u8 = 1;

/// The types of the objects that frames refer to.
#[derive(Clone, Copy, Debug)]
pub(super) struct KnownTypes {
    pub(super) code: VirtAddr,
    pub(super) cell: Option<VirtAddr>,
}

/// A frame as it lies in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawFrame {
    pub(super) address: VirtAddr,
    pub(super) code: VirtAddr,
    /// The offset of the current instruction in bytes; negative before the first instruction.
    pub(super) instruction: Option<i64>,
    /// The frame of the caller.
    previous: VirtAddr,
    /// The array of its variables.
    variables: Option<VirtAddr>,
    /// The namespace of a module's or a class's code.
    namespace: Option<VirtAddr>,
}

/// Reads the frames of an interpreter.
#[derive(Clone, Copy)]
pub(super) struct Frames<'r> {
    pub(super) objects: Objects<'r>,
    pub(super) layout: &'r RuntimeLayout,
    pub(super) types: KnownTypes,
}

/// The frames of a thread, innermost first, and the reason if the chain of frames ends early.
pub(super) type Chain = (Vec<RawFrame>, Option<String>);

impl Frames<'_> {
    /// The frames of a thread state, at most `most`.
    pub(super) fn of_thread(&self, thread: VirtAddr, most: usize) -> Chain {
        let layout = self.layout;
        let first = match (layout.current_frame, layout.thread_cframe, layout.thread_frame) {
            (None, Some(_), _) => pointer(&self.objects, thread, layout.thread_cframe)
                .and_then(|cframe| pointer(&self.objects, cframe, layout.cframe_frame)),
            (None, None, frame) => pointer(&self.objects, thread, frame),
            (frame, ..) => pointer(&self.objects, thread, frame),
        };
        let Some(mut at) = first else {
            return (Vec::new(), Some(format!("the thread state at {thread} can't be read")));
        };
        let mut frames = Vec::new();
        let mut seen = HashSet::new();
        while at.0 != 0 {
            if !seen.insert(at) {
                return (frames, Some(format!("the frames go round: the one at {at} comes again")));
            }
            if seen.len() > most {
                return (frames, Some(format!("only the first {most} frames are listed: the next frame is at {at}")));
            }
            at = match self.step(at) {
                Ok((frame, previous)) => {
                    frames.extend(frame);
                    previous
                }
                Err(error) => return (frames, Some(format!("the frame at {at} can't be read: {error}"))),
            };
        }
        (frames, None)
    }

    /// A frame and the frame of its caller. Frames that run no Python code give `None`.
    fn step(&self, at: VirtAddr) -> Result<(Option<RawFrame>, VirtAddr), ObjectError> {
        if self.layout.frame_code.is_some() {
            let frame = self.object(at)?;
            return Ok((Some(frame), frame.previous));
        }
        let unknown = ObjectError::WrongType { address: at, expected: "frame of a known layout" };
        let owner = self.objects.byte(at, self.layout.owner.ok_or(unknown)?)?;
        if self.layout.owner_interpreter.is_some_and(|first| i64::from(owner) >= first) {
            let previous = pointer(&self.objects, at, self.layout.previous_frame).ok_or(unknown)?;
            return Ok((None, previous));
        }
        let frame = self.structure(at)?;
        // Python's own tools hide a frame that has not yet reached the first line of its function.
        let started = self.layout.code_first_traceable.and_then(|offset| int32(&self.objects, frame.code, offset));
        let is_begun = owner == GENERATOR
            || started.zip(frame.instruction).is_none_or(|(first, at)| at >= i64::from(first).wrapping_mul(UNIT));
        Ok((is_begun.then_some(frame), frame.previous))
    }

    /// Reads a frame object, the format up to 3.10.
    pub(super) fn object(&self, at: VirtAddr) -> Result<RawFrame, ObjectError> {
        let (objects, layout) = (&self.objects, self.layout);
        let unknown = ObjectError::WrongType { address: at, expected: "frame of a known layout" };
        let code = self.code(at, layout.frame_code)?;
        let last = layout.frame_last_instruction.and_then(|offset| int32(objects, at, offset)).ok_or(unknown)?;
        Ok(RawFrame {
            address: at,
            code,
            instruction: Some(i64::from(last) * layout.instruction_unit.unwrap_or(1).clamp(1, UNIT)),
            previous: pointer(objects, at, layout.frame_back).ok_or(unknown)?,
            variables: layout.frame_fast_locals.map(|offset| field(at, offset)),
            namespace: pointer(objects, at, layout.frame_locals).filter(|namespace| namespace.0 != 0),
        })
    }

    /// Reads an interpreter frame, the format from 3.11 on.
    pub(super) fn structure(&self, at: VirtAddr) -> Result<RawFrame, ObjectError> {
        let (objects, layout) = (&self.objects, self.layout);
        let unknown = ObjectError::WrongType { address: at, expected: "frame of a known layout" };
        let code = self.code(at, layout.executable)?;
        let instruction = pointer(objects, at, layout.instruction).ok_or(unknown)?;
        Ok(RawFrame {
            address: at,
            code,
            instruction: self.offset(at, code, instruction),
            previous: pointer(objects, at, layout.previous_frame).ok_or(unknown)?,
            variables: layout.fast_locals.map(|offset| field(at, offset)),
            namespace: pointer(objects, at, layout.locals).map(untagged).filter(|namespace| namespace.0 != 0),
        })
    }

    /// The code object that a frame refers to.
    fn code(&self, frame: VirtAddr, offset: Option<i64>) -> Result<VirtAddr, ObjectError> {
        let no_code = ObjectError::WrongType { address: frame, expected: "frame with a code object" };
        let code = untagged(pointer(&self.objects, frame, offset).ok_or(no_code)?);
        if self.objects.type_of(code)? == self.types.code { Ok(code) } else { Err(no_code) }
    }

    /// The offset of an instruction in its code, in bytes; `None` if the instruction is not in that code.
    fn offset(&self, frame: VirtAddr, code: VirtAddr, instruction: VirtAddr) -> Option<i64> {
        let (objects, layout) = (&self.objects, self.layout);
        let size = objects.word(code, layout.code_size?).ok()?.cast_signed().checked_mul(UNIT)?;
        let behind = |start: VirtAddr| {
            let offset = instruction.0.wrapping_sub(start.0).cast_signed();
            (-UNIT..size).contains(&offset).then_some(offset)
        };
        if let Some(offset) = behind(field(code, layout.code_start?)) {
            return Some(offset);
        }
        // In free-threaded builds each thread has its own copy of the bytecode.
        let copies = pointer(objects, code, layout.code_threads)?;
        let index = u64::try_from(int32(objects, frame, layout.bytecode_index?)?).ok()?;
        let count = objects.word(copies, layout.code_array_size?).ok()?;
        if index >= count.min(MAX_COPIES) {
            return None;
        }
        let entries = field(copies, layout.code_array_entries?);
        behind(objects.pointer(entries, (index * 8).cast_signed()).ok()?)
    }

    /// The names and values of a frame's variables that are set, as in `frame.f_locals`.
    pub(super) fn locals(&self, frame: &RawFrame) -> Vec<(String, VirtAddr)> {
        let (objects, layout) = (&self.objects, self.layout);
        let flags = layout.code_flags.and_then(|offset| int32(objects, frame.code, offset)).unwrap_or_default();
        let is_function = layout.flag_optimized.is_none_or(|flag| i64::from(flags) & flag != 0);
        if !is_function {
            let namespace = frame.namespace.and_then(|namespace| objects.str_dict(namespace).ok());
            return namespace.unwrap_or_default();
        }
        self.variables(frame).unwrap_or_default()
    }

    fn variables(&self, frame: &RawFrame) -> Option<Vec<(String, VirtAddr)>> {
        let (objects, layout) = (&self.objects, self.layout);
        let tuple = |offset| objects.tuple(pointer(objects, frame.code, offset)?).ok();
        // For each variable: whether it is shown, and whether it is stored in a cell.
        let (names, kinds): (Vec<VirtAddr>, Vec<(bool, bool)>) = match layout.code_names {
            Some(_) => {
                let kinds = super::bytes(objects, layout, pointer(objects, frame.code, layout.code_kinds)?, MAX_KINDS)?;
                let has = |kind: u8, flag: Option<i64>| flag.is_some_and(|flag| i64::from(kind) & flag != 0);
                let in_cell = |kind| has(kind, layout.kind_cell) || has(kind, layout.kind_free);
                let kinds = kinds.into_iter().map(|kind| (!has(kind, layout.kind_hidden), in_cell(kind)));
                (tuple(layout.code_names)?, kinds.collect())
            }
            None => {
                let plain = tuple(layout.code_variables)?;
                let cells = [tuple(layout.code_cells)?, tuple(layout.code_free)?].concat();
                let kinds = plain.iter().map(|_| (true, false)).chain(cells.iter().map(|_| (true, true)));
                let kinds = kinds.collect();
                ([plain, cells].concat(), kinds)
            }
        };
        if names.len() > MAX_VARIABLES {
            return None;
        }
        let values = objects.words(frame.variables?, names.len() as u64).ok()?;
        let variables = names.into_iter().zip(kinds).zip(values);
        let found = variables.filter_map(|((name, (is_shown, in_cell)), value)| {
            let value = untagged(VirtAddr(value));
            let value = if in_cell && value.0 != 0 { self.in_cell(value) } else { Some(value) };
            let value = value.filter(|value| is_shown && value.0 != 0)?;
            Some((objects.str(name).unwrap_or_else(|_| format!("{}{name}", crate::cpython::UNREADABLE)), value))
        });
        Some(found.collect())
    }

    /// The object in a cell. Before a function starts, a variable that will get a cell is stored directly.
    fn in_cell(&self, value: VirtAddr) -> Option<VirtAddr> {
        let is_cell = self.types.cell.is_none_or(|cell| self.objects.type_of(value) == Ok(cell));
        if is_cell { pointer(&self.objects, value, self.objects.layout().cell_value) } else { Some(value) }
    }
}

/// An address without its tag bits.
fn untagged(reference: VirtAddr) -> VirtAddr {
    VirtAddr(reference.0 & !TAGS)
}
