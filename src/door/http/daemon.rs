//! What a daemon tells its operators. The facts are the rooms' own, and the words those of the API.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::door::grpc::Faces;
use crate::door::lanes::Lanes;
use crate::door::listen::Places;
use crate::door::ready::Readiness;
use crate::records::Records;
use crate::telemetry::{Form, Page, catalogue, process};

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
    page: tokio::sync::Mutex<Option<Made>>,
}

/// A page, and each of its texts once somebody asked for it.
struct Made {
    at: Instant,
    page: Page,
    texts: Vec<(Form, Readiness, Bytes)>,
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

    async fn metrics(&self, form: Form) -> Bytes {
        let mut last = self.0.page.lock().await;
        let made = match last.take() {
            Some(made) if made.at.elapsed() < FRESH => made,
            Some(_) | None => {
                let page = self.made().await;
                Made { at: Instant::now(), page, texts: Vec::new() }
            }
        };
        // As /readyz says it at this moment.
        last.insert(made).text(form, self.readiness())
    }
}

impl Made {
    fn text(&mut self, form: Form, readiness: Readiness) -> Bytes {
        if let Some((_, _, text)) = self.texts.iter().find(|made| (made.0, made.1) == (form, readiness)) {
            return text.clone();
        }
        let mut page = self.page.clone();
        page.level(&catalogue::READY, [], f64::from(u8::from(readiness.is_ready())));
        let text = Bytes::from(page.written(form));
        self.texts.push((form, readiness, text.clone()));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_written_once_in_each_form_and_readiness_is_that_of_the_moment() {
        let mut made = Made { at: Instant::now(), page: Page::default(), texts: Vec::new() };
        let ready = made.text(Form::Prometheus, Readiness::Ready);
        assert!(ready.ends_with(b"\nkeyway_ready 1.0\n"), "{ready:?}");
        assert!(made.text(Form::OpenMetrics, Readiness::Ready).ends_with(b"# EOF\n"));
        let draining = made.text(Form::Prometheus, Readiness::Draining);
        assert!(draining.ends_with(b"\nkeyway_ready 0.0\n"), "{draining:?}");
        let again = made.text(Form::Prometheus, Readiness::Ready);
        assert_eq!(again.as_ptr(), ready.as_ptr(), "it was written anew");
    }
}
