//! SIGHUP: the configuration is read again, and the clusters in it take the place of those that were declared.
//!
//! The listener's certificates are read again as well, for connections from then on. All or nothing: with a problem anywhere
//! in the file, or in the certificates, everything stays as it was. What cannot change while the daemon runs is named, and
//! waits for the next start.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::clock;
use crate::cluster::Settings;
use crate::config::{Config, Problems};
use crate::keystore::KeyStores;
use crate::model::ClusterId;
use crate::tls::Acceptor;

/// Reads the configuration anew.
pub type Source = Arc<dyn Fn() -> Result<Config, Problems> + Send + Sync>;

/// What was read at the start, and where to read it again.
pub(super) struct Reload {
    pub(super) started_with: Config,
    /// `None` for a daemon without a configuration file.
    pub(super) source: Option<Source>,
}

impl Reload {
    pub(super) async fn reload(&self, key_stores: &KeyStores, tls: Option<&Acceptor>) {
        let Some(source) = self.source.clone() else {
            return tracing::warn!("SIGHUP: there is no configuration file to read again");
        };
        // On a thread of its own, which the daemon does not wait for at its end: a file may hang.
        let (read, answer) = oneshot::channel();
        std::thread::spawn(move || drop(read.send(source())));
        let Ok(read) = answer.await else {
            return tracing::error!("SIGHUP: reading the configuration failed; nothing was changed");
        };
        let config = match read {
            Ok(config) => config,
            Err(problems) => {
                for problem in problems.iter() {
                    tracing::error!(%problem, "SIGHUP: the configuration has a problem; nothing was changed");
                }
                return;
            }
        };
        for section in self.started_with.differs_beside_clusters(&config) {
            tracing::warn!(section, "SIGHUP: this section has changed, which takes effect at the next start");
        }
        if let Some(Err(error)) = tls.map(Acceptor::read_again) {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            return tracing::error!(%error, cause, "SIGHUP: the certificates cannot be used; nothing was changed");
        }
        warn_of_doubts(config.clusters.iter());
        match key_stores.redeclare(config.clusters).await {
            Ok(changes) if changes.is_empty() => tracing::info!("SIGHUP: no cluster has changed"),
            Ok(changes) => {
                for change in changes {
                    tracing::info!(%change, "SIGHUP: the clusters were exchanged");
                }
            }
            Err(error) => tracing::error!(%error, "SIGHUP: no cluster was changed"),
        }
    }
}

/// What an operator should look at although it stops nothing.
pub(super) fn warn_of_doubts<'a>(clusters: impl Iterator<Item = (&'a ClusterId, &'a Settings)>) {
    for (cluster, settings) in clusters {
        for doubt in settings.doubts(clock::now()) {
            tracing::warn!(%cluster, "{doubt}");
        }
    }
}
