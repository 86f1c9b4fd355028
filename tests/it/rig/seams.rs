//! Points at which a daemon, or a node, stops until it is killed, or let pass.

use std::path::PathBuf;

use super::wait_async;

/// By the directories through which they are asked for, one of each process.
pub struct Seams(pub Vec<PathBuf>);

impl Seams {
    /// Asks for a stop where a stop point of this name stands.
    pub fn stop_at(&self, name: &str) {
        for seams in &self.0 {
            std::fs::write(seams.join(format!("stop-{name}")), b"").expect("seams are on");
        }
    }

    pub fn let_pass(&self, name: &str) {
        for seams in &self.0 {
            let _ = std::fs::remove_file(seams.join(format!("stop-{name}")));
            let _ = std::fs::remove_file(seams.join(format!("reached-{name}")));
        }
    }

    /// Waits until one of them has reached the stop point.
    pub async fn wait_until_stopped_at(&self, name: &str) {
        let reached: Vec<_> = self.0.iter().map(|seams| seams.join(format!("reached-{name}"))).collect();
        wait_async(|| async { reached.iter().any(|it| it.exists()).then_some(()) }).await;
    }
}
