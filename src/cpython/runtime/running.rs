//! Several interpreters with their states, which one sweep of memory finds for all of them.

use rayon::prelude::*;

use super::state::{self, State};
use super::{Runtime, RuntimeLayout, own_layout};
use crate::cpython::{Interpreter, Sweeper};

/// Interpreters, and what their running state is read with.
pub struct RunningInterpreters {
    interpreters: Vec<Interpreter>,
    /// For each interpreter its layout and its states; empty without tables.
    states: Vec<(RuntimeLayout, Vec<State>)>,
    /// The layouts of all versions.
    tables: Vec<RuntimeLayout>,
}

impl RunningInterpreters {
    /// Finds the states of interpreters; `tables` are the layouts of all versions.
    pub fn find(interpreters: Vec<Interpreter>, sweeper: &Sweeper, tables: Vec<RuntimeLayout>) -> Self {
        let layouts = interpreters.iter().map(|interpreter| own_layout(interpreter, &tables));
        let layouts: Vec<RuntimeLayout> = layouts.collect::<Option<_>>().unwrap_or_default();
        let states = match layouts.is_empty() {
            true => Vec::new(),
            false => state::find(&interpreters, sweeper, &layouts),
        };
        Self { states: layouts.into_iter().zip(states).collect(), interpreters, tables }
    }

    /// The interpreters.
    pub fn interpreters(&self) -> &[Interpreter] {
        &self.interpreters
    }

    /// The running state of each interpreter.
    pub fn runtimes(&self) -> Vec<Runtime<'_>> {
        (0..self.interpreters.len()).into_par_iter().filter_map(|index| self.runtime(index)).collect()
    }

    /// The running state of the interpreter at a position of [`RunningInterpreters::interpreters`].
    pub fn runtime(&self, index: usize) -> Option<Runtime<'_>> {
        let (interpreter, (layout, states)) = self.interpreters.get(index).zip(self.states.get(index))?;
        Some(Runtime::new(interpreter, layout.clone(), states.clone(), &self.tables))
    }
}
