//! A cluster is put under its owner's authority, once.

use crate::authz::{Permit, action};
use crate::clock;
use crate::model::{self, ClusterId, TrustAnchor};

use super::error::Certificate;
use super::{Error, MadeClusters};

impl MadeClusters {
    /// INITIALIZED from now on: the certificate is for the key of the cluster's request, and this authority issued it. Done
    /// before with the same certificates, it is done.
    pub async fn initialize(
        &self,
        _permit: Permit<action::InitializeCluster>,
        id: &ClusterId,
        signed: model::Certificate,
        trust_anchor: TrustAnchor,
    ) -> Result<(), Error> {
        let (this, id) = (self.clone(), id.clone());
        self.outlive(async move { this.initialize_now(&id, &signed, &trust_anchor).await }).await
    }

    async fn initialize_now(
        &self,
        id: &ClusterId,
        signed: &model::Certificate,
        trust_anchor: &TrustAnchor,
    ) -> Result<(), Error> {
        let (_, record) = self.made(id).await?;
        if let Some((certificate, anchor)) = &record.initialized {
            let is_a_repeat = certificate == signed && anchor == trust_anchor;
            let initialized = || Error::Initialized { cluster: id.clone(), state: record.state };
            return if is_a_repeat { Ok(()) } else { Err(initialized()) };
        }
        let request = record.request.ok_or_else(|| Error::NothingToSign(id.clone()))?;
        for (which, certificate) in [(Certificate::Signed, signed), (Certificate::TrustAnchor, trust_anchor)] {
            certificate
                .is_valid_at(clock::now())
                .map_err(|why| Error::Certificate(which, format!("is refused: {why}")))?;
        }
        if !request.is_answered_by(signed) {
            let why = "is for another key than the cluster's certificate request: sign the cluster_csr that DescribeClusters shows";
            return Err(Error::Certificate(Certificate::Signed, why.to_owned()));
        }
        if !trust_anchor.has_issued(signed) {
            return Err(Error::NotIssued);
        }
        if !self.0.records.initialize_made_cluster(id, &request, signed, trust_anchor).await? {
            return Err(Error::Conflict);
        }
        self.0.key_stores.redeclare_made().await?;
        tracing::info!(cluster = %id, "the cluster was initialized");
        Ok(())
    }
}
