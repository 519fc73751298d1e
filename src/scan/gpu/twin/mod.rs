//! The shaders once more, for the CPU: a file, a function and the bindings of each as in `shaders/`.
//!
//! A twin follows its shader line by line, so that a difference in what they find is a fault of
//! one of them, or of a driver. They run where there is no adapter as well, against the reference.

mod scan;
mod sum;
mod sweep;

pub(super) use {scan::scan, sum::sum, sweep::sweep};

/// A list that workgroups append to.
pub(super) struct List<T> {
    pub(super) count: u32,
    pub(super) list: Vec<T>,
}

impl<T> List<T> {
    pub(super) fn new() -> Self {
        Self { count: 0, list: Vec::new() }
    }

    fn push(&mut self, entry: T, capacity: u32) {
        let place = self.count;
        self.count += 1;
        if place < capacity {
            self.list.push(entry);
        }
    }
}

/// Whether `a <= b`, of numbers in halves.
fn at_most(a: [u32; 2], b: [u32; 2]) -> bool {
    a[1] < b[1] || (a[1] == b[1] && a[0] <= b[0])
}
