//! `CheckCluster`: what is shown, and the findings in messages.

use tonic::Status;

use crate::authz::{Permit, action};
use crate::keystore::Shown;
use crate::keystore::prerequisites::{Check, Phase, Subject, Unmet, Verdict};
use crate::model::{ClusterId, Password};
use crate::proto::v1 as pb;

use super::{Faces, convert, status, tell};

pub(super) async fn check(
    faces: &Faces,
    permit: Permit<action::CheckCluster>,
    cluster: &ClusterId,
    asked: pb::CheckClusterRequest,
) -> Result<pb::CheckClusterResponse, Status> {
    // What is wrong with them is a finding like any other, and no error.
    let trust_anchor = asked.trust_anchor_certificate.map(|pem| convert::trust_anchor(&pem));
    let password = asked.key_store_password.map(|text| Password::for_key_store(text).map_err(|rule| rule.to_string()));
    let shown = Shown { trust_anchor, password };
    let checks = faces.0.key_stores.check(permit, cluster, shown).await.map_err(status::key_store)?;
    let passed = !checks.iter().any(|check| matches!(check.verdict, Verdict::Failed(_)));
    Ok(pb::CheckClusterResponse { passed, checks: checks.iter().map(told).collect() })
}

fn told(check: &Check) -> pb::Check {
    let found = pb::Check {
        name: check.rule.name().to_owned(),
        phase: phase(check.phase).into(),
        subject: match &check.subject {
            Subject::Cluster => String::new(),
            Subject::Subnet(subnet) => subnet.to_string(),
            Subject::Hsm(hsm) => hsm.to_string(),
        },
        ..Default::default()
    };
    let unmet = |unmet: &Unmet| {
        let reason = unmet.reason(check.phase);
        pb::Check {
            reason: reason.to_owned(),
            problem: unmet.to_string(),
            remedy: unmet.remedy(),
            help_url: tell::help_url(reason),
            ..found.clone()
        }
    };
    match &check.verdict {
        Verdict::Passed => pb::Check { status: pb::CheckStatus::Passed.into(), ..found },
        Verdict::Skipped { why, remedy } => {
            let remedy = remedy.unwrap_or_default().to_owned();
            pb::Check { status: pb::CheckStatus::Skipped.into(), problem: why.clone(), remedy, ..found }
        }
        Verdict::Warning(it) => pb::Check { status: pb::CheckStatus::Warning.into(), ..unmet(it) },
        Verdict::Failed(it) => pb::Check { status: pb::CheckStatus::Failed.into(), ..unmet(it) },
    }
}

const fn phase(phase: Phase) -> pb::CheckPhase {
    match phase {
        Phase::Create | Phase::Move => pb::CheckPhase::Create,
        Phase::Connect | Phase::Connecting => pb::CheckPhase::Connect,
        Phase::CreateKey => pb::CheckPhase::CreateKey,
        Phase::Use => pb::CheckPhase::Use,
    }
}
