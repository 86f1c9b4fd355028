//! A `keyway node` from its start to its end.

use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::watch;

use crate::config::NodeConfig;
use crate::door::http::{self, Teller};
use crate::host::served::{self, Links, Served};
use crate::telemetry::{Form, Page, catalogue, process};

use super::{Signals, StartError, make_private, private_process};

/// What a node tells its operators: that it is there, and of itself what daemons do not know.
#[derive(Clone)]
struct NodeOperations {
    draining: watch::Receiver<bool>,
    links: Links,
}

impl Teller for NodeOperations {
    async fn alive(&self) -> Result<(), String> {
        Ok(())
    }

    /// How its HSMs do is the daemon's to say.
    async fn ready(&self) -> (bool, String) {
        let draining = *self.draining.borrow();
        (!draining, if draining { "draining\n" } else { "ready\n" }.to_owned())
    }

    /// Few numbers, so that they are written for each who asks.
    async fn metrics(&self, form: Form) -> Bytes {
        let mut page = Page::default();
        process::tell(&mut page);
        page.level(&catalogue::READY, [], f64::from(u8::from(!*self.draining.borrow())));
        self.links.tell(&mut page);
        page.written(form).into()
    }
}

/// At the end, workers get this long to let running calls return before the node leaves without waiting. They go on by
/// themselves then.
const WORKERS_END: Duration = Duration::from_secs(5);

/// A node that serves.
pub struct Node {
    served: Served,
    draining: watch::Sender<bool>,
    signals: Signals,
}

impl Node {
    /// When this returns, daemons are served.
    pub async fn start(config: NodeConfig) -> Result<Self, StartError> {
        private_process().map_err(StartError::Process)?;
        let signals = Signals::heard().map_err(StartError::Process)?;
        let data_dir = config.node.data_dir.clone();
        make_private(&data_dir).map_err(|source| StartError::Directory { path: data_dir, source })?;
        #[cfg(debug_assertions)]
        crate::seams::watch(&config.node.data_dir);
        let (draining, until_draining) = watch::channel(false);
        let served = served::serve(config.node, until_draining.clone()).await?;
        let http = match config.http {
            Some(settings) => {
                let teller = NodeOperations { draining: until_draining, links: served.links().clone() };
                Some(http::listen(&settings, teller).await?)
            }
            None => None,
        };
        let Served { sessions, identity, administration, .. } = &served;
        tracing::info!(%sessions, %identity, %administration, ?http, "serving");
        Ok(Self { served, draining, signals })
    }

    /// Serves until SIGTERM or SIGINT; then every link ends, and with it its worker. SIGHUP has the certificates read again.
    pub async fn run(mut self) {
        let Signals { term, int, hang_up } = &mut self.signals;
        loop {
            tokio::select! {
                _ = term.recv() => break tracing::info!("SIGTERM: draining"),
                _ = int.recv() => break tracing::info!("SIGINT: draining"),
                _ = hang_up.recv() => match self.served.read_certificates_again() {
                    Ok(()) => tracing::info!("SIGHUP: the certificates were read again"),
                    Err(error) => tracing::error!(%error, "SIGHUP: the certificates cannot be used; nothing was changed"),
                },
            }
        }
        self.draining.send_replace(true);
        self.served.links_ended(WORKERS_END).await;
        tracing::info!("drained");
    }
}
