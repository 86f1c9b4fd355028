//! Brings one node up and keeps it up, until told to stop.
//!
//! ```text
//!   ┌─▶ reach: a worker opens the token (again every second) ─▶ the right token? ─no─▶ wait for the operator
//!   │     ▲                                                        │ yes
//!   │     └── token gone ── looked at each second ◀── pause before the next login is not over
//!   │                                                              │ over
//!   │                                                   log in ─refused─▶ wait for the operator
//!   │                                                              │
//!   └── ended, useless, or grown too big ◀────────────────────── serve
//! ```
//!
//! Looking whether the token can be reached costs it nothing and goes on all the time; the pauses that
//! grow are those between logins. An operator's drain ends a life at any point, and a resume begins a new one.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::clock;
use crate::host::{Host, OpeningError, WorkerLink};
use crate::model::with_causes;
use crate::records::{Records, Unavailable};

use super::link::{GivenUp, Link, WorkerLimits};
use super::login::{self, LoginError};
use super::{Health, LoginRefusal, Node, Orders, Passwords, TokenFacts, change};

/// The first pause after a worker ended, before the next login; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between logins.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How often a token that nobody is logged in to is looked for.
pub(super) const REACH_EVERY: Duration = Duration::from_secs(1);
/// Beyond its patience, a worker gets this long to see that its link has ended.
const GRACE: Duration = Duration::from_secs(1);
/// A worker that served this long starts the pauses anew.
const SETTLED: Duration = Duration::from_secs(10);
/// A worker that is replaced only for its size waits this long for its successor to be back before another's turn comes.
const REPLACEMENT: Duration = Duration::from_secs(30);

/// What the nodes of one Connection have in common.
#[derive(Debug, Clone)]
pub struct Common {
    pub host: Host,
    pub records: Records,
    pub passwords: Arc<Passwords>,
    /// One node at a time is out of service for no worse reason than its size.
    pub recycling: Arc<Semaphore>,
}

impl Common {
    pub fn new(host: Host, records: Records, passwords: Passwords) -> Self {
        Self { host, records, passwords: Arc::new(passwords), recycling: Arc::new(Semaphore::new(1)) }
    }
}

/// Runs until `stop` turns true or its sender is gone; then hands the link back to the worker, which lets its running calls return.
pub async fn supervise(node: Arc<Node>, common: Common, stop: watch::Receiver<bool>) {
    tokio::select! {
        () = stopped(stop) => {}
        () = Life::of(&node, &common).live() => {}
    }
    if let Some(link) = node.unpublish() {
        leave(&link).await;
    }
    node.status.send_modify(|status| change(status, Health::NotProbed, "disconnected"));
}

/// Why nobody is logged in any more, or was not at all.
enum End {
    /// The worker served, and is gone or on its way.
    Served {
        reason: String,
        long: bool,
    },
    /// No worker got as far as a login.
    NotReached(String),
    /// A login brought no verdict, on a node where the password was good before.
    NotLoggedIn(String),
    Refused(LoginRefusal),
    /// The node has another one of its passwords.
    OtherPassword,
    /// The token is not the one it was.
    OtherToken {
        expected: String,
        found: String,
    },
}

impl From<LoginError> for End {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::Refused(refusal) => Self::Refused(refusal),
            LoginError::OtherPassword => Self::OtherPassword,
            LoginError::Worker(error) => Self::NotLoggedIn(with_causes(&error)),
            LoginError::Records(error) => Self::NotLoggedIn(with_causes(&error)),
        }
    }
}

impl From<OpeningError> for End {
    fn from(error: OpeningError) -> Self {
        Self::NotReached(with_causes(&error))
    }
}

impl From<Unavailable> for End {
    fn from(error: Unavailable) -> Self {
        Self::NotReached(with_causes(&error))
    }
}

/// How long a worker has had its token open before its login. What a library read then it may go on believing: SoftHSM2
/// refuses a password that was put right since.
#[derive(Debug, PartialEq, Eq)]
enum Waited {
    NotAtAll,
    Long,
}

/// One node's life under supervision.
struct Life<'a> {
    node: &'a Arc<Node>,
    common: &'a Common,
    orders: watch::Receiver<Orders>,
    /// How often it had been resumed when the present try began.
    heard: u64,
    /// How long the next login waits after a worker's end, and since when.
    pause: Duration,
    next_login: Instant,
    reach_pause: Duration,
    /// Held while this node is out of service for its size alone.
    replacing: Option<OwnedSemaphorePermit>,
}

impl<'a> Life<'a> {
    fn of(node: &'a Arc<Node>, common: &'a Common) -> Self {
        Self {
            node,
            common,
            orders: node.orders.subscribe(),
            heard: 0,
            pause: FIRST_PAUSE,
            next_login: Instant::now(),
            reach_pause: FIRST_PAUSE,
            replacing: None,
        }
    }

    async fn live(mut self) {
        loop {
            self.while_drained().await;
            // From here on: an operator's word that comes while something is tried is not lost.
            self.heard = self.orders.borrow().resumed;
            let mut drained = self.orders.clone();
            let end = tokio::select! {
                () = wait_for(&mut drained, |orders| orders.drained.is_some()) => {
                    self.drain().await;
                    continue;
                }
                end = self.once() => end,
            };
            self.after(end).await;
        }
    }

    /// Out of use until an operator resumes it. Its worker is gone, or leaving.
    async fn while_drained(&mut self) {
        let note = self.orders.borrow_and_update().drained.as_ref().map(|drained| drained.note.clone());
        if note.is_none() {
            return;
        }
        loop {
            let note = self.orders.borrow_and_update().drained.as_ref().map(|drained| drained.note.clone());
            let Some(note) = note else { break };
            self.node.status.send_modify(|status| change(status, Health::Drained, &note));
            wait_for_change(&mut self.orders).await;
        }
        (self.pause, self.reach_pause, self.next_login) = (FIRST_PAUSE, FIRST_PAUSE, Instant::now());
        self.node.status.send_modify(|status| change(status, Health::NotProbed, "resumed"));
    }

    /// Lets running calls end, as long as the operator allows.
    async fn drain(&mut self) {
        self.replacing = None;
        let limit = self.orders.borrow().drained.as_ref().map(|drained| drained.limit).unwrap_or_default();
        let Some(link) = self.node.unpublish() else { return };
        let note = self.orders.borrow().drained.as_ref().map(|drained| drained.note.clone()).unwrap_or_default();
        self.node.status.send_modify(|status| {
            change(status, Health::Drained, &note);
            status.next_retry = None;
        });
        let_go(link, limit).await;
    }

    /// From reaching the token to the end of the worker that served.
    async fn once(&mut self) -> End {
        match self.establish().await {
            Ok(link) => self.serve(&link).await,
            Err(end) => end,
        }
    }

    /// A worker with its user logged in, serving.
    async fn establish(&mut self) -> Result<Arc<Link>, End> {
        let (node, common) = (self.node, self.common);
        let (mut worker, mut facts) = self.reach().await?;
        if self.wait_for_the_next_login(&mut worker).await? == Waited::Long {
            drop(worker);
            (worker, facts) = self.reach().await?;
        }
        let (worker, version) = login::log_in(common, &node.spec, worker).await?;
        let spec = &node.spec;
        let noted = common.records.set_token_serial(&spec.cluster, &spec.hsm, &spec.username, &facts.serial).await;
        noted.map_err(|error| End::NotLoggedIn(with_causes(&error)))?;
        let login = node.status.borrow().login + 1;
        let limits = WorkerLimits { patience: spec.patience, memory: spec.memory_limit };
        let link = Link::start(worker, login, node.queue_limit, limits, common.host.tallies().of(spec));
        node.publish(link.clone());
        tracing::info!(hsm = %spec.hsm, serial = %facts.serial, sessions = facts.sessions, "logged in");
        node.status.send_modify(|status| {
            change(status, Health::Syncing, "logged in; being proved");
            status.login = login;
            status.next_retry = None;
            status.login_refusal = None;
            status.password = Some(version);
        });
        Ok(link)
    }

    /// A worker that has opened the token, which is the right one.
    async fn reach(&mut self) -> Result<(WorkerLink, TokenFacts), End> {
        let worker = self.common.host.start(&self.node.spec).await?;
        let facts = facts(&worker);
        self.node.status.send_modify(|status| status.token = Some(facts.clone()));
        self.check_identity(&facts).await?;
        self.reach_pause = FIRST_PAUSE;
        Ok((worker, facts))
    }

    /// No password is sent to a token that is not the one it was.
    async fn check_identity(&self, facts: &TokenFacts) -> Result<(), End> {
        let spec = &self.node.spec;
        let known = self.common.records.token_serial(&spec.cluster, &spec.hsm, &spec.username).await?;
        match known {
            Some(expected) if expected != facts.serial => {
                Err(End::OtherToken { expected, found: facts.serial.clone() })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Looks each second whether the token is still there, until a login may be made again.
    async fn wait_for_the_next_login(&self, worker: &mut WorkerLink) -> Result<Waited, End> {
        let now = Instant::now();
        if now >= self.next_login {
            return Ok(Waited::NotAtAll);
        }
        let at = clock::now() + (self.next_login - now);
        self.node.status.send_modify(|status| {
            change(status, Health::NotProbed, "it can be reached; the next login waits a little");
            status.next_retry = Some(at);
        });
        while Instant::now() < self.next_login {
            tokio::time::sleep_until(self.next_login.min(Instant::now() + REACH_EVERY)).await;
            worker.check().await?;
        }
        Ok(Waited::Long)
    }

    /// Until the worker is gone, or so far gone that another one does better.
    async fn serve(&mut self, link: &Arc<Link>) -> End {
        let began = Instant::now();
        let reason = tokio::select! {
            () = link.ended() => link.why_it_ended(),
            reason = self.outlived(link) => reason,
        };
        self.node.unpublish();
        // Not waited for: the successor waits for the slot.
        drop(let_go(link.clone(), link.last_answers()));
        End::Served { reason, long: began.elapsed() >= SETTLED }
    }

    /// Resolves when the worker is to be replaced although it runs. One that only grew waits for its turn.
    async fn outlived(&mut self, link: &Link) -> String {
        let outgrown = match link.given_up(None).await {
            GivenUp::Useless(reason) => return reason,
            outgrown @ GivenUp::Outgrown(_) => outgrown,
        };
        let recycling = self.common.recycling.clone();
        tokio::select! {
            turn = recycling.acquire_owned() => self.replacing = turn.ok(),
            why = link.given_up(Some(&outgrown)) => if let GivenUp::Useless(reason) = why { return reason },
        }
        match outgrown {
            GivenUp::Useless(reason) => reason,
            GivenUp::Outgrown(bytes) => format!("its worker had grown to {} MiB; replacing it", bytes >> 20),
        }
    }

    /// What the end means for the node's status, and how long until the next try.
    async fn after(&mut self, end: End) {
        match end {
            End::Served { reason, long } => {
                if long {
                    self.pause = FIRST_PAUSE;
                }
                // In this order: whoever watches never sees a worker counted out and its node healthy.
                unreachable(self.node, &reason, self.pause);
                self.node.status.send_modify(|status| status.worker_restarts += 1);
                self.common.host.tallies().of(&self.node.spec).worker_is_gone();
                self.put_off_login();
                self.give_back_the_turn_in_time();
            }
            End::NotLoggedIn(reason) => {
                unreachable(self.node, &reason, self.pause);
                self.put_off_login();
            }
            End::NotReached(reason) => {
                let pause = jittered(self.reach_pause);
                unreachable(self.node, &reason, pause);
                self.reach_pause = REACH_EVERY;
                tokio::time::sleep(pause).await;
            }
            // Each such end leaves one password fewer to try.
            End::OtherPassword => {}
            End::Refused(refusal) => {
                refused(self.node, refusal);
                self.until_it_may_be_tried(refusal).await;
            }
            End::OtherToken { expected, found } => {
                other_token(self.node, &expected, &found);
                self.until_the_operator_acts().await;
            }
        }
    }

    fn put_off_login(&mut self) {
        self.next_login = Instant::now() + jittered(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// A node that does not come back does not keep the others from their turn.
    fn give_back_the_turn_in_time(&mut self) {
        if let Some(turn) = self.replacing.take() {
            let mut status = self.node.status.subscribe();
            tokio::spawn(async move {
                let back = status.wait_for(|status| status.health == Health::Healthy);
                let _ = tokio::time::timeout(REPLACEMENT, back).await;
                drop(turn);
            });
        }
    }

    /// A refusal needs the operator. A password that was not tried only for another node's refusal needs one that accepts
    /// it: then it risks nothing here.
    async fn until_it_may_be_tried(&mut self, refusal: LoginRefusal) {
        let (passwords, hsm) = (self.common.passwords.clone(), self.node.hsm().clone());
        tokio::select! {
            () = self.until_the_operator_acts() => {}
            () = passwords.proved_elsewhere(&hsm), if refusal == LoginRefusal::NotTried => {
                self.node.status.send_modify(|status| {
                    change(status, Health::NotProbed, "another HSM has accepted the password");
                });
            }
        }
    }

    /// Nothing more happens here by itself.
    async fn until_the_operator_acts(&mut self) {
        let resumed = self.heard;
        let acts = |orders: &Orders| orders.resumed != resumed || orders.drained.is_some();
        wait_for(&mut self.orders, acts).await;
        self.node.status.send_modify(|status| change(status, Health::NotProbed, "resumed"));
        (self.pause, self.reach_pause, self.next_login) = (FIRST_PAUSE, FIRST_PAUSE, Instant::now());
    }
}

/// Until the orders are such. For ever, when nobody can give any more.
async fn wait_for(orders: &mut watch::Receiver<Orders>, such: impl Fn(&Orders) -> bool) {
    while !such(&orders.borrow_and_update()) {
        wait_for_change(orders).await;
    }
}

async fn wait_for_change(orders: &mut watch::Receiver<Orders>) {
    if orders.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Lets what was handed over be answered, and the worker leave, whether anybody waits for that or not: nobody else sees to
/// this link any more.
fn let_go(link: Arc<Link>, limit: Duration) -> impl Future<Output = ()> {
    let going = tokio::spawn(async move {
        link.finish(limit).await;
        leave(&link).await;
    });
    async move {
        let _ = going.await;
    }
}

/// Closes the link. A worker leaves by itself within its patience, unless no thread of it is left to see the end.
async fn leave(link: &Link) {
    link.close();
    let closed = Instant::now();
    loop {
        // What was handed over is still done: as long as answers come, nothing is stuck.
        let limit = link.last_sign(closed) + link.patience() + GRACE;
        if tokio::time::timeout_at(limit, link.ended()).await.is_ok() {
            return;
        }
        if link.last_sign(closed) + link.patience() + GRACE <= Instant::now() {
            return link.kill();
        }
    }
}

pub(super) fn facts(worker: &WorkerLink) -> TokenFacts {
    let opened = worker.opened();
    TokenFacts {
        serial: opened.serial.clone(),
        model: opened.model.clone(),
        firmware_version: opened.firmware_version.clone(),
        sessions: opened.sessions,
    }
}

fn unreachable(node: &Node, reason: &str, retry_in: Duration) {
    let news = node.status.borrow().health != Health::Unreachable;
    if news {
        tracing::warn!(hsm = %node.spec.hsm, reason, "node unreachable");
    }
    node.status.send_modify(|status| {
        change(status, Health::Unreachable, reason);
        status.last_error = Some((reason.to_owned(), clock::now()));
        status.next_retry = Some(clock::now() + retry_in);
    });
}

fn refused(node: &Node, refusal: LoginRefusal) {
    let reason = match refusal {
        LoginRefusal::Incorrect => {
            "the token refused the password; it is not tried again until an operator allows one login"
        }
        LoginRefusal::Locked => "the token has locked the crypto user",
        LoginRefusal::NoUser => "the token has no crypto user of that name, or one without a password",
        LoginRefusal::LoggedInElsewhere => "the crypto user is logged in elsewhere",
        LoginRefusal::Unsettled => "an earlier login was never answered; allow one login to try once more",
        LoginRefusal::NotTried => "another HSM refused the password first; it was not tried here",
        LoginRefusal::Throttled => "too many wrong passwords were given for the crypto user; it was not tried here",
    };
    tracing::warn!(hsm = %node.spec.hsm, reason, "login refused");
    node.status.send_modify(|status| {
        change(status, Health::LoginRefused, reason);
        status.login_refusal = Some(refusal);
        status.last_error = Some((reason.to_owned(), clock::now()));
        status.next_retry = None;
    });
}

fn other_token(node: &Node, expected: &str, found: &str) {
    let reason = format!(
        "the token's serial number is {found}, not {expected}; no password is sent there. If it was replaced on purpose, resume the HSM"
    );
    tracing::error!(hsm = %node.spec.hsm, reason, "another token");
    node.status.send_modify(|status| {
        change(status, Health::WrongIdentity, &reason);
        status.last_error = Some((reason.clone(), clock::now()));
        status.next_retry = None;
    });
}

/// Resolves when told to stop, or when nobody could tell any more.
async fn stopped(mut stop: watch::Receiver<bool>) {
    let mut stop = pin!(stop.wait_for(|stop| *stop));
    let _ = stop.as_mut().await;
}

/// Between three quarters of `pause` and all of it, so that nodes do not come back in step.
pub(super) fn jittered(pause: Duration) -> Duration {
    let random = u32::from(uuid::Uuid::new_v4().as_bytes()[0]);
    pause - pause.mul_f64(0.25) * random / 255
}
