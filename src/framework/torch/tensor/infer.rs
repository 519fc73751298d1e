//! A layout for tensors that no table reads: a table gives the first guess, the tensors themselves vote where each number lies.
//!
//! Every offset in a structure is a candidate. A tensor votes for one if what lies there agrees with what is known of the
//! tensor already: its object with a pointer back to it, its sizes with their product, the product with the bytes of the
//! storage, and so on. Most votes win; among equals the one whose votes chance would not have given; then the one
//! nearest to the table's.

use std::collections::{BTreeMap, BTreeSet};

use super::layout::{DtypeAt, Layout, ShapeAt};
use super::read::{WORD, last_element};
use super::shape::{ShapeGuess, is_contiguous, product};
use crate::addr::{VirtAddr, field};
use crate::layout::{Structure, Votes, elect, word_offsets};
use crate::paging::VirtualMemory;

/// Tensors that vote.
const MAX_VOTERS: usize = 128;
/// Bytes of each structure that are looked at: about twice what the largest known version has.
const OBJECT_BYTES: i64 = 128;
const IMPL_BYTES: i64 = 256;
const STORAGE_BYTES: i64 = 128;
const AUTOGRAD_BYTES: i64 = 256;
/// The largest element, in bytes (a complex number of two doubles).
const MAX_ELEMENT: u64 = 16;

/// What the tensors of a process say.
pub(super) struct Evidence<'a> {
    memory: &'a dyn VirtualMemory,
    /// The Python objects of those that vote.
    voters: Vec<Structure>,
    /// Where in the object a pointer lies, where in its target the one back, and for how many.
    links: BTreeMap<(i64, i64), usize>,
}

/// A tensor as far as it is known.
struct Voter {
    tensor: Structure,
    sizes: Vec<u64>,
    strides: Vec<u64>,
    numel: u64,
    /// Bytes of one element.
    size: u64,
}

impl<'a> Evidence<'a> {
    /// Looks at the objects of tensors.
    pub(super) fn new(memory: &'a dyn VirtualMemory, tensors: &[VirtAddr]) -> Self {
        // From all over the list: neighbours are alike.
        let step = tensors.len().div_ceil(MAX_VOTERS).max(1);
        let voters: Vec<_> =
            tensors.iter().step_by(step).map(|object| structure(memory, *object, OBJECT_BYTES)).collect();
        let mut links = BTreeMap::new();
        for object in &voters {
            for at in word_offsets(OBJECT_BYTES) {
                let Some(target) = object.u64(at).filter(|target| *target != 0 && *target != object.at.0) else {
                    continue;
                };
                let target = structure(memory, VirtAddr(target), IMPL_BYTES);
                let back = word_offsets(IMPL_BYTES)
                    .filter(|back| target.u64(*back).is_some_and(|word| word & !1 == object.at.0));
                back.for_each(|back| *links.entry((at, back)).or_insert(0) += 1);
            }
        }
        Self { memory, voters, links }
    }

    /// A layout whose numbers most tensors agree with; `None` if there is none, or the tensors don't tell enough.
    pub(super) fn infer(&self, table: &Layout) -> Option<Layout> {
        let mut layout = table.clone();
        let impls = self.impls(&mut layout)?;
        let mut voters = self.shapes(table, &mut layout, impls)?;
        let storages = self.storages(table, &mut layout, &mut voters)?;
        self.storage_offset(table, &mut layout, &voters, &storages);
        self.autograd(table, &mut layout, &voters);
        Some(layout)
    }

    /// The table with other offsets in the autograd data; `None` if the tensors don't tell enough.
    pub(super) fn infer_autograd(&self, table: &Layout) -> Option<Layout> {
        let found = self.infer(table)?.offsets;
        let mut layout = table.clone();
        let at = &mut layout.offsets;
        (at.autograd_meta, at.requires_grad, at.name) = (found.autograd_meta, found.requires_grad, found.name);
        (at.grad, at.grad_fn) = (found.grad, found.grad_fn);
        Some(layout)
    }

    /// Finds the pointers between object and `TensorImpl`.
    fn impls(&self, layout: &mut Layout) -> Option<Vec<Structure>> {
        let at = &mut layout.offsets;
        let links = self.links.iter().map(|(link, count)| {
            let distance = link.0.abs_diff(at.impl_pointer) + link.1.abs_diff(at.pyobj);
            (*link, distance, Votes::significant(*count))
        });
        let (link, votes) = elect(links)?;
        (at.impl_pointer, at.pyobj) = link;
        let linked = |object: &Structure| {
            let tensor = structure(self.memory, VirtAddr(object.u64(link.0)?), IMPL_BYTES);
            (tensor.u64(link.1)? & !1 == object.at.0).then_some(tensor)
        };
        (2 * votes.agree > self.voters.len()).then(|| self.voters.iter().filter_map(linked).collect())
    }

    /// Finds sizes, strides and the number of elements; gives the tensors that agree.
    fn shapes(&self, table: &Layout, layout: &mut Layout, impls: Vec<Structure>) -> Option<Vec<Voter>> {
        let shift = layout.offsets.pyobj - table.offsets.pyobj;
        let guess = ShapeGuess::new(table.shape);
        let most = |votes: usize| 4 * votes >= 3 * impls.len();
        let mut elected = Vec::new();
        for (dim, sizes_at) in guess.candidates(&impls, IMPL_BYTES) {
            let sizes: Vec<_> = impls.iter().map(|tensor| guess.sizes(self.memory, tensor, dim, sizes_at)).collect();
            let products: Vec<_> = sizes.iter().map(|sizes| product(sizes.as_ref()?)).collect();
            if !most(products.iter().flatten().count()) {
                continue;
            }
            let free = word_offsets(IMPL_BYTES).filter(|at| *at != dim && !guess.overlaps(sizes_at, *at));
            elected.extend(elect(free.map(|numel| {
                let votes = impls
                    .iter()
                    .zip(&products)
                    .map(|(tensor, product)| ((*product)? == tensor.u64(numel)?).then_some((*product)? > 1));
                let relative = numel - sizes_at - (table.offsets.numel - guess.sizes);
                let distance = guess.distance(dim, sizes_at, shift) + relative.unsigned_abs();
                ((dim, sizes_at, numel, distance), distance, Votes::count(votes))
            })));
        }
        let ((dim, sizes_at, numel, _), votes) =
            elect(elected.into_iter().map(|(found, votes)| (found, found.3, votes)))?;
        if !most(votes.agree) {
            return None;
        }
        layout.offsets.numel = numel;
        let known: Vec<(Structure, Vec<u64>)> = impls
            .iter()
            .filter_map(|tensor| {
                let sizes = guess.sizes(self.memory, tensor, dim, sizes_at)?;
                (product(&sizes) == tensor.u64(numel)).then(|| (tensor.clone(), sizes))
            })
            .collect();
        let free = word_offsets(IMPL_BYTES).filter(|at| ![dim, numel].contains(at) && !guess.overlaps(sizes_at, *at));
        let (strides_at, _) = elect(free.map(|at| {
            let votes = known.iter().map(|(tensor, sizes)| {
                let strides = guess.vector(self.memory, tensor, at, sizes.len() as u64)?;
                is_contiguous(sizes, &strides).then_some(sizes.iter().any(|size| *size > 1))
            });
            let distance = (at - sizes_at).abs_diff(guess.strides - guess.sizes);
            (at, distance, Votes::count(votes))
        }))?;
        layout.shape = guess.found(dim, sizes_at, strides_at);
        let voter = |(tensor, sizes): (Structure, Vec<u64>)| {
            let strides = guess.vector(self.memory, &tensor, strides_at, sizes.len() as u64)?;
            let numel = product(&sizes)?;
            Some(Voter { tensor, sizes, strides, numel, size: 0 })
        };
        Some(known.into_iter().filter_map(voter).collect())
    }

    /// Finds the storage, and the type of the elements by how many of them fill it.
    fn storages(&self, table: &Layout, layout: &mut Layout, voters: &mut [Voter]) -> Option<Vec<Structure>> {
        let shift = layout.offsets.pyobj - table.offsets.pyobj;
        let of = |voter: &Voter, at: i64| {
            let storage = voter.tensor.u64(at).unwrap_or_default();
            structure(self.memory, VirtAddr(storage), STORAGE_BYTES)
        };
        // A storage without elements votes for nothing; the size of an element must be a power of two.
        let element = |voter: &Voter, bytes: u64| {
            let size = bytes.checked_div(voter.numel).filter(|size| size.checked_mul(voter.numel) == Some(bytes))?;
            (size.is_power_of_two() && size <= MAX_ELEMENT).then_some(size)
        };
        let mut elected = Vec::new();
        for at in word_offsets(IMPL_BYTES).filter(|at| is_free(layout, *at)) {
            let storages: Vec<Structure> = voters.iter().map(|voter| of(voter, at)).collect();
            let distance = at.abs_diff(table.offsets.storage_pointer + shift);
            elected.extend(elect(word_offsets(STORAGE_BYTES).map(|bytes_at| {
                let votes = voters.iter().zip(&storages);
                let votes =
                    votes.map(|(voter, storage)| element(voter, storage.u64(bytes_at)?).map(|_| voter.numel > 1));
                let distance = distance + bytes_at.abs_diff(table.offsets.storage_bytes);
                ((at, bytes_at, distance), distance, Votes::count(votes))
            })));
        }
        let ((at, bytes_at, _), _) = elect(elected.into_iter().map(|(found, votes)| (found, found.2, votes)))?;
        let storages: Vec<Structure> = voters.iter().map(|voter| of(voter, at)).collect();
        for (voter, storage) in voters.iter_mut().zip(&storages) {
            voter.size = storage.u64(bytes_at).and_then(|bytes| element(voter, bytes)).unwrap_or_default();
        }
        let offsets = &mut layout.offsets;
        (offsets.storage_pointer, offsets.storage_bytes) = (at, bytes_at);
        self.data(table, layout, &storages)?;
        self.device(table, layout, &storages);
        self.dtype(table, layout, voters)?;
        Some(storages)
    }

    /// Finds where a storage's data lie: no two storages have the same bytes.
    fn data(&self, table: &Layout, layout: &mut Layout, storages: &[Structure]) -> Option<()> {
        let mut seen = BTreeSet::new();
        let distinct: Vec<_> = storages.iter().filter(|storage| seen.insert(storage.at)).collect();
        let bytes_at = layout.offsets.storage_bytes;
        let shift = bytes_at - table.offsets.storage_bytes;
        let (found, _) = elect(word_offsets(STORAGE_BYTES).filter(|at| *at != bytes_at).map(|at| {
            let mut blocks: Vec<(u64, u64)> = distinct
                .iter()
                .filter_map(|storage| Some((storage.u64(at)?, storage.u64(bytes_at)?)))
                .filter(|(data, bytes)| *data != 0 && *bytes != 0)
                .collect();
            blocks.sort_unstable();
            let apart =
                blocks.iter().zip(blocks.iter().skip(1).map(Some).chain([None])).map(|((data, bytes), next)| {
                    let is_apart = data.checked_add(*bytes).is_some_and(|end| next.is_none_or(|next| end <= next.0));
                    is_apart.then(|| self.memory.bytes_at(VirtAddr(*data)).is_ok())
                });
            (at, at.abs_diff(table.offsets.storage_data + shift), Votes::count(apart))
        }))?;
        layout.offsets.storage_data = found;
        Some(())
    }

    /// Finds the device beside the pointer to the data; without a tensor that tells, it is as far from it as in the table.
    fn device(&self, table: &Layout, layout: &mut Layout, storages: &[Structure]) {
        let between = table.offsets.storage_device_index - table.offsets.storage_device_type;
        let expected = table.offsets.storage_device_type + layout.offsets.storage_data - table.offsets.storage_data;
        let found = elect((0..STORAGE_BYTES).map(|at| {
            let votes = storages.iter().map(|storage| {
                let device = storage.u8(at)?;
                let index = storage.u8(at + between)?.cast_signed();
                // No index is -1: chance rarely gives that beside a number of a device.
                (table.device_type(device).is_some() && index >= -1).then_some(index == -1)
            });
            (at, at.abs_diff(expected), Votes::count(votes))
        }));
        let at = found.map_or(expected, |(at, _)| at);
        (layout.offsets.storage_device_type, layout.offsets.storage_device_index) = (at, at + between);
    }

    /// Finds the number of the scalar type, or the pointer to its description.
    fn dtype(&self, table: &Layout, layout: &mut Layout, voters: &mut [Voter]) -> Option<()> {
        let shift = layout.offsets.numel - table.offsets.numel;
        let scalar_type = |tensor: &Structure, at: DtypeAt| match at {
            DtypeAt::Index(at) => table.scalar_type(tensor.u16(at)?),
            DtypeAt::Pointer { pointer, item_size, id } => {
                let described = VirtAddr(tensor.u64(pointer)?);
                let word = |at| self.memory.word(described, at).ok();
                table.scalar_type_described(word(item_size)?, word(id)?.cast_signed())
            }
        };
        let (step, expected) = match table.dtype {
            DtypeAt::Index(at) => (2, at + shift),
            DtypeAt::Pointer { pointer, .. } => (WORD as usize, pointer + shift),
        };
        let form = |at: i64| match table.dtype {
            DtypeAt::Index(_) => DtypeAt::Index(at),
            DtypeAt::Pointer { item_size, id, .. } => DtypeAt::Pointer { pointer: at, item_size, id },
        };
        let (at, _) = elect((0..IMPL_BYTES).step_by(step).map(|at| {
            let mut names = BTreeSet::new();
            let votes = voters.iter().filter(|voter| voter.size > 0).map(|voter| {
                let found = scalar_type(&voter.tensor, form(at)).filter(|found| found.size == voter.size)?;
                // A second type says more than many tensors of the first.
                Some(names.insert(&found.name))
            });
            let votes = Votes::count(votes);
            (at, at.abs_diff(expected), votes)
        }))?;
        layout.dtype = form(at);
        // The tensor's own device lies beside it.
        let moved = at - table.dtype.offset();
        for (device, of_table) in [
            (&mut layout.offsets.device_has_value, table.offsets.device_has_value),
            (&mut layout.offsets.device_type, table.offsets.device_type),
            (&mut layout.offsets.device_index, table.offsets.device_index),
        ] {
            *device = of_table.map(|device| device + moved);
        }
        for voter in voters {
            voter.size = scalar_type(&voter.tensor, layout.dtype).map_or(0, |found| found.size);
        }
        Some(())
    }

    /// Finds the offset in the storage: with it the elements lie inside.
    fn storage_offset(&self, table: &Layout, layout: &mut Layout, voters: &[Voter], storages: &[Structure]) {
        let expected = table.offsets.storage_offset + layout.offsets.numel - table.offsets.numel;
        let candidates = word_offsets(IMPL_BYTES).filter(|at| is_free(layout, *at)).map(|at| {
            let votes = voters.iter().zip(storages).filter(|(voter, _)| voter.numel > 0).map(|(voter, storage)| {
                let offset = voter.tensor.u64(at)?;
                let last = last_element(&voter.sizes, &voter.strides, offset)?;
                let end = last.checked_add(1)?.checked_mul(voter.size)?;
                (end <= storage.u64(layout.offsets.storage_bytes)?).then_some(offset > 0)
            });
            (at, at.abs_diff(expected), Votes::count(votes))
        });
        // Most models have no view: every word that is always zero would do, and the table's guess is as good as any.
        let mut candidates: Vec<_> = candidates.collect();
        let most = candidates.iter().map(|(.., votes)| votes.agree).max().unwrap_or_default();
        candidates.retain(|(.., votes)| votes.agree == most);
        let nearest = candidates.iter().min_by_key(|(_, distance, _)| *distance).map(|(at, ..)| *at);
        if let Some(at) = elect(candidates.into_iter()).map(|(at, _)| at).or(nearest) {
            layout.offsets.storage_offset = at;
        }
    }

    /// Finds the autograd data by the gradients in them, which are tensors of the same sizes, or by the name that they begin with.
    fn autograd(&self, table: &Layout, layout: &mut Layout, voters: &[Voter]) {
        let shift = layout.offsets.storage_pointer - table.offsets.storage_pointer;
        let tables: BTreeSet<u64> = voters.iter().filter_map(|voter| voter.tensor.u64(0)).collect();
        let shape = layout.shape;
        let grad_fits = |voter: &Voter, grad: VirtAddr| {
            let is_tensor = self.memory.word(grad, 0).is_ok_and(|vtable| tables.contains(&vtable));
            let shape =
                if is_tensor && grad != voter.tensor.at { shape.read(self.memory, grad).ok()?? } else { return None };
            (shape.0 == voter.sizes).then_some(true)
        };
        let mut by_grad = Vec::new();
        let mut by_name = Vec::new();
        let taken = layout.offsets.storage_pointer;
        for at in word_offsets(IMPL_BYTES).filter(|at| *at != taken && is_free(layout, *at)) {
            let distance = at.abs_diff(table.offsets.autograd_meta + shift);
            let read =
                |voter: &Voter| structure(self.memory, VirtAddr(voter.tensor.u64(at).unwrap_or(0)), AUTOGRAD_BYTES);
            let metas: Vec<Structure> = voters.iter().map(read).collect();
            by_grad.extend(word_offsets(AUTOGRAD_BYTES).map(|grad| {
                let votes = voters.iter().zip(&metas).map(|(voter, meta)| grad_fits(voter, VirtAddr(meta.u64(grad)?)));
                let distance = distance + grad.abs_diff(table.offsets.grad);
                ((at, grad), distance, Votes::count(votes))
            }));
            by_name.extend(word_offsets(AUTOGRAD_BYTES).map(|name| {
                let own = |meta: &Structure| field(meta.at, name + Layout::STRING_INLINE_AT).0;
                let votes = metas.iter().map(|meta| (meta.u64(name)? == own(meta)).then_some(true));
                let grad = table.offsets.grad + name - table.offsets.name;
                let distance = distance + name.abs_diff(table.offsets.name);
                ((at, grad), distance, Votes::count(votes))
            }));
        }
        let expected = (table.offsets.autograd_meta + shift, table.offsets.grad);
        let by_name = || if table.offsets.name_is_inline == 0 { None } else { elect(by_name.into_iter()) };
        let (at, grad) = elect(by_grad.into_iter()).or_else(by_name).map_or(expected, |(found, _)| found);
        let moved = grad - table.offsets.grad;
        layout.offsets.autograd_meta = at;
        layout.offsets.grad = grad;
        layout.offsets.grad_fn = table.offsets.grad_fn + moved;
        layout.offsets.name = table.offsets.name + moved;
        layout.offsets.requires_grad = self.requires_grad(at, table.offsets.requires_grad + moved, voters);
    }

    /// Finds the flag in the autograd data: a byte that is 0 or 1, mostly 1, before two other flags (`retains_grad_`, `is_view_`).
    fn requires_grad(&self, autograd_meta: i64, expected: i64, voters: &[Voter]) -> i64 {
        let metas: Vec<Structure> = voters
            .iter()
            .filter_map(|voter| voter.tensor.u64(autograd_meta).filter(|meta| *meta != 0))
            .map(|meta| structure(self.memory, VirtAddr(meta), AUTOGRAD_BYTES))
            .collect();
        let found = elect((0..AUTOGRAD_BYTES).map(|at| {
            let votes = metas.iter().map(|meta| {
                let (flag, others) = (meta.u8(at)?, [meta.u8(at + 1)?, meta.u8(at + 2)?]);
                (flag <= 1 && others.iter().all(|other| *other <= 1)).then_some(flag == 1)
            });
            (at, at.abs_diff(expected), Votes::count(votes))
        }));
        found.map_or(expected, |(at, _)| at)
    }
}

/// What can be read of the structure at an address.
fn structure(memory: &dyn VirtualMemory, at: VirtAddr, bytes: i64) -> Structure {
    Structure::read(memory, at, bytes.unsigned_abs())
}

/// Whether a place in `TensorImpl` is none of those that are found first: the pointer to the object, the shape, the number of elements.
fn is_free(layout: &Layout, at: i64) -> bool {
    let offsets = &layout.offsets;
    let is_shape = match layout.shape {
        ShapeAt::Counted { dim, sizes, strides, inline_dims, .. } => {
            let bytes = (inline_dims * WORD).cast_signed();
            at == dim || (sizes..sizes + bytes).contains(&at) || (strides..strides + bytes).contains(&at)
        }
        ShapeAt::Vectors { sizes_begin, sizes_end, strides_begin } => {
            [sizes_begin, sizes_end, strides_begin].contains(&at)
        }
    };
    !is_shape && at != offsets.pyobj && at != offsets.numel
}
