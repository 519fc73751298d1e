//! Offsets of fields in the interpreter's own structures: threads, frames, code, generators, the collector.

use crate::layout::{MissingField, layout_struct};
use crate::signature::Signatures;

layout_struct! {
    /// The numbers of one CPython version that describe its running state: offsets in bytes, sizes in bytes, flags as masks.
    ///
    /// A missing number means that the version has no such field.
    RuntimeLayout {
        interpreters_head: "runtime_state.interpreters_head" as Option<i64>,
        next_interpreter: "interpreter_state.next" as Option<i64>,
        threads_head: "interpreter_state.threads_head" as Option<i64>,
        modules: "interpreter_state.imports_modules" as Option<i64>,
        previous_thread: "thread_state.prev" as Option<i64>,
        next_thread: "thread_state.next" as Option<i64>,
        interpreter: "thread_state.interp" as Option<i64>,
        thread_frame: "thread_state.frame" as Option<i64>,
        thread_cframe: "thread_state.cframe" as Option<i64>,
        cframe_frame: "cframe.current_frame" as Option<i64>,
        current_frame: "thread_state.current_frame" as Option<i64>,
        thread_id: "thread_state.thread_id" as Option<i64>,
        native_thread_id: "thread_state.native_thread_id" as Option<i64>,
        frame_back: "frame.f_back" as Option<i64>,
        frame_code: "frame.f_code" as Option<i64>,
        frame_locals: "frame.f_locals" as Option<i64>,
        frame_last_instruction: "frame.f_lasti" as Option<i64>,
        frame_executing: "frame.f_executing" as Option<i64>,
        frame_state: "frame.f_state" as Option<i64>,
        frame_fast_locals: "frame.f_localsplus" as Option<i64>,
        instruction_unit: "instruction.lasti_unit" as Option<i64>,
        executable: "interpreter_frame.executable" as Option<i64>,
        previous_frame: "interpreter_frame.previous" as Option<i64>,
        instruction: "interpreter_frame.instr_ptr" as Option<i64>,
        fast_locals: "interpreter_frame.localsplus" as Option<i64>,
        locals: "interpreter_frame.f_locals" as Option<i64>,
        owner: "interpreter_frame.owner" as Option<i64>,
        owner_interpreter: "interpreter_frame.owner_interpreter" as Option<i64>,
        bytecode_index: "interpreter_frame.tlbc_index" as Option<i64>,
        code_flags: "code.co_flags" as Option<i64>,
        code_first_line: "code.co_firstlineno" as Option<i64>,
        code_file: "code.co_filename" as Option<i64>,
        code_name: "code.co_name" as Option<i64>,
        code_qualname: "code.co_qualname" as Option<i64>,
        code_line_deltas: "code.co_lnotab" as Option<i64>,
        code_line_table: "code.co_linetable" as Option<i64>,
        code_variables: "code.co_varnames" as Option<i64>,
        code_cells: "code.co_cellvars" as Option<i64>,
        code_free: "code.co_freevars" as Option<i64>,
        code_names: "code.co_localsplusnames" as Option<i64>,
        code_kinds: "code.co_localspluskinds" as Option<i64>,
        code_start: "code.co_code_adaptive" as Option<i64>,
        code_first_traceable: "code.co_firsttraceable" as Option<i64>,
        code_size: "code.ob_size" as Option<i64>,
        code_threads: "code.co_tlbc" as Option<i64>,
        code_array_size: "code_array.size" as Option<i64>,
        code_array_entries: "code_array.entries" as Option<i64>,
        flag_optimized: "code_flags.optimized" as Option<i64>,
        kind_hidden: "code_kind.hidden" as Option<i64>,
        kind_cell: "code_kind.cell" as Option<i64>,
        kind_free: "code_kind.free" as Option<i64>,
        generator_frame: "generator.gi_frame" as Option<i64>,
        generator_inline_frame: "generator.gi_iframe" as Option<i64>,
        generator_state: "generator.gi_frame_state" as Option<i64>,
        generator_qualname: "generator.gi_qualname" as Option<i64>,
        state_created: "frame_state.created" as Option<i64>,
        bytes_size: "bytes.ob_size" as Option<i64>,
        bytes_data: "bytes.ob_sval" as Option<i64>,
        function_code: "function.func_code" as Option<i64>,
        function_qualname: "function.func_qualname" as Option<i64>,
        flag_collected: "tp_flags.HAVE_GC" as Option<i64>,
        gc_next: "gc_head.next" as Option<i64>,
        gc_previous: "gc_head.prev" as Option<i64>,
        gc_head_size: "gc_head.sizeof" as Option<i64>,
        gc_generation_size: "gc_generation.sizeof" as Option<i64>,
        gc_bits: "object.ob_gc_bits" as Option<i64>,
        gc_tracked: "gc_bits.tracked" as Option<i64>,
    }
}

/// The runtime layouts of a set of signatures, one per version of CPython.
///
/// # Errors
/// None: every number may be missing.
pub fn runtime_layouts(signatures: &Signatures) -> Result<Vec<RuntimeLayout>, MissingField> {
    signatures.layouts("cpython").map(RuntimeLayout::new).collect()
}
