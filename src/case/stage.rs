//! A stage of a case: computed on first use, and kept.

use std::sync::{Arc, Mutex, PoisonError};

/// The result of a stage, once it is computed.
///
/// Other callers wait meanwhile. So a stage must not be requested within the parallel work of another stage: the thread
/// that computes it could pick up the task that waits, which would deadlock. Two stages may be computed side by side if neither
/// requests the other, and what both need is there.
pub(super) struct Stage<T>(Mutex<Option<Arc<T>>>);

impl<T> Default for Stage<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Stage<T> {
    /// Returns the result; after a failure the next call tries again.
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
