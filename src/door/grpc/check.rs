//! `CheckCluster`: what is shown, and the findings in messages.

use tonic::Status;

use crate::authz::{Permit, action};
use crate::keystore::CheckInput;
use crate::keystore::prerequisites::{Check, CheckPhase, Finding, Subject, Unmet};
use crate::model::{ClusterId, Password};
use crate::proto::v1 as pb;

use super::{Faces, Pages, convert, status};

pub(super) async fn check(
    faces: &Faces,
    permit: Permit<action::CheckCluster>,
    cluster: &ClusterId,
    asked: pb::CheckClusterRequest,
) -> Result<pb::CheckClusterResponse, Status> {
    // What is wrong with them is a finding like any other, and no error.
    let trust_anchor = asked.trust_anchor_certificate.map(|pem| convert::trust_anchor(&pem));
    let password = asked.key_store_password.map(|text| Password::for_key_store(text).map_err(|rule| rule.to_string()));
    let input = CheckInput { trust_anchor, password };
    let checks = faces.0.key_stores.check(permit, cluster, input).await.map_err(status::key_store)?;
    let passed = !checks.iter().any(|check| matches!(check.finding, Finding::Failed(_)));
    Ok(pb::CheckClusterResponse { passed, checks: checks.iter().map(|check| told(check, &faces.0.pages)).collect() })
}

fn told(check: &Check, pages: &Pages) -> pb::Check {
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
            help_url: pages.of(reason),
            ..found.clone()
        }
    };
    match &check.finding {
        Finding::Passed => pb::Check { status: pb::CheckStatus::Passed.into(), ..found },
        Finding::Skipped { why, remedy } => {
            let remedy = remedy.unwrap_or_default().to_owned();
            pb::Check { status: pb::CheckStatus::Skipped.into(), problem: why.clone(), remedy, ..found }
        }
        Finding::Warning(it) => pb::Check { status: pb::CheckStatus::Warning.into(), ..unmet(it) },
        Finding::Failed(it) => pb::Check { status: pb::CheckStatus::Failed.into(), ..unmet(it) },
    }
}

const fn phase(phase: CheckPhase) -> pb::CheckPhase {
    match phase {
        CheckPhase::Create | CheckPhase::Move => pb::CheckPhase::Create,
        CheckPhase::Connect | CheckPhase::Connecting => pb::CheckPhase::Connect,
        CheckPhase::CreateKey => pb::CheckPhase::CreateKey,
        CheckPhase::Use => pb::CheckPhase::Use,
    }
}
