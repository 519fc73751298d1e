//! Layouts of builds that no table describes: the nearest table, changed until what it reads makes sense ([`climb`]): first of
//! `type` itself, then of the names and dictionaries of types, at last of values that are the same everywhere.

use super::candidate::is_type_type;
use super::layout::Layout;
use super::modules::Modules;
use super::object::{ObjectError, Objects};
use super::process::Interpreter;
use super::types::c_string;
use crate::addr::VirtAddr;
use crate::layout::{self, Checks, Group, StructLayout};
use crate::paging::VirtualMemory;

/// Structures that begin with an object's header, by their names in layout files.
const OBJECTS: [&str; 18] = [
    "object",
    "var",
    "type",
    "heap_type",
    "str",
    "str_legacy",
    "int",
    "float",
    "tuple",
    "list",
    "set",
    "dict",
    "module",
    "function",
    "cell",
    "method",
    "partial",
    "deque",
];
/// Words of `type` in which the size of its items is looked for.
const WORDS_OF_TYPE: u64 = 24;
/// How far everything that follows the header of objects may have moved, in bytes.
const MAX_GROWTH: i64 = 64;
/// Integers that every 64-bit Python has, by module and name.
const INTS: [(&str, &str, i128); 4] = [
    ("builtins", "True", 1),
    ("builtins", "False", 0),
    ("sys", "maxsize", i64::MAX as i128),
    ("sys", "maxunicode", 0x10_ffff),
];
/// Lists that every Python has, with something in them.
const LISTS: [(&str, &str); 2] = [("sys", "path"), ("sys", "meta_path")];
/// Instances of each type that are read to learn from; its square is the most of all types.
const SAMPLE: usize = 16;
/// Checks of one type.
const CHECKS: usize = 8;

/// What can be learned from `type` itself.
const OF_TYPE: [Group; 2] =
    [Group { types: &["type", "heap_type"], moving: 2, unit: 8 }, Group { types: &["tuple"], moving: 1, unit: 8 }];
/// What can be learned from the names and dictionaries of types.
const OF_NAMES: [Group; 5] = [
    Group { types: &["type", "heap_type"], moving: 2, unit: 8 },
    Group { types: &["str_state"], moving: 1, unit: 1 },
    Group { types: &["str", "str_legacy"], moving: 2, unit: 8 },
    Group { types: &["dict"], moving: 1, unit: 8 },
    Group { types: &["dict_keys", "dict_unicode_entry", "dict_key_entry"], moving: 1, unit: 8 },
];

/// What can be learned from values that are the same in every Python, and from instances.
const OF_INTS: [Group; 1] = [Group { types: &["int"], moving: 1, unit: 8 }];
const OF_LISTS: [Group; 1] = [Group { types: &["list"], moving: 1, unit: 8 }];
const OF_INSTANCES: [Group; 1] = [Group { types: &["instance", "dict_values", "tp_flags"], moving: 1, unit: 8 }];

/// Whether a number is an offset in a structure that begins with an object's header.
fn is_object(key: &str) -> bool {
    key.split_once('.').is_some_and(|(of, _)| OBJECTS.contains(&of))
}

/// Whether a number counts bits, not bytes.
fn is_bit(key: &str) -> bool {
    key == "object.ref_shared_shift"
}

/// A table whose objects have a header that is larger by some bytes: what follows the header moves as far.
fn with_header_grown(table: &Layout, by: i64) -> Layout {
    let mut grown = table.clone();
    for (key, value) in table.numbers().into_iter().filter(|(key, _)| is_object(key) && !is_bit(key)) {
        grown.set(key, value.map(|value| value.wrapping_add(by)));
    }
    grown
}

/// Changes a layout group by group as long as more checks hold; structures are taken from tables with the layout's own header.
fn climb<F>(layout: Layout, groups: &[Group], tables: &[Layout], checks: &Checks<F>) -> (usize, Layout)
where
    F: Fn(&Layout) -> usize,
{
    let with_own_header = |table| with_header_grown(table, layout.object_size.wrapping_sub(table.object_size));
    let tables: Vec<Layout> = tables.iter().map(with_own_header).collect();
    layout::climb(layout, groups, &tables, checks)
}

/// Layouts that read a `type` object which no table reads; `ob_type` is where its type stands in it.
pub(super) fn from_type(
    memory: &dyn VirtualMemory,
    type_object: VirtAddr,
    ob_type: i64,
    tables: &[Layout],
) -> Vec<Layout> {
    let mut headers: Vec<Layout> = Vec::new();
    for layout in tables.iter().flat_map(|table| with_header(memory, type_object, ob_type, table)) {
        if !headers.iter().any(|known| known.numbers() == layout.numbers()) {
            headers.push(layout);
        }
    }
    let reads = |layout: &Layout| is_type_type(&Objects::new(memory, layout), type_object);
    let reading: Vec<Layout> = headers.iter().filter(|layout| reads(layout)).cloned().collect();
    if !reading.is_empty() {
        return reading;
    }
    let count = |layout: &Layout| of_type(&Objects::new(memory, layout), type_object);
    let checks = Checks { count, total: CHECKS, margin: 1 };
    let learned = headers.into_iter().map(|layout| climb(layout, &OF_TYPE, tables, &checks).1);
    learned.filter(|layout| reads(layout)).collect()
}

/// A table with headers of objects that are like that of `type`: what follows moves as far as the size of its items,
/// which is the same everywhere, has moved.
fn with_header(memory: &dyn VirtualMemory, type_object: VirtAddr, ob_type: i64, table: &Layout) -> Vec<Layout> {
    let objects = Objects::new(memory, table);
    let is_item_size = |offset: &i64| objects.word(type_object, *offset) == Ok(table.member_def_size.cast_unsigned());
    let places = (0..WORDS_OF_TYPE.cast_signed()).map(|word| word * 8).filter(is_item_size);
    let grown = places.map(|place| place - table.tp_itemsize).filter(|grown| grown.abs() <= MAX_GROWTH);
    let mut layouts = Vec::new();
    for grown in grown {
        let mut layout = with_header_grown(table, grown);
        // The counts keep their distance from the type, or stand in another word of the header.
        let moved = ob_type - table.ob_type;
        layout.ob_type = ob_type;
        layout.ob_ref_local = table.ob_ref_local.map(|local| local + moved);
        layout.ob_ref_shared = table.ob_ref_shared.map(|shared| shared + moved);
        let near = table.ob_refcnt.map(|count| count + moved);
        let words = (0..layout.object_size).step_by(8).filter(|word| *word != ob_type && Some(*word) != near);
        let others = words.map(Some).filter(|_| near.is_some());
        for count in std::iter::once(near).chain(others) {
            let layout = Layout { ob_refcnt: count, ..layout.clone() };
            if Objects::new(memory, &layout).is_alive(type_object).unwrap_or(false) {
                layouts.push(layout);
            }
        }
    }
    layouts
}

/// How much of what `type` is in every Python can be read of an object.
fn of_type(objects: &Objects<'_>, object: VirtAddr) -> usize {
    let layout = objects.layout();
    let flags = |type_object| objects.type_flags(type_object);
    let base = objects.pointer(object, layout.tp_base);
    let order = objects.pointer(object, layout.tp_mro);
    let checks: [Result<bool, ObjectError>; CHECKS] = [
        flags(object).map(|flags| flags & layout.flag_type.cast_unsigned() != 0),
        base.and_then(|base| objects.type_of(base)).map(|found| found == object),
        base.and_then(|base| objects.pointer(base, layout.tp_base)).map(|none| none.0 == 0),
        order.and_then(|order| objects.type_of(objects.type_of(order)?)).map(|found| found == object),
        order.and_then(|order| objects.has_type_flag(order, layout.flag_tuple)),
        objects.mro(object).map(|order| order.len() == 2),
        objects.mro(object).map(|order| order.last() == base.ok().as_ref()),
        // Instances of `type` keep their attributes in the dictionary of the type that they are.
        objects.word(object, layout.tp_dictoffset).map(|offset| offset == layout.tp_dict.cast_unsigned()),
    ];
    checks.into_iter().filter(|check| *check == Ok(true)).count()
}

/// How much of what every class has can be read of some heap types.
fn of_names(objects: &Objects<'_>, types: &[VirtAddr]) -> usize {
    let layout = objects.layout();
    let of_type = |address: &VirtAddr| {
        let name = objects.pointer(*address, layout.ht_name);
        let qualname = objects.pointer(*address, layout.ht_qualname);
        let dict = objects.pointer(*address, layout.tp_dict);
        let text = name.and_then(|name| objects.str(name));
        let c_text = objects.pointer(*address, layout.tp_name).ok().and_then(|at| c_string(objects.memory(), at));
        let c_text = c_text.map(|name| name.rsplit('.').next().unwrap_or_default().to_owned());
        let checks: [Result<bool, ObjectError>; CHECKS] = [
            objects.mro(*address).map(|order| order.len() > 1),
            name.and_then(|name| objects.has_type_flag(name, layout.flag_str)),
            qualname.and_then(|name| objects.has_type_flag(name, layout.flag_str)),
            text.clone().map(|text| c_text.as_ref().is_some_and(|name| *name == text)),
            // A text that is read wrongly may look like another one that is.
            qualname.and_then(|name| objects.str(name)).map(|name| {
                text.is_ok_and(|text| {
                    is_text(&text) && name.ends_with(&text) && c_text.as_ref().is_none_or(|name| *name == text)
                })
            }),
            // That it lives tells whether references are counted where the layout says.
            dict.and_then(|dict| Ok(objects.has_type_flag(dict, layout.flag_dict)? && objects.is_alive(dict)?)),
            dict.and_then(|dict| objects.dict(dict)).map(|items| !items.is_empty()),
            objects.has_one_name(*address),
        ];
        checks.into_iter().filter(|check| *check == Ok(true)).count()
    };
    types.iter().map(of_type).sum()
}

/// Whether this could be a name: nothing that is empty or no text at all.
fn is_text(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

/// How much a layout reads of some heap types.
pub(super) fn evidence_of_names(memory: &dyn VirtualMemory, layout: &Layout, types: &[VirtAddr]) -> usize {
    of_names(&Objects::new(memory, layout), types)
}

/// The layout among those made of `layout` that reads most of some heap types; their number bounds the work.
pub(super) fn from_names(
    memory: &dyn VirtualMemory,
    type_object: VirtAddr,
    types: &[VirtAddr],
    layout: Layout,
    tables: &[Layout],
) -> (usize, Layout) {
    let count = |layout: &Layout| evidence_of_names(memory, layout, types);
    let checks = Checks { count, total: CHECKS * types.len(), margin: (types.len() / 2).max(1) };
    let (found, mut layout) = climb(layout, &OF_NAMES, tables, &checks);
    // `type` tells the size of its own instances.
    if let Ok(size) = Objects::new(memory, &layout).word(type_object, layout.tp_basicsize) {
        layout.heap_type_size = size.cast_signed();
    }
    (found, layout)
}

/// Learns from an interpreter's built-in values and its instances how to read others; integers that are not read
/// rightly then are not read at all.
pub(super) fn from_values(interpreter: &mut Interpreter, tables: &[Layout]) {
    let modules = interpreter.modules(&interpreter.module_types());
    let memory = interpreter.memory();
    let is_heap_type = |address: &VirtAddr| {
        let flag = interpreter.layout.flag_heap_type.cast_unsigned();
        interpreter.types.get(address).is_some_and(|info| info.flags & flag != 0)
    };
    // Some that look like instances are none: a tuple of types is one pointer to a type after another.
    let of_types = interpreter.instances.iter().filter(|(address, _)| is_heap_type(address));
    let sample = |found: &Vec<VirtAddr>| {
        found.iter().step_by(found.len().div_ceil(SAMPLE).max(1)).copied().collect::<Vec<VirtAddr>>()
    };
    let instances: Vec<VirtAddr> = of_types.flat_map(|(_, found)| sample(found)).take(SAMPLE * SAMPLE).collect();
    let is_known = |objects: &Objects<'_>, object: VirtAddr| {
        objects.type_of(object).is_ok_and(|found| interpreter.types.contains_key(&found))
    };
    let of_instances = |layout: &Layout| {
        let objects = Objects::new(memory, layout);
        let has_attributes = |object: &VirtAddr| {
            let attributes = objects.attributes(*object).unwrap_or_default();
            !attributes.is_empty() && attributes.iter().all(|(name, value)| is_text(name) && is_known(&objects, *value))
        };
        instances.iter().filter(|object| has_attributes(object)).count()
    };
    let layout = interpreter.layout.clone();
    let count = |layout: &Layout| of_ints(&Objects::new(memory, layout), &modules);
    let (_, layout) = climb(layout, &OF_INTS, tables, &Checks { count, total: INTS.len(), margin: 2 });
    let count = |layout: &Layout| of_lists(&Objects::new(memory, layout), &modules);
    let (_, layout) = climb(layout, &OF_LISTS, tables, &Checks { count, total: LISTS.len(), margin: 1 });
    // What is read wrongly by chance is less than what is there.
    let margin = of_instances(&layout) + 1;
    let checks = Checks { count: of_instances, total: instances.len(), margin };
    let (_, mut layout) = climb(layout, &OF_INSTANCES, tables, &checks);
    if of_ints(&Objects::new(memory, &layout), &modules) < INTS.len() {
        (layout.int_lv_tag, layout.int_ob_size) = (None, None);
    }
    interpreter.layout = layout;
}

/// An object by the names of its module and of itself.
fn item(objects: &Objects<'_>, modules: &Modules, module: &str, name: &str) -> Option<VirtAddr> {
    objects.dict_item(*modules.get(module)?, name).ok()?
}

/// How many of the integers that are known are read rightly.
fn of_ints(objects: &Objects<'_>, modules: &Modules) -> usize {
    let is_right = |(module, name, value): &&(&str, &str, i128)| {
        let object = item(objects, modules, module, name);
        object.is_some_and(|object| objects.int(object) == Ok(Some(*value)))
    };
    INTS.iter().filter(is_right).count()
}

/// How many of the lists that are known are read as lists with something in them.
fn of_lists(objects: &Objects<'_>, modules: &Modules) -> usize {
    let is_right = |(module, name): &&(&str, &str)| {
        let items = item(objects, modules, module, name).and_then(|list| objects.list(list).ok()).unwrap_or_default();
        !items.is_empty()
            && items.iter().all(|item| objects.type_of(*item).is_ok_and(|found| objects.is_alive(found) == Ok(true)))
    };
    LISTS.iter().filter(is_right).count()
}
