//! A network, and its tensors.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use serde_json::json;
use tensorcarve::case as library;
use tensorcarve::diagnostic::Diagnostic;
use tensorcarve::model::{Model as Data, NamedTensor, TensorKind};
use tensorcarve::report;
use tensorcarve::tensor::TensorInfo;

use crate::array::{array, torch_name};
use crate::cli::Failure;
use crate::error::refuse;
use crate::html;
use crate::work::{Meter, run};

/// A neural network that was found.
#[pyclass(frozen, module = "tensorcarve")]
pub(crate) struct Model {
    model: library::Model,
    meter: Arc<Meter>,
}

/// A tensor of a network.
#[pyclass(frozen, module = "tensorcarve")]
pub(crate) struct Tensor {
    tensor: library::Tensor,
    meter: Arc<Meter>,
}

/// A word that serde gives.
fn word(value: impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

impl Model {
    /// The headings of [`Model::cells`].
    pub(crate) const HEADINGS: [&str; 6] = ["model", "class", "process", "tensors", "complete", "parameters"];

    pub(crate) fn new(model: library::Model, meter: Arc<Meter>) -> Self {
        Self { model, meter }
    }

    fn data(&self) -> &Data {
        self.model.data()
    }

    fn whole(&self) -> usize {
        self.data().tensors.iter().filter(|tensor| tensor.status.has_bytes() && tensor.holes.bytes == 0).count()
    }

    fn parameters(&self) -> u64 {
        let own = self.data().tensors.iter().filter(|tensor| tensor.same_as.is_none());
        let parameters = own.filter(|tensor| tensor.kind == TensorKind::Parameter);
        let count = |tensor: &NamedTensor| tensor.info.as_ref().map_or(0, TensorInfo::numel);
        parameters.map(count).fold(0, u64::saturating_add)
    }

    pub(crate) fn cells(&self) -> Vec<String> {
        let process = report::process_name(self.model.process());
        let class = self.data().class.clone().unwrap_or_else(|| word(self.data().kind()));
        let counts = [self.data().tensors.len() as u64, self.whole() as u64, self.parameters()];
        [vec![self.data().id.clone(), class, process], counts.map(|count| count.to_string()).to_vec()].concat()
    }

    pub(crate) fn row<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let row = json!({
            "model": self.data().id,
            "kind": self.data().kind(),
            "class": self.data().class,
            "pid": self.model.process().pid,
            "tensors": self.data().tensors.len(),
            "complete": self.whole(),
            "parameters": self.parameters(),
            "problems": self.data().problems.len(),
        });
        Ok(pythonize::pythonize(py, &row)?)
    }

    pub(crate) fn add_tensor_rows(&self, py: Python<'_>, rows: &Bound<'_, PyList>) -> PyResult<()> {
        for tensor in self.model.tensors().chain(self.model.training()) {
            let data = tensor.data();
            let row = json!({
                "model": self.data().id,
                "name": data.name,
                "kind": data.kind,
                "dtype": tensor.dtype(),
                "shape": tensor.shape(),
                "status": data.status,
                "missing_bytes": data.holes.bytes,
                "sha256": data.sha256,
            });
            rows.append(pythonize::pythonize(py, &row)?)?;
        }
        Ok(())
    }

    fn dict<'py>(
        &self,
        py: Python<'py>,
        tensors: impl Iterator<Item = library::Tensor>,
        name: impl Fn(&NamedTensor) -> String,
    ) -> PyResult<Bound<'py, PyDict>> {
        let all = PyDict::new(py);
        for tensor in tensors {
            let name = name(tensor.data());
            all.set_item(name, Tensor { tensor, meter: Arc::clone(&self.meter) })?;
        }
        Ok(all)
    }

    /// The tensors that `state_dict()` has, each as `make` gives it.
    fn state<'py>(
        &self,
        py: Python<'py>,
        partial: bool,
        make: impl Fn(&Tensor) -> PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let all = PyDict::new(py);
        for tensor in self.model.tensors().filter(|tensor| tensor.data().persistent) {
            let tensor = Tensor { tensor, meter: Arc::clone(&self.meter) };
            match make(&tensor) {
                Ok(made) => all.set_item(tensor.name(), made)?,
                Err(error) if !partial || !error.is_instance_of::<crate::error::Error>(py) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(all)
    }
}

#[pymethods]
impl Model {
    #[getter]
    fn id(&self) -> &str {
        &self.data().id
    }

    #[getter]
    fn class_name(&self) -> Option<&str> {
        self.data().class.as_deref()
    }

    #[getter]
    fn kind(&self) -> String {
        word(self.data().kind())
    }

    #[getter]
    fn pid(&self) -> Option<u32> {
        self.model.process().pid
    }

    #[getter]
    fn ended(&self) -> bool {
        self.model.process().space.is_freed()
    }

    #[getter]
    fn problems(&self) -> Vec<String> {
        self.data().problems.iter().map(Diagnostic::to_string).collect()
    }

    #[getter]
    fn tensors<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.dict(py, self.model.tensors(), |data| data.name.clone())
    }

    /// What training left, by name: `<parameter>.grad` for gradients, `<parameter>.<key>` for what optimizers keep.
    #[getter]
    fn training<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.dict(py, self.model.training(), |data| match data.kind {
            TensorKind::Gradient => format!("{}.grad", data.name),
            _ => data.name.clone(),
        })
    }

    /// {name: numpy.ndarray} of what the network's own state_dict() had.
    #[pyo3(signature = (*, partial=false))]
    fn state_dict<'py>(&self, py: Python<'py>, partial: bool) -> PyResult<Bound<'py, PyDict>> {
        self.state(py, partial, |tensor| tensor.numpy(py, false))
    }

    /// The same with torch.Tensors.
    #[pyo3(signature = (*, partial=false))]
    fn torch<'py>(&self, py: Python<'py>, partial: bool) -> PyResult<Bound<'py, PyDict>> {
        self.state(py, partial, |tensor| tensor.torch(py))
    }

    /// Writes the files that `tensorcarve recover` writes of a model to a folder, which must be empty or not exist.
    fn save(&self, py: Python<'_>, folder: PathBuf) -> PyResult<()> {
        let model = self.model.clone();
        run(py, &self.meter, move || -> Result<_, Failure> { Ok(model.save(folder)?) })
    }

    fn __repr__(&self) -> String {
        let class = self.data().class.clone().unwrap_or_else(|| self.kind());
        format!("<Model {} {class}: {} tensors>", self.id(), self.data().tensors.len())
    }

    fn _repr_html_(&self) -> String {
        let cells = |tensor: &NamedTensor| {
            let info = tensor.info.as_ref();
            let shape = info.map_or("?".to_owned(), |info| format!("{:?}", info.shape));
            let dtype = info.map_or("?".to_owned(), |info| info.dtype.label().to_owned());
            vec![tensor.name.clone(), dtype, shape, word(tensor.status)]
        };
        html::table(&["tensor", "dtype", "shape", "status"], self.data().tensors.iter().map(cells))
    }
}

impl Tensor {
    fn data(&self) -> &NamedTensor {
        self.tensor.data()
    }

    /// Its bytes. With holes it is an error, unless `fill` asks for zeros in their place.
    fn read(&self, py: Python<'_>, fill: bool) -> PyResult<Vec<u8>> {
        let tensor = self.tensor.clone();
        run(py, &self.meter, move || {
            let read = if fill { tensor.bytes_with_holes().map(|(bytes, _)| bytes) } else { tensor.bytes() };
            read.map_err(|error| {
                Failure::new(error).hint("numpy(fill=True) has zeros where bytes are missing; see holes")
            })
        })
    }

    /// The array, whose elements are unsigned integers if `bits` asks for that and NumPy lacks the type.
    fn array<'py>(&self, py: Python<'py>, fill: bool, bits: bool) -> PyResult<Bound<'py, PyAny>> {
        let (Some(label), Some(shape)) = (self.tensor.dtype(), self.tensor.shape()) else {
            return Err(refuse(py, format!("the headers of {} can't be read", self.name()), "see problem"));
        };
        array(py, label, shape, self.read(py, fill)?, bits)
    }
}

#[pymethods]
impl Tensor {
    #[getter]
    fn name(&self) -> &str {
        self.tensor.name()
    }

    #[getter]
    fn kind(&self) -> String {
        word(self.data().kind)
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, pyo3::types::PyTuple>>> {
        self.tensor.shape().map(|shape| pyo3::types::PyTuple::new(py, shape)).transpose()
    }

    #[getter]
    fn dtype(&self) -> Option<&str> {
        self.tensor.dtype()
    }

    #[getter]
    fn status(&self) -> String {
        word(self.tensor.status())
    }

    #[getter]
    fn problem(&self) -> Option<String> {
        self.data().problem.as_ref().map(Diagnostic::to_string)
    }

    #[getter]
    fn sha256(&self) -> Option<&str> {
        self.data().sha256.as_deref()
    }

    #[getter]
    fn requires_grad(&self) -> Option<bool> {
        self.data().info.as_ref().map(|info| info.requires_grad)
    }

    /// The address of its first element.
    #[getter]
    fn address(&self) -> Option<u64> {
        self.data().info.as_ref().map(|info| info.data.0)
    }

    /// Missing bytes: (start, end, reason) in the contiguous tensor.
    #[getter]
    fn holes(&self) -> Vec<(u64, u64, String)> {
        self.data().holes.iter().map(|hole| (hole.start, hole.end, hole.reason.clone())).collect()
    }

    /// Its bytes in row-major order.
    #[pyo3(signature = (*, fill=false))]
    fn tobytes<'py>(&self, py: Python<'py>, fill: bool) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.read(py, fill)?))
    }

    #[pyo3(signature = (*, fill=false))]
    fn numpy<'py>(&self, py: Python<'py>, fill: bool) -> PyResult<Bound<'py, PyAny>> {
        self.array(py, fill, false)
    }

    /// As a torch.Tensor, which owns its bytes.
    fn torch<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let torch = py.import("torch")?;
        let array = self.array(py, false, true)?;
        let other = self.tensor.dtype().and_then(torch_name);
        // PyTorch has more types than NumPy, and reads their bytes as bytes.
        let Some(name) = other else { return torch.call_method1("from_numpy", (array,)) };
        let dtype = torch.getattr(name)?;
        let bytes = array.call_method1("reshape", (-1,))?.call_method1("view", ("uint8",))?;
        let flat = torch.call_method1("from_numpy", (bytes,))?.call_method1("view", (dtype,))?;
        flat.call_method1("reshape", (self.tensor.shape().unwrap_or_default().to_vec(),))
    }

    #[pyo3(signature = (dtype=None, copy=None))]
    fn __array__<'py>(
        &self,
        py: Python<'py>,
        dtype: Option<Bound<'py, PyAny>>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if copy == Some(false) {
            let message = "the elements are gathered from the dump, which is a copy";
            return Err(pyo3::exceptions::PyValueError::new_err(message));
        }
        let array = self.numpy(py, false)?;
        match dtype {
            Some(dtype) => array.call_method1("astype", (dtype,)),
            None => Ok(array),
        }
    }

    fn __repr__(&self) -> String {
        let shape = self.tensor.shape().map_or("?".to_owned(), |shape| format!("{shape:?}"));
        format!("<Tensor {} {} {shape}: {}>", self.name(), self.tensor.dtype().unwrap_or("?"), self.status())
    }
}
