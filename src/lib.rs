//! tensorcarve
pub mod addr;
pub mod dump;
pub mod scan;
pub mod signature;
