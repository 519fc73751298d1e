//! Objects that hold others in ways of their own: functions, methods, partial calls, deques.

use super::python::Python;

/// The types that such objects are of, as Python's own modules have them.
pub struct Makers<'a> {
    python: &'a Python,
    function: u64,
    cell: u64,
    method: u64,
    partial: u64,
    deque: u64,
}

impl<'a> Makers<'a> {
    /// Makes the types and the modules that name them.
    pub fn new(python: &'a Python) -> Self {
        let made = |name: &str| python.c_type(name, 160 + python.at("object.sizeof"));
        let makers = Self {
            python,
            function: made("function"),
            cell: made("cell"),
            method: made("method"),
            partial: made("functools.partial"),
            deque: made("collections.deque"),
        };
        python.module("types", &[("FunctionType", makers.function), ("MethodType", makers.method)]);
        python.module("functools", &[("partial", makers.partial)]);
        python.module("collections", &[("deque", makers.deque)]);
        makers
    }

    /// A function that has closed over these values.
    pub fn function(&self, closed_over: &[u64]) -> u64 {
        let python = self.python;
        let cell = |value: &u64| {
            let cell = python.object(self.cell, 32);
            python.put(cell, "cell.ob_ref", *value);
            cell
        };
        let cells: Vec<u64> = closed_over.iter().map(cell).collect();
        let function = python.object(self.function, 160);
        python.put(function, "function.func_closure", if cells.is_empty() { 0 } else { python.tuple(&cells) });
        function
    }

    pub fn method(&self, of: u64) -> u64 {
        let method = self.python.object(self.method, 48);
        self.python.put(method, "method.im_self", of);
        method
    }

    pub fn partial(&self, function: u64, args: &[u64], keywords: &[(&str, u64)]) -> u64 {
        let partial = self.python.object(self.partial, 64);
        self.python.put(partial, "partial.fn", function);
        self.python.put(partial, "partial.args", self.python.tuple(args));
        self.python.put(partial, "partial.kw", self.python.dict(keywords));
        partial
    }

    /// A deque whose first element is the last of its first block.
    pub fn deque(&self, items: &[u64]) -> u64 {
        let python = self.python;
        let length = python.at("deque_block.length");
        let blocks: Vec<u64> = (0..=items.len() as u64 / length + 1).map(|_| python.process.alloc(536)).collect();
        for pair in blocks.windows(2) {
            python.put(pair[0], "deque_block.rightlink", pair[1]);
        }
        for (place, item) in (length - 1..).zip(items) {
            let at = blocks[(place / length) as usize] + python.at("deque_block.data") + 8 * (place % length);
            python.process.put(at, *item);
        }
        let deque = python.object(self.deque, 96);
        python.put(deque, "var.ob_size", items.len() as u64);
        python.put(deque, "deque.leftblock", blocks[0]);
        python.put(deque, "deque.leftindex", length - 1);
        deque
    }
}
