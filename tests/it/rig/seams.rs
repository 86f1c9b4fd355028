//! Points at which a daemon stops until it is killed.

use std::path::PathBuf;

use super::wait_async;

/// By the directory through which they are asked for.
pub struct Seams(pub PathBuf);

impl Seams {
    /// Asks the daemon to stop where a stop point of this name stands.
    pub fn stop_at(&self, name: &str) {
        std::fs::write(self.0.join(format!("stop-{name}")), b"").expect("seams are on");
    }

    pub fn let_pass(&self, name: &str) {
        let _ = std::fs::remove_file(self.0.join(format!("stop-{name}")));
        let _ = std::fs::remove_file(self.0.join(format!("reached-{name}")));
    }

    /// Waits until the daemon has reached the stop point.
    pub async fn wait_until_stopped_at(&self, name: &str) {
        let reached = self.0.join(format!("reached-{name}"));
        wait_async(|| async { reached.exists().then_some(()) }).await;
    }
}
