//! Frames: objects that refer to the one below (up to 3.10), or structures on a stack of the interpreter's own (from 3.11 on).

use std::collections::HashSet;

use super::code::{UNIT, int32};
use super::layout::RuntimeLayout;
use super::state::pointer;
use crate::addr::VirtAddr;
use crate::cpython::{ObjectError, Objects, field};

/// Bits of a reference on the interpreter's stack that are no part of an address (`_PyStackRef`, from 3.14 on): objects are
/// aligned to 8 bytes at least.
const TAGS: u64 = 7;
/// Variables of one frame.
const MAX_VARIABLES: usize = 1 << 12;
/// The largest table of kinds of variables, in bytes.
const MAX_KINDS: u64 = MAX_VARIABLES as u64;
/// Copies of bytecode that threads of a free-threaded build have of one function.
const MAX_COPIES: u64 = 1 << 16;
/// Who owns a frame that lies in a generator (`FRAME_OWNED_BY_GENERATOR`).
const GENERATOR: u8 = 1;

/// What frames refer to, by its type.
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
    /// Offset of the instruction that runs, in bytes; negative before the first.
    pub(super) instruction: Option<i64>,
    /// The frame that called it.
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

/// The frames of a thread, innermost first, and why there are no more of them if something is wrong.
pub(super) type Chain = (Vec<RawFrame>, Option<String>);

impl Frames<'_> {
    /// The frames of a thread state, no more than `most`.
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
                return (frames, Some(format!("there are more frames than the {most} listed: the next is at {at}")));
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

    /// A frame and the one that called it; `None` in place of one in which no Python code runs.
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
        // A call that has not got as far as the function's first line is no frame yet for Python's own tools.
        let started = self.layout.code_first_traceable.and_then(|offset| int32(&self.objects, frame.code, offset));
        let is_begun = owner == GENERATOR
            || started.zip(frame.instruction).is_none_or(|(first, at)| at >= i64::from(first).wrapping_mul(UNIT));
        Ok((is_begun.then_some(frame), frame.previous))
    }

    /// Reads a frame object, as they are up to 3.10.
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

    /// Reads a frame that is no object, as they are from 3.11 on.
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

    /// How far behind the beginning of its code an instruction lies, in bytes; `None` if it lies elsewhere.
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
        // In free-threaded builds a thread has a copy of the bytecode for itself.
        let copies = pointer(objects, code, layout.code_threads)?;
        let index = u64::try_from(int32(objects, frame, layout.bytecode_index?)?).ok()?;
        let count = objects.word(copies, layout.code_array_size?).ok()?;
        if index >= count.min(MAX_COPIES) {
            return None;
        }
        let entries = field(copies, layout.code_array_entries?);
        behind(objects.pointer(entries, (index * 8).cast_signed()).ok()?)
    }

    /// Names and values of a frame's variables that are set, as `frame.f_locals` has them.
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
        // Whether a variable is shown, and whether it lies in a cell.
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

    /// What a cell holds; before a function has begun, a variable that will get a cell is there by itself.
    fn in_cell(&self, value: VirtAddr) -> Option<VirtAddr> {
        let is_cell = self.types.cell.is_none_or(|cell| self.objects.type_of(value) == Ok(cell));
        if is_cell { pointer(&self.objects, value, self.objects.layout().cell_value) } else { Some(value) }
    }
}

/// An address without the bits that are no part of it.
fn untagged(reference: VirtAddr) -> VirtAddr {
    VirtAddr(reference.0 & !TAGS)
}
