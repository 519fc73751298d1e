//! tensorcarve
pub mod addr;
pub mod cpython;
pub mod dump;
pub mod paging;
pub mod scan;
pub mod signature;
