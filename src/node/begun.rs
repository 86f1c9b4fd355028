//! Work that was begun and is heard out, though nobody may wait for it any more: what an HSM has answered is not to be lost.

use tokio::task::JoinHandle;

/// What came of the work. A caller that leaves leaves it running; a panic in it goes on here.
pub async fn heard_out<T>(begun: JoinHandle<T>) -> T {
    match begun.await {
        Ok(done) => done,
        Err(ended) => std::panic::resume_unwind(ended.into_panic()),
    }
}
