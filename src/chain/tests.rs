//! Nets as shapes and addresses.

use super::*;
use crate::addr::VirtAddr;
use crate::tensor::ScalarType;
