//! Members come and go while a Connection is open: whoever joins is brought up, whoever leaves is drained first.
//!
//! The members are exchanged as a whole. Whoever leaves answers what it has begun, and takes nothing more; a request that it
//! did not take goes to those that there are then. Who is to be a member is for the rooms above.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::model::HsmId;
use crate::node::Node;
use crate::records::Unavailable;

use super::connection::Connection;
use super::member::{Member, Members};
use super::prove;

impl Connection {
    /// Tells each exchange of the members.
    pub fn membership(&self) -> watch::Receiver<Members> {
        self.members.subscribe()
    }

    /// Takes a node in, and starts keeping it up. What it lacks is known before anybody sees it, let alone asks it.
    pub async fn join(self: &Arc<Self>, node: Arc<Node>) -> Result<(), Unavailable> {
        let member = Arc::new(Member::new(node, &self.learnt));
        prove::note_missing(self, &member).await?;
        self.exchange(|members| {
            let place = members.partition_point(|other| other.node.hsm() < member.node.hsm());
            members.insert(place, member.clone());
        });
        self.bring_up(&member);
        Ok(())
    }

    /// Drains a member, whose running calls get `limit`, logs it out and lets it go. `why` is told meanwhile.
    pub async fn part_with(&self, member: &Arc<Member>, why: &str, limit: Duration) {
        member.node.drain_out(why, limit).await;
        member.take_down().await;
        self.exchange(|members| members.retain(|other| !Arc::ptr_eq(other, member)));
        // Somebody may have brought it up once more while it was a member.
        member.take_down().await;
    }

    pub(super) fn is_member(&self, member: &Arc<Member>) -> bool {
        self.members.borrow().iter().any(|other| Arc::ptr_eq(other, member))
    }

    /// Resolves when the member has left.
    pub async fn parted(&self, member: &Arc<Member>) {
        self.none_is(|other| Arc::ptr_eq(other, member)).await;
    }

    /// Resolves when no member is on this HSM.
    pub async fn left(&self, hsm: &HsmId) {
        self.none_is(|member| member.node.hsm() == hsm).await;
    }

    async fn none_is(&self, such: impl Fn(&Arc<Member>) -> bool) {
        let _ = self.membership().wait_for(|members| !members.iter().any(&such)).await;
    }

    fn exchange(&self, change: impl FnOnce(&mut Vec<Arc<Member>>)) {
        self.members.send_modify(|members| {
            let mut changed = members.to_vec();
            change(&mut changed);
            *members = changed.into();
        });
        self.changed();
    }
}
