//! The hosts of other machines: how a daemon reaches a `keyway node`, and what it asks of it.
//!
//! Nothing here knows a token, a library or a PIN of an SO: the node does. Certificates are read at each connection, so
//! that new ones need no restart.

mod users;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio_rustls::client::TlsStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::link;
use crate::link::v1::response::Outcome;
use crate::link::v1::{self, summon};
use crate::model::{ClusterId, HsmId, TrustAnchor};
use crate::proto::node::administration_service_client::AdministrationServiceClient;
use crate::proto::node::identity_service_client::IdentityServiceClient;
use crate::proto::node::{IdentifyRequest, IdentifyResponse, KeepTokenRequest, identify_response};
use crate::tls::{self, ClientFiles};

use super::carry::{SILENCE, Side, carry};
use super::process::Carried;
use super::{OpeningError, Purpose, RemoteNode, WorkerLink, WorkerProcess, WorkerSpec, fault, milliseconds, slot};

/// A connection is made, with its certificates looked at, within this time.
const DIALLING: Duration = Duration::from_secs(5);
/// A call on the identity or administration port.
const CALL: Duration = Duration::from_secs(10);

/// A node that says nothing to this for as long again is gone, however long the call may take.
const KEEP_ALIVE: Duration = Duration::from_secs(4);

/// What is spoken on the sessions port.
pub(super) const LINK_PROTOCOL: &[u8] = b"keyway-link";
/// What is spoken on the others.
pub(super) const SERVICE_PROTOCOL: &[u8] = b"h2";

/// Why a node is not spoken to.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Somebody is there, whose certificate the trust anchor did not sign.
    #[error("its certificate is not one of the cluster's: {0}")]
    Untrusted(String),
    #[error("{0}")]
    Failed(String),
}

/// Reaches other hosts, as whoever it is.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    /// What is shown to them. `None`: there are none.
    identity: Option<ClientFiles>,
}

impl Remote {
    pub(super) const fn new(identity: Option<ClientFiles>) -> Self {
        Self { identity }
    }

    pub(super) const fn has_identity(&self) -> bool {
        self.identity.is_some()
    }

    /// Has the node start a worker and open its token.
    pub(super) async fn open(
        &self,
        spec: &WorkerSpec,
        node: &RemoteNode,
        purpose: Purpose,
    ) -> Result<WorkerLink, OpeningError> {
        self.summon(spec, node, purpose.on_the_link(), purpose.sessions(spec)).await
    }

    /// Has the node open a user's token for one login, once no other worker uses it.
    pub(super) async fn open_alone(&self, spec: &WorkerSpec, node: &RemoteNode) -> Result<WorkerLink, OpeningError> {
        self.summon(spec, node, summon::Purpose::TryAlone, Purpose::Try.sessions(spec)).await
    }

    /// Has the node keep the slot free of workers, as long as the link lasts.
    pub(super) async fn vacate(&self, spec: &WorkerSpec, node: &RemoteNode) -> Result<WorkerLink, OpeningError> {
        self.summon(spec, node, summon::Purpose::Vacate, 0).await
    }

    /// Has the node keep a copy of the token.
    pub(super) async fn keep_token(&self, spec: &WorkerSpec, node: &RemoteNode) -> Result<(), OpeningError> {
        let ask = KeepTokenRequest {
            cluster: spec.cluster.to_string(),
            hsm: spec.hsm.to_string(),
            username: spec.username.to_string(),
        };
        let kept = self.administration(node, CALL).await?.keep_token(ask).await;
        kept.map(drop).map_err(|status| said(node, &spec.hsm, &status))
    }

    /// Whether the node that answers has a certificate under this trust anchor.
    pub(super) async fn believe(&self, node: &RemoteNode, anchor: &TrustAnchor) -> Result<(), DialError> {
        self.identify(node, anchor).await.map(drop)
    }

    /// Whether it is one under its trust anchor that has this HSM.
    pub(super) async fn has(&self, node: &RemoteNode, cluster: &ClusterId, hsm: &HsmId) -> Result<(), DialError> {
        let told = self.identify(node, &node.trust_anchor).await?;
        let is_it = |it: &identify_response::Hsm| it.cluster == cluster.as_str() && it.hsm == hsm.as_str();
        if told.hsms.iter().any(is_it) {
            return Ok(());
        }
        let why = format!("{} has no {hsm} of {cluster}; declare it in its node.toml", node.address);
        Err(DialError::Failed(why))
    }

    async fn identify(&self, node: &RemoteNode, anchor: &TrustAnchor) -> Result<IdentifyResponse, DialError> {
        let channel = self.channel(node, node.ports.identity, anchor, CALL).await?;
        let told = IdentityServiceClient::new(channel).identify(IdentifyRequest {}).await;
        told.map(tonic::Response::into_inner).map_err(|status| DialError::Failed(status.message().to_owned()))
    }

    async fn summon(
        &self,
        spec: &WorkerSpec,
        node: &RemoteNode,
        purpose: summon::Purpose,
        sessions: u32,
    ) -> Result<WorkerLink, OpeningError> {
        let dialled = self.dial(node, node.ports.sessions, &node.trust_anchor, LINK_PROTOCOL).await;
        let connection = dialled.map_err(|error| unreachable(node, &error))?;
        let (ours, carrys) = UnixStream::pair().map_err(OpeningError::Spawn)?;
        let carried = Carried {
            host: node.address.to_string(),
            kill: Arc::new(Notify::new()),
            cut: Arc::new(OnceLock::new()),
            died: Arc::new(AtomicBool::new(false)),
        };
        let side = Side::Daemons { kill: carried.kill.clone(), died: carried.died.clone() };
        let cut = carried.cut.clone();
        tokio::spawn(async move {
            // Told before the local socket ends, so that whoever sees it end can say why.
            carry(connection, carrys, side, |why| drop(cut.set(why.to_string()))).await;
        });
        let mut link = WorkerLink::carried(ours, WorkerProcess::carried(carried), spec.hsm.clone());
        let summon = v1::Summon {
            contract: link::CONTRACT,
            cluster: spec.cluster.to_string(),
            hsm: spec.hsm.to_string(),
            username: spec.username.to_string(),
            purpose: purpose.into(),
            sessions,
            patience_ms: milliseconds(spec.patience.quick),
            slow_patience_ms: milliseconds(spec.patience.slow),
        };
        link.summon(summon, slot_wait(spec)).await?;
        Ok(link)
    }

    /// The service for what is done to tokens beside any link, for one call of so long.
    async fn administration(
        &self,
        node: &RemoteNode,
        limit: Duration,
    ) -> Result<AdministrationServiceClient<Channel>, OpeningError> {
        let channel = self.channel(node, node.ports.administration, &node.trust_anchor, limit).await;
        Ok(AdministrationServiceClient::new(channel.map_err(|error| unreachable(node, &error))?))
    }

    async fn dial(
        &self,
        node: &RemoteNode,
        port: u16,
        anchor: &TrustAnchor,
        protocol: &[u8],
    ) -> Result<TlsStream<TcpStream>, DialError> {
        let failed = |why: &dyn std::fmt::Display| DialError::Failed(why.to_string());
        let files = self.identity.as_ref().ok_or_else(|| failed(&"this daemon has no certificate for nodes"))?;
        let connector = tls::connector(files, anchor, protocol).map_err(|error| failed(&error))?;
        let name = ServerName::try_from(node.address.as_str().to_owned()).map_err(|error| failed(&error))?;
        let connecting = async {
            let stream = TcpStream::connect((node.address.as_str(), port)).await.map_err(|error| failed(&error))?;
            stream.set_nodelay(true).map_err(|error| failed(&error))?;
            connector.connect(name, stream).await.map_err(|error| untrusted(&error).unwrap_or_else(|| failed(&error)))
        };
        let connected = tokio::time::timeout(DIALLING, connecting).await;
        connected.unwrap_or_else(|_| Err(failed(&format_args!("no answer within {DIALLING:?}"))))
    }

    async fn channel(
        &self,
        node: &RemoteNode,
        port: u16,
        anchor: &TrustAnchor,
        limit: Duration,
    ) -> Result<Channel, DialError> {
        let stream = self.dial(node, port, anchor, SERVICE_PROTOCOL).await?;
        let mut once = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_| {
            let stream = once.take().ok_or_else(|| std::io::Error::other("one call has one connection"));
            std::future::ready(stream)
        });
        // The name is only what HTTP wants to see; whom we speak to is settled.
        let endpoint = Endpoint::from_static("https://node")
            .timeout(limit)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        endpoint.connect_with_connector(connector).await.map_err(|error| DialError::Failed(error.to_string()))
    }
}

impl Purpose {
    const fn on_the_link(self) -> summon::Purpose {
        match self {
            Self::Serve => summon::Purpose::Serve,
            Self::Administer => summon::Purpose::Administer,
            // No daemon's business: the node does it itself, asked on its administration port.
            Self::MakeToken => summon::Purpose::Unspecified,
            Self::Try => summon::Purpose::Try,
            Self::Look => summon::Purpose::Look,
        }
    }
}

/// How long the node may wait for a slot: it may not have noticed yet that a former daemon of this slot is gone.
fn slot_wait(spec: &WorkerSpec) -> Duration {
    SILENCE + slot::longest_wait(spec.patience.longest())
}

/// What the node answered in place of what was asked for. When that was not the node itself, nobody knows what was done.
fn said(node: &RemoteNode, hsm: &HsmId, status: &Status) -> OpeningError {
    let response = v1::Response::decode(status.details()).unwrap_or_default();
    match response.outcome {
        Some(Outcome::Fault(fault)) => OpeningError::Fault(fault),
        Some(Outcome::HostFault(fault)) => fault::heard(fault, hsm),
        _ => OpeningError::Cut { host: node.address.to_string(), why: status.message().to_owned() },
    }
}

fn unreachable(node: &RemoteNode, error: &DialError) -> OpeningError {
    OpeningError::Unreachable { host: node.address.to_string(), why: error.to_string() }
}

/// Whether the trust anchor did not sign its certificate. One that it signed and that is bad otherwise (expired, or for
/// another name) says nothing against the anchor.
fn untrusted(error: &std::io::Error) -> Option<DialError> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(why @ (CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            Some(DialError::Untrusted(why.to_string()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_certificate_that_the_anchor_did_not_sign_speaks_against_the_anchor() {
        let failed = |why| std::io::Error::other(rustls::Error::InvalidCertificate(why));
        for why in [CertificateError::UnknownIssuer, CertificateError::BadSignature] {
            assert!(matches!(untrusted(&failed(why)), Some(DialError::Untrusted(_))));
        }
        for why in [CertificateError::Expired, CertificateError::NotValidForName, CertificateError::Revoked] {
            assert!(untrusted(&failed(why)).is_none());
        }
        assert!(untrusted(&std::io::Error::other("the connection was closed")).is_none());
    }
}
