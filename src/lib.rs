//! tensorcarve
pub mod addr;
pub mod dump;
