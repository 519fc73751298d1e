//! tensorcarve
pub mod addr;
pub mod cpython;
pub mod dump;
pub mod model;
pub mod paging;
pub mod recover;
pub mod report;
pub mod scan;
pub mod signature;
pub mod tensor;
