//! One session link at the node's end: from its summons to the end of its worker.
//!
//! Until the login the host takes part in every request, as it does for a daemon on its own machine: the node's turn, the
//! SO's PIN, the token's copy. Nothing is asked of a worker that is not among what it was summoned for. Once the user is logged in, bytes are passed on as they are.
//!
//! ```text
//!   TLS ── carry ── socket ── summons ─▶ open a worker ─▶ request, answer ─▶ … ─▶ login ─▶ relay ── worker's socket
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_rustls::server::TlsStream;
use zeroize::{Zeroize, Zeroizing};

use crate::host::carry::{Side, carry};
use crate::host::{LocalToken, OpeningError, Purpose, WorkerLink, WorkerProcess, WorkerSpec, fault};
use crate::link;
use crate::link::v1::{self, request::Verb, response::Outcome, summon};

use super::House;

/// The first request comes within this time.
const SUMMONS: Duration = Duration::from_secs(10);
/// The longest request before the login.
const LONGEST: usize = 64 << 10;

/// Serves one link to its end. Without a place, it is told why not.
pub(super) async fn serve(house: &House, connection: TlsStream<TcpStream>, place: Option<OwnedSemaphorePermit>) {
    let Ok((ours, carrys)) = UnixStream::pair() else {
        return tracing::error!("no socket pair can be made for a link");
    };
    let (killed, kill) = watch::channel(false);
    let died = Arc::new(AtomicBool::new(false));
    let side = Side::Nodes { killed, died: died.clone() };
    let carrying = carry(connection, carrys, side, |why| tracing::info!(%why, "a link was cut"));
    let session = Session { house, link: ours, kill, died, draining: house.draining.clone() };
    tokio::join!(carrying, session.run(place.is_some()));
    // Not before the last answer has left.
    drop(place);
}

struct Session<'a> {
    house: &'a House,
    /// The daemon's requests, and the way back.
    link: UnixStream,
    /// The daemon's order to kill the worker.
    kill: watch::Receiver<bool>,
    /// Our word to the daemon that the worker died: what ends its calls otherwise is not theirs.
    died: Arc<AtomicBool>,
    draining: watch::Receiver<bool>,
}

impl Session<'_> {
    async fn run(mut self, has_place: bool) {
        if let Err(error) = self.through(has_place).await {
            tracing::warn!(%error, "a link ended out of order");
        }
    }

    async fn through(&mut self, has_place: bool) -> io::Result<()> {
        let summoned = tokio::time::timeout(SUMMONS, self.next()).await;
        let Some((id, verb)) = summoned.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))? else {
            return Ok(());
        };
        let summon = match verb {
            Verb::Summon(summon) => summon,
            mut verb => {
                verb.zeroize();
                return self.answer(id, Err(OpeningError::OutOfTurn)).await;
            }
        };
        let spec = match self.admit(&summon, has_place) {
            Ok(spec) => spec,
            Err(error) => return self.answer(id, Err(error)).await,
        };
        match summon.purpose() {
            summon::Purpose::Serve => self.worker(id, &spec, Purpose::Serve, Company::AsItIs).await,
            summon::Purpose::Administer => self.worker(id, &spec, Purpose::Administer, Company::AsItIs).await,
            summon::Purpose::Try => self.worker(id, &spec, Purpose::Try, Company::AsItIs).await,
            summon::Purpose::TryAlone => self.worker(id, &spec, Purpose::Try, Company::None).await,
            summon::Purpose::Look => self.worker(id, &spec, Purpose::Look, Company::AsItIs).await,
            summon::Purpose::Vacate => self.vacate(id, &spec).await,
            summon::Purpose::Unspecified => self.answer(id, Err(OpeningError::OutOfTurn)).await,
        }
    }

    fn admit(&self, summon: &v1::Summon, has_place: bool) -> Result<(WorkerSpec, LocalToken), OpeningError> {
        if summon.contract != link::CONTRACT {
            let version = env!("CARGO_PKG_VERSION");
            return Err(OpeningError::DifferentBuild(format!(
                "it runs another build of keyway ({version}) than the daemon"
            )));
        }
        if !has_place {
            return Err(OpeningError::Host("as many links as max_links allows are there already".to_owned()));
        }
        let slot = self.house.slot(&summon.cluster, &summon.hsm, &summon.username)?;
        let spec = slot.spec_for(summon.sessions, summon.patience_ms, summon.slow_patience_ms);
        Ok((spec, slot.token))
    }

    /// From the worker's start to its end.
    async fn worker(
        &mut self,
        id: u64,
        (spec, token): &(WorkerSpec, LocalToken),
        purpose: Purpose,
        company: Company,
    ) -> io::Result<()> {
        let local = &self.house.local;
        let opening = async {
            match (company, purpose) {
                (Company::None, _) => {
                    // Before the turn, as a serving worker does it.
                    let slot = local.slot(spec).await?;
                    let _turn = local.turn(spec).await;
                    local.open_alone(spec, token, purpose, slot).await
                }
                // A daemon on this machine would have it already; the others take it themselves.
                (Company::AsItIs, Purpose::Administer | Purpose::MakeToken | Purpose::Try) => {
                    let _turn = local.turn(spec).await;
                    local.open(spec, token, purpose).await
                }
                (Company::AsItIs, Purpose::Serve | Purpose::Look) => local.open(spec, token, purpose).await,
            }
        };
        let opened = tokio::select! {
            opened = opening => opened,
            // Nobody wants it any more.
            () = given_up(&self.link, &mut self.kill, &mut self.draining) => return Ok(()),
        };
        let mut worker = match opened {
            Ok(worker) => worker,
            Err(error) => return self.answer(id, Err(error)).await,
        };
        self.obey(worker.process());
        self.answer(id, Ok(Outcome::Opened(worker.opened().clone()))).await?;
        loop {
            let mut draining = self.draining.clone();
            let next = tokio::select! {
                next = self.next() => next?,
                _ = draining.wait_for(|draining| *draining) => None,
            };
            let Some((id, verb)) = next else {
                // Given up by a daemon that is heard no more, or that is done: nothing is running.
                worker.end().await;
                return Ok(());
            };
            let logs_in = matches!(verb, Verb::LogIn(_));
            // Heard out, though the link may have ended meanwhile: a login that is cut off damages tokens.
            let answer = self.attend(&mut worker, (spec, purpose), verb).await;
            let logged_in = logs_in && matches!(answer, Ok(Outcome::Done(_)));
            let lost = answer.is_err();
            self.answer(id, answer).await?;
            if logged_in && purpose == Purpose::Serve {
                let (worker, process) = worker.into_parts();
                self.relay(worker, &process).await;
                return Ok(());
            }
            if logged_in {
                worker.end().await;
                return Ok(());
            }
            if lost {
                return Ok(());
            }
        }
    }

    async fn attend(
        &self,
        worker: &mut WorkerLink,
        (spec, purpose): (&WorkerSpec, Purpose),
        verb: Verb,
    ) -> Result<Outcome, OpeningError> {
        match verb {
            mut verb if !is_for(purpose, &verb) => {
                verb.zeroize();
                Err(OpeningError::OutOfTurn)
            }
            Verb::CheckToken(_) => worker.ask(verb).await,
            verb => {
                let _turn = self.house.local.turn(spec).await;
                worker.ask(verb).await
            }
        }
    }

    /// The user is logged in: from here on daemon and worker speak with each other alone. At the end of either side's
    /// words the other learns of it, and so does the worker when the node drains or its link to the daemon has ended: with
    /// all its threads stuck and its socket full, nobody comes to read the end of what the daemon said.
    async fn relay(&mut self, mut worker: UnixStream, process: &WorkerProcess) {
        let (mut from_daemon, mut to_daemon) = self.link.split();
        let (mut from_worker, mut to_worker) = worker.split();
        let requests = async {
            tokio::select! {
                _ = tokio::io::copy(&mut from_daemon, &mut to_worker) => {}
                _ = self.draining.wait_for(|draining| *draining) => {}
                // Killed, or (an error) carried no more, so that no order to kill will come either: it is on its leash.
                _ = self.kill.wait_for(|kill| *kill) => {}
            }
            let _ = to_worker.shutdown().await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = tokio::io::copy(&mut from_worker, &mut to_daemon) => {}
            () = requests => {}
        }
        self.died.store(process.is_seen_to_have_died().await, Relaxed);
        let _ = to_daemon.shutdown().await;
    }

    /// Keeps the slot free until the link ends.
    async fn vacate(&mut self, id: u64, (spec, _): &(WorkerSpec, LocalToken)) -> io::Result<()> {
        let vacated = tokio::select! {
            slot = self.house.local.slot(spec) => slot,
            () = given_up(&self.link, &mut self.kill, &mut self.draining) => return Ok(()),
        };
        let _slot = match vacated {
            Ok(slot) => slot,
            Err(error) => return self.answer(id, Err(error)).await,
        };
        let _turn = self.house.local.turn(spec).await;
        self.answer(id, Ok(Outcome::Opened(v1::Opened::default()))).await?;
        given_up(&self.link, &mut self.kill, &mut self.draining).await;
        Ok(())
    }

    /// Kills the worker when its daemon orders it, whatever goes on here.
    fn obey(&self, worker: Arc<WorkerProcess>) {
        let mut kill = self.kill.clone();
        tokio::spawn(async move {
            // An error: the link has ended, and no order will come.
            if kill.wait_for(|kill| *kill).await.is_ok() {
                tracing::warn!(%worker, "its daemon has a worker killed");
                worker.kill();
            }
        });
    }

    /// The next request, with nothing read beyond it: what follows a login is not for us. `None` at the end.
    async fn next(&mut self) -> io::Result<Option<(u64, Verb)>> {
        let mut prefix = [0; 4];
        match self.link.read_exact(&mut prefix).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let length = usize::try_from(u32::from_be_bytes(prefix)).map_err(io::Error::other)?;
        if length > LONGEST {
            return Err(io::Error::other(format!("a request of {length} bytes before the login")));
        }
        let mut bytes = Zeroizing::new(vec![0; length]);
        self.link.read_exact(&mut bytes).await?;
        let request = v1::Request::decode(bytes.as_slice()).map_err(io::Error::other)?;
        let verb = request.verb.ok_or_else(|| io::Error::other("a request without a verb"))?;
        Ok(Some((request.id, verb)))
    }

    async fn answer(&mut self, id: u64, answer: Result<Outcome, OpeningError>) -> io::Result<()> {
        let outcome = match answer {
            Ok(outcome) => outcome,
            Err(OpeningError::Fault(fault)) => Outcome::Fault(fault),
            Err(error) => Outcome::HostFault(fault::told(&error)),
        };
        let mut bytes = Zeroizing::new(Vec::new());
        link::push(&v1::Response { id, outcome: Some(outcome) }, &mut bytes).map_err(io::Error::other)?;
        self.link.write_all(&bytes).await
    }
}

/// Who else may use the token meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Company {
    None,
    /// Whoever the purpose lets do so.
    AsItIs,
}

/// What a daemon may ask before its pool's time of a worker that it summoned for this. The SO's PIN is filled in on the
/// way, so that nothing goes through that the purpose does not need; what is opened, and where, is this node's to say.
/// Users are given passwords on the administration port, where this node's configuration has them managed.
const fn is_for(purpose: Purpose, verb: &Verb) -> bool {
    match purpose {
        Purpose::Serve => matches!(verb, Verb::CheckToken(_) | Verb::LogIn(_)),
        Purpose::Administer => {
            matches!(verb, Verb::MakeKek(_) | Verb::OfferJoin(_) | Verb::SealKek(_) | Verb::AcceptKek(_))
        }
        Purpose::MakeToken => false,
        Purpose::Try => matches!(verb, Verb::LogIn(_)),
        Purpose::Look => matches!(verb, Verb::CheckToken(_)),
    }
}

async fn spoke_or_ended(link: &UnixStream) {
    // That it was readable once is remembered until a read finds nothing.
    while link.readable().await.is_ok() {
        match link.try_read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Resolves when what is being done for the daemon is not wanted any more. It says nothing more until it is answered, so
/// that anything to be read is the link's end.
async fn given_up(link: &UnixStream, kill: &mut watch::Receiver<bool>, draining: &mut watch::Receiver<bool>) {
    tokio::select! {
        () = spoke_or_ended(link) => {}
        _ = kill.wait_for(|kill| *kill) => {}
        _ = draining.wait_for(|draining| *draining) => {}
    }
}
