//! A stage of a case: computed when it is first asked for, and kept.

use std::sync::{Arc, Mutex, PoisonError};

/// What a stage gives, once it is computed.
///
/// Others that ask meanwhile wait. So a stage is never asked for within the parallel work of another: the thread that
/// computes it could pick up the one that waits.
pub(super) struct Stage<T>(Mutex<Option<Arc<T>>>);

impl<T> Default for Stage<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Stage<T> {
    /// What it gives; after a failure the next one tries again.
    pub(super) fn get<E>(&self, compute: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*kept {
            return Ok(Arc::clone(known));
        }
        let computed = Arc::new(compute()?);
        *kept = Some(Arc::clone(&computed));
        Ok(computed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_computed_once_and_tried_again_after_a_failure() {
        let stage = Stage::default();
        assert_eq!(stage.get(|| Err("no")), Err("no"));
        let first: Result<Arc<i32>, &str> = stage.get(|| Ok(7));
        assert_eq!(first.as_deref(), Ok(&7));
        let again: Result<_, &str> = stage.get(|| panic!("computed twice"));
        assert!(Arc::ptr_eq(&first.unwrap(), &again.unwrap()));
    }
}
