//! vectorscan, the open fork of Hyperscan, through the few functions of its C interface that are needed.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::ptr::{null, null_mut};

use super::{Found, Peer, Search};
use crate::input::Input;
use crate::job::{Hit, Job, REGEX_LENGTH, TYPE_REGEX};

const MODE_BLOCK: c_uint = 1;
const FLAG_DOTALL: c_uint = 2;

type OnMatch = extern "C" fn(c_uint, c_ulonglong, c_ulonglong, c_uint, *mut c_void) -> c_int;

#[repr(C)]
struct CompileError {
    message: *const c_char,
    expression: c_int,
}

#[link(name = "hs")]
unsafe extern "C" {
    fn hs_version() -> *const c_char;
    fn hs_compile_lit_multi(
        expressions: *const *const c_char,
        flags: *const c_uint,
        ids: *const c_uint,
        lengths: *const usize,
        count: c_uint,
        mode: c_uint,
        platform: *const c_void,
        database: *mut *mut c_void,
        error: *mut *mut CompileError,
    ) -> c_int;
    fn hs_compile(
        expression: *const c_char,
        flags: c_uint,
        mode: c_uint,
        platform: *const c_void,
        database: *mut *mut c_void,
        error: *mut *mut CompileError,
    ) -> c_int;
    fn hs_alloc_scratch(database: *const c_void, scratch: *mut *mut c_void) -> c_int;
    fn hs_scan(
        database: *const c_void,
        data: *const c_char,
        length: c_uint,
        flags: c_uint,
        scratch: *mut c_void,
        on_match: OnMatch,
        context: *mut c_void,
    ) -> c_int;
}

pub struct Vectorscan;

impl Peer for Vectorscan {
    fn name(&self) -> &'static str {
        "vectorscan"
    }

    fn version(&self) -> Result<String, String> {
        // SAFETY: it returns a string that is never freed.
        let version = unsafe { CStr::from_ptr(hs_version()) }.to_string_lossy();
        Ok(version.split_whitespace().next().unwrap_or_default().to_owned())
    }

    fn prepare<'a>(&self, job: &'a Job, input: &'a Input) -> Result<Option<Search<'a>>, String> {
        let literals = job.literals();
        let database = literals.as_deref().map_or_else(compile_type, compile_literals)?;
        let mut scratch = null_mut();
        // SAFETY: the database is whole, the scratch null.
        check("hs_alloc_scratch", unsafe { hs_alloc_scratch(database, &raw mut scratch) })?;
        let lengths = literals.map_or(vec![REGEX_LENGTH], |literals| literals.iter().map(|l| l.len()).collect());
        let length = c_uint::try_from(input.bytes.len()).map_err(|error| error.to_string())?;
        Ok(Some(Box::new(move || {
            let mut ends: Vec<Hit> = Vec::new();
            let (data, context) = (input.bytes.as_ptr().cast(), (&raw mut ends).cast());
            // SAFETY: database and scratch live as long as the process; `keep` gets the vector, which outlives the call.
            check("hs_scan", unsafe { hs_scan(database, data, length, 0, scratch, keep, context) })?;
            let starts = ends.into_iter().map(|(end, id)| (end - lengths[id], id));
            Ok(Found::from(match job {
                Job::Needles(_) => starts.collect::<Vec<_>>(),
                Job::TypeByRule | Job::TypeByField => {
                    starts.flat_map(|(at, _)| job.hits_at(&input.bytes, at)).collect()
                }
            }))
        })))
    }
}

/// Where a pattern ends: all that vectorscan says unless it is asked for more, which costs.
extern "C" fn keep(id: c_uint, _from: c_ulonglong, to: c_ulonglong, _flags: c_uint, ends: *mut c_void) -> c_int {
    // SAFETY: `hs_scan` passes on the vector that it was given, and calls nobody else meanwhile.
    unsafe { &mut *ends.cast::<Vec<Hit>>() }.push((to as usize, id as usize));
    0
}

fn compile_literals(literals: &[&[u8]]) -> Result<*mut c_void, String> {
    let expressions: Vec<*const c_char> = literals.iter().map(|literal| literal.as_ptr().cast()).collect();
    let flags = vec![0; literals.len()];
    let ids: Vec<c_uint> = (0..).take(literals.len()).collect();
    let lengths: Vec<usize> = literals.iter().map(|literal| literal.len()).collect();
    let (mut database, mut error) = (null_mut(), null_mut());
    // SAFETY: four arrays of the same length, which is passed; no platform means this one.
    let code = unsafe {
        hs_compile_lit_multi(
            expressions.as_ptr(),
            flags.as_ptr(),
            ids.as_ptr(),
            lengths.as_ptr(),
            literals.len() as c_uint,
            MODE_BLOCK,
            null(),
            &raw mut database,
            &raw mut error,
        )
    };
    compiled(code, database, error)
}

fn compile_type() -> Result<*mut c_void, String> {
    let expression = CString::new(TYPE_REGEX).map_err(|error| error.to_string())?;
    let (mut database, mut error) = (null_mut(), null_mut());
    let (into, failed) = (&raw mut database, &raw mut error);
    // SAFETY: the expression ends with a zero; no platform means this one.
    let code = unsafe { hs_compile(expression.as_ptr(), FLAG_DOTALL, MODE_BLOCK, null(), into, failed) };
    compiled(code, database, error)
}

fn compiled(code: c_int, database: *mut c_void, error: *mut CompileError) -> Result<*mut c_void, String> {
    if error.is_null() {
        return check("hs_compile", code).map(|()| database);
    }
    // SAFETY: an error that is not null has a message.
    let (message, n) = unsafe { (CStr::from_ptr((*error).message).to_string_lossy(), (*error).expression) };
    Err(format!("pattern {n}: {message}"))
}

fn check(function: &str, code: c_int) -> Result<(), String> {
    if code == 0 { Ok(()) } else { Err(format!("{function} failed with {code}")) }
}
