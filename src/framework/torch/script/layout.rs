//! Offsets in PyTorch's C++ objects that the headers fix for all versions.

use crate::layout::{MissingField, layout_struct};
use crate::signature::Signatures;

layout_struct! {
    /// Numbers of PyTorch's C++ objects for one C++ string ABI.
    ObjectNumbers {
        wrapper_value: "instance.value" as i64,
        script_ivalue: "script_object.ivalue" as i64,
        ivalue_size: "ivalue.sizeof" as i64,
        ivalue_payload: "ivalue.payload" as i64,
        ivalue_tag: "ivalue.tag" as i64,
        tag_none: "ivalue_tag.None" as i64,
        tag_tensor: "ivalue_tag.Tensor" as i64,
        attribute_size: "class_attribute.sizeof" as i64,
        attribute_kind: "class_attribute.kind" as i64,
        attribute_name: "class_attribute.name" as i64,
        kind_buffer: "attribute_kind.BUFFER" as i64,
        kind_parameter: "attribute_kind.PARAMETER" as i64,
        kind_regular: "attribute_kind.REGULAR_ATTRIBUTE" as i64,
        string_size: "string.sizeof" as i64,
        string_data: "string.data" as i64,
        string_length: "string.length" as Option<i64>,
        text_length: "string_text.length" as Option<i64>,
        text_capacity: "string_text.capacity" as Option<i64>,
        constant_name: "constant.name" as i64,
        constant_value: "constant.value" as i64,
        node_outputs: "node.outputs" as i64,
        node_graph: "node.graph" as i64,
        value_node: "value.node" as i64,
        value_unique: "value.unique" as i64,
        value_name: "value.name" as i64,
        graph_node_self: "graph_node.self" as i64,
        graph_node_number: "graph_node.number" as i64,
        edge_size: "edge.sizeof" as i64,
        dict_elements: "ordered_dict.elements" as i64,
        dict_items: "ordered_dict.items" as i64,
        dict_description: "ordered_dict.description" as i64,
        tensor_item_size: "tensor_item.sizeof" as i64,
        tensor_item_value: "tensor_item.value" as i64,
        module_item_size: "module_item.sizeof" as i64,
        module_item_value: "module_item.value" as i64,
        module_parameters: "module.parameters" as i64,
        module_buffers: "module.buffers" as i64,
        module_children: "module.children" as i64,
        module_training: "module.training" as i64,
    }
}

layout_struct! {
    /// Numbers of FBGEMM's packed matrices.
    MatrixNumbers {
        buf: "pack_b_matrix.buf" as i64,
        block_rows: "pack_b_matrix.brow" as i64,
        block_columns: "pack_b_matrix.bcol" as i64,
        row_blocks: "pack_b_matrix.nbrow" as i64,
        column_blocks: "pack_b_matrix.nbcol" as i64,
        rows: "pack_b_matrix.nrows" as i64,
        columns: "pack_b_matrix.ncols" as i64,
        groups: "pack_b_matrix.groups" as i64,
        row_start: "pack_b_matrix.row_start" as i64,
        row_size: "pack_b_matrix.row_size" as i64,
        column_start: "pack_b_matrix.col_start" as i64,
        column_size: "pack_b_matrix.col_size" as i64,
        last_rows: "pack_b_matrix.last_brow" as i64,
        last_columns: "pack_b_matrix.last_bcol" as i64,
        trans: "pack_b_matrix.trans" as i64,
        row_interleave: "pack_b_matrix.row_interleave" as i64,
        transpose: "matrix_op.Transpose" as i64,
    }
}

/// All layouts of C++ objects of a set of signatures.
#[derive(Clone, Debug, Default)]
pub struct ScriptLayouts {
    /// Of script objects and of modules of C++, one per string ABI.
    pub objects: Vec<ObjectNumbers>,
    /// Of packed matrices, one per range of versions.
    pub matrices: Vec<MatrixNumbers>,
}

impl ScriptLayouts {
    /// Those of a set of signatures.
    ///
    /// # Errors
    /// One of them lacks a number that the code needs.
    pub fn new(signatures: &Signatures) -> Result<Self, MissingField> {
        Ok(Self {
            objects: signatures.layouts("torchscript").map(ObjectNumbers::new).collect::<Result<_, _>>()?,
            matrices: signatures.layouts("fbgemm").map(MatrixNumbers::new).collect::<Result<_, _>>()?,
        })
    }
}
