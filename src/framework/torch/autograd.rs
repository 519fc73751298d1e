//! The order in which a network used its parameters, by the graph that the last forward pass recorded for the backward pass.
//!
//! A tensor that was computed has the node of its operation (`grad_fn`), whose edges lead to the nodes of its inputs, and at last to
//! the node that accumulates the gradient of a parameter. Nodes are numbered in the order in which the operations ran
//! (torch/csrc/autograd/function.h, `Node::sequence_nr_`). The graph stays as long as its result does: the loss, in most programs, until
//! the next one is computed.

use std::collections::{BTreeMap, BTreeSet};

use super::script::{ObjectNumbers, is_pointer, words_at};
use super::tensor::Layout;
use crate::addr::VirtAddr;
use crate::paging::VirtualMemory;
use crate::tensor::TensorInfo;

/// Nodes of one process that are read.
const MAX_NODES: usize = 1 << 18;
/// Words of a node in which its vector of edges lies: at word 12 in PyTorch 2.6.
const NODE_WORDS: u64 = 24;
/// Edges of one node, and of all nodes that are read.
const MAX_EDGES: u64 = 1 << 12;
const MAX_READ: u64 = 1 << 21;
/// Bytes of a word.
const WORD: u64 = 8;

/// The number of the last operation that used each of some tensors, by the tensor's header; what no graph leads to is left out.
pub(super) fn last_uses(
    memory: &dyn VirtualMemory,
    layout: &Layout,
    numbers: &ObjectNumbers,
    tensors: &[TensorInfo],
) -> BTreeMap<VirtAddr, u64> {
    let mut todo: Vec<VirtAddr> = Vec::new();
    let mut leaves: BTreeMap<VirtAddr, VirtAddr> = BTreeMap::new();
    for tensor in tensors {
        let nodes = layout.autograd_nodes(memory, tensor.header);
        todo.extend(nodes.function);
        leaves.extend(nodes.accumulator.map(|node| (node, tensor.header)));
    }
    let mut seen: BTreeSet<VirtAddr> = BTreeSet::new();
    let mut uses: BTreeMap<VirtAddr, u64> = BTreeMap::new();
    let mut left = MAX_READ;
    while let Some(node) = todo.pop() {
        if seen.len() >= MAX_NODES || !seen.insert(node) || memory.pointer(node, numbers.graph_node_self) != Ok(node) {
            continue;
        }
        let Ok(number) = memory.word(node, numbers.graph_node_number) else { continue };
        for next in edges(memory, numbers, node, &mut left) {
            match leaves.get(&next) {
                Some(tensor) => {
                    let last = uses.entry(*tensor).or_insert(number);
                    *last = number.max(*last);
                }
                None => todo.push(next),
            }
        }
    }
    uses
}

/// The nodes that the edges of a node lead to; none if more than `left` would have to be read.
fn edges(memory: &dyn VirtualMemory, numbers: &ObjectNumbers, node: VirtAddr, left: &mut u64) -> Vec<VirtAddr> {
    let size = numbers.edge_size.unsigned_abs();
    let words = words_at(memory, node, NODE_WORDS);
    let vector = words.windows(3).find_map(|window| {
        let [begin, end, room] = *window else { return None };
        let bytes = end.checked_sub(begin).filter(|_| is_pointer(&VirtAddr(begin)) && room >= end)?;
        let count =
            bytes.checked_div(size).filter(|count| bytes.is_multiple_of(size) && (1..=MAX_EDGES).contains(count))?;
        *left = left.checked_sub(count)?;
        let words = words_at(memory, VirtAddr(begin), bytes / WORD);
        let edges: Vec<VirtAddr> =
            words.chunks_exact((size / WORD) as usize).filter_map(|edge| edge.first().copied().map(VirtAddr)).collect();
        // An input that needs no gradient has a null pointer.
        let is_node = |edge: &VirtAddr| edge.0 == 0 || memory.pointer(*edge, numbers.graph_node_self) == Ok(*edge);
        (edges.len() as u64 == count && edges.iter().all(is_node)).then_some(edges)
    });
    vector.unwrap_or_default().into_iter().filter(|edge| edge.0 != 0).collect()
}
