//! Interpreter states and their threads, found without symbols.
//!
//! `PyInterpreterState` points to the dictionary `sys.modules`, and to the first of its thread states. Each thread state points
//! back. From 3.13 on `_PyRuntime` lists the interpreter states. Before, every place that holds the address of `sys.modules`
//! is tried.

use std::collections::{BTreeSet, HashSet};

use super::layout::RuntimeLayout;
use crate::addr::VirtAddr;
use crate::cpython::{Interpreter, Modules, Objects, Sweeper};

/// Maximum distance of the pointer to `sys.modules` from the start of the interpreter state, in bytes.
const REACH: u64 = 1 << 13;
/// The words at the start of a thread state that may be the pointer to its interpreter state.
const THREAD_WORDS: i64 = 8;
/// Maximum number of interpreters of one runtime, of threads of an interpreter, and of places that are tried.
const MAX_INTERPRETERS: usize = 1 << 8;
const MAX_THREADS: usize = 1 << 14;
const MAX_PLACES: usize = 1 << 10;

/// An interpreter state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// Its address.
    pub(super) address: VirtAddr,
    /// The thread states in the order of their list: the newest first.
    pub(super) threads: Vec<VirtAddr>,
    /// Whether the list of threads is complete.
    pub(super) is_whole: bool,
}

/// The interpreter states of each interpreter, read with its layout.
pub(super) fn find(interpreters: &[Interpreter], sweeper: &Sweeper, layouts: &[RuntimeLayout]) -> Vec<Vec<State>> {
    let listed: Vec<Vec<State>> = interpreters.iter().zip(layouts).map(|(of, layout)| by_runtime(of, layout)).collect();
    let spaces = interpreters.iter().map(|interpreter| interpreter.index + 1).max().unwrap_or_default();
    let mut wanted = vec![BTreeSet::new(); spaces];
    for (interpreter, _) in interpreters.iter().zip(&listed).filter(|(_, listed)| listed.is_empty()) {
        if let Some(wanted) = wanted.get_mut(interpreter.index) {
            wanted.extend(module_tables(interpreter));
        }
    }
    let places = if wanted.iter().all(BTreeSet::is_empty) { Vec::new() } else { sweeper.sweep_all(&wanted) };
    let with_places = interpreters.iter().zip(layouts).zip(listed);
    let states = with_places.map(|((interpreter, layout), listed)| match listed.is_empty() {
        true => by_places(interpreter, layout, places.get(interpreter.index).map_or(&[], Vec::as_slice)),
        false => listed,
    });
    states.collect()
}

/// The dictionaries `sys.modules`: sub-interpreters have their own.
fn module_tables(interpreter: &Interpreter) -> BTreeSet<VirtAddr> {
    let objects = interpreter.objects();
    let types = interpreter.module_types();
    let modules = types.iter().filter_map(|found| interpreter.instances.get(found)).flatten();
    let table = |module: &VirtAddr| {
        let dict = objects.pointer(*module, interpreter.layout.module_dict).ok()?;
        let name = objects.dict_item(dict, "__name__").ok()??;
        objects.str_among(name, &["sys"])?;
        objects.dict_item(dict, "modules").ok()?
    };
    modules.filter_map(table).collect()
}

/// The states that `_PyRuntime` lists.
fn by_runtime(interpreter: &Interpreter, layout: &RuntimeLayout) -> Vec<State> {
    let objects = interpreter.objects();
    let Some(offsets) = &interpreter.debug_offsets else { return Vec::new() };
    let Some((head, next)) = layout.interpreters_head.zip(layout.next_interpreter) else { return Vec::new() };
    let mut states = Vec::new();
    let mut seen = HashSet::new();
    let mut at = objects.pointer(offsets.runtime, head).unwrap_or(VirtAddr(0));
    while at.0 != 0 && seen.insert(at) && states.len() < MAX_INTERPRETERS {
        states.extend(layout.threads_head.and_then(|offset| read(&objects, layout, at, offset, layout.interpreter?)));
        at = objects.pointer(at, next).unwrap_or(VirtAddr(0));
    }
    states
}

/// The states at places that hold the address of `sys.modules`.
fn by_places(interpreter: &Interpreter, layout: &RuntimeLayout, places: &[(VirtAddr, VirtAddr)]) -> Vec<State> {
    let objects = interpreter.objects();
    let mut states: Vec<(VirtAddr, usize, State)> = Vec::new();
    for (place, modules) in places.iter().take(MAX_PLACES) {
        let best = before(&objects, layout, *place).max_by_key(|(score, _)| *score);
        let Some((score, state)) = best else { continue };
        match states.iter_mut().find(|(known, ..)| known == modules) {
            Some(known) if known.1 >= score => {}
            Some(known) => (known.1, known.2) = (score, state),
            None => states.push((*modules, score, state)),
        }
    }
    states.into_iter().map(|(.., state)| state).collect()
}

/// Candidates for the state that contains a pointer to `sys.modules`, each with a score.
fn before<'o>(
    objects: &'o Objects<'_>,
    layout: &'o RuntimeLayout,
    place: VirtAddr,
) -> impl Iterator<Item = (usize, State)> + 'o {
    let first = place.0.saturating_sub(REACH);
    let heads = (first..place.0).step_by(8).filter_map(move |at| {
        let thread = objects.memory().read_u64(VirtAddr(at)).ok()?;
        let is_first = |thread| pointer(objects, thread, layout.previous_thread) == Some(VirtAddr(0));
        Some((at, VirtAddr(thread))).filter(|(_, thread)| thread.0.is_multiple_of(8) && is_first(*thread))
    });
    heads.flat_map(move |(at, thread)| {
        (0..THREAD_WORDS).filter_map(move |word| {
            let interpreter = objects.pointer(thread, 8 * word).ok()?;
            if !(first..=at).contains(&interpreter.0) || !interpreter.0.is_multiple_of(8) {
                return None;
            }
            let head = (at - interpreter.0).cast_signed();
            let state = read(objects, layout, interpreter, head, 8 * word)?;
            let modules = (place.0 - interpreter.0).cast_signed();
            let fits = [Some(head) == layout.threads_head, Some(modules) == layout.modules, state.is_whole];
            Some((state.threads.len() + fits.into_iter().filter(|fits| *fits).count() * MAX_THREADS, state))
        })
    })
}

/// Reads the state at an address; `None` if its first thread does not point back.
fn read(objects: &Objects<'_>, layout: &RuntimeLayout, interpreter: VirtAddr, head: i64, back: i64) -> Option<State> {
    let (previous, next) = (layout.previous_thread?, layout.next_thread?);
    let mut threads = Vec::new();
    let mut seen = HashSet::new();
    let (mut before, mut at) = (VirtAddr(0), objects.pointer(interpreter, head).ok()?);
    let mut is_whole = true;
    while at.0 != 0 {
        let is_sound = objects.pointer(at, back) == Ok(interpreter) && objects.pointer(at, previous) == Ok(before);
        if !is_sound || threads.len() >= MAX_THREADS || !seen.insert(at) {
            is_whole = false;
            break;
        }
        threads.push(at);
        let Ok(following) = objects.pointer(at, next) else {
            is_whole = false;
            break;
        };
        (before, at) = (at, following);
    }
    (!threads.is_empty()).then_some(State { address: interpreter, threads, is_whole })
}

/// The threads of the module `threading`: identifier, name, and id in the operating system.
pub(super) fn names(objects: &Objects<'_>, modules: &Modules) -> Vec<(u64, Option<String>, Option<u64>)> {
    let Some(threading) = modules.get("threading") else { return Vec::new() };
    let active = objects.dict_item(*threading, "_active").ok().flatten();
    let active = active.and_then(|active| objects.dict(active).ok()).unwrap_or_default();
    let number = |object| objects.int(object).ok().flatten().and_then(|number| u64::try_from(number).ok());
    let described = active.into_iter().take(MAX_THREADS).filter_map(|(key, thread)| {
        let attributes = objects.attributes(thread).unwrap_or_default();
        let attribute = |name: &str| attributes.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        let name = attribute("_name").and_then(|name| objects.str(name).ok());
        Some((number(key)?, name, attribute("_native_id").and_then(number)))
    });
    described.collect()
}

/// The pointer at an offset of the layout from an address.
pub(super) fn pointer(objects: &Objects<'_>, address: VirtAddr, offset: Option<i64>) -> Option<VirtAddr> {
    objects.pointer(address, offset?).ok()
}
