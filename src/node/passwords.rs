//! A crypto user's passwords on the nodes of one cluster: which one a node is offered, as the records have it.
//!
//! Nodes may have different ones: where a rotation was cut short, and where it was missed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, RwLock, watch};

use crate::model::{HsmId, Password, PasswordVersion, Username};
use crate::records::{CandidateFate, LoginAnswer, NodePassword, PasswordOwner, Records, Standing, Unavailable};

use super::LoginRefusal;
use super::gate::{Gate, Verdict};
use super::settle::{self, Move, Settled, Which};

/// What cannot be read is read again after this long.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// A crypto user's password, and which one it is.
#[derive(Debug)]
pub struct Credential {
    pub username: Username,
    pub password: Arc<Password>,
    pub version: PasswordVersion,
}

/// Whether the nodes of a cluster have their passwords each for itself, or one that the cluster itself hands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// A node that was never logged in to has what the operator gave.
    EachItsOwn,
    /// A node that was never logged in to has what its siblings have.
    OneForAll,
}

/// Where the passwords themselves are.
#[derive(Debug)]
enum Kept {
    /// Sealed, in the records: a key store's, which logs in by itself whenever it must.
    InRecords,
    /// In memory alone: a person's, as long as he is logged in.
    Here { password: Arc<Password>, failures_allowed: u32 },
}

/// The passwords of one crypto user on one cluster.
#[derive(Debug)]
pub struct Passwords {
    records: Records,
    owner: PasswordOwner,
    kept: Kept,
    sharing: Sharing,
    gates: Mutex<BTreeMap<PasswordVersion, Arc<Gate>>>,
    /// Counts the nodes that have accepted a candidate.
    confirmed: watch::Sender<u64>,
    /// Read-locked by each change that is under way.
    changes: Arc<RwLock<()>>,
}

/// A password may be being changed, until this is dropped.
#[derive(Debug)]
pub struct UnderWay {
    _held: OwnedRwLockReadGuard<()>,
}

/// What a node is offered.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) credential: Credential,
    pub(super) which: Which,
    /// What the node had said of it before.
    pub(super) standing: Standing,
    on: NodePassword,
    candidate: Option<Standing>,
}

impl Offer {
    /// Whether the node may have another password than this one.
    pub(super) fn is_one_of_two(&self) -> bool {
        match self.which {
            Which::Candidate => true,
            Which::Confirmed => self.candidate == Some(Standing::Unsettled),
        }
    }
}

impl Passwords {
    /// What a person gave, who has it on every node. It is not offered where so many logins of the user's have failed in a
    /// row, and once more where it was accepted before.
    pub fn of_person(records: Records, owner: PasswordOwner, password: Arc<Password>, failures_allowed: u32) -> Self {
        Self::new(records, owner, Sharing::EachItsOwn, Kept::Here { password, failures_allowed })
    }

    /// A key store's, as the records have them: with a gate for each that one of the nodes has.
    pub async fn of(
        records: Records,
        owner: PasswordOwner,
        nodes: impl Iterator<Item = &HsmId>,
        sharing: Sharing,
    ) -> Result<Self, Unavailable> {
        let passwords = Self::new(records, owner, sharing, Kept::InRecords);
        for hsm in nodes {
            passwords.gate(passwords.on(hsm).await?.confirmed).await?;
        }
        Ok(passwords)
    }

    fn new(records: Records, owner: PasswordOwner, sharing: Sharing, kept: Kept) -> Self {
        Self {
            records,
            owner,
            kept,
            sharing,
            gates: Mutex::default(),
            confirmed: watch::Sender::new(0),
            changes: Arc::default(),
        }
    }

    pub fn owner(&self) -> &PasswordOwner {
        &self.owner
    }

    pub fn username(&self) -> &Username {
        &self.owner.username
    }

    /// Tells each time that a node has accepted its candidate, which may date a rotation.
    pub fn confirmations(&self) -> watch::Receiver<u64> {
        self.confirmed.subscribe()
    }

    /// To be held by whatever goes on changing a password when its connect is given up.
    pub async fn change_begins(&self) -> UnderWay {
        UnderWay { _held: self.changes.clone().read_owned().await }
    }

    /// Resolves when no change is under way any more.
    pub async fn changes_ended(&self) {
        let _ = self.changes.write().await;
    }

    /// Which password a node has, and which it may have been given.
    pub async fn on(&self, hsm: &HsmId) -> Result<NodePassword, Unavailable> {
        let known = self.records.node_passwords(&self.owner).await?;
        if let Some(here) = known.get(hsm) {
            return Ok(*here);
        }
        let newest = known.values().map(|there| there.confirmed).max().filter(|_| self.sharing == Sharing::OneForAll);
        Ok(NodePassword::unchanged(newest.unwrap_or(self.owner.given)))
    }

    /// The password of a node, once there is no doubt about it.
    pub async fn settled(&self, hsm: &HsmId) -> Result<Option<Credential>, Unavailable> {
        match self.on(hsm).await? {
            NodePassword { confirmed, candidate: None } => Ok(Some(self.credential(confirmed).await?)),
            NodePassword { candidate: Some(_), .. } => Ok(None),
        }
    }

    /// The password with which the node is to be logged in to next, or that there is none.
    pub(super) async fn offer(&self, hsm: &HsmId) -> Result<Result<Offer, LoginRefusal>, Unavailable> {
        loop {
            let on = self.on(hsm).await?;
            let confirmed = self.standing(hsm, on.confirmed).await?;
            let candidate = match on.candidate {
                Some(version) => Some((version, self.standing(hsm, version).await?)),
                None => None,
            };
            let of_candidate = candidate.map(|(_, standing)| standing);
            let (version, which, standing) = match (settle::next(confirmed, of_candidate), candidate) {
                (Move::Stop(refusal), _) => return Ok(Err(refusal)),
                (Move::DropCandidate, Some((version, _))) => {
                    self.drop_candidate(hsm, version).await?;
                    continue;
                }
                (Move::Offer(Which::Candidate), Some((version, standing))) => (version, Which::Candidate, standing),
                (Move::Offer(_) | Move::DropCandidate, _) => (on.confirmed, Which::Confirmed, confirmed),
            };
            let credential = self.credential(version).await?;
            return Ok(Ok(Offer { credential, which, standing, on, candidate: of_candidate }));
        }
    }

    /// Whether the offer is still what it was.
    pub(super) async fn still_holds(&self, hsm: &HsmId, offer: &Offer) -> Result<bool, Unavailable> {
        Ok(self.on(hsm).await? == offer.on)
    }

    /// Writes down an answer to the offer, and with it what it says of the candidate: `verdict`, if it is one.
    pub(super) async fn answered(
        &self,
        hsm: &HsmId,
        offer: &Offer,
        answer: LoginAnswer,
        verdict: Option<settle::Verdict>,
    ) -> Result<(), Unavailable> {
        let PasswordOwner { cluster, username, .. } = &self.owner;
        let version = offer.credential.version;
        let settled = verdict.map_or(Settled::Nothing, |verdict| settle::after(offer.which, verdict, offer.candidate));
        let (Some(candidate), Some(fate)) = (offer.on.candidate, settled.fate()) else {
            return self.records.login_answered(cluster, hsm, username, version, answer).await;
        };
        let (answer, settled) = ((version, answer), (candidate, fate));
        self.records.login_settled(&self.owner, hsm, answer, settled).await?;
        match fate {
            CandidateFate::Confirmed => {
                #[cfg(debug_assertions)]
                crate::seams::stop_point("candidate-confirmed");
                tracing::info!(%hsm, version = candidate.0, "the password was changed");
                self.confirmed.send_modify(|count| *count += 1);
            }
            CandidateFate::Dropped => {
                tracing::warn!(%hsm, version = candidate.0, "the password was not changed there; its new one is dropped");
            }
            CandidateFate::OnceMore => {
                tracing::warn!(%hsm, "the old password is refused: it was changed, and the new one is tried once more");
            }
        }
        Ok(())
    }

    /// Resolves when another node has accepted the password that this one has, as it may have already.
    pub(super) async fn proved_elsewhere(&self, hsm: &HsmId) {
        let gate = loop {
            let found = match self.on(hsm).await {
                Ok(on) => self.gate(on.confirmed).await,
                Err(error) => Err(error),
            };
            match found {
                Ok(gate) => break gate,
                Err(error) => tracing::warn!(%hsm, %error, "which password it has cannot be read; trying again"),
            }
            tokio::time::sleep(READ_AGAIN).await;
        };
        gate.opened().await;
    }

    pub(super) async fn gate(&self, version: PasswordVersion) -> Result<Arc<Gate>, Unavailable> {
        if let Some(gate) = self.lock_gates().get(&version) {
            return Ok(gate.clone());
        }
        let standings = self.records.login_standing(&self.owner.cluster, &self.owner.username).await?;
        let gate = Arc::new(Gate::of(version, &standings));
        // Whoever came first: there is one gate for a password.
        Ok(self.lock_gates().entry(version).or_insert(gate).clone())
    }

    /// Whether a node has refused its password and no node was found to accept its own.
    pub fn are_refused(&self) -> bool {
        let gates = self.lock_gates();
        let verdicts = || gates.values().map(|gate| gate.verdict());
        verdicts().any(|verdict| verdict == Verdict::Refused) && !verdicts().any(|verdict| verdict == Verdict::Good)
    }

    /// Whether an operator had granted the HSM a login before the Connection began.
    pub fn have_granted_login(&self, hsm: &HsmId) -> bool {
        self.lock_gates().values().any(|gate| gate.has_granted(hsm))
    }

    /// An operator's act on one node: whichever password is offered there next may be offered once, whatever it said.
    pub async fn allow_one_login(&self, hsm: &HsmId) -> Result<(), Unavailable> {
        let NodePassword { confirmed, candidate } = self.on(hsm).await?;
        let PasswordOwner { cluster, username, .. } = &self.owner;
        self.records.allow_one_login(cluster, hsm, username, candidate.unwrap_or(confirmed)).await
    }

    /// Nodes that have this candidate are asked for the password they had before it, and for the candidate only when that
    /// is refused.
    pub async fn doubt(&self, hsms: &[HsmId], candidate: PasswordVersion) -> Result<(), Unavailable> {
        self.records.doubt_candidate(&self.owner, hsms, candidate).await
    }

    async fn drop_candidate(&self, hsm: &HsmId, candidate: PasswordVersion) -> Result<(), Unavailable> {
        tracing::warn!(%hsm, version = candidate.0, "the password was not changed there; its new one is dropped");
        self.records.drop_candidate(&self.owner, hsm, candidate).await
    }

    /// One of the passwords that a node has, or may have.
    pub async fn credential(&self, version: PasswordVersion) -> Result<Credential, Unavailable> {
        let password = match &self.kept {
            Kept::InRecords => Arc::new(self.records.password_of(&self.owner, version).await?),
            Kept::Here { password, .. } => password.clone(),
        };
        Ok(Credential { username: self.owner.username.clone(), password, version })
    }

    /// After how many failed logins in a row the offer is not made.
    pub(super) fn failures_allowed(&self, offer: &Offer) -> u32 {
        match (&self.kept, offer.standing) {
            // Key stores have a budget of their own, which never comes so far.
            (Kept::InRecords, _) => u32::MAX,
            // What the node has accepted is hardly wrong now, and an operator knows why he allows it: worth the one more that
            // is short of the lock.
            (Kept::Here { failures_allowed, .. }, Standing::Proven | Standing::Granted) => failures_allowed + 1,
            (Kept::Here { failures_allowed, .. }, Standing::Untried | Standing::Unsettled | Standing::Refused) => {
                *failures_allowed
            }
        }
    }

    /// What a node has said of a password.
    pub async fn standing(&self, hsm: &HsmId, version: PasswordVersion) -> Result<Standing, Unavailable> {
        self.records.login_standing_on(&self.owner.cluster, hsm, &self.owner.username, version).await
    }

    fn lock_gates(&self) -> std::sync::MutexGuard<'_, BTreeMap<PasswordVersion, Arc<Gate>>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::records::Settings;

    #[tokio::test]
    async fn a_new_hsm_has_what_the_operator_gave_or_what_its_siblings_have() {
        let home = tempfile::tempdir().unwrap();
        let settings = Settings { database: home.path().join("records"), sealing_key: home.path().join("key") };
        let records = Records::open(&settings).await.unwrap();
        let mut owner = PasswordOwner {
            cluster: "cluster-2abcdefghij".parse().unwrap(),
            username: Username::kmsuser(),
            given: PasswordVersion(0),
        };
        let text = |text: &str| Password::trusted(text.to_owned());
        owner.given = records.new_password(&owner, &text("given"), clock::now(), 1).await.unwrap();
        let made = records.new_password(&owner, &text("made"), clock::now(), 1).await.unwrap();
        let (old, new): (HsmId, HsmId) = ("hsm-1".parse().unwrap(), "hsm-2".parse().unwrap());
        assert!(records.set_candidate(&owner, &[(old.clone(), owner.given)], made).await.unwrap());
        let (accepted, confirmed) = ((made, LoginAnswer::Accepted), (made, CandidateFate::Confirmed));
        records.login_settled(&owner, &old, accepted, confirmed).await.unwrap();
        for (sharing, version) in [(Sharing::EachItsOwn, owner.given), (Sharing::OneForAll, made)] {
            let both = [&old, &new].into_iter();
            let passwords = Passwords::of(records.clone(), owner.clone(), both, sharing).await.unwrap();
            assert_eq!(passwords.on(&old).await.unwrap(), NodePassword::unchanged(made));
            assert_eq!(passwords.on(&new).await.unwrap(), NodePassword::unchanged(version), "{sharing:?}");
            let there = passwords.settled(&new).await.unwrap().unwrap();
            assert_eq!((there.version, there.username), (version, Username::kmsuser()));
        }
    }
}
