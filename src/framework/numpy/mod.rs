//! NumPy: its arrays.

mod array;

use std::collections::BTreeSet;

use super::standalone::{self, Found, Listed, instances};
use super::{Context, Facts, Framework, Header, Reader, module_item};
use crate::addr::VirtAddr;
use crate::cpython::{Interpreter, Modules};
use crate::diagnostic::{Code, Diagnostic};
use crate::layout::LayoutError;
use crate::model::{NamedTensor, StandaloneTensor};
use crate::signature::Signatures;
use crate::words::counted;

pub use array::{ArrayLayout, ArrayReader, ArrayScore, array_layouts, select_layout};

const PACKAGE: &str = "numpy";
/// The name of the class of arrays in the module that makes it public.
const ARRAY_CLASS: (&str, &str) = (PACKAGE, "ndarray");
/// Where NumPy says its version.
const VERSIONS: [(&str, &str); 2] = [("numpy.version", "version"), (PACKAGE, "__version__")];
/// Objects that are tried to choose a layout.
const SAMPLE: usize = 1 << 10;

/// NumPy.
pub(super) struct Numpy {
    layouts: Vec<ArrayLayout>,
}

impl Numpy {
    pub(super) fn new(signatures: &Signatures) -> Result<Self, LayoutError> {
        Ok(Self { layouts: array_layouts(signatures)? })
    }
}

/// The types whose instances are arrays: `numpy.ndarray` and all that derive from it. The name of a class that is
/// made in C is often gone; that of the module that holds it is not.
fn array_types(interpreter: &Interpreter, modules: &Modules) -> BTreeSet<VirtAddr> {
    let base = module_item(interpreter, modules, ARRAY_CLASS);
    base.into_iter().flat_map(|base| interpreter.subtypes(base)).collect()
}

impl Framework for Numpy {
    fn package(&self) -> &'static str {
        PACKAGE
    }

    fn wanted_types(&self, interpreter: &Interpreter, modules: &Modules) -> BTreeSet<VirtAddr> {
        array_types(interpreter, modules)
    }

    fn reader<'a>(&'a self, context: Context<'a>) -> Box<dyn Reader + 'a> {
        let types = array_types(context.interpreter, context.modules);
        let instances = types.iter().filter_map(|found| context.interpreter.instances.get(found)).flatten();
        let sample: BTreeSet<VirtAddr> = instances.copied().collect();
        let sample: Vec<VirtAddr> = sample.into_iter().take(SAMPLE).collect();
        let version = VERSIONS.into_iter().find_map(|version| context.module_str(version));
        let reader = select_layout(&self.layouts, &context.objects, &sample, version.as_deref());
        Box::new(Arrays { context, types, reader })
    }
}

/// The arrays of one interpreter.
struct Arrays<'a> {
    context: Context<'a>,
    types: BTreeSet<VirtAddr>,
    /// `None` if no layout reads any.
    reader: Option<ArrayReader<'a>>,
}

impl Reader for Arrays<'_> {
    fn tensor_types(&self) -> &BTreeSet<VirtAddr> {
        &self.types
    }

    fn read_part(&self, object: VirtAddr) -> Option<Result<Header, Diagnostic>> {
        let array = self.reader.as_ref()?.read(&self.context.objects, object).ok()?;
        array.elements().is_some().then_some(Ok(Header::Array(array)))
    }

    fn standalone(&self, listed: &mut Listed) -> Found {
        let Context { interpreter, objects, .. } = self.context;
        let mut all = Found::default();
        let Some(reader) = &self.reader else { return all };
        let versions = [std::slice::from_ref(&reader.score.version), &reader.score.rivals].concat().join(" and ");
        let undecided = format!(
            "the layouts for NumPy {versions} fit the process's arrays equally well, but read this one differently"
        );
        let mut undecided_count = 0;
        for (object, class) in instances(interpreter, &self.types, "arrays", &mut all.warnings) {
            if !listed.objects.contains(&object)
                && let Ok(info) = reader.read(&objects, object)
            {
                undecided_count += usize::from(info.is_undecided);
                let array = NamedTensor::array(standalone::name(self.context.root(), object), object);
                let problem = match &info {
                    info if info.is_undecided => Some(array.diagnostic(Code::UndecidedLayout, &undecided)),
                    info if info.holds_objects => {
                        Some(array.diagnostic(Code::ObjectArray, "its elements are pointers to Python objects"))
                    }
                    _ => None,
                };
                let tensor = NamedTensor { class, problem, ..array };
                all.readable.push(StandaloneTensor { array: Some(info), ..StandaloneTensor::new(tensor) });
            }
        }
        if undecided_count > 0 {
            let (undecided, place) = (counted(undecided_count, "array", "arrays"), interpreter.type_object);
            let message = format!(
                "listed without type and bytes: {undecided} of the process with `type` at {place}; the layouts for \
                 NumPy {versions} fit its arrays equally well, and no NumPy version that decides between them could \
                 be read"
            );
            all.warnings.push(Diagnostic::new(Code::UndecidedLayout, Some(place.into()), message));
        }
        all
    }

    fn describe(&self, facts: &mut Facts) {
        facts.numpy = self.reader.as_ref().map(|reader| reader.score.clone());
    }
}
