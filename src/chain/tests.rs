//! Nets as shapes and addresses.

use super::*;
use crate::addr::VirtAddr;
use crate::tensor::ScalarType;

/// A heap on which tensors are allocated one after another.
#[derive(Default)]
struct Heap {
    items: Vec<Item>,
    used: u64,
}

impl Heap {
    fn at(start: u64) -> Self {
        Self { items: Vec::new(), used: start }
    }

    fn typed(&mut self, label: &str, size: u64, shape: &[u64], learned: bool) -> usize {
        let dtype = ScalarType { name: label.to_owned(), size, safetensors: Some(label.to_owned()), raw: None };
        let bytes = shape.iter().fold(size, |product, size| product.saturating_mul(*size));
        let (header, data) = (VirtAddr(self.used), VirtAddr(self.used + 0x100));
        self.used += 0x140 + bytes.min(1 << 20).next_multiple_of(64);
        let info = TensorInfo { requires_grad: learned, ..TensorInfo::contiguous(header, &dtype, shape, data) };
        self.items.push(Item { info, gradient: None, last_use: None });
        self.items.len() - 1
    }

    fn parameter(&mut self, shape: &[u64]) -> usize {
        self.typed("F32", 4, shape, true)
    }

    fn plain(&mut self, shape: &[u64]) -> usize {
        self.typed("F32", 4, shape, false)
    }

    /// A weight and its bias.
    fn layer(&mut self, shape: &[u64]) {
        self.parameter(shape);
        self.parameter(&shape[..1]);
    }

    fn batch_norm(&mut self, size: u64) {
        self.layer_norm(size);
        self.plain(&[size]);
        self.plain(&[size]);
        self.typed("I64", 8, &[], false);
    }

    fn layer_norm(&mut self, size: u64) {
        self.parameter(&[size]);
        self.parameter(&[size]);
    }

    /// Gradients, and this many tensors of an optimizer, for all that is learned.
    fn train(&mut self, state: usize) {
        let learned: Vec<usize> = (0..self.items.len()).filter(|index| self.items[*index].info.requires_grad).collect();
        for index in &learned {
            self.items[*index].gradient = Some(self.plain(&self.items[*index].info.shape.clone()));
        }
        for index in &learned {
            for _ in 0..state {
                self.plain(&self.items[*index].info.shape.clone());
            }
        }
    }

    /// The net of the CIFAR tutorial; its first layer lies far away and its bias before its weight.
    fn cifar(&mut self) {
        let start = self.used;
        self.used = start + 0x400_0000;
        self.parameter(&[6]);
        self.parameter(&[6, 3, 5, 5]);
        self.used = start;
        self.parameter(&[16]);
        self.parameter(&[16, 6, 5, 5]);
        self.layer(&[120, 400]);
        self.layer(&[84, 120]);
        self.layer(&[10, 84]);
        self.used = start + 0x500_0000;
    }

    fn shape(&self, item: usize) -> &[u64] {
        &self.items[item].info.shape
    }

    fn shapes(&self, chain: &Chain) -> Vec<Vec<u64>> {
        let weights = chain.layers.iter().filter(|layer| !layer.kind.is_norm());
        weights.map(|layer| self.shape(layer.tensors[0].1).to_vec()).collect()
    }

    fn chains(&self) -> Vec<Chain> {
        let chains = assemble(&self.items);
        let mut seen = std::collections::BTreeSet::new();
        for chain in &chains {
            assert_eq!(chain.links.len() + 1, chain.layers.len());
            assert!(chain.score > 0.0 && chain.score < 1.0);
            assert!(chain.links.iter().all(|link| link.score > 0.0 && link.score < 1.0));
            assert!(chain.items().all(|item| seen.insert(item)), "an item is in two places");
        }
        chains
    }
}

fn kinds(chain: &Chain) -> Vec<LayerKind> {
    chain.layers.iter().map(|layer| layer.kind).collect()
}

const CIFAR: [&[u64]; 5] = [&[6, 3, 5, 5], &[16, 6, 5, 5], &[120, 400], &[84, 120], &[10, 84]];

#[test]
fn the_layers_of_a_net_in_training_come_in_their_order_with_their_biases() {
    let mut heap = Heap::at(0x1000_0000);
    heap.cifar();
    let parameters = heap.items.len();
    for shape in [&[4, 3, 32, 32][..], &[2, 10], &[4, 6, 14, 14], &[4, 400]] {
        heap.plain(shape);
    }
    heap.train(1);
    let chains = heap.chains();
    assert_eq!(chains.len(), 1, "{chains:#?}");
    let chain = &chains[0];
    assert_eq!(heap.shapes(chain), CIFAR);
    for layer in &chain.layers {
        let roles: Vec<Role> = layer.tensors.iter().map(|(role, _)| *role).collect();
        assert_eq!(roles, [Role::Weight, Role::Bias]);
        assert_eq!(heap.shape(layer.tensors[1].1), [layer.outputs]);
        assert!(layer.tensors.iter().all(|(_, item)| *item < parameters));
        for (_, item) in &layer.tensors {
            let kept: Vec<&Training> = layer.training.iter().filter(|training| training.of == *item).collect();
            assert_eq!(
                kept.iter().map(|kept| kept.kind).collect::<Vec<_>>(),
                [TrainingKind::Gradient, TrainingKind::Optimizer(0)]
            );
            assert!(kept.iter().all(|kept| heap.shape(kept.item) == heap.shape(*item) && kept.rivals == 1));
        }
    }
    assert_eq!(chain.links[1].evidence[0], Evidence::Flatten { channels: 16, positions: 25 });
    assert!(chain.score > 0.85 && chain.alternatives.is_empty(), "{chain:#?}");
}

#[test]
fn a_vector_of_doubles_is_no_bias_of_a_weight_of_floats() {
    let mut heap = Heap::at(0x1000_0000);
    let mut doubles = Vec::new();
    for shape in CIFAR {
        heap.parameter(shape);
        doubles.push(heap.typed("F64", 8, &shape[..1], true));
        heap.parameter(&shape[..1]);
    }
    let chains = heap.chains();
    assert_eq!(chains.len(), 1, "{chains:#?}");
    assert_eq!(heap.shapes(&chains[0]), CIFAR);
    assert!(chains[0].layers.iter().all(|layer| layer.tensors.len() == 2), "{chains:#?}");
    assert!(chains[0].items().all(|item| !doubles.contains(&item)), "{chains:#?}");
}

#[test]
fn a_copy_of_a_net_is_a_chain_of_its_own() {
    let mut heap = Heap::at(0x1000_0000);
    CIFAR.iter().for_each(|shape| heap.layer(shape));
    let first = heap.items.len();
    CIFAR.iter().for_each(|shape| heap.layer(shape));
    let chains = heap.chains();
    assert_eq!(chains.len(), 2);
    for chain in &chains {
        assert_eq!(heap.shapes(chain), CIFAR);
        let is_first = chain.items().next().unwrap() < first;
        assert!(chain.items().all(|item| (item < first) == is_first), "{chain:#?}");
    }
}

#[test]
fn the_order_of_the_items_does_not_matter() {
    let mut heap = Heap::at(0x1000_0000);
    heap.cifar();
    heap.cifar();
    heap.batch_norm(64);
    heap.train(2);
    let count = heap.items.len();
    let named = |chains: &[Chain], name: &dyn Fn(usize) -> usize| -> String {
        let mut chains = chains.to_vec();
        for chain in &mut chains {
            for layer in &mut chain.layers {
                layer.tensors.iter_mut().for_each(|(_, item)| *item = name(*item));
                for training in &mut layer.training {
                    (training.item, training.of) = (name(training.item), name(training.of));
                }
            }
            for alternative in &mut chain.alternatives {
                let (Change::Next(item) | Change::Previous(item) | Change::Bias(item)) = &mut alternative.change;
                *item = name(*item);
            }
        }
        format!("{chains:?}")
    };
    let expected = named(&assemble(&heap.items), &|item| item);
    for step in [1, 7, 11, count - 1] {
        // A step without a common divisor reaches every item once.
        let step = (step..).find(|step| (2..=*step).all(|d| step % d != 0 || !count.is_multiple_of(d))).unwrap();
        let order: Vec<usize> = (0..count).map(|place| (place * step + 3) % count).collect();
        let place = |item: usize| order.iter().position(|other| *other == item).unwrap();
        let moved = |item: &Item| Item { gradient: item.gradient.map(place), ..item.clone() };
        let items: Vec<Item> = order.iter().map(|item| moved(&heap.items[*item])).collect();
        assert_eq!(named(&assemble(&items), &|item| order[item]), expected);
    }
}

/// A residual block without biases: two convolutions, and a shortcut where the sizes change.
fn block(heap: &mut Heap, inputs: u64, outputs: u64, shortcut_first: bool) {
    let shortcut = |heap: &mut Heap| {
        if inputs != outputs {
            heap.parameter(&[outputs, inputs, 1, 1]);
            heap.batch_norm(outputs);
        }
    };
    if shortcut_first {
        shortcut(heap);
    }
    for inputs in [inputs, outputs] {
        heap.parameter(&[outputs, inputs, 3, 3]);
        heap.batch_norm(outputs);
    }
    if !shortcut_first {
        shortcut(heap);
    }
}

#[test]
fn residual_blocks_keep_their_norms_and_shortcuts() {
    use LayerKind::{BatchNorm, Conv2d, Linear};
    for (shortcut_first, state) in [(false, None), (false, Some(0)), (true, Some(0)), (true, Some(2)), (false, Some(1))]
    {
        let mut heap = Heap::at(0x1000_0000);
        heap.parameter(&[24, 3, 7, 7]);
        heap.batch_norm(24);
        block(&mut heap, 24, 24, shortcut_first);
        block(&mut heap, 24, 48, shortcut_first);
        block(&mut heap, 48, 48, shortcut_first);
        heap.layer(&[10, 48]);
        let own = heap.items.len();
        match state {
            Some(state) => heap.train(state),
            None => heap.items.iter_mut().for_each(|item| item.info.requires_grad = false),
        }
        let chains = heap.chains();
        assert_eq!(chains.len(), 1, "{chains:#?}");
        let chain = &chains[0];
        let expected: Vec<LayerKind> = [Conv2d, BatchNorm].repeat(8).into_iter().chain([Linear]).collect();
        assert_eq!(kinds(chain), expected);
        assert_eq!(chain.items().filter(|item| *item < own).count(), own, "all have a place");
        let items: Vec<usize> = chain.layers.iter().flat_map(|layer| &layer.tensors).map(|(_, item)| *item).collect();
        assert_eq!(items, (0..own).collect::<Vec<_>>(), "each is in its place");
        let around: Vec<_> = chain.layers.iter().map(|layer| layer.around).enumerate().collect();
        let shortcut: Vec<usize> = around.iter().filter(|(_, around)| around.is_some()).map(|(at, _)| *at).collect();
        let (at, range) = if shortcut_first { ([6, 7], (8, 11)) } else { ([10, 11], (6, 9)) };
        assert_eq!((shortcut.as_slice(), around[at[0]].1), (&at[..], Some(range)), "{chain:#?}");
    }
}

#[test]
fn a_transformer_is_embedding_attention_norms_and_linear_layers() {
    use LayerKind::{Attention, Embedding, Linear, Norm};
    let mut heap = Heap::at(0x1000_0000);
    heap.parameter(&[1000, 64]);
    for _ in 0..2 {
        heap.layer(&[192, 64]);
        heap.layer(&[64, 64]);
        heap.layer(&[256, 64]);
        heap.layer(&[64, 256]);
        heap.layer_norm(64);
        heap.layer_norm(64);
    }
    heap.layer(&[7, 64]);
    heap.train(2);
    let chains = heap.chains();
    assert_eq!(chains.len(), 1, "{chains:#?}");
    let block = [Attention, Linear, Linear, Norm, Norm];
    assert_eq!(kinds(&chains[0]), [&[Embedding][..], &block, &block, &[Linear]].concat());
    let attention = &chains[0].layers[1];
    let roles: Vec<&str> = attention.tensors.iter().map(|(role, _)| role.name()).collect();
    assert_eq!(roles, ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]);
    assert_eq!((attention.inputs, attention.outputs, attention.training.len()), (64, 64, 12));
    assert_eq!((chains[0].layers[0].inputs, chains[0].layers[0].outputs), (1000, 64));
    assert_eq!(chains[0].links[0].evidence[0], Evidence::Embedding { size: 64 });
}

#[test]
fn recurrent_layers_are_told_by_their_gates() {
    for (gates, kind) in [(4, LayerKind::Lstm), (3, LayerKind::Gru)] {
        let mut heap = Heap::at(0x1000_0000);
        heap.parameter(&[500, 20]);
        for inputs in [20, 32] {
            heap.parameter(&[gates * 32, inputs]);
            heap.parameter(&[gates * 32, 32]);
            heap.layer_norm(gates * 32);
        }
        heap.layer(&[5, 32]);
        let chains = heap.chains();
        assert_eq!(chains.len(), 1, "{chains:#?}");
        assert_eq!(kinds(&chains[0]), [LayerKind::Embedding, kind, kind, LayerKind::Linear]);
        let items: Vec<usize> = chains[0].layers[1].tensors.iter().map(|(_, item)| *item).collect();
        assert_eq!(items, [1, 3, 2, 4], "weight and bias for the input, then for the state");
    }
}

#[test]
fn frozen_layers_without_gradients_form_chains_too() {
    let mut heap = Heap::at(0x1000_0000);
    heap.cifar();
    heap.items.iter_mut().for_each(|item| item.info.requires_grad = false);
    let parameters = heap.items.len();
    heap.plain(&[2, 3, 32, 32]);
    heap.plain(&[2, 10]);
    let chains = heap.chains();
    assert_eq!(chains.len(), 1, "{chains:#?}");
    assert_eq!(heap.shapes(&chains[0]), CIFAR);
    assert!(chains[0].items().all(|item| item < parameters));
}

#[test]
fn a_doubtful_bias_is_an_alternative() {
    let mut heap = Heap::at(0x1000_0000);
    let weights = [heap.parameter(&[32, 32]), heap.parameter(&[32, 32])];
    let biases = [heap.parameter(&[32]), heap.parameter(&[32])];
    let chains = heap.chains();
    assert_eq!(heap.shapes(&chains[0]).len(), 2);
    let changes: Vec<Change> = chains[0].alternatives.iter().map(|alternative| alternative.change).collect();
    assert!(changes.iter().any(|change| biases.iter().any(|bias| *change == Change::Bias(*bias))), "{changes:?}");
    assert!(chains[0].alternatives.iter().all(|alternative| alternative.score <= chains[0].score));
    assert_eq!(chains[0].layers[0].tensors[0].1, weights[0]);
}

#[test]
fn depthwise_convolutions_have_groups() {
    let mut heap = Heap::at(0x1000_0000);
    heap.layer(&[32, 3, 3, 3]);
    heap.layer(&[32, 1, 3, 3]);
    heap.layer(&[64, 32, 1, 1]);
    let chains = heap.chains();
    assert_eq!(heap.shapes(&chains[0]).len(), 3);
    assert_eq!((chains[0].layers[1].groups, chains[0].layers[1].inputs), (32, 32));
}

#[test]
fn one_layer_and_what_fits_nothing_are_no_chain() {
    let mut heap = Heap::at(0x1000_0000);
    heap.layer(&[10, 20]);
    heap.layer(&[11, 21]);
    heap.batch_norm(64);
    heap.plain(&[2, 3, 32, 32]);
    assert!(heap.chains().is_empty());
    assert!(assemble(&[]).is_empty());
}

#[test]
fn hostile_shapes_are_bounded() {
    let started = std::time::Instant::now();
    let mut heap = Heap::at(0x1000_0000);
    for _ in 0..10_000 {
        heap.parameter(&[64, 64]);
    }
    for _ in 0..10_000 {
        heap.parameter(&[64]);
        heap.plain(&[64]);
    }
    heap.train(0);
    let chains = heap.chains();
    assert_eq!(chains.iter().map(|chain| chain.layers.len()).max(), Some(10_000));
    assert!(chains.iter().all(|chain| chain.alternatives.len() <= 16));
    let mut heap = Heap::at(0x1000_0000);
    let huge = u64::MAX;
    for shape in
        [&[huge, huge][..], &[huge], &[0, 5], &[5, 0], &[1; 64], &[huge, 1, 1, 1], &[1, huge], &[1 << 40, 1 << 19]]
    {
        heap.parameter(shape);
        heap.plain(shape);
    }
    for index in 0..heap.items.len() {
        heap.items[index].gradient = Some(index * 7 % 40);
    }
    heap.chains();
    // Every second weight takes what every other one gives.
    let mut heap = Heap::at(0x1000_0000);
    for index in 0..4000u64 {
        heap.parameter(&[1 + index % 2, 1 + (index + 1) % 2, 1 + index % 3, 1]);
    }
    heap.chains();
    assert!(started.elapsed().as_secs() < 60);
}

#[test]
fn sizes_that_agree_count_by_their_bits() {
    let bits = |shapes: &[&[u64]]| {
        let mut heap = Heap::at(0x1000_0000);
        shapes.iter().for_each(|shape| heap.layer(shape));
        heap.chains().iter().map(Chain::agreeing_bits).collect::<Vec<u32>>()
    };
    // 6, 16 * 25, 120, 84.
    assert_eq!(bits(&CIFAR), [2 + 8 + 6 + 6]);
    assert_eq!(bits(&[&[3, 2], &[2, 3]]), [1]);
}

#[test]
fn the_order_of_use_counts_more_than_that_of_allocation() {
    let mut heap = Heap::at(0x1000_0000);
    (0..6).for_each(|_| heap.layer(&[48, 48]));
    let of_chain = |heap: &Heap| -> Vec<usize> {
        let [chain] = heap.chains().try_into().unwrap();
        chain.layers.iter().map(|layer| layer.tensors[0].1 / 2).collect()
    };
    assert_eq!(of_chain(&heap), [0, 1, 2, 3, 4, 5]);
    let order = [4, 1, 5, 0, 3, 2];
    for (layer, number) in order.into_iter().zip(0..) {
        heap.items[2 * layer].last_use = Some(1000 + 2 * number);
        heap.items[2 * layer + 1].last_use = Some(1001 + 2 * number);
    }
    assert_eq!(of_chain(&heap), order);
    let between = |link: &Link| link.evidence.contains(&Evidence::OrderOfUse { between: 0 });
    assert!(heap.chains()[0].links.iter().all(between));
}
