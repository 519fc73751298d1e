//! What the image of one process says of it beside its notes: its arguments and its program.
//!
//! The kernel puts these on the stack of a new program, from lower to higher addresses: the number of arguments, pointers to
//! them, a zero, pointers to the environment, a zero, and the auxiliary vector; above these the texts themselves, arguments first
//! (`create_elf_tables` of fs/binfmt_elf.c).

use super::process::{MAX_STRINGS, command_line};
use crate::addr::VirtAddr;
use crate::dump::{PhysicalMemory, ProcessImage};
use crate::paging::VirtualMemory;

/// Types of entries of the auxiliary vector (include/uapi/linux/auxvec.h).
const AT_ENTRY: u64 = 9;
const AT_PLATFORM: u64 = 15;
const AT_RANDOM: u64 = 25;
const AT_EXECFN: u64 = 31;
/// Maximum distance from the auxiliary vector to what comes after it, in bytes; it is a few hundred.
const MAX_GAP: u64 = 8 << 10;
/// Entries of the vector that are compared to find it.
const SAMPLE: usize = 4;
/// Maximum number of pointers to arguments or to the environment.
const MAX_POINTERS: u64 = MAX_STRINGS / 2;

/// The arguments that a process has, from its stack; `None` if they can't be read.
pub fn command_line_of_image(memory: &dyn VirtualMemory, image: &ProcessImage) -> Option<Vec<String>> {
    let word = |at: u64| memory.read_u64(VirtAddr(at)).ok();
    let vector = vector(memory, image)?;
    // The environment, before it the arguments: lists with a zero behind each.
    let list = |end: u64| {
        let first = (1..MAX_POINTERS).map_while(|index| end.checked_sub(index * 8)).find(|at| word(*at) == Some(0))?;
        Some(first + 8)
    };
    let environment = list(vector.checked_sub(8)?)?;
    let arguments_end = environment.checked_sub(8)?;
    // The number of arguments is before them, not a zero.
    let mut places = (1..MAX_POINTERS).map_while(|count| {
        let at = arguments_end.checked_sub((count + 1) * 8)?;
        Some((count, at, word(at)?))
    });
    let (_, number, _) = places.find(|(count, _, found)| found == count)?;
    let start = word(number + 8)?;
    let end_of_all = value(image, AT_EXECFN)?;
    let end = word(environment).filter(|first| *first != 0).unwrap_or(end_of_all);
    command_line(memory, start..end, Some(end_of_all))
}

/// The path of the program that a process runs: the mapped file that holds its entry point.
pub fn executable_of_image(memory: &PhysicalMemory, image: &ProcessImage) -> Option<String> {
    let entry = VirtAddr(value(image, AT_ENTRY)?);
    let map = super::map_of_image(memory);
    map.mappings.into_iter().find(|mapping| (mapping.start..mapping.end).contains(&entry))?.file
}

fn value(image: &ProcessImage, kind: u64) -> Option<u64> {
    image.auxiliary_vector.iter().find(|(found, _)| *found == kind).map(|(_, value)| *value)
}

/// The address of the auxiliary vector on the stack.
fn vector(memory: &dyn VirtualMemory, image: &ProcessImage) -> Option<u64> {
    let sample = image.auxiliary_vector.get(..SAMPLE)?;
    let after = [AT_PLATFORM, AT_RANDOM].into_iter().filter_map(|kind| value(image, kind)).min()? & !7;
    let mut places = (1..MAX_GAP / 8).map_while(|index| after.checked_sub(index * 8));
    let is_here = |at: &u64| {
        (0..).step_by(8).zip(sample.iter().flat_map(|(kind, value)| [kind, value])).all(|(offset, wanted)| {
            let at = at.checked_add(offset).map(VirtAddr);
            at.and_then(|at| memory.read_u64(at).ok()) == Some(*wanted)
        })
    };
    places.find(is_here)
}
