//! Weights of linear layers that FBGEMM has packed: `PackBMatrix<int8_t>`, a matrix in blocks.

use super::layout::MatrixNumbers;
use super::object::is_pointer;
use crate::addr::{VirtAddr, field};
use crate::paging::VirtualMemory;
use crate::tensor::Jump;

/// The most rows, columns and blocks: what an `int32_t` holds.
const MAX: u64 = i32::MAX as u64;

/// The bytes of a packed matrix, as the weight of a linear layer: outputs by inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Matrix {
    /// The C++ object.
    pub(super) object: VirtAddr,
    /// The first block.
    pub(super) data: VirtAddr,
    /// Outputs, inputs.
    pub(super) shape: [u64; 2],
    /// Bytes of all blocks.
    pub(super) bytes: u64,
    pub(super) stride: [u64; 2],
    pub(super) jumps: Vec<Jump>,
}

impl Matrix {
    /// Reads a matrix that was packed from a transposed weight, in one group; `None` where there is none.
    ///
    /// All numbers of the blocks must follow from the matrix's own.
    pub(super) fn read(memory: &dyn VirtualMemory, all: &[MatrixNumbers], object: VirtAddr) -> Option<Self> {
        all.iter().find_map(|numbers| Self::read_with(memory, numbers, object))
    }

    fn read_with(memory: &dyn VirtualMemory, numbers: &MatrixNumbers, object: VirtAddr) -> Option<Self> {
        let number = |offset: i64| -> Option<u64> {
            let word = memory.word(VirtAddr(field(object, offset).0 & !7), 0).ok()?;
            let half = (word >> (8 * (offset & 4))) & u64::from(u32::MAX);
            Some(half).filter(|half| *half <= MAX)
        };
        let data = memory.pointer(object, numbers.buf).ok().filter(is_pointer)?;
        let (rows, columns) = (number(numbers.rows)?, number(numbers.columns)?);
        let (block_rows, block_columns) = (number(numbers.block_rows)?, number(numbers.block_columns)?);
        let (row_blocks, column_blocks) = (number(numbers.row_blocks)?, number(numbers.column_blocks)?);
        let interleave = number(numbers.row_interleave)?;
        if [rows, columns, block_rows, block_columns, interleave].contains(&0) || block_rows % interleave != 0 {
            return None;
        }
        let last = |all: u64, block: u64| if all.is_multiple_of(block) { block } else { all % block };
        let is_sound = number(numbers.groups)? == 1
            && number(numbers.trans)?.cast_signed() == numbers.transpose
            && (number(numbers.row_start)?, number(numbers.row_size)?) == (0, rows)
            && (number(numbers.column_start)?, number(numbers.column_size)?) == (0, columns)
            && (row_blocks, column_blocks) == (rows.div_ceil(block_rows), columns.div_ceil(block_columns))
            && number(numbers.last_rows)? == last(rows, block_rows)
            && number(numbers.last_columns)? == last(columns, block_columns);
        if !is_sound {
            return None;
        }
        let block = block_rows.checked_mul(block_columns)?;
        let bytes = block.checked_mul(row_blocks)?.checked_mul(column_blocks)?;
        let jump = |dim, every, bytes: u64| Some(Jump { dim, every, bytes: i64::try_from(bytes).ok()? });
        // Blocks of a row of blocks follow each other; in a block so many rows of a column lie side by side.
        let side_by_side = block_columns.checked_mul(interleave)?;
        let jumps = vec![
            jump(0, block_columns, block.checked_sub(side_by_side)?)?,
            jump(1, interleave, side_by_side.checked_sub(interleave)?)?,
            jump(1, block_rows, block.checked_mul(column_blocks.checked_sub(1)?)?)?,
        ];
        Some(Self { object, data, shape: [columns, rows], bytes, stride: [interleave, 1], jumps })
    }
}
