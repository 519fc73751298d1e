//! Describes the attributes of tensor objects.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::addr::VirtAddr;
use crate::cpython::{Builtins, Holders, Objects, Shape, UNREADABLE, Value};
use crate::model::{Described, Omission};

/// How deep objects are described.
const MAX_DEPTH: usize = 5;
/// Maximum number of described values, for one tensor and for all tensors.
const MAX_VALUES: usize = 128;
const MAX_ALL_VALUES: usize = 1 << 16;
/// The longest text, and the most bytes that a plain value takes.
const MAX_TEXT: usize = 512;

/// Describes the attributes of tensors.
pub(super) struct Describer<'h, 'a> {
    objects: Objects<'a>,
    builtins: &'h Builtins,
    holders: &'h mut Holders<'a>,
    tensor_types: &'h BTreeSet<VirtAddr>,
    /// Names of tensors and arrays.
    named: &'h BTreeMap<VirtAddr, String>,
    classes: HashMap<VirtAddr, String>,
    left: usize,
}

impl<'h, 'a> Describer<'h, 'a> {
    pub(super) fn new(
        objects: Objects<'a>,
        builtins: &'h Builtins,
        holders: &'h mut Holders<'a>,
        tensor_types: &'h BTreeSet<VirtAddr>,
        named: &'h BTreeMap<VirtAddr, String>,
    ) -> Self {
        Self { objects, builtins, holders, tensor_types, named, classes: HashMap::new(), left: MAX_ALL_VALUES }
    }

    /// The attributes of a tensor object.
    pub(super) fn attributes(&mut self, object: VirtAddr) -> Vec<(String, Described)> {
        let mut left = MAX_VALUES;
        self.held(object, MAX_DEPTH, &mut left)
    }

    fn held(&mut self, object: VirtAddr, depth: usize, left: &mut usize) -> Vec<(String, Described)> {
        let Some(kind) = self.holders.kind(object) else { return Vec::new() };
        if !matches!(kind.shape, Shape::Plain | Shape::Dict) {
            return Vec::new();
        }
        let mut described = Vec::new();
        for (step, value) in self.holders.held(object, &kind, *left).into_iter().filter(|(_, value)| value.0 != 0) {
            let name = match self.holders.name(step) {
                Some(name) if name.len() <= MAX_TEXT => name,
                _ => format!("{UNREADABLE}{}", described.len()),
            };
            let is_cut = *left == 0 || self.left == 0;
            described.push((name, self.describe(value, depth, left)));
            if is_cut {
                break;
            }
        }
        described
    }

    fn describe(&mut self, object: VirtAddr, depth: usize, left: &mut usize) -> Described {
        let (Some(depth), Some(rest), Some(all)) =
            (depth.checked_sub(1), left.checked_sub(1), self.left.checked_sub(1))
        else {
            return Described::LeftOut(Omission::TooMany);
        };
        (*left, self.left) = (rest, all);
        if let Some(value) = Value::read(&self.objects, self.builtins, object) {
            let size = serde_json::to_string(&value).map_or(usize::MAX, |text| text.len());
            return if size <= MAX_TEXT { Described::Plain(value) } else { Described::LeftOut(Omission::TooLong) };
        }
        let type_object = self.objects.type_of(object).unwrap_or_default();
        let name = self.named.get(&object).cloned();
        let class = self.class(type_object);
        if name.is_some() || self.tensor_types.contains(&type_object) {
            // One with a name is described where it is listed.
            let is_listed = name.is_some();
            let attributes = if is_listed { Vec::new() } else { self.held(object, depth, left) };
            return Described::Tensor { name, class, attributes };
        }
        // One element more than may be described says that some are left out.
        let most = left.saturating_add(1);
        let items = self.objects.start_of_list(object, most).or_else(|_| self.objects.start_of_tuple(object, most));
        if let Ok(items) = items {
            let mut list = Vec::new();
            for item in items {
                if *left == 0 || self.left == 0 {
                    list.push(Described::LeftOut(Omission::TooMany));
                    break;
                }
                list.push(self.describe(item, depth, left));
            }
            return Described::List(list);
        }
        // The name of a type that is made in C often lies in a page that is gone.
        let is_dict = self.holders.kind(object).is_some_and(|kind| kind.shape == Shape::Dict);
        let class = if is_dict && class == UNREADABLE { "dict".to_owned() } else { class };
        Described::Object { class, attributes: self.held(object, depth, left) }
    }

    fn class(&mut self, type_object: VirtAddr) -> String {
        let read = || self.objects.type_name(type_object).ok().filter(|name| name.len() <= MAX_TEXT);
        self.classes.entry(type_object).or_insert_with(|| read().unwrap_or_else(|| UNREADABLE.to_owned())).clone()
    }
}
