//! Where the fields of CPython's structures lie, for one version.

use crate::signature;

/// A layout file lacks a number that the code needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the layout {family} {version} has no {key}: add it under [layout] in its file")]
pub struct MissingField {
    /// Family of the layout.
    pub family: String,
    /// Version of the layout.
    pub version: String,
    /// The number that is missing, `type.field`.
    pub key: &'static str,
}

/// Declares a struct whose fields are numbers of a layout file, and how it is made from one.
///
/// Fields of type `Option` may be missing: their absence says that the version has no such field.
macro_rules! layout_struct {
    (@get $layout:ident, $key:literal, Option<$type:ty>) => {
        $layout.get($key)
    };
    (@set $place:expr, $value:ident, Option<$type:ty>) => {
        $place = $value
    };
    (@set $place:expr, $value:ident, i64) => {
        $place = $value.unwrap_or($place)
    };
    (@get $layout:ident, $key:literal, i64) => {
        $layout.get($key).ok_or_else(|| $crate::cpython::MissingField {
            family: $layout.family.clone(),
            version: $layout.version.clone(),
            key: $key,
        })?
    };
    ($(#[$doc:meta])* $name:ident { $($field:ident: $key:literal as $kind:ident $(<$inner:ty>)?,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            /// The version that the numbers are of.
            pub version: String,
            $(
                #[doc = concat!("`", $key, "`.")]
                pub $field: $kind $(<$inner>)?,
            )*
        }

        impl $name {
            /// The numbers of a layout file.
            ///
            /// # Errors
            /// One that every version needs is missing.
            pub fn new(layout: &$crate::signature::Layout) -> Result<Self, $crate::cpython::MissingField> {
                Ok(Self {
                    version: layout.version.clone(),
                    $($field: layout_struct!(@get layout, $key, $kind $(<$inner>)?),)*
                })
            }

            /// All numbers by their names in layout files; `None` for what the version has not.
            #[allow(dead_code, reason = "asked for where layouts are compared")]
            pub fn numbers(&self) -> Vec<(&'static str, Option<i64>)> {
                vec![$(($key, self.$field.into()),)*]
            }

            /// Replaces a number; one that every version needs stays if there is no other.
            #[allow(dead_code, reason = "asked for where layouts are changed")]
            pub fn set(&mut self, key: &str, value: Option<i64>) {
                match key {
                    $($key => layout_struct!(@set self.$field, value, $kind $(<$inner>)?),)*
                    _ => {}
                }
            }
        }
    };
}
pub(crate) use layout_struct;

layout_struct! {
    /// The numbers of one CPython version: offsets in bytes from the start of a structure, sizes in
    /// bytes, flags as masks, positions of bit fields.
    Layout {
        ob_refcnt: "object.ob_refcnt" as Option<i64>,
        ob_ref_local: "object.ob_ref_local" as Option<i64>,
        ob_ref_shared: "object.ob_ref_shared" as Option<i64>,
        ref_shared_shift: "object.ref_shared_shift" as Option<i64>,
        ob_type: "object.ob_type" as i64,
        object_size: "object.sizeof" as i64,
        tp_name: "type.tp_name" as i64,
        tp_basicsize: "type.tp_basicsize" as i64,
        tp_itemsize: "type.tp_itemsize" as i64,
        tp_flags: "type.tp_flags" as i64,
        tp_base: "type.tp_base" as i64,
        tp_dict: "type.tp_dict" as i64,
        tp_dictoffset: "type.tp_dictoffset" as i64,
        tp_mro: "type.tp_mro" as i64,
        heap_type_size: "heap_type.sizeof" as i64,
        ht_name: "heap_type.ht_name" as i64,
        ht_qualname: "heap_type.ht_qualname" as i64,
        ht_cached_keys: "heap_type.ht_cached_keys" as i64,
        var_size: "var.ob_size" as Option<i64>,
        member_def_size: "member_def.sizeof" as i64,
        member_def_name: "member_def.name" as Option<i64>,
        member_def_type: "member_def.type" as Option<i64>,
        member_def_offset: "member_def.offset" as Option<i64>,
        member_def_object_ex: "member_def.object_ex" as Option<i64>,
        flag_heap_type: "tp_flags.HEAPTYPE" as i64,
        flag_int: "tp_flags.LONG_SUBCLASS" as i64,
        flag_list: "tp_flags.LIST_SUBCLASS" as i64,
        flag_tuple: "tp_flags.TUPLE_SUBCLASS" as i64,
        flag_str: "tp_flags.UNICODE_SUBCLASS" as i64,
        flag_dict: "tp_flags.DICT_SUBCLASS" as i64,
        flag_type: "tp_flags.TYPE_SUBCLASS" as i64,
        flag_managed_dict: "tp_flags.MANAGED_DICT" as Option<i64>,
        flag_inline_values: "tp_flags.INLINE_VALUES" as Option<i64>,
        str_length: "str.length" as i64,
        str_hash: "str.hash" as i64,
        str_state: "str.state" as i64,
        str_kind_bit: "str_state.kind" as i64,
        str_compact_bit: "str_state.compact" as i64,
        str_ascii_bit: "str_state.ascii" as i64,
        str_ascii_size: "str.sizeof_ascii" as i64,
        str_compact_size: "str.sizeof_compact" as i64,
        str_data: "str_legacy.data" as i64,
        int_ob_size: "int.ob_size" as Option<i64>,
        int_lv_tag: "int.lv_tag" as Option<i64>,
        int_digits: "int.ob_digit" as i64,
        float_value: "float.ob_fval" as i64,
        tuple_size: "tuple.ob_size" as i64,
        tuple_items: "tuple.ob_item" as i64,
        list_size: "list.ob_size" as i64,
        list_items: "list.ob_item" as i64,
        set_used: "set.used" as i64,
        set_mask: "set.mask" as i64,
        set_table: "set.table" as i64,
        set_entry_size: "set_entry.sizeof" as i64,
        set_entry_key: "set_entry.key" as i64,
        set_entry_hash: "set_entry.hash" as i64,
        dict_used: "dict.ma_used" as i64,
        dict_keys: "dict.ma_keys" as i64,
        dict_values: "dict.ma_values" as i64,
        keys_size: "dict_keys.dk_size" as Option<i64>,
        keys_log2_size: "dict_keys.dk_log2_size" as Option<i64>,
        keys_log2_index_bytes: "dict_keys.dk_log2_index_bytes" as Option<i64>,
        keys_kind: "dict_keys.dk_kind" as Option<i64>,
        keys_kind_general: "dict_keys.kind_general" as Option<i64>,
        keys_entry_count: "dict_keys.dk_nentries" as i64,
        keys_indices: "dict_keys.dk_indices" as i64,
        entry_size: "dict_key_entry.sizeof" as i64,
        entry_key: "dict_key_entry.me_key" as i64,
        entry_value: "dict_key_entry.me_value" as i64,
        str_entry_size: "dict_unicode_entry.sizeof" as Option<i64>,
        str_entry_key: "dict_unicode_entry.me_key" as Option<i64>,
        str_entry_value: "dict_unicode_entry.me_value" as Option<i64>,
        values_items: "dict_values.values" as i64,
        values_valid: "dict_values.valid" as Option<i64>,
        module_dict: "module.md_dict" as i64,
        managed_dict: "instance.managed_dict" as Option<i64>,
        managed_values: "instance.values_pointer" as Option<i64>,
        managed_dict_or_values: "instance.dict_or_values" as Option<i64>,
        function_closure: "function.func_closure" as Option<i64>,
        cell_value: "cell.ob_ref" as Option<i64>,
        method_self: "method.im_self" as Option<i64>,
        partial_function: "partial.fn" as Option<i64>,
        partial_args: "partial.args" as Option<i64>,
        partial_keywords: "partial.kw" as Option<i64>,
        deque_first_block: "deque.leftblock" as Option<i64>,
        deque_first_index: "deque.leftindex" as Option<i64>,
        deque_block_items: "deque_block.data" as Option<i64>,
        deque_block_next: "deque_block.rightlink" as Option<i64>,
        deque_block_length: "deque_block.length" as Option<i64>,
    }
}

/// All CPython layouts of a set of signatures.
///
/// # Errors
/// A layout lacks a number that the code needs.
pub fn layouts(signatures: &signature::Signatures) -> Result<Vec<Layout>, MissingField> {
    signatures.layouts("cpython").map(Layout::new).collect()
}
