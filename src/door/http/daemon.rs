//! What a daemon tells its operators. The facts are the rooms' own, and the words those of the API.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::door::grpc::Faces;
use crate::door::lanes::Lanes;
use crate::door::listen::Places;
use crate::door::ready::Readiness;
use crate::records::Records;
use crate::telemetry::{Page, catalogue, process};

use super::Teller;

/// A page is told again for this long: however often somebody asks, it is made once in that time.
const FRESH: Duration = Duration::from_secs(1);

/// Tells of one daemon, also before it serves. Cheap to clone.
#[derive(Clone)]
pub struct Operations(Arc<Inner>);

struct Inner {
    readiness: watch::Receiver<Readiness>,
    served: OnceLock<Served>,
    /// Held while a page is made: who asks meanwhile is given the same one.
    page: tokio::sync::Mutex<Option<(Instant, Page)>>,
}

/// What there is to tell of, once calls are taken.
pub struct Served {
    pub faces: Faces,
    pub records: Records,
    pub lanes: Lanes,
    /// Of the gRPC listeners.
    pub places: Places,
}

impl Operations {
    /// Of a daemon that is starting.
    pub fn starting(readiness: watch::Receiver<Readiness>) -> Self {
        Self(Arc::new(Inner { readiness, served: OnceLock::new(), page: tokio::sync::Mutex::default() }))
    }

    /// It takes calls now.
    pub fn serves(&self, served: Served) {
        // A second word on it would be the same.
        let _ = self.0.served.set(served);
    }

    fn readiness(&self) -> Readiness {
        *self.0.readiness.borrow()
    }

    async fn made(&self) -> Page {
        let mut page = Page::default();
        process::tell(&mut page);
        if let Some(Served { faces, records, lanes, places }) = self.0.served.get() {
            lanes.tell(&mut page);
            places.tell(&mut page);
            records.tell(&mut page);
            faces.tell(&mut page).await;
        }
        page
    }
}

impl Teller for Operations {
    /// Each lane is asked to go round once. At the end they go, and are not missed.
    async fn alive(&self) -> Result<(), String> {
        match self.0.served.get() {
            Some(served) if self.readiness() != Readiness::Draining => served.lanes.go_round().await,
            Some(_) | None => Ok(()),
        }
    }

    async fn ready(&self) -> (bool, String) {
        let readiness = self.readiness();
        let mut lines = format!("{}\n", readiness.words());
        for store in self.0.served.get().into_iter().flat_map(|served| served.faces.key_stores().list()) {
            let connection = store.nodes().borrow().clone();
            let members = connection.map(|connection| connection.members()).unwrap_or_default();
            let serve = members.iter().filter(|member| member.is_proved()).count();
            writeln!(lines, "{}: {}, {serve} of {} HSMs serve", store.id(), store.state(), members.len())
                .expect("a text takes it");
        }
        (readiness.is_ready(), lines)
    }

    async fn metrics(&self) -> Page {
        let mut page = {
            let mut last = self.0.page.lock().await;
            match &*last {
                Some((made, page)) if made.elapsed() < FRESH => page.clone(),
                Some(_) | None => {
                    let page = self.made().await;
                    *last = Some((Instant::now(), page.clone()));
                    page
                }
            }
        };
        // As /readyz says it at this moment.
        page.level(&catalogue::READY, [], f64::from(u8::from(self.readiness().is_ready())));
        page
    }
}
