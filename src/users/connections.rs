//! The Connections of those who are logged in: one for each user of a cluster, for all of his logins together.
//!
//! ```text
//!   login, or a token's first use here ─▶ open ─▶ used
//!                                          │
//!   the last login logged out or expired ──┤
//!   another password, the user deleted ────┼─▶ closed: his workers leave
//!   the cluster not declared any more ─────┘
//! ```
//!
//! Who is logged in, the records say. What stands here of logins is forgotten whenever that changes.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::authz::Caller;
use crate::clock;
use crate::cluster::{self, Closing, Connection};
use crate::host::WorkerSpec;
use crate::keystore::{DRAIN_TIMEOUT, NotMade, Owner, worker_spec};
use crate::model::{ClusterId, HsmId, Password, Username};
use crate::node::{Passwords, heard_out};
use crate::records::{PasswordOwner, Unavailable, UserLoginRecord};

use super::prove::{Asking, asking};
use super::token::Whose;
use super::{Error, LoginToken, Users};

/// A login's end is looked for at its time, and no more seldom than this: the clock may be put forward.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Records that cannot be read are read again after this long.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// The login tokens that a caller shows: for each cluster, the first that is good counts.
#[derive(Debug, Default)]
pub struct ShownLogins(pub Vec<LoginToken>);

/// As whom a caller acts on a cluster, and by what.
#[derive(Debug, Clone)]
pub struct Acting {
    pub cluster: ClusterId,
    pub username: Username,
    /// One of its nodes serves, or did a moment ago.
    pub connection: Arc<Connection>,
}

/// Where a user's Connection is while he has one.
#[derive(Debug)]
pub(super) struct Seat {
    cluster: ClusterId,
    username: Username,
    /// Held while a Connection is opened or closed, and while a password of his is tried.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Set in the turn. Who only uses it does not wait for that: anybody may have a password of the user's tried, and it
    /// takes as long as an HSM likes.
    open: watch::Sender<Option<Arc<Connection>>>,
    /// The HSMs on which he has the password that he is logged in with.
    on: watch::Sender<BTreeSet<HsmId>>,
    /// One of his logins has ended, or ends at another time.
    changed: Notify,
}

impl Seat {
    pub(super) fn connection(&self) -> Option<Arc<Connection>> {
        self.open.borrow().clone()
    }
}

/// The nodes of a person's Connection.
struct UserNodes {
    username: Username,
    on: watch::Receiver<BTreeSet<HsmId>>,
}

impl Owner for UserNodes {
    fn worker_spec(&self, cluster: &ClusterId, hsm: &HsmId, settings: &cluster::NodeSettings) -> Option<WorkerSpec> {
        self.on.borrow().contains(hsm).then(|| worker_spec(cluster, hsm, settings, &self.username))
    }

    async fn others(&mut self) {
        if self.on.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Nobody changes a password while somebody is logged in with it.
    async fn may_exchange(&self) {}
}

/// The seats that somebody uses.
#[derive(Debug, Default)]
pub(super) struct Seats(Mutex<HashMap<(ClusterId, Username), Weak<Seat>>>);

/// Logins that were found in the records, by the hashes of their tokens.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<Found>);

#[derive(Debug, Default)]
struct Found {
    logins: HashMap<[u8; 32], Live>,
    /// Counts what was forgotten: who read the records before that has read too early.
    forgotten: u64,
}

#[derive(Debug)]
struct Live {
    caller: String,
    expires: SystemTime,
    acting: Acting,
}

impl Users {
    /// As whom the caller acts on the cluster, by the tokens that he shows. Waits until one of its nodes serves, or none is
    /// on its way there.
    pub async fn acting(
        &self,
        caller: &Caller,
        shown: &ShownLogins,
        cluster: &ClusterId,
        deadline: Instant,
    ) -> Result<Acting, Error> {
        let acting = match self.0.known.acting(caller, shown, cluster) {
            Some(acting) => acting,
            None => {
                let acting = tokio::time::timeout_at(deadline, self.act(caller, shown, cluster));
                let why = "a password of the user's is being tried".to_owned();
                acting.await.map_err(|_| Error::NotServed { cluster: cluster.clone(), why })??
            }
        };
        served(&acting.connection, deadline).await?;
        Ok(acting)
    }

    /// As whom alone: none of his nodes is waited for.
    pub async fn as_whom(&self, caller: &Caller, shown: &ShownLogins, cluster: &ClusterId) -> Result<Username, Error> {
        match self.0.known.acting(caller, shown, cluster) {
            Some(acting) => Ok(acting.username),
            None => Ok(self.first_good(caller, shown, cluster).await?.1.username),
        }
    }

    /// What [`Users::acting`] finds, by the records.
    async fn act(&self, caller: &Caller, shown: &ShownLogins, cluster: &ClusterId) -> Result<Acting, Error> {
        let forgotten = self.0.known.lock().forgotten;
        let (token, login) = self.first_good(caller, shown, cluster).await?;
        let (hash, expires) = (login.token_sha256, login.expires);
        let connection = self.connect(caller, token, login.clone()).await?;
        let acting = Acting { cluster: login.cluster, username: login.username, connection };
        let live = Live { caller: caller.name().to_owned(), expires, acting: acting.clone() };
        self.0.known.note(forgotten, hash, live);
        Ok(acting)
    }

    /// The first login to the cluster that the records know of those that are shown, and its token.
    async fn first_good<'a>(
        &self,
        caller: &Caller,
        shown: &'a ShownLogins,
        cluster: &ClusterId,
    ) -> Result<(&'a LoginToken, UserLoginRecord), Error> {
        let mut has_ended = false;
        for token in &shown.0 {
            match self.record_of(&token.sha256(), caller).await? {
                Some(login) if login.cluster == *cluster => return Ok((token, login)),
                Some(_) => {}
                None => has_ended = true,
            }
        }
        Err(if has_ended { Error::LoginExpired } else { Error::LoginRequired })
    }

    /// The Connection of a login that the records know: the one there is, or another, opened with the password that the
    /// token opens.
    async fn connect(
        &self,
        caller: &Caller,
        token: &LoginToken,
        login: UserLoginRecord,
    ) -> Result<Arc<Connection>, Error> {
        if let Some(connection) = self.seat(&login.cluster, &login.username).connection() {
            // It may be that of a login after this one.
            let login = self.record_of(&login.token_sha256, caller).await?;
            return login.map(|_| connection).ok_or(Error::LoginExpired);
        }
        let password = password_of(caller, token, &login)?;
        let (this, caller) = (self.clone(), caller.clone());
        // Its tasks outlive the caller, and the lane that he came in by.
        heard_out(self.0.runtime.spawn(async move { this.connect_with(&caller, login, password).await })).await
    }

    /// On the runtime that Connections live on.
    pub(super) async fn connect_with(
        &self,
        caller: &Caller,
        login: UserLoginRecord,
        password: Password,
    ) -> Result<Arc<Connection>, Error> {
        let cluster = self.declared(&login.cluster)?;
        let seated = async {
            let seat = self.seat(&login.cluster, &login.username);
            let _turn = seat.turn.lock().await;
            // It may have ended while others had the seat.
            let login = self.record_of(&login.token_sha256, caller).await?.ok_or(Error::LoginExpired)?;
            if let Some(connection) = seat.connection() {
                return Ok(connection);
            }
            let connection = self.open(&seat, &cluster, &login, password).await?;
            seat.open.send_replace(Some(connection.clone()));
            self.0.runtime.spawn(self.clone().follow(seat.clone(), connection.clone()));
            Ok(connection)
        };
        self.resting(&login.cluster, &login.username, seated).await?
    }

    /// A Connection of the HSMs that have the user. Those that are still to be given the password join once they have it.
    async fn open(
        &self,
        seat: &Seat,
        cluster: &cluster::Settings,
        login: &UserLoginRecord,
        password: Password,
    ) -> Result<Arc<Connection>, NotMade> {
        let (id, user) = (&login.cluster, &login.username);
        let record = self.0.records.crypto_user(id, user).await?;
        let owner = PasswordOwner { cluster: id.clone(), username: user.clone(), given: login.version };
        // The records know each login's password of kmsuser's as a new one: it is the host who knows that one was refused.
        let allowed = if *user == Username::kmsuser() { 1 } else { self.attempts_allowed(id, cluster, user).failures };
        let passwords = Passwords::of_person(self.0.records.clone(), owner, Arc::new(password), allowed);
        let has_him = |hsm: &&HsmId| match asking(record.as_ref(), user, hsm) {
            Asking::Yes => true,
            Asking::NotYet | Asking::NotHere => false,
        };
        seat.on.send_replace(cluster.nodes.keys().filter(has_him).cloned().collect());
        let nodes = UserNodes { username: user.clone(), on: seat.on.subscribe() };
        let connection = self.0.key_stores.make_connection(id, passwords, nodes).await?;
        for member in connection.members().iter() {
            connection.bring_up(member);
        }
        tracing::info!(cluster = %id, %user, "logging in on the HSMs");
        Ok(connection)
    }

    /// Has the user's HSMs logged in to, if they are not: at once, and nobody waits for it.
    pub(super) fn connect_soon(&self, caller: &Caller, token: &LoginToken, login: &UserLoginRecord) {
        let seat = self.seat(&login.cluster, &login.username);
        // When somebody has the turn just now, the first use is soon enough.
        if seat.connection().is_some() || seat.turn.try_lock().is_err() {
            return;
        }
        if let Ok(password) = password_of(caller, token, login) {
            self.connect_in_the_background(caller, login.clone(), password);
        }
    }

    pub(super) fn connect_in_the_background(&self, caller: &Caller, login: UserLoginRecord, password: Password) {
        let (this, caller) = (self.clone(), caller.clone());
        self.0.runtime.spawn(async move {
            let (cluster, user) = (login.cluster.clone(), login.username.clone());
            if let Err(error) = this.connect_with(&caller, login, password).await {
                tracing::warn!(%cluster, %user, %error, "the HSMs are logged in to at the first use instead");
            }
        });
    }

    /// An HSM has been given the user's password.
    pub(super) async fn is_given_on(&self, cluster: &ClusterId, user: &Username, hsm: &HsmId) {
        let seat = self.seat(cluster, user);
        let _turn = seat.turn.lock().await;
        seat.on.send_if_modified(|on| on.insert(hsm.clone()));
    }

    /// Closes the user's Connection, whose logins the records have ended: his workers are gone, or leaving.
    pub(super) async fn end(&self, cluster: &ClusterId, user: &Username) {
        let seat = self.seat(cluster, user);
        // Others may have the turn for long.
        self.0.known.forget_user(&seat);
        let _turn = seat.turn.lock().await;
        self.close(&seat).await;
    }

    /// A login has ended, or lasts longer than it did.
    pub(super) fn login_changed(&self, cluster: &ClusterId, user: &Username, token_sha256: &[u8; 32]) {
        self.forget_login(token_sha256);
        self.seat(cluster, user).changed.notify_one();
    }

    /// Whoever shows the login's token next is looked for in the records.
    pub(super) fn forget_login(&self, token_sha256: &[u8; 32]) {
        self.0.known.forget(|hash, _| hash == token_sha256);
    }

    /// Looks for the Connection's end: that of the last login, or of the cluster.
    async fn follow(self, seat: Arc<Seat>, connection: Arc<Connection>) {
        let mut declared = self.0.key_stores.declared().exchanges();
        loop {
            declared.borrow_and_update();
            let pause = match self.close_if_over(&seat, &connection).await {
                Ok(None) => return,
                Ok(Some(until)) => until.duration_since(clock::now()).unwrap_or_default().min(LOOK_EVERY),
                Err(error) => {
                    tracing::error!(cluster = %seat.cluster, user = %seat.username, %error, "who is logged in cannot be read");
                    READ_AGAIN
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = seat.changed.notified() => {}
                _ = declared.changed() => {}
                () = connection.closed() => return,
            }
        }
    }

    /// Until when somebody is logged in; `None` when nobody is any more, and the Connection is closed.
    async fn close_if_over(&self, seat: &Seat, connection: &Connection) -> Result<Option<SystemTime>, Unavailable> {
        let _turn = seat.turn.lock().await;
        if connection.is_closed() {
            return Ok(None);
        }
        if self.declared(&seat.cluster).is_ok() {
            let until = self.0.records.logged_in_until(&seat.cluster, &seat.username, clock::now()).await?;
            if until.is_some() {
                return Ok(until);
            }
        }
        self.close(seat).await;
        Ok(None)
    }

    /// In the user's turn.
    async fn close(&self, seat: &Seat) {
        let Seat { cluster, username, open, .. } = seat;
        let connection = open.send_replace(None);
        self.0.known.forget_user(seat);
        if let Some(connection) = connection {
            tracing::info!(%cluster, user = %username, "logging out on the HSMs");
            connection.close(Closing::Drain(DRAIN_TIMEOUT)).await;
        }
    }

    /// The user's seat, whether he has a Connection or not.
    pub(super) fn seat(&self, cluster: &ClusterId, user: &Username) -> Arc<Seat> {
        let mut seats = self.0.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (cluster.clone(), user.clone());
        if let Some(seat) = seats.get(&place).and_then(Weak::upgrade) {
            return seat;
        }
        seats.retain(|_, seat| seat.strong_count() > 0);
        let seat = Arc::new(Seat {
            cluster: cluster.clone(),
            username: user.clone(),
            turn: tokio::sync::Mutex::default(),
            open: watch::Sender::default(),
            on: watch::Sender::default(),
            changed: Notify::new(),
        });
        seats.insert(place, Arc::downgrade(&seat));
        seat
    }

    /// A login of the caller's that has not ended.
    pub(super) async fn record_of(
        &self,
        token_sha256: &[u8; 32],
        caller: &Caller,
    ) -> Result<Option<UserLoginRecord>, Unavailable> {
        self.0.records.user_login(token_sha256, caller.name(), clock::now()).await
    }
}

fn password_of(caller: &Caller, token: &LoginToken, login: &UserLoginRecord) -> Result<Password, Error> {
    let whose = Whose { cluster: &login.cluster, username: &login.username, caller };
    token.open(whose, &login.sealed).ok_or_else(|| {
        tracing::error!(cluster = %login.cluster, user = %login.username, "a login's password does not open with its token");
        Error::LoginExpired
    })
}

/// Waits until a node serves. Nobody, when none is on its way there.
async fn served(connection: &Connection, deadline: Instant) -> Result<(), Error> {
    if connection.any_proved() {
        return Ok(());
    }
    let decided =
        connection.until(|| connection.any_proved() || connection.is_closed() || !connection.any_on_its_way());
    let _ = tokio::time::timeout_at(deadline, decided).await;
    if connection.any_proved() {
        return Ok(());
    }
    let members = connection.members();
    let reasons = members.iter().map(|member| {
        let status = member.node.status();
        let reason = status.borrow().reason.clone();
        format!("{}: {reason}", member.node.hsm())
    });
    Err(Error::NotServed { cluster: connection.user().cluster, why: reasons.collect::<Vec<_>>().join("; ") })
}

impl Known {
    fn acting(&self, caller: &Caller, shown: &ShownLogins, cluster: &ClusterId) -> Option<Acting> {
        let now = clock::now();
        let hashes: Vec<_> = shown.0.iter().map(LoginToken::sha256).collect();
        let found = self.lock();
        let mut live = hashes.iter().filter_map(|hash| found.logins.get(hash));
        let live = live.find(|live| live.acting.cluster == *cluster && live.is_good(caller, now))?;
        Some(live.acting.clone())
    }

    /// Keeps what was read when so much had been forgotten, unless there is more by now.
    fn note(&self, forgotten: u64, token_sha256: [u8; 32], live: Live) {
        let now = clock::now();
        let mut found = self.lock();
        if found.forgotten == forgotten {
            // So that there are no more of them than logins.
            found.logins.retain(|_, live| live.expires > now);
            found.logins.insert(token_sha256, live);
        }
    }

    fn forget_user(&self, Seat { cluster, username, .. }: &Seat) {
        self.forget(|_, live| live.acting.cluster == *cluster && live.acting.username == *username);
    }

    fn forget(&self, such: impl Fn(&[u8; 32], &Live) -> bool) {
        let mut found = self.lock();
        found.forgotten += 1;
        found.logins.retain(|hash, live| !such(hash, live));
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn is_good(&self, caller: &Caller, now: SystemTime) -> bool {
        self.caller == caller.name() && now < self.expires && !self.acting.connection.is_closed()
    }
}
