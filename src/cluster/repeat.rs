//! What is to be had before an HSM is given work that another one, or the same, may have done already.

use super::Failure;

/// Leave to do work once more, or the reason why not.
pub trait Repeat: Sync {
    type Refused: From<Failure>;

    fn leave(&self) -> impl Future<Output = Result<(), Self::Refused>> + Send;
}

/// Work that may be done any number of times.
pub(super) struct Freely;

impl Repeat for Freely {
    type Refused = Failure;

    async fn leave(&self) -> Result<(), Failure> {
        Ok(())
    }
}
